"""Interrupts at every line and at random moments: what a Ctrl-C, or any error of a signal handler, hits."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np

import polyak

# Every line takes minutes: POLYAK_INTERRUPTS=1. By default every seventh is hit.
STRIDE = int(os.environ.get("POLYAK_INTERRUPTS", "7"))
MOMENTS = 500 if STRIDE == 1 else 60
SOURCES = str(Path(polyak.__file__).parent)
Made = TypeVar("Made")


class Interrupt(BaseException):
    """What no ``except Exception`` catches, like KeyboardInterrupt."""


def anywhere(_: FrameType) -> bool:
    return True


def interrupted(run: Callable[[], object], at: int, where: Callable[[FrameType], bool] = anywhere) -> bool:
    """Run with an interrupt at the ``at``-th line or call inside polyak; whether there was such a one.

    Only functions ``where`` this is so are interrupted.
    """
    passed = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event in ("line", "call") and where(frame):
            passed += 1
            if passed == at:
                raise Interrupt
        return trace

    dropped: list[Any] = []
    before, hook = sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = noting(dropped, hook)
    sys.settrace(trace)
    try:
        run()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
        sys.unraisablehook = hook
    assert passed < at or dropped, "an interrupt was swallowed"
    return passed >= at


def noting(dropped: list[Any], hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """An unraisable hook that notes interrupts which Python itself drops, and calls another for the rest.

    Nothing leaves a finalizer, a generator that is closed, or a callback of the garbage collector, such as
    the one that torch.compile installs.
    """
    return lambda raised: dropped.append(raised) if raised.exc_type is Interrupt else hook(raised)


def every_line(
    make: Callable[[], tuple[Callable[[], object], Made]], stride: int = STRIDE
) -> Iterator[tuple[int, Made]]:
    """For each line of a run, a run with an interrupt there: its number, and what was made for it.

    Args:
        make: gives what to run and what it runs on, both fresh: a second run of the same would take other
            lines, as soon as the first has left something in a cache.
        stride: hit each line of so many.
    """
    at = 1
    while True:
        run, made = make()
        if not interrupted(run, at):
            break
        yield at, made
        at += stride
    assert at > 3 * stride, "hardly anything ran"


def random_moments(run: Callable[[], object], count: int = MOMENTS) -> Iterator[int]:
    """After each of so many interrupts of ``run``, out of a signal handler, the number of the interrupt."""
    arrived = False

    def interrupt(*_: object) -> None:
        nonlocal arrived
        arrived = True
        raise Interrupt

    run()
    began = time.perf_counter()
    run()
    usual, chance = time.perf_counter() - began, random.Random(0)
    before, hook = signal.signal(signal.SIGALRM, interrupt), sys.unraisablehook
    sys.unraisablehook = noting([], hook)
    try:
        for hits in range(1, count + 1):
            arrived = False
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, chance.random() * usual))
                while not arrived:  # one that Python drops lets `run` go on to its end
                    run()
            except Interrupt:
                pass
            yield hits  # not above: until its handler ends, an exception keeps what its frames hold
    finally:
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = hook


def torn_at_random_moments(
    ema: Any,
    live: Callable[[], Iterable[np.ndarray]],
    fill: Callable[[float], object],
    values: Callable[[Any], np.ndarray],
    grad: Callable[[bool], object],
) -> int:
    """Interrupt updates and swaps of an EMA; nothing is mixed, stuck or unnoticed.

    All elements of a track are one number, which the count of its updates tells.

    Args:
        ema: with the plain decays "short" and "long", beside a model full of zeros.
        live: the model's parameters.
        fill: sets all of them to a number, outside any interrupt.
        values: of a tensor.
        grad: sets whether gradients are recorded.

    Returns:
        How often a track was half updated, which the EMA said.
    """
    decays = {name: track.decay.beta for name, track in ema.tracks.items()}
    averages, steps, torn, filled = dict.fromkeys(decays, 0.0), 2, 0, 0

    def work() -> None:
        ema.update()
        with ema.average_parameters("short"), ema.average_parameters("short"):
            pass
        with ema.average_parameters("long"):
            pass

    for moment in random_moments(work):
        grad(True)
        assert ema.live == "raw", moment
        assert all((parameter == filled).all() for parameter in live()), moment
        try:
            ema.state_dict()
        except polyak.PlanError:
            torn += 1
            ema.reset()
            averages, steps = dict.fromkeys(decays, float(filled)), ema.step
        for name, track in ema.tracks.items():
            averages[name] = filled + (averages[name] - filled) * decays[name] ** (ema.step - steps)
            for tensor in track.tensors.values():
                np.testing.assert_allclose(values(tensor), averages[name], rtol=1.3e-6, atol=1e-5)
            assert track.profile.steps == ema.step, moment
        steps, filled = ema.step, moment % 200  # which bfloat16 can hold
        fill(filled)
    return torn
