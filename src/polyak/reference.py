"""The reference implementation: averaging in NumPy float64, the obvious way.

Every engine and framework is compared with this file step by step. It is public because it is also
the shortest exact statement of what polyak does; it is not fast and never will be.

Examples:
    >>> state = init({"w": np.array([0.0])}, decay=0.9)
    >>> state = update(state, {"w": np.array([1.0])})
    >>> state.average["w"].round(3)
    array([0.1])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.schedules import ByName, Decay, as_decay, compose
from polyak.schedules.decay import DecayLike

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]


class State(NamedTuple):
    """An average between two updates.

    average: name to array; floating and complex ones averaged, others copied.
    decay: the schedule, which counts in its own unit, or by name several that count in the same.
    step: training steps so far.  clock: the decay's time so far.
    waiting, elapsed: steps, and units of the decay, since the last step acted on.
    every, start: act on each k-th step; copy up to this step.
    """

    average: dict[str, Array]
    decay: Decay | ByName
    step: int = 0
    clock: int = 0
    waiting: int = 0
    elapsed: int = 0
    every: int = 1
    start: int = 0


def init(parameters: Tensors, decay: DecayLike | ByName, *, every: int = 1, start: int = 0) -> State:
    """``avg₀ = θ₀``, in float64 (complex128 for complex arrays)."""
    chosen = decay if isinstance(decay, ByName) else as_decay(decay)
    return State({k: _wide(v) for k, v in parameters.items()}, chosen, every=every, start=start)


def update(state: State, parameters: Tensors, steps: int = 1, units: int | None = None) -> State:
    """``avgₜ = B·avgₜ₋ₖ + (1-B)·θₜ`` on elements where θₜ is finite; others keep their average.

    Args:
        state: the average before.
        parameters: θₜ under the names given to ``init``.
        steps: training steps since the last update.
        units: samples or tokens since then, for a decay counted in them; else the same as ``steps``.

    Returns:
        The average after.
    """
    units = steps if units is None else units
    copying = state.step < state.start
    step = state.step + steps
    waiting, elapsed = state.waiting + steps, state.elapsed + (0 if copying else units)
    state = state._replace(step=step, waiting=waiting, elapsed=elapsed)
    reached = copying and step >= state.start
    if waiting < state.every and not reached:
        return state

    def blended(name: str, old: Array) -> Array:
        if copying or not np.issubdtype(old.dtype, np.inexact):
            return _blend(old, parameters[name], 0.0)
        return _blend(old, parameters[name], compose(_decay_of(state.decay, name), state.clock, elapsed))

    average = {name: blended(name, old) for name, old in state.average.items()}
    return state._replace(average=average, clock=state.clock + elapsed, waiting=0, elapsed=0)


def _decay_of(decay: Decay | ByName, name: str) -> Decay:
    return decay.decays[decay.pattern_of([name])] if isinstance(decay, ByName) else decay


def _wide(value: Array) -> Array:
    if np.issubdtype(value.dtype, np.inexact):
        return value.astype(np.result_type(value.dtype, np.float64))
    return np.array(value)


def _blend(old: Array, new: Array, beta: float) -> Array:
    if not np.issubdtype(old.dtype, np.inexact):
        return np.array(new)
    finite = np.isfinite(new)
    return np.where(finite, beta * old + (1 - beta) * np.where(finite, _wide(new), 0), old)
