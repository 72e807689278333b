"""The tensors of a model: their names, their roles, and the user's selection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from polyak._core.change_detection import (
    AttributeSnapshot,
    DictSnapshot,
    UnchangedCheck,
    check_of_all,
    snapshot_attributes,
    snapshot_dicts,
)
from polyak._core.swap_guard import Exchange, exchange_in
from polyak._core.tensors import T, TensorLike, alike
from polyak.errors import ConfigError, PlanError
from polyak.schedules.by_name import ByName, matches

if TYPE_CHECKING:
    from polyak._core.sharded_files import Piece, Ranks

ModuleT = TypeVar("ModuleT")

Patterns: TypeAlias = str | Sequence[str] | None
Kind: TypeAlias = Literal["parameter", "buffer"]
BufferKind: TypeAlias = Literal["statistic", "vector", "other"]
Role: TypeAlias = Literal["average", "copy", "share"]
BufferPolicy: TypeAlias = Literal["auto", "copy", "average", "ignore"]
Buffers: TypeAlias = BufferPolicy | Mapping[str, BufferPolicy]


@dataclass
class TensorEntry(Generic[T]):
    """One tensor of the model.

    name: the first name it is reached by.  aliases: the others.
    tensors: the live objects; more than one when several parameters share one memory.
    piece: what of it is averaged here, if not all.
    role: average, copy (bit-equal to the model's at each update) or share (the model's own).
    saved: belongs in a file of this average: persistent and not excluded.
    persistent: part of the model's ``state_dict``.
    """

    name: str
    kind: Kind
    tensors: list[T]
    role: Role
    saved: bool
    persistent: bool = True
    piece: Piece[T] | None = None
    aliases: list[str] = field(default_factory=list[str])

    @property
    def names(self) -> list[str]:
        return [self.name, *self.aliases]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self.tensors[0].shape)

    @property
    def live(self) -> T:
        """The values that are averaged here."""
        return self.tensors[0] if self.piece is None else self.piece.tensor


class Selection(NamedTuple):
    """The user's selection of tensors to average.

    buffers: (glob, policy) pairs; the first match decides, and the last glob matches every buffer.
    """

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    buffers: tuple[tuple[str, BufferPolicy], ...]

    @classmethod
    def of(cls, include: Patterns, exclude: Patterns, buffers: Buffers) -> Selection:
        named: Mapping[str, BufferPolicy] = buffers if isinstance(buffers, Mapping) else {"*": buffers}
        rules = tuple(named.items())
        for pattern, policy in rules:
            if type(pattern) is not str or policy not in get_args(BufferPolicy):
                raise ConfigError(
                    f'buffers={buffers!r}: must be "auto", "copy", "average" or "ignore", or a dict of these '
                    "by names or globs of them."
                )
        given = None if include is None else as_patterns(include)
        return cls(given, as_patterns(exclude or ()), (*rules, ("*", "auto")))

    def takes(self, names: Sequence[str]) -> bool:
        return (self.include is None or matches(self.include, names)) and not matches(self.exclude, names)

    def policy_of(self, names: Sequence[str]) -> BufferPolicy:
        """The policy of a buffer with these names."""
        return self.buffers[self._rule_of(names)][1]

    def check_against(self, entries: Mapping[str, TensorEntry[T]]) -> None:
        """Check that every pattern has an effect: a typo would silently average the wrong tensors.

        Raises:
            ConfigError: one has none.
        """
        names = [name for entry in entries.values() for name in entry.names]
        for argument, patterns in (("include", self.include or ()), ("exclude", self.exclude)):
            refuse_unmatched(argument, patterns, names, "tensor")
        saved = [e for e in entries.values() if e.kind == "buffer" and e.persistent and self.takes(e.names)]
        names = [name for entry in saved for name in entry.names]
        for place, (pattern, policy) in enumerate(self.buffers):
            if pattern == "*":
                continue
            refuse_unmatched("buffers", (pattern,), names, "buffer that is saved")
            decided = [entry for entry in saved if self._rule_of(entry.names) == place]
            if not decided:
                raise ConfigError(
                    f"buffers={{{pattern!r}: …}} has no effect: the first matching pattern decides, and "
                    "an earlier one matches each of its buffers. Put it before that one."
                )
            if policy == "average" and all(entry.role == "copy" for entry in decided):
                raise ConfigError(
                    f'buffers={{{pattern!r}: "average"}} averages nothing: {decided[0].name} is '
                    f"{decided[0].live.dtype}; integers and the vectors of spectral norm are only copied."
                )

    def _rule_of(self, names: Sequence[str]) -> int:
        return next(i for i, (pattern, _) in enumerate(self.buffers) if matches((pattern,), names))


@dataclass(frozen=True)
class ModelTensor(Generic[T]):
    """A tensor found in the model.

    identity: equal for tied tensors, those that share one memory under several objects or names.
    sort: of a buffer: BatchNorm's statistic, a vector of spectral norm's power iteration, or another.
    persistent: belongs in files.
    piece: what of it is averaged here, if not all.
    """

    name: str
    kind: Kind
    tensor: T
    identity: object
    sort: BufferKind
    persistent: bool = True
    piece: Piece[T] | None = None


def planned(
    seen: Iterable[ModelTensor[T]],
    selection: Selection,
    trained: Callable[[T], bool],
    kept: Collection[str | int] = (),
) -> dict[str, TensorEntry[T]]:
    """The tensors of a model by name, tied ones once, each with its role.

    Args:
        seen: every tensor under every name; the first name of a tied one decides.
        selection: globs and buffer policy.
        trained: whether a parameter needs a gradient.
        kept: names and ids of tensors that are averaged whether trained or not.
    """
    entries: dict[object, TensorEntry[T]] = {}
    first: dict[object, ModelTensor[T]] = {}
    for one in seen:
        if one.identity not in entries:
            entries[one.identity] = TensorEntry(
                one.name, one.kind, [one.tensor], "share", True, one.persistent, one.piece
            )
            first[one.identity] = one
            continue
        entry = entries[one.identity]
        entry.aliases.append(one.name)
        if all(one.tensor is not known for known in entry.tensors):
            entry.tensors.append(one.tensor)
    for identity, entry in entries.items():
        entry.saved = selection.takes(entry.names) and entry.persistent
        if not entry.saved:
            continue
        if entry.kind == "buffer":
            policy = selection.policy_of(entry.names)
            entry.role = _buffer_role(first[identity], policy)
            entry.saved = policy != "ignore"
        elif not _inexact(entry.live):
            entry.role = "copy"
        elif entry.name in kept or any(trained(t) or id(t) in kept for t in entry.tensors):
            entry.role = "average"
    return {entry.name: entry for entry in entries.values()}


def _buffer_role(buffer: ModelTensor[T], policy: BufferPolicy) -> Role:
    """The role of a persistent buffer under the policy.

    Integers are never averaged: a mean of counters or masks is no counter or mask. Spectral-norm
    vectors are never averaged either: the mean of unit vectors is shorter than one, and evaluation
    divides by the norm they measure. Under "auto" only BatchNorm-style statistics are averaged;
    other float buffers (position tables, codebooks, scales) are copied from the model.
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


class TensorMap(Generic[T]):
    """The tensors of one model, by name; a framework's subclass finds them and detects changes."""

    entries: dict[str, TensorEntry[T]]
    contents: DictSnapshot  # what the modules' dictionaries held
    untrained: AttributeSnapshot  # that parameters left to the model need no gradient
    unmoved: UnchangedCheck  # of the tensors

    def __getstate__(self) -> dict[str, Any]:
        """A copy keeps the entries and is stale, since its tensors have other addresses."""
        nothing = {"contents": snapshot_dicts(()), "untrained": snapshot_attributes((), ())}
        return {"entries": self.entries, **nothing, "unmoved": bool}

    def stale(self) -> bool:
        """Whether the model's tensors were replaced, or one of them moved to other memory.

        Reads the modules' own dictionaries, without walking the module.
        """
        return not self.unchanged(self.unmoved)()

    def unchanged(self, tensors: UnchangedCheck) -> UnchangedCheck:
        """A check of the model's dictionaries and flags, together with this one of tensors."""
        return check_of_all(self.contents, self.untrained, tensors)

    @property
    def ranks(self) -> Ranks[T] | None:
        """The processes that hold the pieces of sharded tensors; None if every tensor is whole here."""
        return None

    def placed(self) -> dict[str, Piece[T]]:
        """The pieces of sharded tensors, by every name."""
        found = {name: entry.piece for entry in self.entries.values() for name in entry.names}
        return {name: piece for name, piece in found.items() if piece is not None}

    def memories(self) -> list[T]:
        """The tensors that hold the live ones' values."""
        return self.tensors()

    def tensors(self) -> list[T]:
        """The live tensors, every object of tied ones."""
        return [tensor for entry in self.entries.values() for tensor in entry.tensors]

    def exchange(self, owner: object, collect: bool = False) -> Exchange | None:
        """The exchange active in the live tensors, whichever EMA owns it; see ``exchange_in``."""
        return exchange_in({id(t) for entry in self.entries.values() for t in entry.tensors}, owner, collect)

    def having(self, role: Role) -> list[TensorEntry[T]]:
        return [entry for entry in self.entries.values() if entry.role == role]

    def frozen(self) -> list[TensorEntry[T]]:
        """Parameters that would be averaged if they were trained."""
        return [entry for entry in self.having("share") if entry.kind == "parameter" and entry.saved]

    def names(self, role: Role) -> list[str]:
        """Every name and alias of the tensors in a role, in the model's order."""
        return [name for entry in self.having(role) for name in entry.names]


def nested(outer: ModuleT, inside: Callable[[ModuleT], Iterable[ModuleT | None]]) -> list[ModuleT]:
    """A module and all inside it, each once, in the order in which they are defined."""
    found, todo = dict[int, ModuleT](), [outer]
    while todo:
        one = todo.pop()
        if id(one) not in found:
            found[id(one)] = one
            todo += reversed([child for child in inside(one) if child is not None])
    return list(found.values())


def match_averages(
    old: Mapping[str, TensorEntry[T]], new: Mapping[str, TensorEntry[T]], averages: Mapping[str, T]
) -> dict[str, str]:
    """For each averaged name of the new plan, the old name whose average it continues.

    A name keeps its average, even if it refers to another tensor now. A tensor under a new name (a layer
    wrapped by an adapter) keeps its average, and tied tensors that were untied each continue the average they
    shared. New tensors are absent.

    Raises:
        PlanError: a tensor changed its shape or its kind of number.
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
                f'{average.dtype}. ema.reset("{name}") restarts its average from the model.'
            )
        heirs[name] = source
    return heirs


def as_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def refuse_unmatched(argument: str, patterns: Sequence[str], names: Sequence[str], what: str) -> None:
    """Refuse a pattern that matches no name.

    Raises:
        ConfigError: with the pattern and some of the names.
    """
    for pattern in patterns:
        if matches((pattern,), names):
            continue
        few = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        literal = pattern.replace("[", "[[]")
        meant = f" A [ in a glob begins a set of characters: write {literal!r}." * matches((literal,), names)
        raise ConfigError(f"{argument}={pattern!r} matches no {what}; the model's names are {few}.{meant}")


def check_patterns(decay: ByName, plan: TensorMap[T]) -> None:
    """Check that each pattern decides a tensor that is averaged, or would be if it were trained.

    Raises:
        ConfigError: one does not; it is named.
    """
    candidates = [*plan.having("average"), *plan.frozen()]
    names = [name for entry in candidates for name in entry.names]
    refuse_unmatched("ByName", [pattern for pattern, _ in decay.rules], names, "averaged tensor")
    matched = [entry for entry in candidates if matches(decay.decays, entry.names)]
    deciding = {decay.pattern_of(entry.names) for entry in matched}
    for pattern, _ in decay.rules:
        if pattern not in deciding:
            raise ConfigError(
                f"ByName({{{pattern!r}: …}}) has no effect: the first matching pattern decides, and an "
                "earlier one matches each of its tensors. Put it before that one."
            )
