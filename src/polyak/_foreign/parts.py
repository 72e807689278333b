"""The sets of weights in a file, each with the role its library gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from polyak._files.checkpoint import LazyTensor
from polyak._files.header import Header, Origin
from polyak._wrappers import PREFIXES, without_wrappers
from polyak.schedules import Decay, Profile

Role: TypeAlias = Literal["average", "raw", "optimizer", "unknown"]
Tensors: TypeAlias = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Part:
    """One set of weights in a file."""

    name: str  # what it is called here and in names of files made of it; unique in its file
    role: Role  # whose weights they are; "unknown" when nothing says
    path: str  # the keys that lead to it in the file, joined by dots; "" for the file itself
    tensors: Tensors = field(repr=False)  # by the model's own names, without the prefixes of wrappers
    notes: tuple[str, ...] = ()  # what a reader should know
    # what polyak itself wrote of them; None of other libraries' weights
    header: Header | None = field(default=None, repr=False)

    def noted(self, *notes: str) -> Part:
        """With more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def is_called(self, wanted: str) -> bool:
        """Whether this is the set's name, role or key."""
        return wanted in (self.name, self.role, self.path)


@dataclass(frozen=True)
class Recognised:
    """The library that wrote a file, and the file's contents."""

    library: str  # "timm", "lightning", …; "polyak" for its own; "" when nothing says
    parts: tuple[Part, ...]  # the sets of weights, averages first
    step: int | None = None  # training steps, as far as the file counts them
    updates: int | None = None  # of the average, as far as the file counts them
    decay: Decay | None = None  # the schedule, where the file holds all of it
    notes: tuple[str, ...] = ()  # what a reader should know
    step_key: str = ""  # where in the file the step is; "" where a header of polyak's has it

    @property
    def models(self) -> list[Part]:
        """The sets that are weights of a model."""
        return [one for one in self.parts if one.role != "optimizer"]

    def has(self, role: Role) -> bool:
        """Whether one of the sets has this role."""
        return any(one.role == role for one in self.parts)

    def header_of(self, part: Part) -> Header | None:
        """The header of one of the file's sets; None if its role is unknown."""
        if part.header is not None:
            return part.header
        if part.role == "raw":
            profile = None if self.step is None else Profile.raw(self.step)
            return Header("raw", self.step, None, profile, "raw", "")
        if part.role == "average":
            state = Origin(self.library, self.updates).to_state()
            return Header(part.name, self.step, self.decay, None, "average", "", state=state)
        return None


def unwrapped(one: Part) -> Part:
    """A part without the prefix that a wrapper put before all of its names."""
    for prefix in PREFIXES:
        if one.tensors and all(name.startswith(prefix) for name in one.tensors):
            inner = replace(one, tensors=below(one.tensors, prefix))
            return unwrapped(inner.noted(f"the prefix {prefix!r} of a wrapper is left out"))
    return one


def completed(average: Part, raw: Part) -> Part:
    """The average as a complete model, with missing tensors from the raw weights.

    A tensor with several names is averaged under one of them; all its names share one range of the file.
    """
    plain = {without_wrappers(name): tensor for name, tensor in raw.tensors.items()}
    averaged = average.tensors
    if not averaged.keys() & plain.keys():
        return average  # of another model
    tied = {plain[name]: tensor for name, tensor in averaged.items() if name in plain}
    tensors = {name: averaged.get(name) or tied.get(tensor, tensor) for name, tensor in plain.items()}
    left = sum(tensors[name] is tensor for name, tensor in plain.items())
    whole = replace(average, tensors=tensors)
    return whole.noted(f"{left} tensors are not averaged, and are as in the raw weights") if left else whole


def below(tensors: Tensors, prefix: str) -> dict[str, LazyTensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def same_shapes(a: Tensors, b: Tensors) -> bool:
    """Whether two sets hold tensors of the same names and shapes."""
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)


def same_values(a: Tensors, b: Tensors) -> bool:
    """Whether two sets of tensors are equal; the smallest are read first, up to one that differs."""
    return same_shapes(a, b) and all(
        np.array_equal(a[name].read(), b[name].read()) for name in sorted(a, key=lambda name: a[name].size)
    )
