"""Paddle's engines: the C kernel on CPUs, otherwise Paddle's own operators, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, TypeAlias
from typing import cast as cast_type

import paddle
from paddle import Tensor

from polyak._core.nonfinite import refuse_nonfinite
from polyak._core.updater import Skipped
from polyak._kernel import NO_KERNEL, native, why_not
from polyak._kernel.pair import Pair as KernelPair
from polyak._kernel.pair import describe, pick
from polyak._kernel.several import Several
from polyak.errors import ConfigError
from polyak.paddle.store import EngineName, Settings
from polyak.paddle.tensors import alias, cast, fills_memory, overwrite, wide

Pair: TypeAlias = KernelPair[Tensor]
Marks: TypeAlias = Tensor | Sequence[int] | None


class Engine(Protocol):
    """Averages some pairs. Made once; ``update`` runs after every optimizer step.

    name: in ``metrics``.  pairs: those it averages.
    """

    name: str
    pairs: Sequence[Pair]

    def bad(self) -> list[str]:
        """Tensors with elements that cannot be stored. Waits for the device."""
        ...

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Marks:
        """``avg ← avg + w·(θ - avg)`` in every track, under ``skip`` where θ can be stored.

        Returns:
            [pairs], under ``skip``: which had elements that cannot be stored. None if none had.
        """
        ...

    def applied(self, step: int) -> bool | None:
        """Whether the update of this step was applied; None if an interrupt came in its middle."""
        ...


class Operators(Several):
    """Averages on any device with Paddle's own operators, a few per tensor; in float32 or float64."""

    name = "ops"

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        for pair in pairs:
            if wide(pair.averages[0].dtype) != pair.averages[0].dtype or pair.residuals:
                raise ConfigError(
                    "16-bit, split and compensated averages need the C kernel, on a CPU, but "
                    f'{why_not(pair, pair.live.place)}. dtype="float32" works everywhere.'
                )
        self.pairs = pairs

    def bad(self) -> list[str]:
        fine = [pair.live.isfinite().all() for pair in self.pairs]
        return [pair.name for pair, each in zip(self.pairs, fine, strict=True) if not bool(each)]

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        self.began = step
        bad: list[Tensor] = []
        with paddle.no_grad():
            for pair in self.pairs:
                live = cast(pair.live.detach(), pair.averages[0].dtype)
                fine = live.isfinite() if skip else None
                for average, each in zip(pair.averages, weights, strict=True):
                    weight = paddle.full([], each, average.dtype)  # a plain number makes scalars [1]
                    average.lerp_(live if fine is None else paddle.where(fine, live, average), weight)
                if fine is not None:
                    bad.append(fine.all().logical_not())
            marks = paddle.stack(bad) if bad else None
        self.ended = step
        return marks


class NonFiniteCounter:
    """Counts the updates in which some θ could not be stored, on the device.

    Args:
        engines: those whose updates are counted.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines, self._step = engines, 0
        self._tensors: list[Tensor | None] = [None] * len(engines)
        # Of the steps before the last one that was counted, and whether in that one.
        self._updates: Tensor = paddle.zeros([], "int32")
        self._last: Tensor = paddle.zeros([], "int32")

    def add(self, place: int, found: Tensor | Sequence[int], step: int) -> None:
        """What an engine found in an update: which of its tensors had such elements."""
        marks = (found if isinstance(found, Tensor) else paddle.to_tensor(found)).astype("int32")
        before, bad = self._tensors[place], marks.max()
        self._tensors[place] = marks if before is None else before + marks
        if step == self._step:  # another engine's
            self._last = paddle.maximum(self._last, bad)
        else:
            self._updates, self._last, self._step = self._updates + self._last, bad, step

    def read(self) -> Skipped:
        """The number of such updates, and of those per tensor. Synchronises."""
        named: dict[str, int] = {}
        for engine, tensors in zip(self._engines, self._tensors, strict=True):
            if tensors is not None:
                counts = cast_type("list[int]", tensors.tolist())
                named |= {pair.name: n for pair, n in zip(engine.pairs, counts, strict=True) if n}
        return int(self._updates) + int(self._last), named


class Updater:
    """All engines of one EMA behind one ``update``; see ``polyak._core.updater.Updater``.

    Args:
        pairs: θ and averages by name, none of them empty.
        copies: (buffer of the average, the layer's own).
        settings: policy for elements that cannot be stored, seed, preferred engine.
        skipped: counts to start at.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        copies: Sequence[tuple[Tensor, Tensor]],
        settings: Settings,
        skipped: Skipped,
    ) -> None:
        self._settings, self._copies, self._skipped = settings, copies, skipped
        groups: dict[tuple[int, ...], list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(pair.places, []).append(pair)
        made = {places: engines(group, settings.engine, settings.seed) for places, group in groups.items()}
        self._engines = [engine for group in made.values() for engine in group]
        picks = [pick(places) for places, group in made.items() for _ in group]
        self._steps = list(enumerate(zip(self._engines, picks, strict=True)))
        self._counter = NonFiniteCounter(self._engines)

    @property
    def name(self) -> str:
        return "; ".join(dict.fromkeys(map(self._describe, self._engines)))

    def update(self, weights: Sequence[float], step: int) -> None:
        if self._settings.policy == "raise":
            refuse_nonfinite([name for engine in self._engines for name in engine.bad()], step)
        for place, (engine, at) in self._steps:
            marks = engine.update(at(weights) if at else weights, step, self._settings.policy == "skip")
            if marks is not None:
                self._counter.add(place, marks, step)
        self._copy()

    def applied(self, step: int) -> bool | None:
        answers = {engine.applied(step) for engine in self._engines}
        if answers == {True}:
            self._copy()
        return answers.pop() if len(answers) == 1 else None

    def capturing(self) -> bool:
        """Paddle records no graphs here."""
        return False

    def wait(self) -> None:
        """Updates finish before their call returns."""

    def skipped(self) -> Skipped:
        updates, named = self._skipped
        more, counts = self._counter.read()
        return updates + more, {n: named.get(n, 0) + counts.get(n, 0) for n in named | counts}

    def _describe(self, engine: Engine) -> str:
        pair = engine.pairs[0]
        reason = why_not(pair, pair.live.place) if engine.name == "ops" else ""
        return describe(engine.name, self._settings.engine, reason)

    def _copy(self) -> None:
        for target, source in self._copies:
            overwrite(target, source)


def engines(pairs: Sequence[Pair], preferred: EngineName, seed: int) -> list[Engine]:
    """The preferred engine for pairs it supports; otherwise the fastest that does.

    Raises:
        ConfigError: none does, or the preferred one is not installed.
    """
    if preferred == "native" and native is None:
        raise ConfigError(f'engine="native": {NO_KERNEL}.')
    fast = [pair for pair in pairs if preferred != "ops" and _kernel_takes(pair)]
    taken = set(map(id, fast))
    slow = [pair for pair in pairs if id(pair) not in taken]
    made: list[Engine] = []
    if fast and native is not None:
        threads = int(os.environ["OMP_NUM_THREADS"])  # Paddle sets it when imported
        made.append(native.Native(fast, seed, alias, lambda: threads))
    if slow:
        made.append(Operators(slow, seed))
    return made


def _kernel_takes(pair: Pair) -> bool:
    on_cpu = all(t.place.is_cpu_place() and t.is_dense() for t in pair.tensors)
    if native is None or not on_cpu or not native.takes(pair):
        return False
    return fills_memory(pair.live) and all(t.strides == pair.live.strides for t in pair.written)
