"""What updates Paddle's averages: the C kernel on CPUs, else Paddle's own operators, tensor by tensor."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from typing import cast as cast_type

import paddle
from paddle import Tensor

from polyak._core.nonfinite import refuse_nonfinite
from polyak._core.several import Several
from polyak._core.updater import Skipped
from polyak._kernel import NO_KERNEL
from polyak.errors import ConfigError
from polyak.paddle.store import EngineName, Settings
from polyak.paddle.tensors import alias, cast, fills_memory, overwrite, wide

try:
    from polyak._kernel import native
except ImportError:
    native = None
if TYPE_CHECKING:
    from polyak._kernel.native import Row


@dataclass(frozen=True)
class Pair:
    """θ and its averages, one per track; ``lows`` is what is kept of each below its own precision."""

    name: str
    live: Tensor
    averages: tuple[Tensor, ...]
    lows: tuple[Tensor, ...]
    key: int = field(init=False)  # tells the random bits of this tensor from those of others

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", zlib.crc32(self.name.encode()))


class Engine(Protocol):
    """Averages some pairs. Made once; ``update`` runs after every optimizer step.

    name: what ``metrics`` calls it.  pairs: those it averages.
    """

    name: str
    pairs: Sequence[Pair]

    def bad(self) -> list[str]:
        """Tensors with elements that cannot be stored. Waits for the device."""
        ...

    def update(self, weights: Sequence[float], step: int, skip: bool) -> None:
        """``avg ← avg + w·(θ - avg)`` in every track, under ``skip`` where θ can be stored."""
        ...

    def applied(self, step: int) -> bool | None:
        """Whether the averages took the update of this step; None if an interrupt came in its middle."""
        ...

    def skipped(self) -> tuple[int, dict[str, int]]:
        """Updates with such elements since last asked, and in how many of them each tensor had some."""
        ...


class Native:
    """Averages on the CPU: one parallel region, one read of θ for all tracks, all dtypes."""

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        assert native is not None
        self.pairs, self.name = pairs, f"native ({native.VARIANT})"
        self._tables = native.Tables(list(map(_row, pairs)), seed)
        # The plan notices when θ moves. Aliases, so that the averages' memory stays wherever they point.
        self._kept = [alias(t) for pair in pairs for t in (*pair.averages, *pair.lows)]
        self._threads = int(os.environ["OMP_NUM_THREADS"])  # Paddle sets it when imported
        self._updates, self._tensors = 0, [0] * len(pairs)

    def bad(self) -> list[str]:
        marks = self._tables.look(self._threads)
        return [pair.name for pair, mark in zip(self.pairs, marks, strict=True) if mark]

    def applied(self, step: int) -> bool | None:
        return self._tables.applied(step)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> None:
        marks = self._tables.update(weights, step, skip, self._threads)
        if marks is not None:
            self._updates += 1
            self._tensors = [count + mark for count, mark in zip(self._tensors, marks, strict=True)]

    def skipped(self) -> tuple[int, dict[str, int]]:
        named = {pair.name: n for pair, n in zip(self.pairs, self._tensors, strict=True) if n}
        updates, self._updates, self._tensors = self._updates, 0, [0] * len(self.pairs)
        return updates, named


class Operators(Several):
    """Averages on any device with Paddle's own operators, a few per tensor; in float32 or float64."""

    name = "ops"

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        for pair in pairs:
            if wide(pair.averages[0].dtype) != pair.averages[0].dtype or pair.lows:
                raise ConfigError(
                    "16-bit, split and compensated averages need the C kernel, on a CPU, but "
                    f'{_why_not(pair)}. dtype="float32" works everywhere.'
                )
        self.pairs = pairs
        self._forget()

    def bad(self) -> list[str]:
        fine = [pair.live.isfinite().all() for pair in self.pairs]
        return [pair.name for pair, whole in zip(self.pairs, fine, strict=True) if not bool(whole)]

    def update(self, weights: Sequence[float], step: int, skip: bool) -> None:
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
            if bad:  # counted on the device: nothing waits
                marks = paddle.stack(bad)
                self._tensors += marks.astype("int32")
                self._updates += marks.any().astype("int32")
        self.ended = step

    def skipped(self) -> tuple[int, dict[str, int]]:
        counts = cast_type("list[int]", self._tensors.tolist())
        updates = int(self._updates)
        self._forget()
        return updates, {pair.name: n for pair, n in zip(self.pairs, counts, strict=True) if n}

    def _forget(self) -> None:
        self._tensors = paddle.zeros([len(self.pairs)], dtype="int32")
        self._updates = paddle.zeros([], dtype="int32")


class Updater:
    """All engines of one EMA behind one ``update``.

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
        self._engines = engines(pairs, settings.engine, settings.seed)

    @property
    def name(self) -> str:
        """The engines in use and why no faster one is."""
        return "; ".join(describe(engine, self._settings.engine) for engine in self._engines)

    def update(self, betas: Sequence[float], step: int) -> None:
        """One update of every track; ``betas[k]`` is the composed decay of track k.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        if self._settings.policy == "raise":
            refuse_nonfinite([name for engine in self._engines for name in engine.bad()], step)
        weights = tuple([1 - beta for beta in betas])
        for engine in self._engines:
            engine.update(weights, step, self._settings.policy == "skip")
        self._copy()

    def applied(self, step: int) -> bool | None:
        """After an interrupted update: whether all averages took it, copied buffers then as well.

        None if some did and others may not have.
        """
        answers = {engine.applied(step) for engine in self._engines}
        if answers == {True}:
            self._copy()
        return answers.pop() if len(answers) == 1 else None

    def capturing(self) -> bool:
        """Paddle records no graphs here."""
        return False

    def wait(self) -> None:
        """No update outlasts its call."""

    def skipped(self) -> Skipped:
        """Updates in which some θ was not finite, and in how many of them each tensor was. Synchronises."""
        updates, named = self._skipped
        for engine in self._engines:
            more, counts = engine.skipped()
            updates, named = updates + more, {n: named.get(n, 0) + counts.get(n, 0) for n in named | counts}
        self._skipped = updates, named
        return updates, dict(named)

    def _copy(self) -> None:
        for target, source in self._copies:
            overwrite(target, source)


def engines(pairs: Sequence[Pair], asked: EngineName, seed: int) -> list[Engine]:
    """The engine asked for where it can take a pair; else the fastest that can.

    Raises:
        ConfigError: none can, or the one asked for is not there at all.
    """
    if asked == "native" and native is None:
        raise ConfigError(f'engine="native": {NO_KERNEL}.')
    fast = [pair for pair in pairs if asked != "ops" and _kernel_takes(pair)]
    taken = set(map(id, fast))
    slow = [pair for pair in pairs if id(pair) not in taken]
    made: list[Engine] = []
    if fast:
        made.append(Native(fast, seed))
    if slow:
        made.append(Operators(slow, seed))
    return made


def describe(engine: Engine, asked: EngineName) -> str:
    """The engine's name, and why it is not a faster one."""
    if engine.name != "ops" or asked == "ops":
        return f"{engine.name} (asked for)" if engine.name == asked else engine.name
    return f"ops ({_why_not(engine.pairs[0])})"


def _why_not(pair: Pair) -> str:
    if native is None:
        return NO_KERNEL
    return f"it does not take {pair.name}, {pair.live.dtype} on {pair.live.place}, or not in this layout"


def _kernel_takes(pair: Pair) -> bool:
    tensors = (pair.live, *pair.averages, *pair.lows)
    plain = all(t.place.is_cpu_place() and t.is_dense() and t.strides == pair.live.strides for t in tensors)
    plain = plain and fills_memory(pair.live)
    return native is not None and plain and native.takes(_name(pair.live), _store(pair))


def _row(pair: Pair) -> Row:
    assert native is not None
    averages, lows = (tuple(map(Tensor.data_ptr, tensors)) for tensors in (pair.averages, pair.lows))
    live, none = pair.live, (0,) * len(averages)
    size = int(live.numel())
    return native.Row(live.data_ptr(), _name(live), _store(pair), size, pair.key, averages, lows or none)


def _store(pair: Pair) -> tuple[str, str | None]:
    return _name(pair.averages[0]), _name(pair.lows[0]) if pair.lows else None


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("paddle.")
