"""Evaluating with a real command, whatever it does, and the record that survives its writer."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polyak import CheckpointError, ConfigError
from polyak.select.evaluate import EvalCommand, SweepRecord, Trial, alone_in
from tests.processes import gone

PYTHON = shlex.quote(sys.executable)
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")


def python(code: str) -> str:
    """A command line that runs a piece of Python with the path as its argument."""
    return f"{PYTHON} -c {shlex.quote(code)} {{weights}}"


@pytest.mark.parametrize(
    ("code", "metric"),
    [
        ("print(0.93)", 0.93),
        ("print('accuracy 0.5'); print(' -1e-3 '); print()", -1e-3),
        ("print('10%\\r100%\\r7', end='')", 7.0),
        ("import sys; print(3); print('a warning', file=sys.stderr)", 3.0),
        ("print('x' * 10**6); print(5)", 5.0),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n2')", 2.0),
    ],
)
def test_the_last_line_is_the_metric(tmp_path: Path, code: str, metric: float) -> None:
    measured = EvalCommand(python(code)).measure(tmp_path / "w")
    assert measured.metric == metric
    assert measured.failure is None
    assert 0 < measured.seconds < 60


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("print('acc 0.93')", "the last line of its stdout is not a number: 'acc 0.93'"),
        ("print(0.5); print('done')", "the last line of its stdout is not a number: 'done'"),
        ("print('y' * 1000)", f"the last line of its stdout is not a number: '{'y' * 200}'"),
        ("", "it printed nothing: the last line of its stdout must be the metric"),
        ("print('nan')", "its metric is nan"),
        ("print('-inf')", "its metric is -inf"),
        ("import sys; print(0.9); sys.exit(3)", "exit status 3"),
        ("print(0.9); raise ValueError('out of memory')", "exit status 1: ValueError: out of memory"),
    ],
)
def test_what_gives_no_metric_gives_its_reason(tmp_path: Path, code: str, failure: str) -> None:
    measured = EvalCommand(python(code)).measure(tmp_path / "w")
    assert measured.metric is None
    assert measured.failure == failure


@POSIX
def test_a_command_killed_by_a_signal_says_which(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert EvalCommand(python(code)).measure(tmp_path / "w").failure == "it was killed by SIGKILL"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    failure = EvalCommand("no-such-program {weights}").measure(tmp_path / "w").failure
    assert failure is not None
    assert failure.startswith("it cannot be started")
    assert "no-such-program" in failure


@pytest.mark.parametrize("shell", [False, True])
def test_a_path_arrives_whole_whatever_it_is_called(tmp_path: Path, shell: bool) -> None:
    if shell and os.name != "posix":
        pytest.skip("the quotes of another shell")
    weights = tmp_path / "a b'c\"d $(echo e); *.safetensors"
    weights.write_text("0.25")
    assert (
        EvalCommand(python("import sys; print(open(sys.argv[1]).read())"), shell).measure(weights).metric
        == 0.25
    )
    inside = f"{PYTHON} -c 'import sys; print(len(sys.argv[1]))' --weights={{weights}}"
    assert EvalCommand(inside, shell).measure(weights).metric == len(f"--weights={weights}")


def test_a_relative_path_arrives_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(int(os.path.isabs(sys.argv[1])))"
    assert EvalCommand(python(code)).measure(Path("w")).metric == 1


@POSIX
def test_only_a_shell_knows_pipes(tmp_path: Path) -> None:
    line = "echo {weights} 1 2 | wc -w"
    assert EvalCommand(line, shell=True).measure(tmp_path / "w").metric == 3
    assert "not a number" in (EvalCommand(line).measure(tmp_path / "w").failure or "")


@POSIX
@pytest.mark.slow
def test_a_timeout_ends_the_command_and_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(300)"
    )
    measured = EvalCommand(python(code), timeout=3).measure(tmp_path / "w")
    assert measured.failure == "it was killed after 3 seconds"
    assert all(gone(int(pid)) for pid in pids.read_text().split())


@POSIX
def test_a_child_that_stays_behind_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "print(child.pid)"
    )
    measured = EvalCommand(python(code)).measure(tmp_path / "w")
    assert measured.metric is not None
    os.kill(int(measured.metric), signal.SIGKILL)  # it is still there


@pytest.mark.parametrize(
    ("line", "timeout", "words"),
    [
        ("python eval.py", None, r"'python eval.py' has no \{weights\}"),
        ("python 'eval.py {weights}", None, "cannot be split: No closing quotation"),
        ("python {weights}", 0, "timeout=0"),
        ("python {weights}", float("nan"), "timeout=nan"),
    ],
)
def test_a_command_that_cannot_work_is_refused(line: str, timeout: float | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvalCommand(line, timeout=timeout)


TRIALS = [Trial(10.0, 0.5, None, 0.01, 1.5, 2.0), Trial(100.0, None, "exit status 1"), Trial(31.0, 0.75)]


def recorded(path: Path) -> SweepRecord:
    record = SweepRecord(path, "a run", 400, "eval {weights}", "max")
    for trial in TRIALS:
        record.add(trial)
    return record


def test_a_record_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    recorded(path)
    again = SweepRecord(path, "a run", 400, "eval {weights}", "max")
    assert again.trials == [TRIALS[0], TRIALS[2], TRIALS[1]]
    assert again.best == TRIALS[2]
    assert again.measured(31.0 * (1 + 1e-9)) == TRIALS[2]
    assert again.measured(31.1) is None
    assert again.measured(100.0) is None
    assert SweepRecord(path, "a run", 400, "eval {weights}", "min").best == TRIALS[0]


def test_the_file_says_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    recorded(path)
    fields = json.loads(path.read_text())
    assert list(fields) == ["format", "run", "step", "command", "mode", "best", "trials"]
    assert fields["best"] == {
        "half_life": 31.0, "metric": 0.75, "failure": None, "error": None, "noise_gain": None, "seconds": 0.0
    }  # fmt: skip
    assert [trial["half_life"] for trial in fields["trials"]] == [10.0, 31.0, 100.0]


def test_a_second_try_takes_the_place_of_the_first(tmp_path: Path) -> None:
    record = recorded(tmp_path / "sweep.json")
    record.add(Trial(100.0, 0.9))
    assert [trial.metric for trial in record.trials] == [0.5, 0.75, 0.9]


@pytest.mark.parametrize(
    ("run", "at", "command", "words"),
    [
        ("another", 400, "eval {weights}", "of the run 'a run', not 'another'"),
        ("a run", 500, "eval {weights}", "of the step 400, not 500"),
        ("a run", 400, "test {weights}", r"of the command 'eval \{weights\}', not 'test \{weights\}'"),
    ],
)
def test_a_record_of_something_else_is_refused(
    tmp_path: Path, run: str, at: int, command: str, words: str
) -> None:
    recorded(tmp_path / "sweep.json")
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(CheckpointError, match=words):
        SweepRecord(tmp_path / "sweep.json", run, at, command, "max")
    assert (tmp_path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "[]", '{"run": "a run"}', "\xff", '{"run": 1, "step": 1, "command": 1, "trials": [1]}']
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"sweep.json cannot be read.*Delete it"):
        SweepRecord(path, "a run", 400, "eval {weights}", "max")


@POSIX
@pytest.mark.slow
def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    code = (
        "import sys, time, pathlib; from polyak.select.evaluate import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(300)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(CheckpointError, match="out is being written to by process"), alone_in(folder):
            pass
    finally:
        other.kill()
        other.communicate()
    with alone_in(folder):
        pass
    assert list(folder.iterdir()) == []  # what the killed process left is taken over, and removed


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="out cannot be created"), alone_in(tmp_path / "file" / "out"):
        pass
