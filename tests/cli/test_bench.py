"""`polyak bench` as a person runs it: small models, few rounds, its output and its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"}
FACTORIES = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2))

def trained():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def step():
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    return model, step

def narrow():
    return net().bfloat16()

def failing():
    raise RuntimeError("the data is not there\\nat all")

def none():
    return nn.Flatten()

def frozen():
    return net().requires_grad_(False)

def number():
    return 3

def stuck():
    return net(), lambda: 1 / 0

constant = 1
"""


def bench(*arguments: str, cwd: Path, block: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command where ``mine.py`` is; `block` names a package that shall look uninstalled."""
    (cwd / "mine.py").write_text(FACTORIES)
    code = f"import sys; sys.modules[{block!r}] = None; " if block else ""
    code += "from polyak.cli import main; main()"
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", code, "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=cwd, timeout=120, check=False)


def figures(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = bench(*arguments, "--rounds", "2", "--json", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_table_the_engine_and_the_advice_are_shown(tmp_path: Path) -> None:
    done = bench("--model", "lenet", "--against", "swa-utils,loop", "--rounds", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines()[1:8])) <= 80
    for words in (
        "lenet: 62,006 parameters in 10 tensors of float32, 1 average(s) in float32; cpu, 1 thread(s)",
        "update, ms", "of the limit", "swap, ms", "memory, MB", "of a step", "memory limit",
        "bytes      12 per parameter, 1.00 of the limit's 12\n",
        "│ polyak ", "│ swa_utils ", "│ loop ", "GB/s", 'advice     polyak.EMA(model, …, engine="auto"',
    ):  # fmt: skip
        assert words in done.stdout, words
    assert re.search(r"^engine     (native|blocked)", done.stdout, re.MULTILINE)
    assert "wrong" not in done.stdout


def test_json_is_all_that_is_printed_and_holds_every_figure(tmp_path: Path) -> None:
    found = figures("--model", "mine:trained", "--against", "loop", "--tracks", "3", cwd=tmp_path)
    measured = found["measured"]
    assert (measured["parameters"], found["tensors"], found["tracks"]) == (178, 4, 3)
    assert (found["moved"], found["moved_apart"]) == (28, 36)
    assert list(measured["figures"]) == ["polyak", "loop"]
    for one in measured["figures"].values():
        assert one["update"] > 0
        assert 0 < one["share"] < 1
        assert one["wrong"] == ""
    assert measured["figures"]["polyak"]["enter"] > 0
    assert measured["figures"]["loop"]["enter"] is None
    assert found["bandwidth"] == pytest.approx(12 * 178 / measured["limit"])
    assert (found["advice"]["dtype"], found["advice"]["every"] >= 1) == ("float32", True)


def test_the_factory_of_the_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "speed.md"
    [code] = re.findall(r'^```python title="mine.py"\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "documented.py").write_text(code)
    found = figures("--model", "documented:factory", "--against", "none", cwd=tmp_path)
    assert (found["measured"]["parameters"], found["measured"]["step"] > 0) == (512 * 513, True)


@pytest.mark.parametrize("dtype", ["bfloat16", "split", "compensated"])
def test_other_storage_is_measured_too(dtype: str, tmp_path: Path) -> None:
    found = figures("--model", "mine:net", "--against", "none", "--dtype", dtype, cwd=tmp_path)
    assert list(found["measured"]["figures"]) == ["polyak"]
    assert found["dtype"] == dtype
    assert found["measured"]["step"] is None


def test_the_model_can_be_cast_first(tmp_path: Path) -> None:
    options = ("--model", "lenet", "--params", "bfloat16", "--against", "none", "--threads", "2")
    found = figures(*options, cwd=tmp_path)
    assert (found["params"], found["threads"]) == ("bfloat16", 2)
    assert found["measured"]["figures"]["polyak"]["share"] > 0


def test_peers_that_cannot_take_part_are_named(tmp_path: Path) -> None:
    found = figures("--model", "mine:narrow", cwd=tmp_path)
    assert "cannot average this model in float32" in found["left_out"]["swa_utils"]
    assert "loop" in found["measured"]["figures"]


def test_a_missing_peer_is_left_out_or_refused_with_its_pip_line(tmp_path: Path) -> None:
    words = 'torch_ema is not installed. Install it with: pip install "polyak[peers]"'
    done = bench("--model", "mine:net", "--rounds", "1", cwd=tmp_path, block="torch_ema")
    assert done.returncode == 0, done.stderr
    assert f"left out   torch_ema: {words}" in done.stdout
    done = bench("--model", "mine:net", "--against", "torch_ema", cwd=tmp_path, block="torch_ema")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"polyak: {words}\n")


def test_a_missing_kernel_is_said(tmp_path: Path) -> None:
    done = bench("--model", "mine:net", "--against", "none", cwd=tmp_path, block="polyak._kernel._native")
    assert done.returncode == 0, done.stderr
    assert "engine     blocked (the C kernel was not built" in done.stdout
    assert "pip install --force-reinstall" in done.stdout


def test_torch_missing_answers_with_its_pip_line(tmp_path: Path) -> None:
    done = bench(cwd=tmp_path, block="torch")
    assert done.returncode == 1
    assert done.stderr == (
        'polyak: torch is not installed. Install it with: pip install "polyak[torch]". This command measures '
        "PyTorch. For PaddlePaddle: python -m benchmarks.paddle, in polyak's repository; polyak.paddle.EMA's "
        'metrics()["engine"] says which engine runs.\n'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet51"], "model='resnet51': must be one of resnet50, vit_b, many_small, lenet, or"),
        (["--model", "mine:"], "model='mine:': must be one of"),
        (["--model", "nowhere:net"], "nowhere cannot be imported: ModuleNotFoundError: No module named"),
        (["--model", "mine:nothing"], "model='mine:nothing': mine has no function nothing."),
        (["--model", "mine:constant"], "mine has no function constant."),
        (["--model", "mine:failing"], "failing() raised RuntimeError: the data is not there at all"),
        (["--model", "mine:number"], "number() returned int; it must return an nn.Module, or one and"),
        (["--model", "mine:none"], "nothing to average"),
        (["--model", "mine:frozen"], "nothing to average"),
        (["--model", "mine:stuck", "--rounds", "1"], "training step raised ZeroDivisionError: division by"),
        (["--against", "timn"], "against='timn': must be of swa_utils, timm, torch_ema"),
        (["--dtype", "int8"], "dtype='int8': must be one of float32"),
        (["--dtype", "split", "--model", "lenet", "--against", "loop"], "loop has no split averages."),
        (["--params", "int8"], "params='int8': must be one of"),
        (["--tracks", "0"], "tracks=0: must be at least 1."),
        (["--rounds", "0"], "rounds=0: must be at least 1."),
        (["--threads", "-1"], "threads=-1: must be at least 1."),
        (["--device", "toaster"], "device='toaster' cannot be used here"),
        (["--device", "cuda:99"], "device='cuda:99' cannot be used here"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    against = [] if "--against" in arguments else ["--against", "none"]
    done = bench(*arguments, *against, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("polyak: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
