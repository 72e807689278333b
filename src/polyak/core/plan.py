"""Which tensors of a model are averaged: their names, their roles, and what the user asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, Literal, TypeAlias

from polyak.core.live import held, none_held
from polyak.core.tensors import T, TensorLike, alike
from polyak.errors import ConfigError, PlanError

Patterns: TypeAlias = str | Sequence[str] | None
Kind: TypeAlias = Literal["parameter", "buffer"]
Sort: TypeAlias = Literal["statistic", "vector", "other"]
Role: TypeAlias = Literal["average", "copy", "share"]
BufferPolicy: TypeAlias = Literal["auto", "copy", "average", "ignore"]


@dataclass
class Entry(Generic[T]):
    """One tensor of the model.

    name: the first name it is reached by.  aliases: the others.
    tensors: the live objects; more than one when several parameters share one memory.
    role: average, copy (bit-equal to the model's at each update) or share (the model's own).
    saved: belongs into a file of this average: persistent and not excluded.
    """

    name: str
    kind: Kind
    tensors: list[T]
    role: Role
    saved: bool
    aliases: list[str] = field(default_factory=list[str])

    @property
    def live(self) -> T:
        return self.tensors[0]


@dataclass(frozen=True)
class Selection:
    """What the user asked to have averaged."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    buffers: BufferPolicy

    @classmethod
    def of(cls, include: Patterns, exclude: Patterns, buffers: BufferPolicy) -> Selection:
        if buffers not in ("auto", "copy", "average", "ignore"):
            raise ConfigError(f'buffers={buffers!r}: must be "auto", "copy", "average" or "ignore".')
        return cls(None if include is None else _patterns(include), _patterns(exclude or ()), buffers)

    def takes(self, names: Sequence[str]) -> bool:
        return (self.include is None or _matches(self.include, names)) and not _matches(self.exclude, names)

    def check_against(self, names: Sequence[str]) -> None:
        """Every pattern must match something, or a typing mistake would average the wrong set in silence."""
        for argument, patterns in (("include", self.include or ()), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    few = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
                    raise ConfigError(
                        f"{argument}={pattern!r} matches no tensor; the model's names are {few}"
                    )


@dataclass(frozen=True)
class Seen(Generic[T]):
    """A tensor as a walk over the model comes upon it.

    identity: equal for tensors that are one memory under several objects or names: those are tied.
    sort: of a buffer: BatchNorm's statistic, a vector of spectral norm's power iteration, or another.
    persistent: belongs into files.
    """

    name: str
    kind: Kind
    tensor: T
    identity: object
    sort: Sort
    persistent: bool = True


def planned(
    seen: Iterable[Seen[T]],
    selection: Selection,
    trained: Callable[[T], bool],
    kept: Collection[str | int] = (),
) -> dict[str, Entry[T]]:
    """The tensors of a model by name, tied ones once, each with its role.

    Args:
        seen: every tensor at every place; the first place of a tied one decides.
        selection: globs and buffer policy.
        trained: whether a parameter needs a gradient.
        kept: names and ids of those that are averaged whether trained or not.
    """
    entries: dict[object, Entry[T]] = {}
    first: dict[object, Seen[T]] = {}
    for one in seen:
        if one.identity not in entries:
            entries[one.identity] = Entry(one.name, one.kind, [one.tensor], "share", True)
            first[one.identity] = one
            continue
        entry = entries[one.identity]
        entry.aliases.append(one.name)
        if all(one.tensor is not known for known in entry.tensors):
            entry.tensors.append(one.tensor)
    for identity, entry in entries.items():
        entry.saved = selection.takes([entry.name, *entry.aliases]) and first[identity].persistent
        if not entry.saved:
            continue
        if entry.kind == "buffer":
            entry.role = _buffer_role(first[identity], selection.buffers)
            entry.saved = selection.buffers != "ignore"
        elif not _inexact(entry.live):
            entry.role = "copy"
        elif entry.name in kept or any(trained(t) or id(t) in kept for t in entry.tensors):
            entry.role = "average"
    return {entry.name: entry for entry in entries.values()}


def _buffer_role(buffer: Seen[T], policy: BufferPolicy) -> Role:
    """What the policy makes of one persistent buffer.

    Integers are never averaged: a mean of counters or masks is no counter or mask. Spectral-norm
    vectors are never averaged either: the mean of unit vectors is shorter than one, and evaluation
    divides by the norm they measure. Under "auto" only BatchNorm-style statistics are averaged;
    other float buffers (position tables, codebooks, scales) are taken whole from the newest model.
    """
    if policy == "ignore":
        return "share"
    if not _inexact(buffer.tensor) or buffer.sort == "vector":
        return "copy"
    if policy == "auto":
        return "average" if buffer.sort == "statistic" else "copy"
    return policy


def _inexact(tensor: TensorLike) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class Plan(ABC, Generic[T]):
    """The tensors of one model, by name; a framework's plan finds them and tells when they changed."""

    entries: dict[str, Entry[T]]

    @abstractmethod
    def stale(self) -> bool:
        """Whether the model holds other tensors than planned, or one of them moved to other memory."""

    def holds_average(self) -> bool:
        """Whether any of the live tensors holds an average now, whosever it is."""
        if none_held():
            return False
        return held(id(tensor) for entry in self.entries.values() for tensor in entry.tensors)

    def having(self, role: Role) -> list[Entry[T]]:
        return [entry for entry in self.entries.values() if entry.role == role]

    def names(self) -> list[str]:
        """Every name and alias, in the model's order."""
        return [name for entry in self.entries.values() for name in (entry.name, *entry.aliases)]


def follow(
    old: Mapping[str, Entry[T]], new: Mapping[str, Entry[T]], averages: Mapping[str, T]
) -> dict[str, str]:
    """For each averaged name of the new plan, the old name whose average it goes on with.

    A name keeps its average, even if another tensor now bears it. A tensor that appears under a new name
    (a layer wrapped by an adapter) brings its average along, and of tied tensors that came apart each goes
    on with the average they shared. What is left is a newcomer and is absent.

    Raises:
        PlanError: a tensor to go on with has another shape or another kind of number.
    """
    moved = {id(t): entry.name for entry in old.values() if entry.name not in new for t in entry.tensors}
    tied = {alias: entry.name for entry in old.values() for alias in entry.aliases}
    heirs: dict[str, str] = {}
    for name, entry in new.items():
        source = name if name in averages else moved.get(id(entry.live), tied.get(name, name))
        if source not in averages or entry.role != "average":
            continue
        average, live = averages[source], entry.live
        if not alike(average, live):
            raise PlanError(
                f"{name} is now {tuple(live.shape)} {live.dtype}, but its average is {tuple(average.shape)} "
                f'{average.dtype}. ema.reset("{name}") starts its average anew from the model.'
            )
        heirs[name] = source
    return heirs


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
