"""The kernel and its threads in programs of C: under the compiler's own watch, and under a late runtime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = [ROOT / "native" / "kernel.c", ROOT / "native" / "pool.c", Path(__file__).with_name("driver.c")]
GCC = shutil.which("gcc")


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@pytest.mark.parametrize("watch", ["address,undefined", "thread"])
def test_nothing_is_reported(watch: str, tmp_path: Path) -> None:
    program = tmp_path / "driver"
    flags = ["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", f"-fsanitize={watch}"]
    flags += ["-fno-sanitize-recover=all", "-fno-math-errno", "-fno-trapping-math", f"-I{ROOT / 'native'}"]
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    # Both the library and the way it lays out memory may be missing on a machine that has the compiler.
    if _run([GCC, *flags, empty, "-o", program]).returncode or _run([program]).returncode:
        pytest.skip(f"-fsanitize={watch} does not work here")
    built = _run([GCC, *flags, *SOURCES, "-lm", "-o", program])
    assert built.returncode == 0, built.stderr
    # A child of fork may not start threads under the watch for races.
    ran = _run([program, "fork"] if watch != "thread" else [program])
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(GCC is None, reason="needs gcc")
def test_a_runtime_whose_threads_come_late_is_left_alone_for_a_while(tmp_path: Path) -> None:
    program, driver = tmp_path / "crowded", Path(__file__).with_name("crowded.c")
    flags = ["-O1", "-g", "-pthread", "-rdynamic", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native'}"]
    built = _run([GCC, *flags, driver, ROOT / "native" / "pool.c", "-ldl", "-o", program])
    assert built.returncode == 0, built.stderr
    ran = _run([program])
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _run(command: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
