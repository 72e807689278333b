"""A warm `python` or `polyak` is taken for a fresh one: arguments, folder, files, status, signals."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import gone
from tests.warm import COLD, POSSIBLE

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="here Python begins as ever")
COMMANDS = [
    "python -c 'import os, sys; print(sys.argv, os.getcwd(), sys.path[0], os.environ[\"MINE\"])' a 'b c'",
    "python script.py 1",
    "python -m beside 2 3",
    "echo 5 | python -c 'print(int(input()) + 1)'",
    "python -c 'raise SystemExit(7)'",
    "python -c 'raise SystemExit(\"a reason\")'",
    "python -c 'import atexit; atexit.register(print, \"at the end\"); 1 / 0'",
    "python -c 'import os; os.kill(os.getpid(), 15)'",
    "python nowhere.py 2>/dev/null",
    "python -W error -c 'import warnings; warnings.warn(\"an option\")'",
    "polyak inspect nowhere.safetensors",
    "polyak --version",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_does_as_a_fresh_one(command: str, warm_path: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import sys; print(__name__, sys.argv[1:])")
    (tmp_path / "script.py").write_text("import beside, sys; print(__name__, sys.argv, __file__)")
    found = []
    for path in (COLD, warm_path):
        environment = os.environ | {"PATH": path, "MINE": "yes"}
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        last = done.stderr.splitlines()[-1:]
        found.append((done.returncode, done.stdout, last))
    assert found[0] == found[1]


def test_torch_is_there_already_and_polyak_is_not(warm_path: str) -> None:
    code = "import sys; print('torch' in sys.modules, 'polyak' in sys.modules)"
    environment = os.environ | {"PATH": warm_path}
    assert subprocess.check_output(["python", "-c", code], env=environment, text=True) == "True False\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_it(number: signal.Signals, warm_path: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    environment = os.environ | {"PATH": warm_path}
    with subprocess.Popen(
        ["python", "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as started:
        assert started.stdout
        pid = int(started.stdout.readline())
        started.send_signal(number)
        assert started.wait(60) == -number
    assert gone(pid)
