"""Averaging for callers that own the averages and choose the decay.

``EMA`` owns its averages and schedules. The drop-in classes hand their averages out as a module, a list or a
dict of tensors, and take the decay at each call; they are thin shells over ``Follower``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from polyak._core.change_detection import (
    DictSnapshot,
    UnchangedCheck,
    check_of_all,
    joined,
    snapshot_attributes,
    snapshot_dicts,
)
from polyak._core.swap_guard import finished
from polyak._core.tensor_map import BufferPolicy, Role, Selection, TensorEntry
from polyak.errors import ConfigError, PlanError, SwapError
from polyak.schedules.decay import check_beta
from polyak.torch._engines.base import Pair
from polyak.torch._engines.nonfinite_counter import NonFiniteCounter
from polyak.torch._engines.updater import Updater
from polyak.torch.store import Settings
from polyak.torch.swap import exchange_of
from polyak.torch.tensor_map import TensorMap, entries, walk
from polyak.torch.tensors import unchanged_check
from polyak.torch.untraced import untraced

Holder: TypeAlias = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]
# The role of a tensor among the averages: averaged, copied at each update, or left alone.
Roles: TypeAlias = Callable[[Holder, TensorEntry[Tensor]], Role]


class Follower:
    """Updates averages of live tensors; both are in a module, a dict or a list.

    ``avg ← avg + (1-β)·(θ - avg)``; elements of θ that are not finite leave their average unchanged. Tensors
    are paired by name, without wrapper prefixes, at the first call and again when either side changes.

    Args:
        roles: the role of each tensor; by default everything in a state_dict is averaged or copied.
        buffers: which buffers of a module are averaged, as in ``EMA``.
        seed: of the random bits that round 16-bit averages.

    Each method raises PlanError, and changes nothing, if a tensor is missing on the live side, has another
    shape, or has no average.
    """

    def __init__(self, roles: Roles | None = None, buffers: BufferPolicy = "average", seed: int = 0) -> None:
        self._roles = roles or role_in_state_dict
        self._selection = Selection.of(None, None, buffers)
        self._settings = Settings(None, None, None, "skip", seed, "auto", overlap=False)
        self._steps = 0
        self._found: _Found | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy pairs its tensors anew, and contains no copies of the modules."""
        return self.__dict__ | {"_found": None}

    @untraced
    def update(self, averages: Holder, lives: Holder, beta: float, step: int | None = None) -> None:
        """Move the averages with decay β. ``step`` seeds their rounding; by default it counts the calls."""
        self._steps = self._steps + 1 if step is None else step
        engines = self._between(averages, lives).engines
        engines.update((1 - beta,), self._steps)
        engines.wait()

    def copy(self, averages: Holder, lives: Holder) -> None:
        """Overwrite the averages with the live values, rounded to nearest."""
        found = self._between(averages, lives)
        with torch.no_grad():
            for pair in found.pairs:
                pair.averages[0].copy_(pair.live)
        self.copy_rest(averages, lives)

    def copy_rest(self, averages: Holder, lives: Holder) -> None:
        """Copy the tensors whose role is "copy", and leave the averages alone."""
        with torch.no_grad():
            for target, source in self._between(averages, lives).copies:
                target.copy_(source)

    def tensors(self, averages: Holder, lives: Holder) -> tuple[list[Tensor], list[Tensor]]:
        """The averages and the live tensors on one device, without gradients, for the caller's own rule."""
        pairs = [(p.averages[0].detach(), p.live.detach()) for p in self._between(averages, lives).pairs]
        return [average for average, _ in pairs], [live.to(average.device) for average, live in pairs]

    def _between(self, averages: Holder, lives: Holder) -> _Found:
        found = self._found
        if found is None or not found.still(averages, lives):
            found = self._found = self._find(averages, lives)
        return found

    def _find(self, averages: Holder, lives: Holder) -> _Found:
        mine, theirs = self._view(averages), self._view(lives)
        self._refuse_newcomers(lives, mine, theirs)
        places = {name: entry.live for entry in theirs.entries.values() for name in entry.names}
        pairs: list[Pair] = []
        copies: list[tuple[Tensor, Tensor]] = []
        for name, entry in mine.entries.items():
            role = self._roles(averages, entry)
            if role == "average":
                pairs.append(Pair(name, _place(places, name, entry.live), (entry.live,)))
            elif role == "copy":
                copies.append((entry.live, _place(places, name, entry.live)))
        engines = Updater(pairs, copies, self._settings, NonFiniteCounter())
        return _Found(mine, theirs, _unchanged(mine, theirs), pairs, copies, engines)

    def _view(self, holder: Holder) -> _View:
        if isinstance(holder, nn.Module) and not _is_scripted(holder):
            return _Module(holder, self._selection)
        return _Tensors(holder, self._selection)

    def _refuse_newcomers(self, lives: Holder, mine: _View, theirs: _View) -> None:
        """Refuse a layer added later, which would silently not be averaged."""
        known = {name for entry in mine.entries.values() for name in entry.names}
        new = [entry for entry in theirs.entries.values() if known.isdisjoint(entry.names) and entry.saved]
        if joining := [entry.name for entry in new if self._roles(lives, entry) != "share"]:
            raise PlanError(
                f"{joining[0]} was added to the model after the average was made. "
                "Make a new average of the current model."
            )


class _View(Protocol):
    """The tensors of a module, dict or list by name.

    contents: what the module's dictionaries held.  memories: the tensors that hold the values.
    """

    entries: dict[str, TensorEntry[Tensor]]
    contents: DictSnapshot
    memories: list[Tensor]

    def of(self, holder: Holder) -> bool:
        """Whether this is the same holder, or another with the same tensors."""
        ...

    def with_pieces(self, check: UnchangedCheck, /) -> UnchangedCheck:
        """The check, and whether DTensors still have their pieces."""
        ...

    def stale(self) -> bool:
        """Whether tensors were replaced or moved; sharded parameters first make way for their pieces."""
        ...


class _Module:
    """A module's dictionaries show changes."""

    def __init__(self, module: nn.Module, selection: Selection) -> None:
        self._module, self._map = module, TensorMap(module, selection)
        self.entries, self.contents = self._map.entries, self._map.contents
        self.memories = self._map.memories()
        self.with_pieces, self.stale = self._map.with_pieces, self._map.stale

    def of(self, holder: Holder) -> bool:
        return holder is self._module


class _Tensors:
    """Those of lists, dicts and TorchScript do not, so their tensors are compared one by one."""

    contents = snapshot_dicts(())

    def __init__(self, holder: Holder, selection: Selection) -> None:
        self._selection = selection
        self.entries = self._entries(holder)
        self.memories = self._tensors(holder)
        self._unmoved = unchanged_check(self.memories)

    def of(self, holder: Holder) -> bool:
        now = self._tensors(holder)
        return len(now) == len(self.memories) and all(map(is_, now, self.memories))

    def with_pieces(self, check: UnchangedCheck, /) -> UnchangedCheck:
        return check

    def stale(self) -> bool:
        return not self._unmoved()

    def _entries(self, holder: Holder) -> dict[str, TensorEntry[Tensor]]:
        if isinstance(holder, nn.Module):
            return entries(dict(walk(holder)), self._selection)
        named = holder if isinstance(holder, Mapping) else {str(i): t for i, t in enumerate(holder)}
        return {name: TensorEntry(name, "parameter", [t], "copy", saved=True) for name, t in named.items()}

    def _tensors(self, holder: Holder) -> list[Tensor]:
        if isinstance(holder, nn.Module):
            return [tensor for entry in self._entries(holder).values() for tensor in entry.tensors]
        return list(holder.values() if isinstance(holder, Mapping) else holder)


class _Found(NamedTuple):
    averages: _View
    lives: _View
    unchanged: UnchangedCheck
    pairs: list[Pair]
    copies: list[tuple[Tensor, Tensor]]
    engines: Updater

    def still(self, averages: Holder, lives: Holder) -> bool:
        """Whether these are the same holders, with the same tensors in the same memory."""
        if not (self.averages.of(averages) and self.lives.of(lives)):
            return False
        return self.unchanged() or not (self.averages.stale() or self.lives.stale())


def _unchanged(one: _View, other: _View) -> UnchangedCheck:
    """One look at both, but not at whether parameters need gradients: here no role depends on that."""
    tensors = unchanged_check([*one.memories, *other.memories])
    check = check_of_all(joined(one.contents, other.contents), snapshot_attributes((), ()), tensors)
    return one.with_pieces(other.with_pieces(check))


def _is_scripted(module: nn.Module) -> bool:
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def _place(places: Mapping[str, Tensor], name: str, mine: Tensor) -> Tensor:
    if name not in places or places[name].shape != mine.shape:
        found = f"is {tuple(places[name].shape)}" if name in places else "is missing"
        raise PlanError(f"{name} {found} in the model; its average is {tuple(mine.shape)}.")
    return places[name]


def inexact(tensor: Tensor) -> bool:
    """Whether the dtype is floating: a mean of counters or masks has no meaning."""
    return tensor.is_floating_point() or tensor.is_complex()


def everything(holder: Holder, entry: TensorEntry[Tensor]) -> Role:
    """Every floating tensor is averaged and the rest copied, in a state_dict or not."""
    return "average" if inexact(entry.live) else "copy"


def role_in_state_dict(holder: Holder, entry: TensorEntry[Tensor]) -> Role:
    """Tensors in a state_dict are averaged or copied; others are left alone."""
    if entry.kind == "parameter" and inexact(entry.live):
        return "average"  # frozen or not: requires_grad of a copy has no meaning
    return entry.role if entry.role == "average" else "copy" if entry.saved else "share"


def parameters_only(holder: Holder, entry: TensorEntry[Tensor]) -> Role:
    """Parameters are averaged; buffers are copied, also those in no state_dict."""
    return "average" if entry.kind == "parameter" and inexact(entry.live) else "copy"


def matching(lives: Sequence[nn.Parameter], averages: Sequence[Tensor]) -> Sequence[nn.Parameter]:
    """The parameters, which must be as many as the averages."""
    if len(lives) != len(averages):
        raise ConfigError(f"parameters: {len(lives)} of them for {len(averages)} averages.")
    return lives


def overwrite(lives: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into parameters without autograd, so that an earlier loss can still go backward."""

    def write() -> None:
        for live, value in zip(lives, values, strict=True):
            live.data.copy_(value)

    finished(write)


def restored(stored: list[Tensor] | None) -> list[Tensor]:
    """The weights kept by ``store``; a RuntimeError, as in the originals, if there are none."""
    if stored is None:
        raise RuntimeError("restore(): there are no stored weights; call store() first.")
    return stored


def moved(
    averages: Iterable[Tensor],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    non_blocking: bool = False,
) -> list[Tensor]:
    """The tensors on a device; ``dtype`` applies to floating ones only."""
    return [a.to(device, dtype if a.is_floating_point() else None, non_blocking) for a in averages]


def tensors_in(name: str, value: object, like: Sequence[Tensor]) -> list[Tensor]:
    """Copies of a list of tensors with the shapes of ``like``; anything else is refused."""
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


class Shadow:
    """Averages of the parameters that need gradients, and their exchange with the model's weights.

    shadow: averages by name.  backup: the raw weights while the model holds the averages.
    """

    def __init__(self, model: nn.Module, argument: str, beta: float) -> None:
        check_beta(argument, beta)
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        if not self.shadow:
            raise ConfigError(
                "model: none of its parameters needs a gradient, so there is nothing to average."
            )
        self.backup: dict[str, Tensor] = {}
        self._release: Callable[[], object] | None = None
        self._follower = Follower()

    def _update(self, model: nn.Module, beta: float) -> None:
        self._refuse_while_applied("update")
        named = dict(model.named_parameters())
        unfrozen = {n: p for n, p in named.items() if p.requires_grad and n not in self.shadow}
        self.shadow.update({n: p.detach().clone() for n, p in unfrozen.items()})
        self._follower.update(self.shadow, self._lives(model), beta)

    def _swap_in(self, model: nn.Module) -> None:
        """Set the model's tensors to the averages' memory if dtype and device agree: nothing is copied."""
        self._refuse_while_applied("apply")
        lives = self._lives(model)
        exchange = exchange_of(list(lives.values()), [self.shadow[name] for name in lives], list(lives))
        try:
            self.backup = {name: live.data for name, live in lives.items()}
            self._release = weakref.finalize(self, exchange.forget)
            exchange.enter(exchange)  # a block that ends only with restore()
        except BaseException:
            self._swap_out(model)
            raise

    def _swap_out(self, model: nn.Module) -> None:
        if not self.backup:
            raise SwapError("restore: the model holds its raw weights already; apply the averages first.")
        lives = self._lives(model)

        def back() -> None:
            for name, raw in self.backup.items():
                lives[name].data = raw
            if self._release is not None:
                self._release()
            self.backup, self._release = {}, None

        finished(back)

    def _refuse_while_applied(self, verb: str) -> None:
        if self.backup:
            raise SwapError(
                f"{verb}: the model holds the averages, not the raw weights. Call restore() first."
            )

    def _lives(self, model: nn.Module) -> dict[str, nn.Parameter]:
        named = dict(model.named_parameters())
        if missing := [name for name in self.shadow if name not in named]:
            raise PlanError(f"{missing[0]} has an average, but is missing in the model.")
        return {name: named[name] for name in self.shadow}

    def _load(self, averages: Mapping[str, Tensor]) -> None:
        if averages.keys() != self.shadow.keys():
            odd = sorted(averages.keys() ^ self.shadow.keys())
            raise ConfigError(
                f"state_dict: {odd[0]} is only on one side; averaged are {', '.join(self.shadow)}."
            )
        for name, mine in self.shadow.items():
            if averages[name].shape != mine.shape:
                found = tuple(averages[name].shape)
                raise ConfigError(f"state_dict: {name} is {found}; here it is {tuple(mine.shape)}.")
        for name, mine in self.shadow.items():
            mine.copy_(averages[name])
