"""The C kernel compiles, without a warning, for machines that are not here: Zig's clang has their headers.

What it compiles for them is not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    import tomli as tomllib
else:
    import tomllib

ROOT = Path(__file__).parents[2]
[KERNEL] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
MACROS = [f"-D{name}={value}" for name, value in KERNEL["define-macros"]]
pytestmark = pytest.mark.skipif(find_spec("ziglang") is None, reason="needs ziglang, which make env installs")


def compiled(target: str, out: Path, *sources: str) -> str:
    """What the compiler says of these files; empty if it has nothing to say."""
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        target,
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-c",
    ]
    command += [*KERNEL["extra-compile-args"], *MACROS, f"-I{sysconfig.get_path('include')}"]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(out / "cache"), "ZIG_LOCAL_CACHE_DIR": str(out / "cache")}
    said = ""
    for source in sources:
        done = subprocess.run(
            [*command, source, "-o", out / f"{Path(source).stem}.o"],
            cwd=ROOT,
            env=os.environ | caches,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        said += done.stderr
    return said


@pytest.mark.parametrize(
    "target", ["aarch64-macos", "x86_64-macos", "aarch64-linux-gnu", "x86_64-linux-musl"]
)
def test_the_kernel_compiles(target: str, tmp_path: Path) -> None:
    assert compiled(target, tmp_path, *KERNEL["sources"]) == ""
    made = (tmp_path / "module.o").read_bytes()
    assert b"PyInit__native" in made
    assert made[:4] == (b"\xcf\xfa\xed\xfe" if "macos" in target else b"\x7fELF")


def test_windows_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The installation goes on without the kernel."""
    said = compiled("x86_64-windows-gnu", tmp_path, "native/pool.c")
    assert "the kernel needs POSIX threads; without it polyak runs in plain torch" in said
    assert said.count("error:") == 1


def test_a_warning_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("static int unused(void) { return 1; }\n")
    assert "unused" in compiled("aarch64-macos", tmp_path, str(source))
