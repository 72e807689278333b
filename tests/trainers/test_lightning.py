"""Lightning really trains a small network on scikit-learn's digits."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polyak
from polyak.cli.describe import CheckpointSummary, describe
from polyak.report.collect import collect
from polyak.report.logged import logged_value
from tests.processes import check_it_kills_itself
from tests.shims import torchvision_without_ops
from tests.states import opened
from tests.tensors import same
from tests.trainers.test_ddp import side_by_side

torchvision_without_ops()
pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402
from lightning.pytorch.strategies import FSDPStrategy  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torchmetrics import MeanMetric  # noqa: E402

from polyak.trainers.lightning import WeightAveraging, load  # noqa: E402

# Advice that a run this small does not follow, and what Lightning calls in torch.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in (
        "does not have many workers",
        "You defined a `validation_step` but have no",
        "exists and is not empty",
        "callbacks used to create the checkpoint need to be provided",
        "ended before the epoch ended and your dataloader is not resumable",  # see training_step
        "is smaller than the logging interval",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    )
]

digits = load_digits()
X = torch.tensor(digits.data[:256] / 16, dtype=torch.float32)
Y = torch.tensor(digits.target[:256])


class Digits(pl.LightningModule):
    """Sixteen steps an epoch. Batches follow the index, so that any step can be resumed from."""

    def __init__(self, kill_at: int = -1, fail: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        self.first = self.net[0]  # by a second name, so that it is found in a compiled network too
        self.kill_at, self.fail = kill_at, fail
        self.seen: dict[str, torch.Tensor] = {}

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = slice(16 * index, 16 * index + 16)  # a plain DataLoader begins anew in the middle of an epoch
        return nn.functional.cross_entropy(self.net(X[rows]), Y[rows])

    def look(self, stage: str, batch: Any) -> torch.Tensor:
        x, y = batch
        self.seen[stage] = self.first.weight.detach().clone()
        if self.fail and stage == "validation" and not self.trainer.sanity_checking:
            raise RuntimeError("the evaluation failed")
        loss = nn.functional.cross_entropy(self.net(x), y)
        if stage != "predict":
            self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.look("validation", batch)

    def test_step(self, batch: Any, index: int) -> None:
        self.look("test", batch)

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.look("predict", batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=16)


def trainer(folder: Path, *callbacks: Any, package: Any = pl, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return package.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def each_epoch(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **options)


def fit(folder: Path, kill_at: int = -1, resume: Path | None = None, **options: Any) -> WeightAveraging:
    average = WeightAveraging(polyak.Warmup(0.99), every=3)
    saver = each_epoch(folder, every_n_train_steps=7)
    run = trainer(folder, average, saver, enable_checkpointing=True, **options)
    run.fit(Digits(kill_at), loader(), ckpt_path=resume)
    return average


def averages(ema: polyak.EMA) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ema.module.state_dict().items()}


def test_the_average_is_what_a_hand_written_loop_gives(tmp_path: Path) -> None:
    average = WeightAveraging(0.9)
    trainer(tmp_path, average, max_epochs=1).fit(Digits(), loader())
    module = Digits().train()
    ema, optimizer = polyak.EMA(module, 0.9), module.configure_optimizers()
    for index in range(16):
        optimizer.zero_grad()
        module.training_step.__func__(module_like(module), None, index).backward()
        optimizer.step()
        ema.update()
    assert average.ema.step == 16
    assert same(averages(average.ema), averages(ema))


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_report_shows_both_curves_and_the_average_in_memory(logger: str, tmp_path: Path) -> None:
    average = WeightAveraging({"short": 0.9, "long": 0.99}, evaluate="both", report=True)
    made = getattr(pl.loggers, logger)(tmp_path, name="logs")
    run = trainer(tmp_path, average, logger=made, log_every_n_steps=2)
    run.fit(Digits(), loader(), loader())
    text = (Path(run.log_dir) / "report.html").read_text()
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', text)[0])
    both = [plot for plot in facts["plots"] if len(plot.get("lines", ())) == 2]
    assert [line["label"] for plot in both for line in plot["lines"]][:2] == ["raw", "average"]
    assert [len(line["y"]) for line in both[0]["lines"]] == [3, 3]
    assert any(plot["name"].startswith("distance") for plot in facts["plots"])
    assert "Half-life" in text
    assert all(f"Constant({beta})" in text for beta in (0.9, 0.99))
    assert "engine" in json.loads((Path(run.log_dir) / "polyak-run.json").read_text())


def test_one_report_has_the_averages_of_all_callbacks_that_ask_for_one(tmp_path: Path) -> None:
    asked = [
        WeightAveraging(0.9, report=True),
        WeightAveraging({"long": 0.99}, name="slow", evaluate="raw", report=True),
    ]
    silent = WeightAveraging(0.999, name="silent", evaluate="raw")
    run = trainer(tmp_path, *asked, silent, logger=pl.loggers.CSVLogger(tmp_path))
    run.fit(Digits(), loader(), loader())
    text = (Path(run.log_dir) / "report.html").read_text()
    assert [name in text for name in ("Constant(0.9)", "Constant(0.99)", "slow/long", "Constant(0.999)")] == [
        *(True, True, True),
        False,
    ]
    about = json.loads((Path(run.log_dir) / "polyak-run.json").read_text())
    assert about["skipped updates"] == "0; slow: 0"


def logged_by_lightning(folder: Path, logger: str, **options: Any) -> Any:
    """A run with a checkpoint of each epoch, as a report reads it."""
    made = getattr(pl.loggers, logger)(folder, name="logs")
    saver = ModelCheckpoint(filename="{epoch}", save_top_k=-1)
    average = WeightAveraging(0.9, evaluate="both")
    run = trainer(folder, average, saver, logger=made, enable_checkpointing=True, **options)
    run.fit(Digits(), loader(), loader())
    run.validate(run.lightning_module, loader(), verbose=False)
    (Path(run.log_dir) / "own.jsonl").write_text('{"step": 16, "epoch": 0, "own_loss": 1.0}\n')
    [found] = collect([Path(run.log_dir)])
    return found


def steps_of(run: Any, metric: str) -> list[tuple[float, ...]]:
    [found] = [one for one in run.metrics if one.name == metric]
    return [curve.series.steps for curve in found.curves]


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_report_shows_what_was_logged_of_the_very_weights_in_a_checkpoint(
    logger: str, tmp_path: Path
) -> None:
    run = logged_by_lightning(tmp_path, logger)
    assert steps_of(run, "loss") == [(16, 32, 48, 49)] * 2, "of 49: after the training"
    assert steps_of(run, "own_loss") == [(16,)], "another log counts as it does"
    [logged] = [one for one in run.logged if one.name == "loss"]
    files = list(tmp_path.rglob("*.ckpt"))
    assert len(files) == 3
    for file in files:
        raw = Digits()
        average = load(file, raw).module
        sets = {one.name: one for one in run.weights if one.file.endswith(file.name)}
        for name, module in (("raw", raw), ("average", average)):
            with torch.no_grad():
                expected = nn.functional.cross_entropy(module.eval().net(X), Y).item()
            assert logged_value(logged, sets[name]) == pytest.approx(expected, rel=1e-5)


def test_rows_stay_where_lightning_has_them_if_a_batch_is_not_always_a_step(tmp_path: Path) -> None:
    run = logged_by_lightning(
        tmp_path, "CSVLogger", max_epochs=1, accumulate_grad_batches=3, val_check_interval=4
    )
    assert steps_of(run, "loss") == [(1, 2, 3, 5, 6)] * 2


def test_no_report_is_written_that_nobody_asked_for(tmp_path: Path) -> None:
    trainer(tmp_path, WeightAveraging(0.9)).fit(Digits(), loader())
    assert not list(tmp_path.rglob("report.html"))


def module_like(module: Digits) -> Any:
    """A module without a trainer, whose step is never that of the kill."""
    return type("Alone", (), {"net": module.net, "global_step": 0, "kill_at": -1})


def test_a_killed_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    check_it_kills_itself(__name__, f"fit({tmp_path / 'killed'!r}, 30)")
    whole = fit(tmp_path / "whole")
    resumed = fit(tmp_path / "killed", resume=tmp_path / "killed" / "step=28.ckpt")
    assert whole.ema.step == resumed.ema.step == 48
    assert same(averages(whole.ema), averages(resumed.ema))
    assert whole.ema.tracks["average"].profile == resumed.ema.tracks["average"].profile
    assert whole.ema.run != resumed.ema.run


def test_evaluation_is_on_the_average_and_training_on_the_raw_weights(tmp_path: Path) -> None:
    average, module = WeightAveraging(0.9), Digits()
    run = trainer(tmp_path, average, max_epochs=2)
    run.fit(module, loader(), loader())
    raw, mean = module.net[0].weight.detach().clone(), average.ema.module.net[0].weight
    assert not torch.equal(raw, mean)
    assert torch.equal(module.seen["validation"], mean)
    run.validate(module, loader(), verbose=False)
    run.test(module, loader(), verbose=False)
    run.predict(module, loader())
    for stage in ("validation", "test", "predict"):
        assert torch.equal(module.seen[stage], mean), stage
    assert torch.equal(module.net[0].weight, raw)
    assert average.ema.live == "raw"
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())  # nothing made during evaluation stands in the way of training on
    assert average.ema.step == 48


def test_another_track_or_the_raw_weights_are_evaluated_on_request(tmp_path: Path) -> None:
    for evaluate in ("long", "raw"):
        average, module = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate), Digits()
        trainer(tmp_path, average, max_epochs=1).fit(module, loader(), loader())
        expected = module if evaluate == "raw" else average.ema.module_of(evaluate)
        assert torch.equal(module.seen["validation"], expected.net[0].weight)


def test_an_exception_in_validation_leaves_the_raw_weights(tmp_path: Path) -> None:
    average, module = WeightAveraging(0.9), Digits(fail=True)
    run = trainer(tmp_path, average, max_epochs=1)
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        run.fit(module, loader(), loader())
    assert average.ema.live == "raw"
    assert torch.equal(module.seen["validation"], average.ema.module.net[0].weight)
    assert not torch.equal(module.net[0].weight, average.ema.module.net[0].weight)
    run.optimizers[0].step()  # nothing follows a run that is over
    assert average.ema.step == 16


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}], ids=str)
def test_micro_batches_are_no_steps(options: dict[str, Any], tmp_path: Path) -> None:
    average, module = WeightAveraging(0.9), Digits()
    run = trainer(tmp_path, average, accumulate_grad_batches=4, max_epochs=1, **options)
    run.fit(module, loader(), loader())
    assert average.ema.step == run.global_step == 4
    assert average.ema.tracks["average"].tensors["net.0.weight"].dtype == torch.float32


def test_a_checkpoint_holds_both_and_says_which(tmp_path: Path) -> None:
    average, module = WeightAveraging({"short": 0.5, "long": 0.9}, exclude="net.3.*"), Digits()
    run = trainer(tmp_path, average, each_epoch(tmp_path), max_epochs=1, enable_checkpointing=True)
    run.fit(module, loader(), loader())
    run.save_checkpoint(tmp_path / "after.ckpt")
    for name in ("step=16.ckpt", "after.ckpt"):
        written = torch.load(tmp_path / name, weights_only=True)
        assert written["polyak"]["state_dict"] == "raw"
        assert same(written["state_dict"], module.state_dict())
        fresh = Digits()
        ema = load(tmp_path / name, fresh, exclude="net.3.*")
        assert same(fresh.state_dict(), module.state_dict())
        for track in ("short", "long"):
            assert same(ema.module_of(track).state_dict(), average.ema.module_of(track).state_dict())
    ema.copy_to(track="long")
    assert torch.equal(fresh.net[0].weight, average.ema.module_of("long").net[0].weight)


def test_a_save_in_the_middle_of_a_validation_holds_the_raw_weights(tmp_path: Path) -> None:
    class Eager(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "eager.ckpt")

    average, module = WeightAveraging(0.9), Digits()
    trainer(tmp_path, average, Eager(), max_epochs=1).fit(module, loader(), loader())
    written = torch.load(tmp_path / "eager.ckpt", weights_only=True)
    assert same(written["state_dict"], module.state_dict())
    assert torch.equal(module.seen["validation"], average.ema.module.net[0].weight)


def test_a_fresh_process_tests_the_average_in_the_checkpoint(tmp_path: Path) -> None:
    whole = fit(tmp_path)
    module, average = Digits(), WeightAveraging(polyak.Warmup(0.99), every=3)
    with pytest.raises(polyak.PlanError, match="no average before"):
        average.ema  # noqa: B018
    run = trainer(tmp_path, average, max_epochs=1)
    run.test(module, loader(), ckpt_path=tmp_path / "step=42.ckpt", verbose=False)
    at_42 = load(tmp_path / "step=42.ckpt", Digits())
    assert torch.equal(module.seen["test"], at_42.module.net[0].weight)
    assert not torch.equal(module.seen["test"], whole.ema.module.net[0].weight)
    run.fit(module, loader())  # what was made for testing can be trained on
    assert average.ema.step == 42 + 16


def test_a_checkpoint_without_an_average_is_not_evaluated_as_one(tmp_path: Path) -> None:
    plain, module = trainer(tmp_path, max_epochs=1), Digits()
    plain.fit(module, loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    run = trainer(tmp_path, WeightAveraging(0.9))
    with pytest.raises(polyak.CheckpointError, match=r"plain\.ckpt holds no average to evaluate"):
        run.test(module, loader(), ckpt_path=tmp_path / "plain.ckpt")
    with pytest.raises(polyak.CheckpointError, match="holds no average of polyak"):
        load(tmp_path / "plain.ckpt", Digits())
    raw = WeightAveraging(0.9, evaluate="raw")
    trainer(tmp_path, raw).test(module, loader(), ckpt_path=tmp_path / "plain.ckpt", verbose=False)


def test_a_checkpoint_of_the_weights_only_holds_the_average_too(tmp_path: Path) -> None:
    average, module = WeightAveraging(0.9), Digits()
    saver = each_epoch(tmp_path, save_weights_only=True)
    run = trainer(tmp_path, average, saver, max_epochs=1, enable_checkpointing=True)
    run.fit(module, loader(), loader())
    path = tmp_path / "step=16.ckpt"
    written = torch.load(path, weights_only=True)
    assert "optimizer_states" not in written
    assert same(written["state_dict"], module.state_dict())
    assert roles(path) == {"average": "average", "raw": "raw"}
    assert same(load(path, Digits()).module.state_dict(), average.ema.module.state_dict())
    fresh = Digits()
    trainer(tmp_path, WeightAveraging(0.9)).test(fresh, loader(), ckpt_path=path, verbose=False)
    assert torch.equal(fresh.seen["test"], average.ema.module.net[0].weight)


def roles(path: Path) -> dict[str, str]:
    found = describe(path)
    assert isinstance(found, CheckpointSummary)
    return {one.name: one.role for one in found.parts if one.role != "optimizer"}


def several() -> list[WeightAveraging]:
    return [
        WeightAveraging(0.5),
        WeightAveraging(0.99, name="slow", evaluate="raw"),
        WeightAveraging({"a": 0.9, "b": 0.8}, name="head", evaluate="raw", include="net.3.*"),
    ]


def test_several_averages_of_one_module_resume_each_from_its_own_key(tmp_path: Path) -> None:
    def fit(epochs: int, averages: list[WeightAveraging], path: Path | None = None) -> Any:
        options: dict[str, Any] = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 5}
        saver = each_epoch(tmp_path)
        run = trainer(tmp_path, *averages, saver, max_epochs=epochs, enable_checkpointing=True, **options)
        run.fit(Digits(), loader(), ckpt_path=path)
        return run

    whole, again = several(), several()
    fit(2, whole)
    run = fit(2, again[::-1], tmp_path / "step=16.ckpt")  # the order of callbacks may change
    for one, other in zip(whole, again, strict=True):
        assert one.ema.step == other.ema.step == 32
        assert one.ema.tracks.keys() == other.ema.tracks.keys()
        for track in one.ema.tracks:
            assert same(dict(one.ema.tracks[track].tensors), dict(other.ema.tracks[track].tensors))
    path = tmp_path / "step=32.ckpt"
    named = ("average", "slow-average", "head-a", "head-b")
    assert roles(path) == {**dict.fromkeys(named, "average"), "raw": "raw"}
    slow = load(path, Digits(), name="slow")
    assert same(slow.module.state_dict(), whole[1].ema.module.state_dict())
    with pytest.raises(
        polyak.CheckpointError, match="no average of the name 'fast', but of '', 'slow', 'head'"
    ):
        load(path, Digits(), name="fast")
    with open(Path(run.logger.log_dir) / "metrics.csv") as file:
        logged = next(csv.reader(file))
    assert {"ema/decay", "ema/slow/decay", "ema/head/a/decay"} <= set(logged)
    tested = Digits()  # the one that evaluates comes after one that only has its average
    trainer(tmp_path, *several()[::-1]).test(tested, loader(), ckpt_path=path, verbose=False)
    assert torch.equal(tested.seen["test"], whole[0].ema.module.net[0].weight)


def test_averages_that_would_be_mixed_up_are_refused(tmp_path: Path) -> None:
    for one, other, words in (
        (WeightAveraging(0.5), WeightAveraging(0.9, evaluate="raw"), "several WeightAveraging have name=''"),
        (WeightAveraging(0.5), WeightAveraging(0.9, name="b"), "'b' and '' would both evaluate net.0.bias"),
    ):
        with pytest.raises(polyak.ConfigError, match=words):
            trainer(tmp_path, one, other, max_epochs=1).fit(Digits(), loader())


def test_halves_of_a_module_are_evaluated_together_and_saved_raw_meanwhile(tmp_path: Path) -> None:
    class Eager(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            for name, light in (("whole", False), ("light", True)):
                trainer.save_checkpoint(tmp_path / f"{name}.ckpt", weights_only=light)

    first = WeightAveraging(0.9, name="first", include="net.0.*")
    last, module = WeightAveraging(0.5, name="last", include="net.3.*"), Digits()
    trainer(tmp_path, first, last, Eager(), max_epochs=1).fit(module, loader(), loader())
    assert torch.equal(module.seen["validation"], first.ema.module.net[0].weight)
    for name in ("whole", "light"):
        written = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert same(written["state_dict"], module.state_dict())
        assert same(written["polyak.last"]["ema"]["tracks"]["average"]["tensors"], averages_of(last))


class Schedule(BaseFinetuning):
    """The first layer trains from the second epoch on, the last one until then."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch >= 1:
            self.make_trainable(pl_module.net[0])
            self.freeze(pl_module.net[3])
            if len(optimizer.param_groups) == 1:  # after a resume Lightning has added it already
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=1e-2)


class Scheduled(Digits):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class Seen(pl.Callback):
    """The module after each step, and which of its layers train."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, torch.Tensor], list[bool]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        copy = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.steps.append((copy, [p.requires_grad for p in pl_module.parameters()]))


def finetune(folder: Path, resume: Path | None, before: bool) -> tuple[WeightAveraging, Seen]:
    average, schedule, seen = WeightAveraging({"a": 0.9, "b": 0.99}), Schedule(), Seen()
    callbacks = (average, schedule, seen) if before else (seen, schedule, average)
    saver = [] if resume else [each_epoch(folder, every_n_train_steps=8)]
    run = trainer(folder, *callbacks, *saver, enable_checkpointing=not resume)
    run.fit(Scheduled(), loader(), ckpt_path=resume)
    return average, seen


@pytest.mark.parametrize("before", [True, False], ids=["average first", "schedule first"])
def test_layers_frozen_and_unfrozen_resume_from_any_point(before: bool, tmp_path: Path) -> None:
    """Against a loop of one's own: Lightning resumes such a schedule, but not as if it had gone on."""
    whole, _ = finetune(tmp_path, None, before)
    assert "net.0.weight" in whole.ema.tracks["a"].joined
    for step in (8, 16, 24, 40):
        resumed, seen = finetune(tmp_path, tmp_path / f"step={step}.ckpt", before)
        module = Scheduled()
        module.net[0].requires_grad_(False)  # as the schedule begins
        ema = load(tmp_path / f"step={step}.ckpt", module)
        for state, trained in seen.steps:
            module.load_state_dict(state)
            for parameter, flag in zip(module.parameters(), trained, strict=True):
                parameter.requires_grad_(flag)
            ema.update()
        for name, track in resumed.ema.tracks.items():
            assert same(dict(track.tensors), dict(ema.tracks[name].tensors)), step
            assert track.joined == ema.tracks[name].joined, step
            assert track.profile == whole.ema.tracks[name].profile, step


def averages_of(average: WeightAveraging) -> dict[str, torch.Tensor]:
    return dict(average.ema.tracks["average"].tensors)


def test_averaging_can_begin_in_a_run_that_had_none(tmp_path: Path) -> None:
    trainer(tmp_path, each_epoch(tmp_path), max_epochs=1, enable_checkpointing=True).fit(Digits(), loader())
    raw = torch.load(tmp_path / "step=16.ckpt", weights_only=True)["state_dict"]
    average, module = WeightAveraging(0.9, every=20), Digits()
    trainer(tmp_path, average, max_epochs=2).fit(module, loader())
    assert average.ema.step == 32
    run = trainer(tmp_path, average, max_epochs=2)
    with pytest.warns(UserWarning, match="averaging begins at its weights"):
        run.fit(module, loader(), ckpt_path=tmp_path / "step=16.ckpt")
    assert torch.equal(average.ema.module.net[0].weight, raw["net.0.weight"])  # 16 steps are no 20


@pytest.mark.parametrize("decay", [0.9, {"a": 0.9, "b": 0.5}], ids=str)
def test_any_logger_gets_the_numbers(decay: Any, tmp_path: Path) -> None:
    logging: dict[str, Any] = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 5}
    run = trainer(tmp_path, WeightAveraging(decay), max_epochs=1, **logging)
    run.fit(Digits(), loader())
    with open(Path(run.logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["ema/skipped"]]
    assert [row["step"] for row in rows] == ["4", "9", "14"]
    tracks = [""] if decay == 0.9 else ["a/", "b/"]
    for track in tracks:
        assert float(rows[-1][f"ema/{track}distance"]) > 0
        assert float(rows[-1][f"ema/{track}mean_age"]) > 0
        assert float(rows[-1][f"ema/{track}decay"]) in (0.9, 0.5)


def test_compiled_modules_are_averaged(tmp_path: Path) -> None:
    whole = {}
    for compiled in (False, True):
        average, module = WeightAveraging(0.9), Digits()
        if compiled:
            module.net = torch.compile(module.net, backend="eager")
        trainer(tmp_path, average, max_epochs=1).fit(module, loader(), loader())
        whole[compiled] = averages(average.ema)
    assert not any("_orig_mod" in name for name in average.ema.tracks["average"].tensors)
    assert [t.tolist() for t in whole[True].values()] == [t.tolist() for t in whole[False].values()]


def test_the_older_package_name_is_served_too(tmp_path: Path) -> None:
    package = pytest.importorskip("pytorch_lightning")
    Old = type("Old", (package.LightningModule,), {k: v for k, v in vars(Digits).items() if k[:2] != "__"})
    module = Old()
    module.net, module.kill_at, module.fail, module.seen = Digits().net, -1, False, {}
    module.first = module.net[0]
    average = WeightAveraging(0.9)
    trainer(tmp_path, average, package=package, max_epochs=1).fit(module, loader(), loader())
    assert average.ema.step == 16
    assert torch.equal(module.seen["validation"], average.ema.module.net[0].weight)


class Two(Digits):
    """With two optimizers, as adversarial training has them."""

    automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:  # type: ignore[override]
        for turn, optimizer in enumerate(self.optimizers()):
            if turn == 0 or index % 4 == 0:
                optimizer.zero_grad()
                self.manual_backward(self.net(X[:16]).square().mean())
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), lr=1e-2) for i in (0, 3)]


def test_of_several_optimizers_one_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(polyak.ConfigError, match="2 optimizers; say which"):
        trainer(tmp_path, WeightAveraging(0.9), max_epochs=1).fit(Two(), loader())
    with pytest.raises(polyak.ConfigError, match="optimizer=2: the module has 2"):
        trainer(tmp_path, WeightAveraging(0.9, optimizer=2), max_epochs=1).fit(Two(), loader())
    average = WeightAveraging(0.9, optimizer=1)
    trainer(tmp_path, average, max_epochs=1).fit(Two(), loader())
    assert average.ema.step == 4


class Sided(Digits):
    """Counts validations by the weights they are of; random numbers are drawn in training and validation."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(3, nn.Dropout(0.5))
        self.right = MeanMetric()
        self.calls: list[tuple[str, float]] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.calls.append(
            ("sanity" if self.trainer.sanity_checking else "val", self.first.weight.sum().item())
        )
        out = self.net(x + 1e-3 * torch.randn_like(x))
        # Of a sanity check it would be the best.
        self.log("val_loss", nn.functional.cross_entropy(out, y) - 99 * self.trainer.sanity_checking)
        self.right(out.argmax(1) == y)
        self.log("val_right", self.right)

    test_step = validation_step


class Heard(pl.Callback):
    """How many validations a callback was told of."""

    ends = 0

    def on_validation_end(self, *_: Any) -> None:
        self.ends += 1


def shuffled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True)


def sided(folder: Path, evaluate: Any, *callbacks: Any, **options: Any) -> tuple[Any, Any, WeightAveraging]:
    """Two epochs of four steps."""
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate, **options)
    logging = {"logger": [CSVLogger(folder), TensorBoardLogger(folder)], "log_every_n_steps": 2}
    module = Sided()
    torch.manual_seed(1)
    run = trainer(folder, average, *callbacks, max_epochs=2, enable_checkpointing=True, **logging)
    run.fit(module, shuffled(), DataLoader(TensorDataset(X, Y), batch_size=64))
    return run, module, average


def curves(run: Any) -> dict[str, dict[int, float]]:
    """What the two loggers wrote: metric to step to value."""
    found: dict[str, dict[int, float]] = {}
    with open(Path(run.loggers[0].log_dir) / "metrics.csv") as file:
        for row in csv.DictReader(file):
            for name in (name for name, value in row.items() if value and name != "step"):
                found.setdefault(name, {})[int(row["step"])] = float(row[name])
    events = EventAccumulator(run.loggers[1].log_dir).Reload()
    for name, values in found.items():
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx(values), name
    return found


def test_raw_and_averages_are_validated_once_each_and_have_a_best_file_each(tmp_path: Path) -> None:
    kinds = {"short": "val_loss", "raw": "raw/val_loss", "long": "ema=long/val_loss"}
    savers = {
        weights: ModelCheckpoint(tmp_path / weights, monitor=name, filename="{step}")
        for weights, name in kinds.items()
    }
    heard = Heard()
    run, module, average = sided(tmp_path, list(kinds), *savers.values(), heard)
    assert heard.ends == 1 + 2, "the sanity check, and the first kind in each epoch"
    validated = [weights for stage, weights in module.calls if stage == "val"]
    assert len(validated) == 2 * 3 * 4, "epochs, kinds, batches"
    expected = [average.ema.module_of("short").first.weight.sum().item(), module.first.weight.sum().item()]
    raw, long, short = validated[12::4]
    assert (short, raw) == tuple(expected)
    assert long == average.ema.module_of("long").first.weight.sum().item()
    assert len(module.calls) - len(validated) == 2, "the sanity check is of one kind"

    logged = curves(run)
    for weights, name in kinds.items():
        losses = logged[name]
        assert list(losses) == [3, 7]
        assert min(losses.values()) > 0, "not of the sanity check"
        assert float(savers[weights].best_model_score) == pytest.approx(min(losses.values()))
        assert float(run.callback_metrics[name]) == pytest.approx(losses[7])
        assert 0 < logged[name.replace("loss", "right")][7] <= 1
        assert len(list((tmp_path / weights).iterdir())) == 1
    assert len({losses[7] for losses in map(logged.__getitem__, kinds.values())}) == 3


def test_a_second_validation_changes_no_training(tmp_path: Path) -> None:
    once, module, average = sided(tmp_path / "once", None)
    twice, other, averages = sided(tmp_path / "twice", "both")
    assert same(module.state_dict(), other.state_dict())
    assert same(average.ema.module.state_dict(), averages.ema.module.state_dict())
    assert curves(once)["val_loss"] == curves(twice)["val_loss"]
    assert "raw/val_loss" not in curves(once)
    assert once.fit_loop.state_dict()["epoch_progress"] == twice.fit_loop.state_dict()["epoch_progress"]


def test_before_averaging_starts_the_average_is_validated_as_the_raw_weights(tmp_path: Path) -> None:
    run, *_ = sided(tmp_path, "both", start=100)
    logged = curves(run)
    assert logged["val_loss"] == logged["raw/val_loss"]
    assert logged["val_right"] == logged["raw/val_right"]


def test_a_run_with_both_goes_on_from_its_best_files(tmp_path: Path) -> None:
    def go(epochs: int, resume: Path | None = None) -> tuple[Any, WeightAveraging]:
        average, module = WeightAveraging(0.9, evaluate="both"), Digits()
        best = ModelCheckpoint(tmp_path, "{epoch}", monitor="raw/loss", save_top_k=-1)
        run = trainer(tmp_path, average, best, max_epochs=epochs, enable_checkpointing=True)
        run.fit(module, loader(), loader(), ckpt_path=resume)
        return module, average

    whole, again = go(2), go(2, tmp_path / "epoch=0.ckpt")
    assert whole[1].ema.step == again[1].ema.step == 32
    assert same(whole[0].state_dict(), again[0].state_dict())
    assert same(averages(whole[1].ema), averages(again[1].ema))


def test_validate_and_test_return_both_and_predict_predicts_once(tmp_path: Path) -> None:
    run, module, average = sided(tmp_path, "both")
    data = DataLoader(TensorDataset(X, Y), batch_size=64)
    for look in (run.validate, run.test):
        module.calls.clear()
        [metrics] = look(module, data, verbose=False)
        assert metrics.keys() == {"val_loss", "val_right", "raw/val_loss", "raw/val_right"}
        assert len(module.calls) == 2 * 4
    assert len(run.predict(module, data)) == 4
    assert torch.equal(module.seen["predict"], average.ema.module.first.weight)


def test_an_exception_in_the_second_validation_leaves_all_as_it_was(tmp_path: Path) -> None:
    average, module = (
        WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=["short", "long"]),
        Digits(fail=True),
    )
    run = trainer(tmp_path, average, max_epochs=1)
    callbacks = [*run.callbacks]
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        run.fit(module, loader(), loader())
    assert torch.equal(module.seen["validation"], average.ema.module_of("long").first.weight)
    assert average.ema.live == "raw"
    assert not torch.equal(module.first.weight, module.seen["validation"])
    assert "log" not in vars(module)
    assert run.callbacks == callbacks


def test_who_loads_only_the_raw_weights_is_told(tmp_path: Path) -> None:
    class Own(Digits):
        """Warned of once a class has been trained with the callback."""

    trainer(
        tmp_path, WeightAveraging(0.9), each_epoch(tmp_path), max_epochs=1, enable_checkpointing=True
    ).fit(Own(), loader())
    path = tmp_path / "step=16.ckpt"
    with pytest.warns(UserWarning, match=r"loads the raw weights.*polyak\.trainers\.lightning\.load"):
        raw = Own.load_from_checkpoint(path)
    with pytest.warns(UserWarning, match="no average of this module, so its raw weights are evaluated"):
        trainer(tmp_path, WeightAveraging(0.9, evaluate="both")).test(raw, loader(), verbose=False)
    with pytest.warns(
        UserWarning, match="add the following callbacks.*polyak.trainers.lightning.WeightAvera"
    ):
        trainer(tmp_path, max_epochs=2).fit(Own(), loader(), ckpt_path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(path, Own())


def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(
        polyak.ConfigError, match="evaluate='wide': must be 'short', 'long', 'raw', 'both' or a list"
    ):
        WeightAveraging({"short": 0.5, "long": 0.9}, evaluate="wide")
    with pytest.raises(polyak.ConfigError):
        WeightAveraging(1.5)


def ddp(folder: Path) -> None:
    """Two processes, each with its own half of the images."""
    warnings.simplefilter("ignore")
    average, module = WeightAveraging(0.9), Digits()
    run = trainer(folder, average, max_epochs=1, devices=2, strategy="ddp", accumulate_grad_batches=2)
    run.fit(module, loader(), loader())
    torch.save(averages(average.ema) | {"step": average.ema.step}, folder / f"{run.global_rank}.pt")
    run.save_checkpoint(folder / "ddp.ckpt")


def test_two_processes_keep_one_average(tmp_path: Path) -> None:
    side_by_side(f"from tests.trainers.test_lightning import *; ddp(Path({str(tmp_path)!r}))")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.pop("step") == second.pop("step") == 4
    learned = [name for name in first if "running" not in name]  # those are each process's own
    assert all(torch.equal(first[name], second[name]) for name in learned)
    assert load(tmp_path / "ddp.ckpt", Digits()).step == 4


def test_start_may_be_a_share_of_the_run(tmp_path: Path) -> None:
    average = WeightAveraging(0.9, start="50%")
    saver = each_epoch(tmp_path, every_n_train_steps=7)
    run = trainer(tmp_path, average, saver, enable_checkpointing=True, accumulate_grad_batches=2)
    run.fit(Digits(), loader())
    assert average.ema.start == round(run.global_step / 2) > 1
    longer = WeightAveraging(0.9, start="50%")  # of a run that goes on, it stays where it was
    trainer(tmp_path, longer, max_epochs=4, accumulate_grad_batches=2).fit(
        Digits(), loader(), ckpt_path=saver.best_model_path
    )
    assert longer.ema.start == average.ema.start


def test_a_decay_longer_than_the_run_is_told_when_it_begins(tmp_path: Path) -> None:
    run = trainer(tmp_path, WeightAveraging(0.9999), max_epochs=-1, max_steps=120)
    with pytest.warns(UserWarning, match="99% will still be the weights it began with after 120 steps"):
        run.fit(Digits(), loader())


class Observe(pl.Callback):
    """After each validation it makes another track the best."""

    def __init__(self, average: WeightAveraging) -> None:
        self.average, self.validated = average, list[bool]()

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        ema = self.average.ema
        followed = ema.tracks[ema.following].tensors["net.0.weight"]
        self.validated.append(torch.equal(module.seen["validation"], followed))
        best = "h1" if ema.following == "h10" else "h10"
        ema.observe({name: float(name == best) for name in ema.tracks})


def test_the_followed_track_is_validated_and_a_callback_may_change_it(tmp_path: Path) -> None:
    average = WeightAveraging(polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0))
    observe, module = Observe(average), Digits()
    kept = each_epoch(tmp_path)
    run = trainer(tmp_path, average, observe, kept, enable_checkpointing=True, num_sanity_val_steps=0)
    run.fit(module, loader(), loader())
    assert observe.validated == [True] * 3
    assert average.ema.metrics()["switches"] == 3
    loaded = load(kept.best_model_path or next(tmp_path.glob("*.ckpt")), Digits())
    rules = [opened(ema.state_dict())["adaptive"]["rule"] for ema in (loaded, average.ema)]
    assert rules[0] == rules[1]
    [last] = tmp_path.glob("step=48.ckpt")
    assert load(last, Digits()).following == average.ema.following == "h1"
    assert trainer(tmp_path, average).validate(module, loader(), verbose=False)
    assert torch.equal(module.seen["validation"], average.ema.module.first.weight)


def test_fsdps_first_version_is_refused_with_the_way_out() -> None:
    run = SimpleNamespace(strategy=FSDPStrategy())  # which trains on GPUs alone
    with pytest.raises(polyak.ConfigError, match=r"FSDPStrategy shards the model.*ModelParallelStrategy"):
        WeightAveraging().on_fit_start(run, Digits())
