"""Shell completion, installed and asked for as a shell does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import polyak

POLYAK = str(Path(sys.executable).with_name("polyak"))


def completed(line: str) -> list[str]:
    """What bash is told to offer at the end of a line."""
    words = {"_POLYAK_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return polyak(**words).stdout.split()


def test_commands_options_and_choices_are_completed() -> None:
    assert completed("polyak s") == ["serve", "sweep", "synthesize"]
    assert completed("polyak gate --al") == ["--allow-missing"]
    assert completed("polyak average --shape ") == ["linear", "cosine", "1-sqrt"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
@pytest.mark.slow
def test_it_installs_itself_into_the_shell_that_runs_it(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    # Two commands, so that bash does not give its process to the first.
    line = ["bash", "-c", f"{POLYAK} --install-completion; true"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert "bash completion installed in" in done.stdout, done.stderr
    assert ".bash_completions/polyak.sh" in (tmp_path / ".bashrc").read_text()
    script = (tmp_path / ".bash_completions/polyak.sh").read_text()
    assert "_POLYAK_COMPLETE=complete_bash" in script
    shown = subprocess.run(
        ["bash", "-c", f"{POLYAK} --show-completion; true"], capture_output=True, text=True, check=False
    )
    assert shown.stdout.strip() == script.strip()
