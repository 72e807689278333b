"""`polyak watch` as a process: it says where, follows, draws, and ends with Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from polyak.cli.dashboard import Dashboard, lines
from polyak.report.live import Live
from tests.command_line import ENV, POLYAK, polyak
from tests.processes import gone
from tests.report.runs import write_run
from tests.report.test_live import line

PIPE = subprocess.PIPE


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("".join(line(step, 1 + 1 / step) for step in range(1, 31)))
    return path


@contextmanager
def watching(*arguments: str | Path) -> Generator[subprocess.Popen[str]]:
    """The command with its output in pipes; it does not outlive the block."""
    command = [*POLYAK, "watch", *map(str, arguments)]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=os.environ | ENV) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_page_is_served_until_a_signal_comes_and_nothing_is_left(log: Path, how: signal.Signals) -> None:
    with watching(log.parent) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"<h1>run</h1>" in answer.read()
        process.send_signal(how)
        assert ended(process) == (0, "Ctrl-C stops it.\n", "")
    assert gone(process.pid)
    port = urlsplit(address).port
    assert port is not None
    assert_closed(port)
    assert sorted(path.name for path in log.parent.iterdir()) == ["metrics.jsonl"]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its status and the rest of what it said; ``communicate`` would lose what ``readline`` read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    return process.wait(60), process.stdout.read(), process.stderr.read()


def assert_closed(port: int) -> None:
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)


def test_where_there_is_no_screen_changes_are_lines(log: Path) -> None:
    with watching(log.parent, "--terminal", "--every", "0.2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "run: step 30: loss: raw 1.033, average 0.5167, gap -0.5167\n"
        with log.open("a") as file:
            file.write(line(31, 4.0))
        assert process.stdout.readline() == "run: step 31: loss: raw 4, average 2, gap -2\n"
        log.write_text(line(1, 8.0))  # begun anew
        assert process.stdout.readline() == "run: step 1: loss: raw 8, average 4, gap -4\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "", "")


def size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(terminal: int, wanted: str, seconds: float = 120) -> str:
    """What a terminal shows, up to a pattern."""
    seen, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 1 << 16)
        if re.search(wanted, seen.decode(errors="replace")):
            return seen.decode(errors="replace")
    raise AssertionError(f"{wanted!r} did not come: {seen.decode(errors='replace')!r}")


def test_a_terminal_is_drawn_on_follows_its_size_and_is_given_back(log: Path) -> None:
    ours, theirs = pty.openpty()
    size(theirs, 24, 80)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm-256color", "NO_COLOR": "1", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    command = [*POLYAK, "watch", str(log.parent), "--terminal", "--every", "0.2"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        assert "\x1b[?1049h" in read_until(ours, "└─{71}[^─]")
        size(theirs, 30, 60)
        read_until(ours, "└─{51}[^─]")
        with log.open("a") as file:
            file.write(line(31, 4.0))
        read_until(ours, r"31 +4 +2 +-2")
        process.send_signal(signal.SIGINT)
        left = read_until(ours, "gap -2\r\n")
        assert "\x1b[?1049l" in left
        assert "run: step 31: loss: raw 4, average 2, gap -2" in left.partition("\x1b[?1049l")[2]
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def screen(folder: Path, width: int, height: int, paths: int = 1) -> list[str]:
    from rich.console import Console

    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(Dashboard(Live([folder] * paths)), end="")
    return captured.get().splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (50, 40), (200, 12)])
def test_all_of_a_screen_fits(run: Path, width: int, height: int) -> None:
    shown = screen(run, width, height)
    assert len(shown) <= height
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    assert "accuracy" in text
    assert "long" in text
    assert ("└" in text) == (height > 12)


def test_the_numbers_are_the_newest_and_what_the_averages_are(run: Path) -> None:
    text = "\n".join(screen(run, 120, 50))
    assert re.search(r"accuracy +400 +0\.7817 +0\.8187 +\+0\.03702 +0\.8187 at 400", text), text
    assert re.search(r"long +400 +\d+\.?\d* +\d+\.?\d* % +\d", text), text
    assert any(
        re.match(r"run: long at step 400: half-life .* steps, .* % of the run", one) for one in lines_of(run)
    )


def lines_of(run: Path) -> list[str]:
    return lines(Live([run]).look().runs)


def test_names_from_files_do_not_command_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "\\u001b[2Jloss[bold]\\n": 2}\n')
    text = "\n".join(screen(tmp_path, 100, 30))
    assert "\x1b" not in text
    assert "\\x1b[2Jloss[bold]\\n" in text


def test_a_port_that_is_no_port_and_a_path_that_is_none_are_refused(tmp_path: Path) -> None:
    assert polyak("watch", tmp_path, "--port", "70000").returncode == 2
    done = polyak("watch", tmp_path / "nothing")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
