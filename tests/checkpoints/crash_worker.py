"""Savers that die: ``python -m tests.checkpoints.crash_worker HOW KIND FOLDER [COUNT SEED]``.

A child saves, and is killed; the parent then looks whether what is there is whole. A process of its own,
because it forks, which one with threads should not. Prints, as JSON, what was found after each death.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import numpy as np

from polyak._files.header import Header
from polyak._files.layout import Spec
from polyak._files.shards import write_sharded
from polyak._foreign.load import load

Line: TypeAlias = tuple[str, int]  # file and number

NAME = "average.safetensors"
FINISHED = 42
WATCHED = tuple(f"_files/{name}.py" for name in ("write", "shards", "locks", "targets"))

# Which saves are in shards: by the number of the save.
KINDS: dict[str, Callable[[int], bool]] = {
    "file": lambda i: False,
    "set": lambda i: True,
    "file over set": lambda i: i % 2 == 0,
    "set over file": lambda i: i % 2 == 1,
}


def tensors(i: int) -> dict[str, np.ndarray]:
    """The values of the i-th save: no byte of them is that of another."""
    sizes = {"a": 30_000, "b": 20_001, "c": 7, "d": 0}
    return {name: np.full(size, i, np.float32) for name, size in sizes.items()}


def save(folder: Path, i: int, sharded: bool) -> None:
    arrays = tensors(i)
    header = Header("average", i, None, None, "average", "run")
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    write_sharded(
        folder / NAME,
        specs,
        header.to_metadata(),
        lambda name: np.array_split(arrays[name], 4),
        100_000 if sharded else None,
    )


def found(folder: Path) -> int:
    """Which save is there, every value of it."""
    average = load(folder / NAME)
    i = average.header.step
    assert i is not None
    expected = tensors(i)
    assert average.tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(average.tensors[name], array), name
    return i


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(FINISHED)
    return pid


def result(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def at_random(folder: Path, kind: str, count: int, seed: int) -> dict[str, Any]:
    """Save in a loop, die at a random moment; ``count`` times over the same file."""
    chance, sharded, deaths, litter = random.Random(seed), KINDS[kind], [9], 0
    begun = time.perf_counter()
    for i in range(10):
        save(folder, i, sharded(i))
    typical = (time.perf_counter() - begun) / 10

    def saving(done: int) -> None:
        i = deaths[-1]
        while True:
            i += 1
            save(folder, i, sharded(i))
            os.write(done, b".")

    for _ in range(count):
        listen, done = os.pipe()
        pid = in_child(partial(saving, done))
        os.close(done)
        for _ in range(chance.randrange(3)):  # so many whole saves first, however slow the disk is
            os.read(listen, 1)
        time.sleep(chance.uniform(0, 1.5 * typical))
        os.kill(pid, signal.SIGKILL)
        assert result(pid) == -signal.SIGKILL
        os.close(listen)  # not before: writing to a pipe that nobody reads ends a process too
        litter += any(name.endswith(".part") for name in files(folder))
        deaths.append(found(folder))
    last = deaths[-1] + 1
    save(folder, last, sharded(last))
    return {"deaths": deaths, "litter": litter, "files": files(folder), "found": found(folder), "last": last}


def at_each_line(folder: Path, kind: str, die: Callable[[], None]) -> dict[str, Any]:
    """Die before each line of the code that writes: when it first runs, and when it last does."""
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written: forcing it costs only time
    sharded, seen, ended, litter, clean = KINDS[kind], list[int](), 0, 0, list[list[str]]()
    lines = list[Line]()
    last = -1
    save(folder, last := last + 1, sharded(0))
    traced(lines.append, partial(save, folder, last := last + 1, sharded(1)))
    save(folder, last := last + 1, sharded(0))
    for n in ends(lines):
        work = partial(traced, Countdown(n, die), partial(save, folder, last + 1, sharded(1)))
        ended += result(in_child(work)) != FINISHED  # the last lines sweep, and there may be less to sweep
        litter += any(name.endswith(".part") for name in files(folder))
        seen.append(found(folder) - last)
        last += 2
        save(folder, last, sharded(0))
        assert found(folder) == last
        clean.append(files(folder))
    shapes = sorted({len(names) for names in clean})
    return {"seen": seen, "ended": ended, "litter": litter, "shapes": shapes, "files": clean[-1]}


def ends(lines: Sequence[Line]) -> list[int]:
    """The places, from 1 on, at which each line is the first or the last of its kind."""
    last = {line: n for n, line in enumerate(lines, 1)}
    first = {line: n for n, line in reversed([*enumerate(lines, 1)])}
    return sorted({*first.values(), *last.values()})


class Countdown:
    """Dies before the n-th line."""

    def __init__(self, n: int, die: Callable[[], None]) -> None:
        self._left, self._die = n, die

    def __call__(self, line: Line) -> None:
        self._left -= 1
        if self._left == 0:
            self._die()


def traced(before: Callable[[Line], None], work: Callable[[], None]) -> None:
    """Work; ``before`` is called with each line of the code that writes, before it runs."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(WATCHED):
            return None
        if event == "line":
            before((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    how, kind, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if how == "random":
        print(json.dumps(at_random(folder, kind, int(sys.argv[4]), int(sys.argv[5]))))
    else:
        print(json.dumps(at_each_line(folder, kind, {"kill": kill, "interrupt": interrupt}[how])))
