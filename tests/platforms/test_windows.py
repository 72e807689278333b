"""Files, locks and commands on what Windows lacks; ``windows.py`` says how much of Windows that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIMIC = Path(__file__).with_name("windows.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes from Linux what Windows lacks")
pytest.importorskip("torch")


def on_windows(job: str, folder: Path, **environment: str) -> str:
    """Run a job in a process that takes itself to be on Windows; a PATH says with which `python`."""
    file = folder / "job.py"
    file.write_text(job)
    done = subprocess.run(
        ["python" if "PATH" in environment else sys.executable, MIMIC, file],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


FILES = """
import torch
import polyak
from pathlib import Path

def grown(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

model = torch.nn.Linear(3, 2)
ema = polyak.EMA(model, 0.9)
archive = polyak.Archive("run", ema, every=1)
best = polyak.BestCheckpoint("best.safetensors", mode="max", after=1)
for step in range(4):
    grown(model)
    ema.update()
    ema.save("average.safetensors")
    ema.save("state.safetensors", resumable=True)
    best.consider(ema, step)
ema.save("later.safetensors", background=True).wait()
archive.close()
expected = ema.tracks["average"].tensors["weight"].numpy()
for name in ("average", "later", "best"):
    assert (polyak.load(name + ".safetensors").tensors["weight"] == expected).all(), name
again = polyak.EMA(model, 0.9)
again.load("state.safetensors")
assert again.step == 4
polyak.average_checkpoints(["average.safetensors", "later.safetensors"], "mean.safetensors")
made = polyak.synthesize("run", polyak.Constant(0.8))
left = [str(path) for path in Path().rglob("*") if path.suffix in (".part", ".lock")]
print(len(list(Path("run").glob("*.safetensors"))), left)
"""


def test_averages_are_saved_replaced_resumed_archived_and_merged(tmp_path: Path, warm_path: str) -> None:
    count, left = on_windows(FILES, tmp_path, PATH=warm_path).split(maxsplit=1)
    assert int(count) >= 4
    assert left.strip() == "[]", "no litter and no lock is left"


OPEN = """
import torch, polyak
from threading import Timer
from polyak._files import write

write._PATIENCE = float(open("patience").read())
ema = polyak.EMA(torch.nn.Linear(3, 2), 0.9)
ema.save("average.safetensors")
before = open("average.safetensors", "rb").read()
reader = open("average.safetensors", "rb")
Timer(0.3, reader.close).start()
ema.update()
try:
    ema.save("average.safetensors")
    assert open("average.safetensors", "rb").read() != before
    print("replaced")
except polyak.CheckpointError as error:
    assert open("average.safetensors", "rb").read() == before
    print(error)
"""


@pytest.mark.parametrize(
    ("patience", "said"),
    [("60", "replaced"), ("0.01", "Windows replaces no open file: close it first. Nothing was changed.")],
)
def test_a_file_that_is_open_elsewhere_is_waited_for_or_kept(
    patience: str, said: str, tmp_path: Path, warm_path: str
) -> None:
    (tmp_path / "patience").write_text(patience)
    assert on_windows(OPEN, tmp_path, PATH=warm_path).strip().endswith(said)


LOCKS = """
import os, subprocess, sys
from pathlib import Path
from polyak._files.locks import lock_folder
from polyak.errors import CheckpointError

folder = Path("folder")
def take():
    return lock_folder(folder, ".lock", 0, "it is written to", "wait")

if "HELD" in os.environ:
    try:
        held = take()
    except CheckpointError as error:
        print(error)
    os._exit(0)

def other():
    command = [sys.executable, *sys.orig_argv[1:]]
    variables = os.environ | {"HELD": "1"}
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout

lock = take()
assert f"it is written to by process {os.getpid()} on " in other()
lock.release()
assert not (folder / ".lock").exists()
assert other() == "", "taken, and left behind by a process that ended without a word"
assert (folder / ".lock").exists()
take().release()
assert not (folder / ".lock").exists()
print("ok")
"""


def test_a_folder_is_locked_by_one_process_and_the_holder_is_named(tmp_path: Path) -> None:
    assert on_windows(LOCKS, tmp_path) == "ok\n"


COMMANDS = r"""
import sys
from pathlib import Path
from polyak.select.evaluate import EvalCommand

command = EvalCommand(r'C:\Python\python.exe "D:\my code\evaluate.py" --weights {weights} --note="it is"')
print(command._arguments(Path("/runs/a b.safetensors"), 0))
print(EvalCommand("python e.py {weights} | tail -1", shell=True)._arguments(Path("/runs/a b"), 0))
print(EvalCommand(f"'{sys.executable}' -c 'print(0.5)' {{weights}}").measure(Path("w")).metric)
slow = f"'{sys.executable}' -c 'import subprocess; subprocess.run([\"sleep\", \"1234\"])' {{weights}}"
print(EvalCommand(slow, timeout=1).measure(Path("w")).failure)
print(Path("ended").read_text().strip())
"""


def test_a_command_with_backslashes_is_split_and_one_that_hangs_is_ended_with_its_children(
    tmp_path: Path, warm_path: str
) -> None:
    tool = tmp_path / "taskkill"  # Windows' own: all that began it
    tool.write_text('#!/bin/sh\necho "$1 $2 $3" > ended\nkill -9 -- "-$4"\n')
    tool.chmod(0o755)
    said = on_windows(COMMANDS, tmp_path, PATH=f"{tmp_path}{os.pathsep}{warm_path}").splitlines()
    assert said[0] == str(
        [
            r"C:\Python\python.exe",
            r"D:\my code\evaluate.py",
            "--weights",
            "/runs/a b.safetensors",
            "--note=it is",
        ]
    )
    assert said[1] == 'python e.py "/runs/a b" | tail -1'
    assert said[2:] == ["0.5", "it was killed after 1 seconds", "/F /T /PID"]


def test_what_is_printed_for_copying_is_quoted_as_windows_reads_it(tmp_path: Path) -> None:
    job = """
from pathlib import Path
from polyak.demo.options import Options
from polyak.demo.screen import next_commands
print(next_commands(Options(root=Path("a b")), Path("out x"))[3])
"""
    assert on_windows(job, tmp_path).startswith(
        'polyak sweep "out x/snapshots" --mode min --eval "polyak demo'
    )


def test_memory_that_only_linux_reports_is_unknown(tmp_path: Path, warm_path: str) -> None:
    job = """
import torch
from polyak.bench import measure, run
cpu = torch.device("cpu")
print(run._free(cpu), measure.peak(lambda: None, cpu))
"""
    assert on_windows(job, tmp_path, PATH=warm_path) == "None None\n"
