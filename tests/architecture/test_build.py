"""What users install: the C kernel where there is a compiler, and everything else where there is none."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The tracked files alone, as an sdist has them."""
    folder = tmp_path / "sources"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def wheel(sources: Path, out: Path, **environment: str) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "-w", str(out), str(sources)]
    subprocess.run(command, check=True, env=os.environ | environment)
    return next(out.glob("*.whl"))


@pytest.mark.parametrize(("compiler", "kernels"), [("cc", 1), ("false", 0)])
def test_a_compiler_is_welcome_and_not_needed(
    sources: Path, tmp_path: Path, compiler: str, kernels: int
) -> None:
    built = wheel(sources, tmp_path / "out", CC=compiler)
    names = zipfile.ZipFile(built).namelist()
    assert sum(name.endswith(".abi3.so") for name in names) == kernels
    assert "cp310-abi3" in built.name, "one wheel for every Python from 3.10 on"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "installed")
    script = (
        "import torch, polyak; m = torch.nn.Linear(2, 2); e = polyak.EMA(m, 0.9); e.update();"
        "print(e.metrics()['engine'])"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("native" if kernels else "blocked (the C kernel was not built")


def test_a_wheel_for_every_platform_describes_itself_on_an_index(sources: Path, tmp_path: Path) -> None:
    built = wheel(sources, tmp_path, POLYAK_WITHOUT_KERNEL="1")
    assert built.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == []
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        shown = archive.read(metadata).decode()
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', shown)
    assert len(links) > 10
    assert [link for pair in links if not (link := "".join(pair)).startswith(("https://", "#"))] == []
