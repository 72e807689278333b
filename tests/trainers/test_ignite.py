"""Ignite really trains a small network on scikit-learn's digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import polyak
from tests.trainers.digits import loss, network, same

pytest.importorskip("ignite")
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from polyak.trainers.ignite import WeightAveraging

ROOT = Path(__file__).parents[2]


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
    code = "from pathlib import Path; from tests.trainers.test_ignite import killed; killed(Path({!r}))"
    command = [sys.executable, "-c", code.format(str(tmp_path))]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == -signal.SIGKILL
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


def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(
        polyak.ConfigError, match="evaluate='wide': must be 'average', 'raw', 'both' or a list"
    ):
        Run(evaluate="wide")
    with pytest.raises(polyak.ConfigError, match="log_every"):
        Run(log_every=0)
