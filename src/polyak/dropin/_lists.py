"""Averages that are a list of tensors beside a list of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn

from polyak._core.swap_guard import finished
from polyak.dropin._follower import Pairing, inexact
from polyak.errors import ConfigError


class Lists:
    """Updates of a list of averages from a list of parameters, prepared again when either changes."""

    def __init__(self) -> None:
        self._known: tuple[list[Tensor], list[bool], Pairing] | None = None
        self._steps = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy prepares its own engine."""
        return {"_known": None, "_steps": self._steps}

    def update(
        self, averages: Sequence[Tensor], lives: Sequence[Tensor], copied: Sequence[bool], beta: float
    ) -> None:
        """One update with decay β; where ``copied``, and where numbers are whole, the value itself."""
        self._steps += 1
        self._pairing(averages, lives, copied).update(beta, self._steps)

    def _pairing(
        self, averages: Sequence[Tensor], lives: Sequence[Tensor], copied: Sequence[bool]
    ) -> Pairing:
        tensors = [*averages, *lives]
        if self._known is not None:
            known, was_copied, pairing = self._known
            same = len(known) == len(tensors) and all(map(is_, known, tensors))
            if same and was_copied == list(copied) and not pairing.stale():
                return pairing
        plain = [c or not inexact(a) for a, c in zip(averages, copied, strict=True)]
        names = [str(i) for i, skip in enumerate(plain) if not skip]
        pairing = Pairing(
            {name: averages[int(name)] for name in names},
            {name: lives[int(name)] for name in names},
            [(a, live.detach()) for a, live, skip in zip(averages, lives, plain, strict=True) if skip],
        )
        self._known = tensors, list(copied), pairing
        return pairing


def matching(lives: Sequence[nn.Parameter], averages: Sequence[Tensor]) -> Sequence[nn.Parameter]:
    """The parameters, one for each average.

    Raises:
        ConfigError: there are more or fewer.
    """
    if len(lives) != len(averages):
        raise ConfigError(f"parameters: {len(lives)} of them for {len(averages)} averages.")
    return lives


def overwrite(lives: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into parameters unseen by autograd, so a loss computed before still goes backward."""

    def write() -> None:
        for live, value in zip(lives, values, strict=True):
            live.data.copy_(value)

    finished(write)


def restored(stored: list[Tensor] | None) -> list[Tensor]:
    """What ``store`` kept.

    Raises:
        RuntimeError: nothing.
    """
    if stored is None:
        raise RuntimeError("restore(): there are no stored weights; call store() first.")
    return stored


def moved(
    averages: Iterable[Tensor],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    non_blocking: bool = False,
) -> list[Tensor]:
    """Elsewhere; those that float in another dtype too."""
    return [a.to(device, dtype if a.is_floating_point() else None, non_blocking) for a in averages]


def tensors_in(name: str, value: object, like: Sequence[Tensor]) -> list[Tensor]:
    """Copies of a list of tensors that have the shapes of ``like``.

    Raises:
        ConfigError: it is none.
    """
    kind = type(value)
    given = cast(list[object], value) if kind is list else []
    if kind is not list or not all(isinstance(v, Tensor) for v in given):
        raise ConfigError(f"{name} is a {kind.__name__}: must be a list of tensors.")
    if len(given) != len(like):
        raise ConfigError(f"{name} holds {len(given)} tensors; here there are {len(like)}.")
    tensors = [v.detach().clone() for v in given if isinstance(v, Tensor)]
    for i, (mine, theirs) in enumerate(zip(like, tensors, strict=True)):
        if mine.shape != theirs.shape:
            raise ConfigError(f"{name}[{i}] is {tuple(theirs.shape)}; here it is {tuple(mine.shape)}.")
    return tensors
