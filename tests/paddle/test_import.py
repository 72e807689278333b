"""``import polyak.paddle`` needs Paddle and nothing of PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

USE = """
import sys
{before}
import paddle, tempfile, polyak
import polyak.trainers.hapi
from polyak.paddle import EMA, ExponentialMovingAverage, update_batchnorm
layer = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.BatchNorm1D(2))
ema = EMA(layer, {{"a": 0.9, "b": polyak.Uniform()}})
folder = tempfile.mkdtemp()
with polyak.Archive(folder + "/runs", ema, every=1):
    ema.update()
ema(paddle.ones([3, 2]))
update_batchnorm(ema.module, [paddle.ones([3, 2])])
ema.save(folder + "/a", resumable=True)
ema.load(folder + "/a")
print(*sorted(name for name, module in sys.modules.items() if name.partition(".")[0] == "torch" and module))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_no_verb_imports_torch() -> None:
    """With torch out of reach, and with a torch that could be imported and would then be seen."""
    spy = "import tempfile; f = tempfile.mkdtemp(); open(f + '/torch.py', 'w').close(); sys.path.insert(0, f)"
    for before in ("sys.modules['torch'] = None", spy):
        done = python(USE.format(before=before))
        assert done.returncode == 0, done.stderr
        assert not done.stdout.split(), done.stdout


def test_an_update_loads_nothing_of_files() -> None:
    """As with torch, see ``tests/architecture/test_no_framework.py``."""
    code = """
import sys, paddle, polyak.paddle
ema = polyak.paddle.EMA(paddle.nn.Linear(2, 1))
ema.update()
later = ("polyak._files", "polyak._core.save", "polyak._core.state_dict", "polyak._dtypes", "ml_dtypes",
         "polyak.schedules.schedules", "polyak.paddle.teacher", "polyak.paddle.exponential")
print(*(name for name in later if name in sys.modules))
ema.state_dict()
print(*(name for name in later if name in sys.modules))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    update, saved = done.stdout.split("\n")[:2]
    assert update == ""
    assert {"polyak._files", "polyak._core.save", "polyak._core.state_dict"} <= {*saved.split()}


def test_an_import_of_torch_would_be_seen() -> None:
    spy = "import tempfile; f = tempfile.mkdtemp(); open(f + '/torch.py', 'w').close(); sys.path.insert(0, f)"
    assert python(USE.format(before=f"{spy}\nimport torch")).stdout.split() == ["torch"]
    assert python(USE.format(before="sys.modules['torch'] = None\nimport torch")).returncode


@pytest.mark.parametrize("name", ["EMA", "ExponentialMovingAverage", "update_batchnorm"])
def test_without_paddle_the_error_is_the_pip_line(name: str) -> None:
    done = python(f"import sys; sys.modules['paddle'] = None\nfrom polyak.paddle import {name}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("polyak.errors.MissingExtraError")
    assert 'pip install "polyak[paddle]"' in last


def test_without_paddle_the_callback_says_so_too() -> None:
    done = python("import sys; sys.modules['paddle'] = None\nimport polyak.trainers.hapi")
    assert done.stderr.rstrip().endswith('pip install "polyak[paddle]"')


def test_the_front_door_leads_to_paddles_room() -> None:
    done = python(
        "import polyak, paddle; print(polyak.paddle.EMA(paddle.nn.Linear(2, 2)).step)\n"
        "polyak.EMA(paddle.nn.Linear(2, 2))"
    )
    assert done.stdout.split() == ["0"]
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith('pip install "polyak[torch]". Layers of PaddlePaddle go to polyak.paddle.EMA.')


def test_the_command_that_measures_torch_names_paddles_way() -> None:
    done = python("from polyak.cli import main; import sys; sys.argv = ['polyak', 'bench']; main()")
    assert done.returncode == 1
    assert "For PaddlePaddle: python -m benchmarks.paddle" in done.stderr
