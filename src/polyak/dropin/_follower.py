"""Averages that somebody else owns, with a decay that somebody else decides.

``EMA`` keeps its own averages and schedules. The classes people already use hand the averages out as a
module or a list of tensors and take the decay at each call; they are thin shells over this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from polyak._core.tensor_map import BufferPolicy, Role, Selection, TensorEntry
from polyak.errors import PlanError
from polyak.torch._engines.base import Pair
from polyak.torch._engines.nonfinite_counter import NonFiniteCounter
from polyak.torch._engines.updater import Updater
from polyak.torch.store import Settings
from polyak.torch.tensor_map import TensorMap, entries, walk
from polyak.torch.tensors import unchanged_check
from polyak.torch.untraced import untraced

# What becomes of a tensor of the module that holds averages: averaged, copied at each update, or left alone.
Roles: TypeAlias = Callable[[nn.Module, TensorEntry[Tensor]], Role]


class Pairing:
    """Averages and the live tensors they follow, with an engine prepared for them.

    ``avg ← avg + (1-β)·(θ - avg)``; elements of θ that are not finite leave their average alone.

    Args:
        averages: floating or complex tensors by name, moved in place.
        lives: θ under the same names and of the same shapes.
        copies: (target, source) pairs copied bit by bit at each update.
        seed: of the random bits that round 16-bit averages.

    Raises:
        PlanError: a name is missing or a shape differs.
    """

    def __init__(
        self,
        averages: Mapping[str, Tensor],
        lives: Mapping[str, Tensor],
        copies: Sequence[tuple[Tensor, Tensor]] = (),
        seed: int = 0,
    ) -> None:
        pairs = [Pair(name, _place(lives, name, mine), (mine,)) for name, mine in averages.items()]
        tensors = [t for pair in pairs for t in (pair.averages[0], pair.live)]
        self._unmoved = unchanged_check(tensors + [t for copy in copies for t in copy])
        self.counter = NonFiniteCounter()
        self._copies = list(copies)
        self._pairs = pairs
        settings = Settings(None, None, None, "skip", seed, "auto", overlap=False)
        self._engines = Updater(pairs, copies, settings, self.counter)

    def stale(self) -> bool:
        """Whether one of the tensors moved to other memory."""
        return not self._unmoved()

    @untraced
    def update(self, beta: float, step: int) -> None:
        """One update with decay β; ``step`` makes the random bits of 16-bit averages."""
        self._engines.update((beta,), step)
        self._engines.wait()

    def copy(self) -> None:
        """The live values themselves, rounded to the nearest."""
        with torch.no_grad():
            for pair in self._pairs:
                pair.averages[0].copy_(pair.live)
        self.follow()

    def follow(self) -> None:
        """What is only copied, without an update of the averages."""
        with torch.no_grad():
            for target, source in self._copies:
                target.copy_(source)

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Averages and live tensors, without gradients and in one order, for somebody else's rule."""
        averages = [pair.averages[0].detach() for pair in self._pairs]
        lives = [pair.live.detach() for pair in self._pairs]
        return averages, [live.to(average.device) for live, average in zip(lives, averages, strict=True)]


class Mirror:
    """Moves modules that hold averages towards models of the same structure.

    Args:
        buffers: which buffers are averaged, as in ``EMA``.
        seed: of the random bits that round 16-bit averages.
        roles: what becomes of each tensor; by default everything in a state_dict is averaged or copied.
    """

    def __init__(self, buffers: BufferPolicy = "average", seed: int = 0, roles: Roles | None = None) -> None:
        self._seed = seed
        self._selection = Selection.of(None, None, buffers)
        self._roles = roles or role_in_state_dict
        self.steps = 0
        self._known: tuple[nn.Module, nn.Module, Found, Found, Pairing] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy prepares its own engine, and must not bring copies of the modules along."""
        return self.__dict__ | {"_known": None}

    def update(self, module: nn.Module, model: nn.Module, beta: float) -> None:
        """Move ``module`` towards ``model``, whose names agree once wrapper prefixes are gone.

        Raises:
            PlanError: a tensor is missing in the model or has another shape. Nothing is changed then.
        """
        self.steps += 1
        self._between(module, model).update(beta, self.steps)

    def copy(self, module: nn.Module, model: nn.Module) -> None:
        """Take the model's values over."""
        self._between(module, model).copy()

    def follow(self, module: nn.Module, model: nn.Module) -> None:
        """Take over only what is never averaged."""
        self._between(module, model).follow()

    def tensors(self, module: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Averages and the tensors of ``model`` they follow, for a rule that is somebody else's."""
        return self._between(module, model).tensors()

    def _between(self, module: nn.Module, model: nn.Module) -> Pairing:
        if self._known is not None:
            mine, live, averaged, followed, pairing = self._known
            if mine is module and live is model and not averaged.stale() and not followed.stale():
                return pairing
        averaged, followed = _found(module, self._selection), _found(model, self._selection)
        self._refuse_newcomers(model, averaged, followed)
        pairing = self._paired(module, averaged, followed)
        self._known = module, model, averaged, followed, pairing
        return pairing

    def _refuse_newcomers(self, model: nn.Module, averaged: Found, followed: Found) -> None:
        """A layer added to the model later would stay out of the average without a word."""
        known = {name for e in averaged.entries.values() for name in (e.name, *e.aliases)}
        new = [e for e in followed.entries.values() if known.isdisjoint((e.name, *e.aliases)) and e.saved]
        if joining := [entry.name for entry in new if self._roles(model, entry) != "share"]:
            raise PlanError(
                f"{joining[0]} is in the model and has no average: it was added after the average was made. "
                "Make a new one of the model as it is now."
            )

    def _paired(self, module: nn.Module, averaged: Found, followed: Found) -> Pairing:
        places = {name: e.live for e in followed.entries.values() for name in e.names}
        averages: dict[str, Tensor] = {}
        copies: list[tuple[Tensor, Tensor]] = []
        for name, entry in averaged.entries.items():
            role = self._roles(module, entry)
            if role == "average":
                averages[name] = entry.live
            elif role == "copy":
                copies.append((entry.live, _place(places, name, entry.live)))
        return Pairing(averages, places, copies, self._seed)


class _Scripted:
    """The tensors of a model that is or holds TorchScript, walked each time: nothing tells of a change."""

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        self._model, self._selection = model, selection
        self.entries = entries(dict(walk(model)), selection)
        self._unmoved = unchanged_check(self._all(self.entries))

    def stale(self) -> bool:
        """Whether the model holds other tensors than found, or one of them moved to other memory."""
        now, then = self._all(entries(dict(walk(self._model)), self._selection)), self._all(self.entries)
        same = len(now) == len(then) and all(map(is_, now, then))
        return not (same and self._unmoved())

    def _all(self, found: dict[str, TensorEntry[Tensor]]) -> list[Tensor]:
        return [tensor for entry in found.values() for tensor in entry.tensors]


Found: TypeAlias = TensorMap | _Scripted


def _found(model: nn.Module, selection: Selection) -> Found:
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return _Scripted(model, selection) if scripted else TensorMap(model, selection)


def inexact(tensor: Tensor) -> bool:
    """Whether there is a mean of such numbers: a mean of counters or masks is none."""
    return tensor.is_floating_point() or tensor.is_complex()


def role_in_state_dict(module: nn.Module, entry: TensorEntry[Tensor]) -> Role:
    """The role of what is saved; the rest is left alone."""
    if entry.kind == "parameter" and inexact(entry.live):
        return "average"  # frozen or not: requires_grad of a copy says nothing
    return entry.role if entry.role == "average" else "copy" if entry.saved else "share"


def parameters_only(module: nn.Module, entry: TensorEntry[Tensor]) -> Role:
    """Parameters are averaged; buffers follow the model, those that no state_dict holds as well."""
    return "average" if entry.kind == "parameter" and inexact(entry.live) else "copy"


def _place(places: Mapping[str, Tensor], name: str, mine: Tensor) -> Tensor:
    if name not in places or places[name].shape != mine.shape:
        found = f"is {tuple(places[name].shape)}" if name in places else "is missing"
        raise PlanError(f"{name} {found} in the model; here it is {tuple(mine.shape)}.")
    return places[name]
