"""Nothing that a file says commands the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from polyak.cli.console import printable, say_table
from tests.command_line import Done, polyak

TITLE = "\x1b]0;owned\x07"
EVIL = f"{TITLE}\x1b[2J\x9b2J\u202e权重[red]\nintegrity verified"


def harmless(done: Done) -> bool:
    lines = (done.stdout + done.stderr).splitlines()
    unsafe = [c for c in "\x1b\x07\x9b\u202e" for line in lines if c in line]
    return not unsafe and "integrity verified" not in lines


def test_ordinary_text_is_left_as_it_is() -> None:
    assert printable("encoder.权重.0 — café, 50 %") == "encoder.权重.0 — café, 50 %"


@pytest.mark.parametrize(
    "char", ["\x00", "\n", "\r", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066", "\udc80"]
)
def test_what_is_no_text_is_escaped(char: str) -> None:
    assert printable(f"a{char}b") == "a" + char.encode("unicode_escape").decode() + "b"


def test_inspect_shows_names_and_values_of_a_file_as_text(tmp_path: Path) -> None:
    net = {"w": torch.ones(1), EVIL: torch.ones(1)}
    torch.save(
        {"arch": EVIL, "state_dict": net, "epoch": 3, EVIL: EVIL, "ema": {EVIL: torch.ones(2)}},
        tmp_path / "a.pt",
    )
    done = polyak("inspect", "a.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert harmless(done)


def test_names_in_errors_are_text_in_one_line(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), EVIL: torch.ones(1)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "b.pt")
    done = polyak("average", "a.pt", "b.pt", "-o", "o.safetensors", cwd=tmp_path)
    assert done.returncode == 1
    assert harmless(done)
    assert "owned" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_names_of_files_are_text(tmp_path: Path) -> None:
    name = f"{TITLE}\u202e.safetensors"
    for file in (name, "b.safetensors"):
        save_file({"w": np.ones(2, np.float32)}, tmp_path / file)
    for words in (
        ("average", name, "b.safetensors", "-o", f"o{name}"),
        ("inspect", name),
        ("convert", name, f"c{name}"),
        ("gate", name, name, "--eval", "echo 1 {weights}"),
    ):
        done = polyak(*words, cwd=tmp_path)
        assert harmless(done), words
        assert "owned" in done.stdout + done.stderr, words


def test_no_text_is_taken_for_an_emoji_or_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    say_table((":factory:", ""), [(":dog:", "[red]x")], title="mine:factory: [bold]y")
    shown = capsys.readouterr().out
    assert all(words in shown for words in (":factory:", ":dog:", "[red]x", "mine:factory: [bold]y"))
