"""Ignite really trains a small network on scikit-learn's digits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import polyak
from tests.processes import check_it_kills_itself
from tests.tensors import same
from tests.trainers.digits import X, Y, loss, network

pytest.importorskip("ignite")
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, TensorboardLogger
from ignite.metrics import Loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyak.trainers.ignite import WeightAveraging


class Run:
    """A trainer that evaluates after each epoch of eight steps."""

    def __init__(self, accumulate: int = 1, fail: bool = False, kill_at: int = -1, **options: Any) -> None:
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.accumulate, self.fail, self.kill_at = accumulate, fail, kill_at
        self.seen = torch.tensor(0.0)
        self.trainer, self.evaluator = Engine(self.step), Engine(self.look)
        self.average = WeightAveraging(
            model=self.model, optimizer=self.optimizer, **{"decay": 0.9, "log_every": 4, **options}
        )
        self.average.attach(self.trainer, self.evaluator)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.evaluator.run([0, 1]))
        self.all = {
            "trainer": self.trainer, "model": self.model, "optimizer": self.optimizer, "ema": self.average.ema
        }  # fmt: skip

    def step(self, engine: Engine, batch: Any) -> None:
        iteration = engine.state.iteration
        if iteration == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.model.train()
        loss(self.model, iteration).backward()
        if iteration % self.accumulate == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def look(self, engine: Engine, batch: Any) -> None:
        self.model.eval()
        self.seen = self.model[0].weight.detach().clone()
        if self.fail:
            raise RuntimeError("the evaluation failed")

    def saving(self, folder: Path) -> Run:
        saver = DiskSaver(str(folder), create_dir=True, require_empty=False)
        save = Checkpoint(self.all, saver, n_saved=None, global_step_transform=lambda *_: self.iteration)
        self.evaluator.add_event_handler(Events.COMPLETED, save)
        return self

    @property
    def iteration(self) -> int:
        return self.trainer.state.iteration

    @property
    def mean(self) -> torch.Tensor:
        return self.average.ema.module_of(None)[0].weight

    def go(self) -> Run:
        self.trainer.run(list(range(8)), max_epochs=3)
        return self


def killed(folder: Path) -> None:
    Run(kill_at=20, decay=polyak.Warmup(0.99), every=3).saving(folder).go()


def test_a_killed_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    check_it_kills_itself(__name__, f"killed({tmp_path!r})")
    whole = Run(decay=polyak.Warmup(0.99), every=3).go()
    resumed = Run(decay=polyak.Warmup(0.99), every=3)
    Checkpoint.load_objects(resumed.all, torch.load(tmp_path / "checkpoint_16.pt", weights_only=True))
    assert resumed.average.ema.step == 16
    resumed.go()
    assert whole.average.ema.step == resumed.average.ema.step == 24
    assert same(whole.average.ema.module.state_dict(), resumed.average.ema.module.state_dict())


@pytest.mark.parametrize("evaluate", [None, "long", "raw"])
def test_evaluation_is_on_the_average_asked_for(evaluate: str | None) -> None:
    run = Run(decay={"short": 0.5, "long": 0.9}, evaluate=evaluate).go()
    raw = run.model[0].weight
    tracks = {track: run.average.ema.module_of(track)[0].weight for track in ("short", "long")}
    assert torch.equal(run.seen, {None: tracks["short"], "long": tracks["long"], "raw": raw}[evaluate])
    assert not torch.equal(tracks["short"], raw)
    assert run.average.ema.live == "raw"


def test_a_checkpoint_after_an_evaluation_holds_the_raw_weights(tmp_path: Path) -> None:
    run = Run().saving(tmp_path).go()
    written = torch.load(tmp_path / "checkpoint_24.pt", weights_only=True)
    assert same(written["model"], run.model.state_dict())
    assert torch.equal(written["ema"]["tracks"]["average"]["tensors"]["0.weight"], run.mean)


def test_an_exception_in_an_evaluation_leaves_the_raw_weights() -> None:
    run = Run(fail=True)
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        run.go()
    assert run.average.ema.live == "raw"
    assert torch.equal(run.seen, run.mean)
    assert not torch.equal(run.seen, run.model[0].weight)


def test_micro_batches_are_no_steps() -> None:
    assert Run(accumulate=4).go().average.ema.step == 6


def test_the_numbers_are_among_the_metrics() -> None:
    metrics = Run().go().trainer.state.metrics
    assert metrics["ema/decay"] == 0.9
    assert metrics["ema/distance"] > 0
    assert metrics["ema/mean_age"] > 0
    assert metrics["ema/skipped"] == 0
    assert Run(log_every=1000).go().trainer.state.metrics == {}


class Sided(Run):
    """Evaluates with random numbers, counts by weights, and keeps the best of each kind."""

    def __init__(self, folder: Path, evaluate: Any, **options: Any) -> None:
        super().__init__(**{"decay": {"short": 0.5, "long": 0.9}, **options}, evaluate=evaluate)
        self.calls: list[float] = []
        self.completed: list[dict[str, float]] = []
        Loss(torch.nn.functional.cross_entropy).attach(self.evaluator, "loss")
        for name in ("loss", "raw/loss")[: 2 if evaluate == "both" else 1]:
            score = Checkpoint.get_default_score_fn(name, -1)
            saver = DiskSaver(str(folder / name), create_dir=True)
            best = Checkpoint({"model": self.model}, saver, n_saved=1, score_function=score)
            self.evaluator.add_event_handler(Events.COMPLETED, best)
        self.evaluator.add_event_handler(
            Events.COMPLETED, lambda: self.completed.append(dict(self.evaluator.state.metrics))
        )
        self.logger = TensorboardLogger(str(folder))
        self.logger.attach_output_handler(
            self.evaluator, Events.COMPLETED, tag="validation", metric_names="all",
            global_step_transform=lambda *_: self.iteration,
        )  # fmt: skip

    def step(self, engine: Engine, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.model.train()
        rows = torch.randint(len(X), (16,))
        torch.nn.functional.cross_entropy(self.model(X[rows]), Y[rows]).backward()
        self.optimizer.step()

    def look(self, engine: Engine, batch: Any) -> Any:
        super().look(engine, batch)
        self.calls.append(self.model[0].weight.sum().item())
        return self.model(X + 1e-3 * torch.randn_like(X)), Y


def test_raw_and_averages_are_evaluated_once_each_and_have_a_best_file_each(tmp_path: Path) -> None:
    run = Sided(tmp_path, "both").go()
    assert len(run.calls) == 3 * 2 * 2, "epochs, kinds, batches"
    raw, short = run.calls[-4::2]
    assert raw == run.model[0].weight.sum().item()
    assert short == run.average.ema.module_of("short")[0].weight.sum().item()
    assert run.evaluator.state.metrics.keys() == {"loss", "raw/loss"}
    assert len(run.completed) == 3, "once for all kinds"
    assert run.completed[2]["loss"] != run.completed[2]["raw/loss"]
    run.logger.close()  # writes what its thread has not yet
    shown = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "raw/loss"):
        losses = [metrics[name] for metrics in run.completed]
        assert [event.value for event in shown.Scalars(f"validation/{name}")] == pytest.approx(losses)
        [file] = (tmp_path / name).glob("*.pt")
        assert f"{-min(losses):.4f}" in file.name


def test_a_second_evaluation_changes_no_training(tmp_path: Path) -> None:
    torch.manual_seed(1)
    once = Sided(tmp_path / "once", "short").go()
    torch.manual_seed(1)
    twice = Sided(tmp_path / "twice", "both").go()
    assert same(once.model.state_dict(), twice.model.state_dict())
    assert [m["loss"] for m in once.completed] == [m["loss"] for m in twice.completed]


def test_before_averaging_starts_the_average_is_evaluated_as_the_raw_weights(tmp_path: Path) -> None:
    for metrics in Sided(tmp_path, "both", start=100).go().completed:
        assert metrics["loss"] == metrics["raw/loss"]


def test_an_exception_in_the_second_evaluation_leaves_the_raw_weights() -> None:
    run = Run(fail=True, decay={"short": 0.5, "long": 0.9}, evaluate=["short", "long"])
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        run.go()
    assert run.average.ema.live == "raw"
    assert torch.equal(run.seen, run.average.ema.module_of("long")[0].weight)
    assert not torch.equal(run.seen, run.model[0].weight)


def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(
        polyak.ConfigError, match="evaluate='wide': must be 'average', 'raw', 'both' or a list"
    ):
        Run(evaluate="wide")
    with pytest.raises(polyak.ConfigError, match="log_every"):
        Run(log_every=0)


def test_the_followed_track_is_evaluated_and_a_handler_may_change_it() -> None:
    run = Run(decay=polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0))
    ema, evaluated = run.average.ema, list[bool]()

    def observe() -> None:
        evaluated.append(torch.equal(run.seen, ema.tracks[ema.following].tensors["0.weight"]))
        best = "h1" if ema.following == "h10" else "h10"
        ema.observe({name: float(name == best) for name in ema.tracks})

    run.evaluator.add_event_handler(Events.COMPLETED, observe)
    run.go()
    assert evaluated == [True] * 3
    assert (ema.following, ema.metrics()["switches"]) == ("h1", 3)


def test_a_report_is_written_into_the_folder_named(tmp_path: Path) -> None:
    Run(report=tmp_path / "logs").go()
    assert "Constant(0.9)" in (tmp_path / "logs" / "report.html").read_text()
    with pytest.raises(polyak.ConfigError, match="this trainer has no folder of its own"):
        Run(report=True)
