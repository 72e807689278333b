"""A row of the tables of libraries: how to recognise its checkpoints, and where to find their contents.

The rows are in ``libraries.py`` (whole files) and ``averagers.py`` (states of classes that average, anywhere
in a file). To add a library, add a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from polyak._files.checkpoint import LazyTensor
from polyak._foreign.nodes import Node, tensor_values, tensors_in
from polyak._foreign.parts import Part, Recognised, Role, below, unwrapped
from polyak.errors import ConfigError
from polyak.schedules import Decay

Find: TypeAlias = Callable[[Node], "Recognised | None"]
Note: TypeAlias = "str | Callable[[Node], str]"


@dataclass(frozen=True)
class Producer:
    """One layout of a library's checkpoints.

    Args:
        library: that writes them.
        sets: place of each possible set of weights → its role. A place is keys joined by dots
            (``Node.at``); if it ends in a dot, its last key is the beginning of the tensors' names; "" is
            the whole file. Or a function that finds them.
        marks: a combination of places that only its files have (``Node.has``).
        named: regular expression of the file's name.
        beside: a file in the same folder.
        format: of the file, as ``Checkpoint`` has it.
        fits: a further condition.
        updates: place of the average's count of updates.
        step: place of the count of training steps.
        decay: the schedule of its averages.
        why: why the first set has its role, for the reader of a description.
        notes: for the reader of a description, or "". In texts ``{stem}`` is the name of the file without
            its suffix, ``{place}`` the value at a place.
    """

    library: str
    sets: Mapping[str, Role] | Find
    marks: tuple[str, ...] = ()
    named: str = ""
    beside: str = ""
    format: str = ""
    fits: Callable[[Node], bool] = lambda node: True
    updates: str = ""
    step: str = ""
    decay: Callable[[Node], Decay | None] = lambda node: None
    why: str = ""
    notes: tuple[Note, ...] = ()

    def read(self, node: Node) -> Recognised | None:
        """The contents of a node of this layout; None for another."""
        if not self._matches(node):
            return None
        found = self.sets(node) if callable(self.sets) else self._declared(node, self.sets)
        if found is None or not found.parts:
            return None
        notes = [_filled(note, node) if isinstance(note, str) else note(node) for note in self.notes]
        return replace(found, library=self.library, notes=(*filter(None, notes), *found.notes))

    def _matches(self, node: Node) -> bool:
        return (
            all(map(node.has, self.marks))
            and self.format in ("", node.file.format)
            and (not self.named or re.fullmatch(self.named, node.file_name) is not None)
            and (not self.beside or node.has_beside(_filled(self.beside, node)))
            and self.fits(node)
        )

    def _declared(self, node: Node, sets: Mapping[str, Role]) -> Recognised:
        found = [part for place, role in sets.items() for part in weights_at(node, place, role, self.library)]
        if found and self.why:
            found[0] = replace(found[0], notes=(self.why, *found[0].notes))
        averaged = any(one.role == "average" for one in found)
        return Recognised(
            self.library,
            tuple(found),
            step=node.at(self.step).count if self.step else None,
            updates=node.at(self.updates).count if self.updates else None,
            decay=self.decay(node) if averaged else None,
        )


def _filled(text: str, node: Node) -> str:
    return re.sub(r"{(.+?)}", lambda m: node.stem if m[1] == "stem" else str(node.at(m[1]).tree), text)


def weights_at(node: Node, place: str, role: Role, library: str = "its library") -> Iterator[Part]:
    """The set of weights at a place of a row, if there is one; "." is the node itself."""
    name = "weights" if role == "unknown" else role
    if place == "":
        yield unwrapped(Part(name, role, "", node.file.tensors))
        return
    if place != "." and place.endswith("."):
        there, key = node.outer(place[:-1])
        if tensors := below(there.tensors, f"{key}."):
            yield unwrapped(Part(name, role, there.path, tensors))
        return
    there = node if place == "." else node.at(place)
    if there.is_weights:
        yield unwrapped(Part(name, role, there.path, tensors_in(there.tree)))
    elif numbered := {str(i): one for i, one in enumerate(there.listed) if isinstance(one, LazyTensor)}:
        note = (
            "a list without names, in the order of model.parameters(): numbered here; load it with "
            f"{library} to get the names back"
        )
        yield Part(name, role, there.path, numbered, (note,))


def optimizers(node: Node) -> tuple[Part, ...]:
    """The optimizer states of a training checkpoint, under the keys that everyone uses."""
    places = [node.at(key) for key in ("optimizer", "optimizer_states", "opt")]
    places += [item for one in places for item in one.items]
    found = [optimizer_state(one) for one in places if one.has("state") and one.has("param_groups")]
    return tuple(part for one in found if one is not None for part in one.parts)


def optimizer_state(node: Node) -> Recognised | None:
    """Recognise the result of ``optimizer.state_dict()``."""
    if isinstance(node.at("param_groups").tree, LazyTensor):
        return None  # in a distributed checkpoint the groups are a dict
    tensors = {
        f"{parameter}.{name}": tensor
        for parameter, moments in node.at("state").keys.items()
        for name, tensor in tensor_values(moments).items()
    }
    return Recognised("", (Part("optimizer", "optimizer", node.path, tensors),))


def decay_of(make: Callable[[], Decay]) -> Decay | None:
    """A decay of a file's numbers; None where they make no decay."""
    try:
        return make()
    except (ConfigError, TypeError, ValueError, KeyError, OverflowError):
        return None
