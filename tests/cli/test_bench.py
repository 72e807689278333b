"""`polyak bench` as a person runs it: small models, few rounds, its output and its exit status."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import Done, polyak, polyak_process

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

def strided():
    model = nn.Linear(8, 2, bias=False)
    model.weight = nn.Parameter(torch.randn(2, 16)[:, ::2])
    return model

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


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's module and its folder, and the number of threads."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("mine", None)


def bench(*arguments: str, cwd: Path, **environment: str) -> Done:
    """Run the command where ``mine.py`` is."""
    (cwd / "mine.py").write_text(FACTORIES)
    return polyak("bench", *arguments, cwd=cwd, **environment)


def figures(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = bench(*arguments, "--rounds", "2", "--json", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_table_the_engine_and_the_advice_are_shown(tmp_path: Path) -> None:
    done = bench("--model", "lenet", "--rounds", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines()[1:8])) <= 80
    for words in (
        "lenet: 62,006 parameters in 10 tensors of float32, 1 average(s) in float32; cpu, 1 thread(s)",
        "update, ms", "of the limit", "swap, ms", "memory, MB", "of a step", "memory limit",
        "bytes      12 per parameter, 1.00 of the limit's 12\n",
        "│ auto ", "│ foreach ", "GB/s", 'advice     polyak.EMA(model, ..., dtype=torch.float32',
    ):  # fmt: skip
        assert words in done.stdout, words
    assert re.search(r"^engine     (native|blocked)", done.stdout, re.MULTILINE)
    assert "wrong" not in done.stdout


def test_json_is_all_that_is_printed_and_holds_every_figure(tmp_path: Path) -> None:
    found = figures("--model", "mine:trained", "--tracks", "3", cwd=tmp_path)
    measured = found["measured"]
    assert (measured["parameters"], found["tensors"], found["tracks"]) == (178, 4, 3)
    assert (found["moved"], found["moved_separately"]) == (28, 36)
    auto = measured["figures"]["auto"]
    others = [name for name in ("native", "blocked", "foreach") if not auto["engine"].startswith(name)]
    assert list(measured["figures"]) == ["auto", *(name for name in others if name not in found["left_out"])]
    assert "foreach" in measured["figures"]
    for one in measured["figures"].values():
        assert one["update"] > 0
        assert 0 < one["share"] < 1
        assert one["wrong"] == ""
        assert one["enter"] > 0
    assert found["bandwidth"] == pytest.approx(12 * 178 / measured["limit"])
    assert (found["advice"]["dtype"], found["advice"]["every"] >= 1) == ("float32", True)


def test_the_factory_of_the_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "speed.md"
    [code] = re.findall(r'^```python title="mine.py"\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "documented.py").write_text(code)
    found = figures("--model", "documented:factory", "--engine", "auto", cwd=tmp_path)
    assert (found["measured"]["parameters"], found["measured"]["step"] > 0) == (512 * 513, True)


@pytest.mark.parametrize("dtype", ["bfloat16", "split", "compensated"])
def test_other_storage_is_measured_too(dtype: str, tmp_path: Path) -> None:
    found = figures("--model", "mine:net", "--engine", "auto", "--dtype", dtype, cwd=tmp_path)
    assert list(found["measured"]["figures"]) == ["auto"]
    assert found["dtype"] == dtype
    assert found["measured"]["step"] is None


def test_the_model_can_be_cast_first(tmp_path: Path) -> None:
    options = ("--model", "lenet", "--params", "bfloat16", "--engine", "auto", "--threads", "2")
    found = figures(*options, cwd=tmp_path)
    assert (found["params"], found["threads"]) == ("bfloat16", 2)
    assert found["measured"]["figures"]["auto"]["share"] > 0


@pytest.mark.parametrize("engine", ["blocked", "foreach"])
def test_one_engine_is_measured_alone(engine: str, tmp_path: Path) -> None:
    found = figures("--model", "mine:net", "--engine", engine, cwd=tmp_path)
    assert list(found["measured"]["figures"]) == [engine]
    assert found["measured"]["figures"][engine]["engine"] == f"{engine} (requested)"
    assert found["advice"]["reasons"][0] == f"measured with {engine}; auto takes the fastest there is"


def test_an_engine_that_does_not_take_the_tensors_is_left_out(tmp_path: Path) -> None:
    found = figures("--model", "mine:strided", cwd=tmp_path)
    assert list(found["measured"]["figures"]) == ["auto", "foreach"]
    assert found["left_out"]["native"].startswith("it does not take these tensors: blocked (")


def test_a_missing_kernel_is_reported(tmp_path: Path, warm_path: str) -> None:
    (tmp_path / "mine.py").write_text(FACTORIES)
    arguments = ("bench", "--model", "mine:net", "--rounds", "1")
    without: dict[str, Any] = {"cwd": tmp_path, "block": "polyak._kernel._native", "PATH": warm_path}
    done = polyak_process(*arguments, **without)
    assert done.returncode == 0, done.stderr
    assert "engine     blocked (the C kernel was not built" in done.stdout
    assert 'left out   native: engine="native": the C kernel was not built' in done.stdout
    assert "pip install --force-reinstall" in done.stdout
    done = polyak_process(*arguments, "--engine", "native", **without)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('polyak: engine="native": the C kernel was not built')


def test_torch_missing_answers_with_its_pip_line(tmp_path: Path) -> None:
    done = polyak_process("bench", cwd=tmp_path, block="torch")
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
        (["--device", "toaster"], "device='toaster' cannot be used here"),
        (["--device", "cuda:99"], "device='cuda:99' cannot be used here"),
        (["params=1e9"], "params=1e9: needs --plan, as in: polyak bench --plan params=1e12 gpus=4096"),
        (["--plan", "params=1e9"], "--plan needs gpus=, as in"),
        (
            ["--plan", "params=1e9", "gpus=8", "gpu=8"],
            "gpu=8: must be NAME=VALUE, of the names params, gpus,",
        ),
        (["--plan", "params=1e9", "gpus=8", "--dtype", "split"], "instead of options write NAME=VALUE, such"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = bench(*arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("polyak: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def usage_error(arguments: list[str], tmp_path: Path) -> str:
    done = bench(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    said = " ".join(done.stderr.replace("│", " ").split())
    assert f"Invalid value for '{arguments[0]}'" in said
    return said


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        ("--engine", "cuda", ["auto", "blocked", "foreach", "native", "triton"]),
        ("--dtype", "int8", ["bfloat16", "compensated", "float16", "float32", "float64", "split"]),
        ("--params", "int8", ["bfloat16", "float16", "float32", "float64"]),
    ],
)
def test_a_value_that_is_no_choice_is_answered_with_the_choices(
    option: str, value: str, choices: list[str], tmp_path: Path
) -> None:
    said = usage_error([option, value], tmp_path)
    listed = said.partition(f"'{value}' is not one of ")[2].partition(".")[0]
    # In any order: of equal Literals Python's Optional keeps whichever was written first.
    assert sorted(name.strip(" '") for name in listed.split(",")) == choices


@pytest.mark.parametrize(("option", "value"), [("--tracks", "0"), ("--rounds", "0"), ("--threads", "-1")])
def test_a_number_below_its_range_is_a_usage_error(option: str, value: str, tmp_path: Path) -> None:
    assert "should be greater than or equal to 1" in usage_error([option, value], tmp_path)


def test_a_dumb_terminal_sees_ascii_alone(tmp_path: Path) -> None:
    """A name such as mine:net: is no emoji, and the table has no lines that it cannot draw."""
    done = bench("--model", "mine:net", "--rounds", "1", cwd=tmp_path, TERM="dumb")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mine:net: ")
    assert done.stdout.isascii()


def test_a_plan_is_computed_without_torch_and_fits_the_screen(tmp_path: Path) -> None:
    done = bench("--plan", "params=1e12", "gpus=4096", cwd=tmp_path, block="torch")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"│ fully_shard +│ 0.00098 │ 488 MB │ +977 MB │ 0.814 ms │ +0 │ +4 TB │", done.stdout)
    found = json.loads(bench("--plan", "params=1e12", "gpus=4096", "--json", cwd=tmp_path).stdout)
    assert (found["params"], found["gpus"], found["dtype"]) == (1e12, 4096, "float32")
    assert [row["held"] for row in found["modes"] if row["mode"] == "DDP"] == [4e12]
