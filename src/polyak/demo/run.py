"""The whole demo: find the images, train, show and write down what happens, save the average."""

from __future__ import annotations

import json
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from polyak.demo import screen
from polyak.demo.data import load
from polyak.demo.learner import choose
from polyak.demo.options import Options
from polyak.demo.summary import Summary, summarize
from polyak.demo.training import LossRecord, Record, Training


@dataclass(frozen=True)
class Result:
    """What a run leaves: its figures, its folder, and whether Ctrl-C ended it early."""

    summary: Summary
    folder: Path
    interrupted: bool


def run(options: Options, console: Console) -> Result:
    """Train a network and its average; write `metrics.jsonl` line by line, `average.safetensors` at the end.

    The first Ctrl-C ends the run after the step it falls in, so that the average and its counters agree; a
    second one ends it at once.

    Raises:
        ConfigError: an option cannot be followed; nothing has been written then.
    """
    learner = choose(options)
    images = load(options.data, options.root)
    training = Training(learner, images, options.epochs)
    folder = options.make_folder()
    console.print(
        f"{images.name} from {images.origin}: {len(images.train.labels):,} training and "
        f"{len(images.test.labels):,} test images\n"
        f"{screen.counted(options.epochs, 'epoch')} on {learner.where}, "
        f"decay {options.decay}{' with warm-up' if options.warmup else ''}, seed {options.seed}; "
        f"writing to {folder}",
        highlight=False,
        soft_wrap=True,
    )
    records: list[Record] = []
    with (
        stop_on_interrupt() as stop,
        screen.progress(console) as bar,
        (folder / "metrics.jsonl").open("x") as log,
    ):
        task = bar.add_task("training", total=options.epochs * training.steps_per_epoch)

        def after_step() -> bool:
            bar.advance(task)
            return stop.asked

        for record in training.run(after_step):
            records.append(record)
            log.write(to_json(record) + "\n")
            log.flush()  # a killed run keeps what it showed
            bar.console.print(screen.line(record), highlight=False, soft_wrap=True)
        training.ema.save(folder / "average.safetensors")
    return Result(summarize(records), folder, stop.asked)


def to_json(record: Record) -> str:
    """One line of `metrics.jsonl`: the record's fields after its kind, "loss" or "epoch"."""
    kind = "loss" if isinstance(record, LossRecord) else "epoch"
    return json.dumps({"kind": kind, **asdict(record)})


@dataclass
class Stop:
    """Whether Ctrl-C was pressed."""

    asked: bool = False


@contextmanager
def stop_on_interrupt() -> Generator[Stop]:
    """Note the first Ctrl-C instead of raising; from the second on Python's own rule holds again."""
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)

    def note(_signal: int, _frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
