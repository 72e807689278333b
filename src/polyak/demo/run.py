"""The demo: read the images, train, log and show the records, save the average and its curves."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from types import FrameType

import polyak
from polyak.demo import screen
from polyak.demo.data import load
from polyak.demo.learner import Learner, choose
from polyak.demo.options import Options
from polyak.demo.summary import Summary, summarize
from polyak.demo.training import EpochRecord, LossRecord, Record, Training
from polyak.report import report
from polyak.report.environment import environment, write_environment
from polyak.report.epochs import picture


@dataclass(frozen=True)
class Result:
    """The figures of a run, its curves, steps done and planned, folder, and whether Ctrl-C ended it early.

    `curves` has for "accuracy" and "loss" the values at each epoch of raw weights and of the average.
    """

    summary: Summary
    curves: dict[str, tuple[list[float], list[float]]]
    steps: int
    total: int
    folder: Path
    interrupted: bool

    @property
    def files(self) -> list[str]:
        """The files in the folder."""
        return sorted(path.name for path in self.folder.iterdir())


def run(
    options: Options,
    show: Callable[[str], object] = lambda line: None,
    tick: Callable[[int, int], object] = lambda done, total: None,
) -> Result:
    """Train a network and its average.

    Writes `metrics.jsonl` line by line and snapshots of the average while training, then
    `average.safetensors`, `curves.png`, `polyak-run.json` and `report.html`.

    The first Ctrl-C ends the run after the current step, so that the average and its counters agree; a
    second one ends it at once.

    Args:
        options: the run.
        show: called with each line of text to display.
        tick: called with the number of steps done and the total.

    Raises:
        ConfigError: an option cannot be followed; nothing has been written then.
    """
    learner = choose(options)
    images = load(options.data, options.root)
    training = Training(learner, images, options.epochs, options.lr)
    total = options.epochs * training.steps_per_epoch
    folder = options.make_folder()
    train, test = len(images.train.labels), len(images.test.labels)
    show(f"{images.name} from {images.origin}: {train:,} training and {test:,} test images")
    show(f"{screen.counted(options.epochs, 'epoch')} on {learner.where}, seed {options.seed}, to {folder}")
    show(f"learning rate {options.lr}; {screen.decay(options, training.steps_per_epoch)}")
    records: list[Record] = []
    with (
        stop_on_interrupt() as stop,
        (folder / "metrics.jsonl").open("x") as log,
        polyak.Archive(folder / "snapshots", training.ema),
    ):

        def after_step() -> bool:
            tick(training.ema.step, total)
            return stop.is_set()

        for record in training.run(after_step):
            records.append(record)
            log.write(to_json(record) + "\n")
            log.flush()  # a killed run keeps what it showed
            show(screen.line(record))
        training.ema.save(folder / "average.safetensors")
    done = [record for record in records if isinstance(record, EpochRecord)]
    curves = {
        "accuracy": ([e.accuracy for e in done], [e.ema_accuracy for e in done]),
        "loss": ([e.test_loss for e in done], [e.ema_test_loss for e in done]),
    }
    if done:
        picture(curves, folder / "curves.png")
    write_environment(folder, _environment(options, learner, training))
    report([folder], folder / "report.html")
    return Result(summarize(records), curves, training.ema.step, total, folder, stop.is_set())


def _environment(options: Options, learner: Learner, training: Training) -> dict[str, str]:
    engine = training.ema.metrics()["engine"]
    data = f"{options.data}, {options.lr} learning rate"
    return environment(sys.modules, engine=engine, device=learner.where, seed=options.seed, data=data)


def score(options: Options, weights: Path) -> float:
    """The loss of a file's weights on the test images.

    Raises:
        ConfigError: an option cannot be followed.
        CheckpointError: the file is damaged or not an average.
    """
    learner = choose(options)
    learner.load(polyak.load(weights).tensors)
    return learner.evaluate(*learner.to_device(load(options.data, options.root).test)).loss


def to_json(record: Record) -> str:
    """One line of `metrics.jsonl`: the record's fields after its kind, "loss" or "epoch"."""
    kind = "loss" if isinstance(record, LossRecord) else "epoch"
    return json.dumps({"kind": kind, **asdict(record)})


@contextmanager
def stop_on_interrupt() -> Generator[Event]:
    """Note the first Ctrl-C instead of raising; from the second on Python's own handler applies again."""
    stop = Event()
    before = signal.getsignal(signal.SIGINT)

    def note(_signal: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
