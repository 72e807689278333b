"""What the documentation shows, runs."""

import os
import re
import runpy
import shlex
import subprocess
from importlib.metadata import metadata
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from tests.command_line import polyak

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])
ENGLISH = [page for page in PAGES if ".zh" not in page.name]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PIPELINE = re.compile(r'^```yaml title="(\S+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
FILE = re.compile(r'^```python title="(\S+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'--8<-- "(.*)"')


def place(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[str]:
    return [block for block in BLOCK.findall(page.read_text()) if "--8<--" not in block]


def commands_of(page: Path) -> list[str]:
    return re.findall(r"^\$ (.*)$", "\n".join(CONSOLE.findall(page.read_text())), re.MULTILINE)


def test_there_are_examples_to_run() -> None:
    assert len(commands_of(ROOT / "docs" / "files.md")) > 5
    assert {place(page) for page in PAGES if blocks(page)} >= {"README.md", "docs/how-to/index.md"}


# Pages with commands run their Python before those; in Chinese pages it is the same.
@pytest.mark.parametrize(
    "page", [p for p in ENGLISH if blocks(p) and not CONSOLE.search(p.read_text())], ids=place
)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(page)), page.name, "exec"), {})


@pytest.mark.parametrize("page", [p for p in ENGLISH if CONSOLE.search(p.read_text())], ids=place)
def test_the_commands_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_path: str
) -> None:
    """After its Python, and with the files it shows."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    exec(compile("\n".join(blocks(page)), page.name, "exec"), {})
    for name, content in FILE.findall(text):
        Path(name).write_text(content)
    for command in commands_of(page):
        program, *arguments = shlex.split(command)
        assert program == "polyak"
        done = polyak(*arguments, PATH=warm_path)
        passed = (0, 1) if "gate" in command else (0,)  # a gate may close
        assert done.returncode in passed, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def scripts_of(pipeline: str) -> list[str]:
    """The shell scripts of a GitHub workflow or a GitLab pipeline, without the installation."""
    content = yaml.safe_load(pipeline)
    jobs = content["jobs"].values() if "jobs" in content else content.values()
    scripts = [step.get("run") for job in jobs for step in job.get("steps", ())]
    scripts += [line for job in jobs for line in job.get("script", ())]
    return [script for script in scripts if script and "--8<--" not in script]


@pytest.mark.parametrize("which", [0, 1])
def test_the_pipelines_of_the_gate_promote_a_better_file(
    which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "how-to" / "gate.md"
    exec(compile("\n".join(blocks(page)), page.name, "exec"), {})
    for name, content in FILE.findall(page.read_text()):
        Path(name).write_text(content)
    _, pipeline = PIPELINE.findall(page.read_text())[which]
    (script,) = scripts_of(pipeline)
    environment = os.environ | {"PATH": warm_path}
    subprocess.run(script, shell=True, env=environment, capture_output=True, check=True)
    assert Path("best.safetensors").read_bytes() == Path("new.safetensors").read_bytes()
    again = subprocess.run(script, shell=True, env=environment, capture_output=True, check=False)
    assert again.returncode == 1, "no better than itself"
    Path("evaluate.py").write_text("raise SystemExit(3)")
    broken = subprocess.run(script, shell=True, env=environment, capture_output=True, check=False)
    assert broken.returncode == 2


INSTALL = re.compile(r'pip install "[^"]*polyak\[(\w+)\][^"]*"')


def test_how_to_install_is_said_in_one_place() -> None:
    lines = (ROOT / "docs" / "install.sh").read_text()
    offered = metadata("polyak").get_all("Provides-Extra", [])
    assert set(INSTALL.findall(lines)) <= set(offered)
    for page in PAGES:
        for match in INSTALL.finditer(page.read_text()):
            assert page.name.startswith("README"), f"{place(page)} should include docs/install.sh"
            assert match[0] in lines


def test_over_five_seeds_the_tutorials_average_ends_with_the_lower_loss_and_is_calmer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    manual_seed, lower, calmer = torch.manual_seed, 0, 0
    for seed in range(5):
        monkeypatch.setattr(torch, "manual_seed", lambda _, seed=seed: manual_seed(seed))
        runpy.run_path(str(ROOT / "docs" / "tutorial.py"))
        pairs = re.findall(r"raw ([\d.]+)   average ([\d.]+)", capsys.readouterr().out)
        raw, average = ([float(pair[side]) for pair in pairs] for side in (0, 1))
        assert len(raw) == 4
        lower += average[-1] < raw[-1]
        calmer += sum(abs(b - a) for a, b in pairwise(average)) < sum(abs(b - a) for a, b in pairwise(raw))
    assert lower >= 4
    assert calmer >= 4
    assert (tmp_path / "average.safetensors").exists()


@pytest.mark.parametrize("page", ENGLISH, ids=place)
def test_every_page_is_there_in_chinese_with_the_same_code(page: Path) -> None:
    chinese = page.with_name(page.name.replace(".md", ".zh.md"))
    assert chinese.exists()
    strip = re.compile(r" *#.*$", re.MULTILINE)  # comments are translated
    code = lambda p: [strip.sub("", block) for block in BLOCK.findall(p.read_text())]  # noqa: E731
    assert code(chinese) == code(page)
    for fence in (CONSOLE, FILE, PIPELINE, DIFF, INCLUDED):
        assert fence.findall(chinese.read_text().replace(".zh.md", ".md")) == fence.findall(page.read_text())
