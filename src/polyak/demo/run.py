"""The demo: read the images, train, log and show the records, save the average."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from types import FrameType

from polyak.demo import screen
from polyak.demo.data import load
from polyak.demo.learner import choose
from polyak.demo.options import Options
from polyak.demo.summary import Summary, summarize
from polyak.demo.training import LossRecord, Record, Training


@dataclass(frozen=True)
class Result:
    """The figures of a run, its steps done and planned, its folder, and whether Ctrl-C ended it early."""

    summary: Summary
    steps: int
    total: int
    folder: Path
    interrupted: bool


def run(
    options: Options,
    show: Callable[[str], object] = lambda line: None,
    tick: Callable[[int, int], object] = lambda done, total: None,
) -> Result:
    """Train a network and its average; write `metrics.jsonl` line by line, `average.safetensors` at the end.

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
    training = Training(learner, images, options.epochs)
    total = options.epochs * training.steps_per_epoch
    folder = options.make_folder()
    train, test = len(images.train.labels), len(images.test.labels)
    warmup = " with warm-up" if options.warmup else ""
    show(f"{images.name} from {images.origin}: {train:,} training and {test:,} test images")
    show(
        f"{screen.counted(options.epochs, 'epoch')} on {learner.where}, "
        f"decay {options.decay}{warmup}, seed {options.seed}; writing to {folder}"
    )
    records: list[Record] = []
    with stop_on_interrupt() as stop, (folder / "metrics.jsonl").open("x") as log:

        def after_step() -> bool:
            tick(training.ema.step, total)
            return stop.is_set()

        for record in training.run(after_step):
            records.append(record)
            log.write(to_json(record) + "\n")
            log.flush()  # a killed run keeps what it showed
            show(screen.line(record))
        training.ema.save(folder / "average.safetensors")
    return Result(summarize(records), training.ema.step, total, folder, stop.is_set())


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
