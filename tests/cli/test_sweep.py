"""`polyak sweep` as a person runs it: a real archive, real evaluations, kills, and what is left on disk."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import polyak
from polyak import Archive, Power
from tests.command_line import POLYAK, Done, polyak_process
from tests.command_line import polyak as polyak_command
from tests.processes import gone

PEAK = 60.0
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")

# The metric is a parabola over ln h with its top at PEAK, of the half-life the file itself states; each
# evaluation leaves a line in a journal. The second argument is what else happens before that. It reads the
# header itself: importing polyak takes longer than all the rest.
EVALUATE = f"""
import json, math, os, sys, time
with open(sys.argv[1], "rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
half_life = json.loads(header["__metadata__"]["polyak"])["decay"]["steps"]
with open(sys.argv[2], "a") as journal:
    print(os.getpid(), round(half_life, 3), file=journal)
{{}}
print("evaluated", sys.argv[1])
print(1 - math.log(half_life / {PEAK}) ** 2 / 10)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2000 steps of a random walk, two tracks, a snapshot of each every 20."""
    folder = tmp_path_factory.mktemp("run") / "archive"
    walk(folder, 2000)
    return folder


def walk(folder: Path, steps: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 16)
    ema = polyak.EMA(model, {"short": Power(gamma=20), "long": Power(gamma=6)})
    with Archive(folder, ema, every=20, dtype="float32"):
        for _ in range(steps):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.01 * torch.randn_like(parameter)
            ema.update()


class Evaluation:
    """A script that evaluates, and the journal it keeps."""

    def __init__(self, folder: Path, before: str = "") -> None:
        self.script, self.journal = folder / "evaluate it.py", folder / "journal"
        self.will(before)

    def will(self, before: str) -> None:
        self.script.write_text(EVALUATE.format(before))

    @property
    def line(self) -> str:
        return shlex.join([sys.executable, str(self.script), "{weights}", str(self.journal)])

    @property
    def journalled(self) -> list[tuple[int, float]]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines]

    @property
    def half_lives(self) -> list[float]:
        return [half_life for _, half_life in self.journalled]


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return Evaluation(tmp_path)


def arguments(archive: Path, evaluation: Evaluation, out: Path, *more: str) -> list[str]:
    return ["sweep", str(archive), "--eval", evaluation.line, "--out", str(out), *more]


def sweep(archive: Path, evaluation: Evaluation, out: Path, *more: str) -> Done:
    return polyak_command(*arguments(archive, evaluation, out, *more), COLUMNS="100")


def recorded(out: Path) -> dict[str, Any]:
    return json.loads((out / "sweep.json").read_text())


def test_the_best_half_life_is_found_shown_and_kept(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = sweep(archive, evaluation, out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    record = recorded(out)
    assert len(record["trials"]) == len(evaluation.half_lives) == 7 + 6
    best = record["best"]
    assert best["metric"] == max(trial["metric"] for trial in record["trials"])
    # The grid's ratio is below 2.5; six golden sections leave ln 2.5 · 0.618⁴ = 0.134.
    assert abs(math.log(best["half_life"] / PEAK)) < 0.134
    assert all(trial["error"] <= 0.02 and trial["noise_gain"] >= 1 for trial in record["trials"])
    average = polyak.load(out / "best.safetensors")
    assert average.header.profile is not None
    assert average.header.profile.half_life == pytest.approx(best["half_life"], rel=0.02)
    assert average.header.run == record["run"] == Archive(archive).run
    assert average.header.step == record["step"] == 2000
    assert sorted(path.name for path in out.iterdir()) == ["best.safetensors", "sweep.json", "sweep.png"]
    table = [line for line in done.stdout.splitlines() if "best │" in line]
    assert len(table) == 1
    assert f"{best['half_life']:,.4g}" in table[0]
    assert "●" in done.stdout
    assert (
        f"best: {best['metric']:.6g} at a half-life of {best['half_life']:,.4g} training steps" in done.stdout
    )
    assert f"wrote {out / 'sweep.json'}, {out / 'best.safetensors'}, {out / 'sweep.png'}" in done.stdout


def test_the_picture_shows_something(archive: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    assert sweep(archive, evaluation, tmp_path / "out", "--points", "3", "--refine", "0").returncode == 0
    with Image.open(tmp_path / "out/sweep.png") as image:
        assert image.format == "PNG"
        assert image.size == (1050, 630)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert (214, 39, 40) in colours  # the star of the best
    assert (31, 119, 180) in colours  # the curve


def test_json_is_one_object_and_nothing_else(archive: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sweep(archive, evaluation, out, "--points", "3", "--refine", "1", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    said = json.loads(done.stdout)
    files = {"record": "sweep.json", "weights": "best.safetensors", "png": "sweep.png"}
    assert {key: said.pop(key) for key in files} == {key: str(out / name) for key, name in files.items()}
    assert said == recorded(out)


def test_less_is_better_when_asked(archive: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(archive, evaluation, out, "--points", "4", "--refine", "0", "--mode", "min").returncode == 0
    record = recorded(out)
    assert record["mode"] == "min"
    assert record["best"]["metric"] == min(trial["metric"] for trial in record["trials"]) < 0


def test_what_is_done_is_not_done_again(archive: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(archive, evaluation, out, "--points", "4", "--refine", "1").returncode == 0
    first = recorded(out)
    assert sweep(archive, evaluation, out, "--points", "4", "--refine", "1").returncode == 0
    assert recorded(out) == first
    assert len(evaluation.half_lives) == 5
    assert sweep(archive, evaluation, out, "--points", "4", "--refine", "3").returncode == 0
    assert len(evaluation.half_lives) == 7
    assert max(Counter(evaluation.half_lives).values()) == 1


def test_a_failure_costs_its_point_only_and_is_tried_again(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluation.will(
        "if half_life > 1000: sys.exit('no memory')\n"
        "if 300 < half_life: print('done'); sys.exit()\n"
        "if half_life < 10: time.sleep(100)"
    )
    done = sweep(archive, evaluation, out, "--points", "5", "--refine", "2", "--timeout", "5")
    assert done.returncode == 0, done.stderr
    trials = recorded(out)["trials"]
    failures = [trial["failure"] for trial in trials if trial["metric"] is None]
    assert failures == [
        "it was killed after 5 seconds",
        "the last line of its stdout is not a number: 'done'",
        "exit status 1: no memory",
    ]
    assert len(trials) == 7
    assert "no memory" in done.stdout
    assert abs(math.log(recorded(out)["best"]["half_life"] / PEAK)) < 0.7
    assert (out / "sweep.png").exists()
    evaluation.will("")
    assert sweep(archive, evaluation, out, "--points", "5", "--refine", "2").returncode == 0
    assert [trial["metric"] for trial in recorded(out)["trials"] if trial["metric"] is None] == []
    counts = Counter(evaluation.half_lives)
    assert sorted(h for h, count in counts.items() if count > 1) == [
        pytest.approx(trial["half_life"], rel=0.02) for trial in trials if trial["metric"] is None
    ]


def test_a_half_life_that_cannot_be_synthesised_costs_its_point_only(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    """2000 steps can be met to 0.25 %, 1000 cannot."""
    out = tmp_path / "out"
    done = sweep(archive, evaluation, out, "--points", "13", "--refine", "0", "--max-error", "0.0028")
    assert done.returncode == 0, done.stderr
    failed = [trial for trial in recorded(out)["trials"] if trial["metric"] is None]
    assert 0 < len(failed) < 4
    assert all(trial["failure"].startswith("it cannot be synthesised: ") for trial in failed)
    assert len(evaluation.half_lives) == 13 - len(failed)


def test_when_every_evaluation_fails_so_does_the_command(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluation.will("sys.exit(7)")
    done = sweep(archive, evaluation, out, "--points", "3")
    assert done.returncode == 1
    assert done.stderr == "polyak: every evaluation failed.\n"
    assert done.stdout.count("exit status 7") == 3
    assert [path.name for path in out.iterdir()] == ["sweep.json"]
    said = sweep(archive, evaluation, out, "--points", "3", "--json")
    assert said.returncode == 1
    assert json.loads(said.stdout)["best"] is None


def test_the_record_of_another_command_run_or_step_is_refused(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    out, another = tmp_path / "out", tmp_path / "another"
    few = ["--points", "1", "--refine", "0"]
    assert sweep(archive, evaluation, out, *few).returncode == 0
    before = (out / "sweep.json").read_bytes()
    walk(another, 100)
    refused = {
        "test {weights}": polyak_command("sweep", archive, "--eval", "test {weights}", "--out", out),
        Archive(another).run: sweep(another, evaluation, out, *few),
        "1990": sweep(archive, evaluation, out, *few, "--at", "1990"),
    }
    for words, done in refused.items():
        assert done.returncode == 1
        assert done.stderr.startswith(f"polyak: {out / 'sweep.json'} is of the ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert (out / "sweep.json").read_bytes() == before


def test_standing_at_an_earlier_step(archive: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(archive, evaluation, out, "--at", "1000", "--points", "2", "--refine", "0").returncode == 0
    assert recorded(out)["step"] == polyak.load(out / "best.safetensors").header.step == 1000


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--points", "0"], "points=0"),
        (["--refine", "-1"], "refine=-1"),
        (["--timeout", "0"], "timeout=0"),
        (["--at", "5000"], "at=5000"),
        (["--max-error", "1e-12"], "no half-life can be synthesised"),
        (["--eval", "python eval.py"], "has no {weights}"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    archive: Path, evaluation: Evaluation, tmp_path: Path, more: list[str], words: str
) -> None:
    done = sweep(archive, evaluation, tmp_path / "out", *more)
    assert done.returncode == 1
    assert done.stderr.startswith("polyak: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_by_default_the_folder_is_inside_the_archive(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    walk(folder, 200)
    few = ["--points", "1", "--refine", "0"]
    assert polyak_command("sweep", folder, "--eval", evaluation.line, *few).returncode == 0
    assert recorded(folder / "sweep")["best"] is not None
    assert Archive(folder).steps[-1] == 200


def test_without_matplotlib_all_but_the_picture_is_there(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    few = arguments(archive, evaluation, out, "--points", "2", "--refine", "0", "--json")
    done = polyak_process(*few, block="matplotlib")
    assert done.returncode == 0
    assert 'pip install "polyak[plot]"' in done.stderr
    assert json.loads(done.stdout)["png"] is None
    assert sorted(path.name for path in out.iterdir()) == ["best.safetensors", "sweep.json"]


def test_a_terminal_without_unicode_gets_its_drawing(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    few = ["--points", "3", "--refine", "0"]
    line = arguments(archive, evaluation, tmp_path / "out", *few)
    done = polyak_process(*line, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "@" in done.stdout


def test_a_pipe_gets_a_line_for_each_half_life_when_it_is_done(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    """The second evaluation waits until the line of the first was read."""
    seen = tmp_path / "seen"
    waits = f"len(open(sys.argv[2]).readlines()) > 1 and not os.path.exists({str(seen)!r})"
    evaluation.will(f"while {waits}: time.sleep(0.01)")
    few = arguments(
        archive, evaluation, tmp_path / "out", "--points", "2", "--refine", "0", "--timeout", "60"
    )
    process = subprocess.Popen([*POLYAK, *few], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    seen.touch()
    rest, _ = process.communicate(timeout=120)
    trials = recorded(tmp_path / "out")["trials"]
    assert first == f"1/2 half-life {trials[0]['half_life']:,.4g}: {trials[0]['metric']:.6g}\n"
    assert rest.splitlines()[0] == f"2/2 half-life {trials[1]['half_life']:,.4g}: {trials[1]['metric']:.6g}"


def test_raw_weights_are_a_point_beside_the_averages(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    raw, out = tmp_path / "raw.safetensors", tmp_path / "out"
    polyak.synthesize(archive, polyak.HalfLife(steps=400), out=raw)
    few = ("--points", "2", "--refine", "1", "--raw", str(raw))
    done = sweep(archive, evaluation, out, *few)
    assert (done.returncode, done.stderr) == (0, "")
    record = recorded(out)
    assert record["raw"]["file"] == str(raw)
    assert record["raw"]["metric"] == pytest.approx(1 - math.log(400 / PEAK) ** 2 / 10, abs=1e-2)
    assert len(record["trials"]) == 3
    metric = f"{record['raw']['metric']:.6g}"
    assert done.stdout.startswith(f"1/4 raw weights: {metric}\n")
    assert re.search(rf"raw weights │ +{metric} │", done.stdout)
    better = record["best"]["metric"] - record["raw"]["metric"]
    assert f"raw weights: {metric}; the best average gains {better:+.4g}" in done.stdout
    assert "×" in done.stdout
    assert sweep(archive, evaluation, out, *few).returncode == 0
    assert recorded(out) == record
    assert len(evaluation.half_lives) == 4
    missing = sweep(archive, evaluation, out, "--raw", str(tmp_path / "nowhere"))
    assert missing.returncode == 1
    assert missing.stderr.endswith("nowhere does not exist: raw must be a file of raw weights.\n")


@POSIX
def test_a_terminal_shows_how_far_how_fast_and_for_how_long(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    import pty

    ours, theirs = pty.openpty()
    few = arguments(archive, evaluation, tmp_path / "out", "--points", "4", "--refine", "1", "--json")
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.Popen([*POLYAK, *few], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # the other end is closed
        pass
    out, _ = done.communicate(timeout=60)
    os.close(ours)
    assert done.returncode == 0
    assert json.loads(out)["best"] is not None
    for words in (b"half-lives", b"3/5", b"/min", b"0:00:"):
        assert words in shown, words


def started(archive: Path, evaluation: Evaluation, out: Path, trials: int) -> subprocess.Popen[str]:
    """A sweep that has finished so many trials, and is in the next evaluation."""
    # A test run started in the background begins with SIGINT ignored, and so would its children.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from polyak.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        *arguments(archive, evaluation, out, "--points", "4", "--refine", "2"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(evaluation.half_lives) <= trials:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@POSIX
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_goes_on_to_the_same_end(
    archive: Path, evaluation: Evaluation, tmp_path: Path, how: signal.Signals
) -> None:
    few = ["--points", "4", "--refine", "2"]
    evaluation.will("time.sleep(1.5 if len(open(sys.argv[2]).readlines()) == 4 else 0)")
    out = tmp_path / "out"
    process = started(archive, evaluation, out, 3)
    process.send_signal(how)
    said, errors = process.communicate(timeout=60)
    assert len(recorded(out)["trials"]) == 3
    last = evaluation.journalled[-1][0]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert [line.partition(" ")[0] for line in said.splitlines()] == ["1/6", "2/6", "3/6"]
        assert errors == f"polyak: interrupted; the same command resumes from {out / 'sweep.json'}\n"
        assert [path.name for path in out.iterdir()] == ["sweep.json"]
    assert gone(last)
    evaluation.will("")
    done = sweep(archive, evaluation, out, *few)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["best.safetensors", "sweep.json", "sweep.png"]
    counts = Counter(evaluation.half_lives)
    assert len(counts) == 6
    assert sum(counts.values()) == 7  # only the one that was interrupted was evaluated twice
    assert sweep(archive, evaluation, tmp_path / "at once", *few).returncode == 0
    whole, resumed = recorded(tmp_path / "at once"), recorded(out)
    for record in (whole, resumed):
        for trial in [record["best"], *record["trials"]]:
            del trial["seconds"]
    assert resumed == whole
    at_once = (tmp_path / "at once/best.safetensors").read_bytes()
    assert (out / "best.safetensors").read_bytes() == at_once


@POSIX
def test_two_sweeps_into_one_folder_are_refused(
    archive: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.will("time.sleep(3)")
    process = started(archive, evaluation, tmp_path / "out", 0)
    try:
        done = sweep(archive, evaluation, tmp_path / "out")
        assert done.returncode == 1
        assert "is being written to by process" in done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
