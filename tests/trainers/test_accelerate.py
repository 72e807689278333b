"""Accelerate really trains a small network on scikit-learn's digits."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from tests.processes import check_it_kills_itself
from tests.tensors import same
from tests.trainers.digits import X, loss, network

accelerate = pytest.importorskip("accelerate")
from polyak.trainers.accelerate import numbers, weight_averaging  # noqa: E402


@pytest.fixture(autouse=True)
def _each_test_its_own_accelerator() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def begin(order: str, report: Any = False, **options: Any) -> tuple[Any, nn.Module, Any, polyak.EMA]:
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model = network()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if order == "before":
        ema = weight_averaging(accelerator, model, optimizer, polyak.Warmup(0.99), every=3, report=report)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if order == "after":
        ema = weight_averaging(accelerator, prepared, optimizer, polyak.Warmup(0.99), every=3, report=report)
    return accelerator, prepared, optimizer, ema


def train(begun: Any, steps: range, folder: Path | None = None, kill_at: int = -1) -> None:
    accelerator, model, optimizer, _ = begun
    for step in steps:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, step))
            optimizer.step()
            optimizer.zero_grad()
        if folder and (step + 1) % 4 == 0:
            accelerator.save_state(str(folder / f"{step + 1}"))


def killed(folder: Path) -> None:
    train(begin("before"), range(20), folder, kill_at=10)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_killed_run_goes_on_to_the_same_average(order: str, tmp_path: Path) -> None:
    check_it_kills_itself(__name__, f"killed({tmp_path!r})")
    whole, resumed = begin(order), begin(order)
    train(whole, range(20))
    resumed[0].load_state(str(tmp_path / "8"))
    assert resumed[3].step == 8
    train(resumed, range(8, 20))
    assert whole[3].step == resumed[3].step == 20
    assert same(whole[3].module.state_dict(), resumed[3].module.state_dict())
    assert whole[3].tracks["average"].profile == resumed[3].tracks["average"].profile


@pytest.mark.parametrize("order", ["before", "after"])
def test_micro_batches_are_no_steps(order: str) -> None:
    begun = begin(order, gradient_accumulation_steps=4)
    train(begun, range(16))
    assert begun[3].step == 4


@pytest.mark.parametrize("order", ["before", "after"])
def test_mixed_precision_is_evaluated_on_the_average_too(order: str) -> None:
    begun = begin(order, mixed_precision="bf16")
    _, model, _, ema = begun
    train(begun, range(6))
    model.eval()
    with torch.no_grad():
        with ema.average_parameters():
            expected = model(X[:16])
        assert not torch.equal(model(X[:16]), expected)
        if order == "after":  # what was averaged is the prepared model
            assert torch.equal(ema(X[:16]), expected)
    assert ema.tracks["average"].tensors["0.weight"].dtype == torch.float32


def test_an_exception_in_an_evaluation_leaves_the_raw_weights(tmp_path: Path) -> None:
    begun = begin("after")
    accelerator, model, _, ema = begun
    train(begun, range(6))
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), ema.average_parameters():
        _ = 1 / int(same(model.state_dict(), raw))
    assert same(model.state_dict(), raw)
    with pytest.raises(polyak.SwapError), ema.average_parameters():
        accelerator.save_state(str(tmp_path))  # no checkpoint holds the average for the raw weights


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("FSDP", "is FSDP's first version"),
        ("DEEPSPEED", "its ZeRO-3 keeps values elsewhere"),
        ("MEGATRON_LM", "has parameters and an optimizer of its own"),
    ],
)
def test_other_ways_of_sharding_are_refused_by_name(kind: str, why: str) -> None:
    _, model, optimizer, _ = begin("after")
    plugin = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    other: Any = SimpleNamespace(distributed_type=accelerate.DistributedType(kind), state=plugin)
    with pytest.raises(polyak.ConfigError, match=f"distributed_type={kind} .*{why}.*fsdp_version=2"):
        weight_averaging(other, model, optimizer)


def evaluated(begun: Any, step: int) -> None:
    """Log both evaluations, as a loop of Accelerate does."""
    accelerator, model, _, ema = begun
    model.eval()
    raw = loss(model, 0).item()
    with ema.average_parameters():
        accelerator.log({"val_loss": loss(model, 0).item(), "raw/val_loss": raw} | numbers(ema), step=step)
    model.train()


class AtTheEnd(accelerate.tracking.GeneralTracker):
    """A tracker of a user's own, which writes JSON lines when it is finished."""

    name = "at_the_end"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.lines = file, list[str]()

    @property
    def tracker(self) -> Any:
        return self.lines

    def store_init_configuration(self, values: Any) -> None:
        pass

    def log(self, values: Any, step: int | None = None, **_: Any) -> None:
        self.lines.append(json.dumps(values | {"step": step}) + "\n")

    def finish(self) -> None:
        self.file.write_text("".join(self.lines))


@pytest.mark.parametrize("tracker", ["tensorboard", "of my own"])
def test_the_report_is_written_when_training_ends_with_what_the_tracker_wrote(
    tracker: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    if tracker == "tensorboard":
        pytest.importorskip("tensorboard")
        begun = begin("after", True, log_with="tensorboard", project_dir=folder)
    else:
        folder.mkdir()
        begun = begin("after", folder, log_with=AtTheEnd(folder / "log.jsonl"))
    accelerator = begun[0]
    accelerator.init_trackers("digits")
    for epoch in range(3):
        train(begun, range(4 * epoch, 4 * epoch + 4))
        evaluated(begun, 4 * epoch + 4)
    accelerator.save_state(str(folder / "state"))
    assert not (folder / "report.html").exists()
    accelerator.end_training()
    text = (folder / "report.html").read_text()
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', text)[0])
    [both] = [plot for plot in facts["plots"] if plot["name"].startswith("metric-val_loss")]
    assert [(line["label"], line["x"]) for line in both["lines"]] == [
        ("raw", [4, 8, 12]),
        ("average", [4, 8, 12]),
    ]
    assert "Warmup(0.99)" in text
    about = json.loads((folder / "polyak-run.json").read_text())
    assert about["accelerate"] == accelerate.__version__
    assert about["skipped updates"] == "0"
    (folder / "report.html").unlink()
    accelerator.end_training()  # ends nothing twice
    assert not (folder / "report.html").exists()


def test_one_report_has_all_averages_of_an_accelerator(tmp_path: Path) -> None:
    begun = begin("after", True, project_dir=tmp_path)
    accelerator, model, optimizer, _ = begun
    weight_averaging(accelerator, model, optimizer, {"long": 0.999}, report=True)
    weight_averaging(accelerator, model, optimizer, {"other": 0.9}, report=tmp_path / "other")
    train(begun, range(4))
    accelerator.end_training()
    text = (tmp_path / "report.html").read_text()
    assert "Warmup(0.99)" in text
    assert "2/long" in text
    assert "Constant(0.9)" not in text
    assert "Constant(0.9)" in (tmp_path / "other" / "report.html").read_text()


def test_no_report_is_written_that_nobody_asked_for(tmp_path: Path) -> None:
    begun = begin("after", project_dir=tmp_path)
    train(begun, range(4))
    begun[0].end_training()
    assert not list(tmp_path.rglob("report.html"))


def test_a_report_needs_a_folder() -> None:
    with pytest.raises(polyak.ConfigError, match=r'report=True: .* has no project_dir.* report="runs/a"'):
        begin("after", report=True)
