"""Which engine for which tensor, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from polyak.errors import ConfigError, NonFiniteError
from polyak.torch.engines.blocked import Blocked
from polyak.torch.engines.contract import Engine, NonFinitePolicy, Pair
from polyak.torch.engines.foreach import Foreach
from polyak.torch.engines.tally import Tally

try:
    from polyak.torch.engines import native
except ImportError:
    native = None
try:
    from polyak.torch.engines import triton
except ImportError:
    triton = None

_NO_KERNEL = "the C kernel was not built: with a C compiler, pip install --force-reinstall --no-deps polyak"
_NO_TRITON = "triton is not installed: pip install triton"
_UNKNOWN = "the C kernel does not take {}, {}, or not in this layout"

EngineName: TypeAlias = Literal["auto", "foreach", "blocked", "native", "triton"]
NAMES: tuple[EngineName, ...] = ("auto", "foreach", "blocked", "native", "triton")


class Engines:
    """An update of everything: each pair by the engine that suits it.

    Args:
        pairs: θ and averages by name; those without elements are left out.
        policy: what to do with elements of θ that cannot be stored.
        tally: counts the updates in which there were some.
        seed: makes, with the step, the random bits that round 16-bit averages.
        asked: "auto", or one engine to use wherever it can be used.

    Raises:
        ConfigError: the engine asked for cannot run here.
    """

    def __init__(
        self, pairs: Sequence[Pair], policy: NonFinitePolicy, tally: Tally, seed: int, asked: EngineName
    ) -> None:
        self._policy, self._tally = policy, tally
        chosen: dict[EngineName, list[Pair]] = {}
        for pair in pairs:
            if pair.live.numel():
                chosen.setdefault(_choice(pair, asked), []).append(pair)
        self._engines = [_made(name, members, seed) for name, members in chosen.items()]
        self._nothing = [None] * len(self._engines)
        tally.open(self._engines)

    @property
    def name(self) -> str:
        """The engines in use and why no faster one is."""
        return "; ".join(_described(engine) for engine in self._engines)

    def update(self, betas: Sequence[float], step: int) -> None:
        """One update of every track; ``betas[k]`` is the composed decay of track k.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        if self._policy == "raise":
            self._refuse_nonfinite(step)
        weights = tuple([1 - beta for beta in betas])
        skip = self._policy == "skip"
        marks = [engine.update(weights, step, skip) for engine in self._engines]
        if marks != self._nothing:
            self._tally.add(marks)

    def _refuse_nonfinite(self, step: int) -> None:
        bad = [name for engine in self._engines for name in engine.bad()]
        if bad:
            raise NonFiniteError(
                f"{bad[0]} is not finite, or beyond the storage's range, at step {step} ({len(bad)} tensors "
                "are). Nothing was averaged. "
                'on_nonfinite="skip" would keep the average of such elements.'
            )


def check_engine(asked: EngineName) -> None:
    """Refuse an engine that does not exist or cannot run here.

    Raises:
        ConfigError: with the way to get it.
    """
    if asked not in NAMES:
        raise ConfigError(f"engine={asked!r}: must be one of {', '.join(NAMES)}.")
    if asked == "native" and native is None:
        raise ConfigError(f'engine="native": {_NO_KERNEL}.')
    if asked == "triton" and triton is None:
        raise ConfigError(f'engine="triton": {_NO_TRITON}.')


def _choice(pair: Pair, asked: EngineName) -> EngineName:
    """The engine asked for where it can take the pair; else the fastest that can."""
    able: list[EngineName] = []
    if triton is not None and triton.takes(pair):
        able.append("triton")
    if native is not None and native.takes(pair):
        able.append("native")
    if all(tensor.device.type == "cpu" for tensor in (pair.live, *pair.averages)):
        able.append("blocked")
    able.append("foreach")
    return asked if asked in able else able[0]


def _made(name: EngineName, pairs: Sequence[Pair], seed: int) -> Engine:
    if name == "native":
        assert native is not None
        return native.Native(pairs, seed)
    if name == "triton":
        assert triton is not None
        return triton.Triton(pairs, seed)
    return Blocked(pairs, seed) if name == "blocked" else Foreach(pairs, seed)


def _described(engine: Engine) -> str:
    """The engine's name, and why it is not a faster one."""
    pair = engine.pairs[0]
    if engine.name == "native":
        assert native is not None
        return f"native ({native.variant()})"
    if engine.name == "triton":
        return "triton"
    if engine.name == "blocked":
        return f"blocked ({_NO_KERNEL if native is None else _UNKNOWN.format(pair.name, pair.live.dtype)})"
    missing = _NO_TRITON if pair.live.is_cuda and triton is None else f"{pair.name} is on {pair.live.device}"
    return f"foreach ({missing})"
