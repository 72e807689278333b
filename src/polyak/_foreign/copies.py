"""Averages inside one state dict: child modules that are copies of the model beside them.

A name alone is not enough, since a layer may be called "ema" too. A child is an average if its name says so
and each of its tensors has a counterpart of the same name and shape in the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polyak._files.checkpoint import LazyTensor
from polyak._foreign.nodes import count_in
from polyak._foreign.parts import Part, Recognised, Tensors, below, completed
from polyak.schedules import Capped, Constant, Decay

_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?|avg|shadow)(_|$)|_ema$|^ema", re.IGNORECASE)
_OPTIMIZER = re.compile(r"^opt(im(izer)?s?)?(_states?)?(_dict)?$", re.IGNORECASE)
# The averaged copy's name → that of the model it follows, where the copy is not called an average.
_PARTNERS = (
    (re.compile(r"(.*)teacher(.*)"), (r"\1student\2",)),  # DINO, mean teachers
    (re.compile(r"(.*encoder)_k"), (r"\1_q",)),  # MoCo
    (re.compile(r"(.*encoder)_m"), (r"\1",)),  # ALBEF
    (re.compile(r"momentum_(.*)"), (r"base_\1", r"online_\1", r"\1")),
    (re.compile(r"target_(.*)"), (r"online_\1", r"context_\1")),  # BYOL, I-JEPA
    (re.compile(r"key_(.*)"), (r"query_\1",)),
)
_MOST = 256  # limit on the children of one model to examine
_WRAPPED = 4  # a module, and wrappers around it
_COUNTERS = ("decay", "num_updates", "n_averaged", "initted", "step", "steps")  # of averaging classes
# What averaging classes call the copy inside them; "online_model" is where ema-pytorch keeps the original.
_INNER = ("ema_model.", "module.", "model.", "shadow.", "_orig_mod.")
_ORIGINAL = "online_model."


def is_average(name: str) -> bool:
    """Whether a name is that of an average.

    Examples:
        >>> is_average("model_ema"), is_average("model_avg"), is_average("cinema")
        (True, True, False)
    """
    return _AVERAGE.search(name) is not None


def is_optimizer(name: str) -> bool:
    """Whether a key is that of an optimizer."""
    return _OPTIMIZER.match(name) is not None


def partners(name: str) -> tuple[str, ...]:
    """The names of the model that a module of this name would be the average of.

    Examples:
        >>> partners("teacher_backbone"), partners("encoder_k"), partners("head")
        (('student_backbone',), ('encoder_q',), ())
    """
    for pattern, templates in _PARTNERS:
        if (match := pattern.fullmatch(name)) is not None:
            return tuple(match.expand(template) for template in templates)
    return ()


class _Copy(NamedTuple):
    """An average: its child module, its tensors by the names of their originals, its counters."""

    root: str
    tensors: dict[str, LazyTensor]
    counters: dict[str, LazyTensor]
    dotless: bool


def divided(one: Part) -> Recognised | None:
    """The averages in a set of weights, and the rest of it; None if there are none.

    Averages get the names of their originals and are completed by tensors that are not averaged, so that they
    can be loaded in place of the raw weights.
    """
    children = _children(one.tensors)
    if len(children) > _MOST:
        return None
    suspects = {root for root in children if is_average(root) or partners(root)}
    optimizers = {root for root in children if is_optimizer(root)}
    model = _Model(_without(one.tensors, suspects | optimizers))
    copies = [copy for root in sorted(suspects) if (copy := _copy(root, children[root], model)) is not None]
    taken = optimizers.union(copy.root for copy in copies)
    left = _without(one.tensors, taken)
    if not taken or not left:
        return None
    path = f"{one.path}." if one.path else ""
    states = [Part("optimizer", "optimizer", f"{path}{root}", children[root]) for root in sorted(optimizers)]
    if not copies:
        return Recognised("", (replace(one, tensors=left), *states))
    raw = Part("raw", "raw", one.path, left, one.notes)
    notes = (*one.notes, "an average by its name, with the names and shapes of the model beside it")
    joined = _joined(copies)
    averages = [
        completed(Part("average", "average", f"{path}{copy.root}", copy.tensors, notes), raw)
        for copy in joined
    ]
    decay, updates = _schedule(joined[0].counters)
    library = "latent-diffusion" if any(copy.dotless for copy in copies) else ""
    return Recognised(library, (*averages, raw, *states), updates=updates, decay=decay)


def _children(tensors: Tensors) -> dict[str, dict[str, LazyTensor]]:
    """The tensors of each child module, by their names in it."""
    children: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        root, dot, inner = name.partition(".")
        if dot:
            children.setdefault(root, {})[inner] = tensor
    return children


def _without(tensors: Tensors, roots: set[str]) -> dict[str, LazyTensor]:
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in roots}


@dataclass(frozen=True)
class _Model:
    """The model that the copies would follow: everything but the possible copies."""

    tensors: Tensors

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """Possible prefixes of the module that an average follows."""
        return ("", *(f"{child}." for child in _children(self.tensors)))

    @cached_property
    def dotless(self) -> tuple[Mapping[str, str], ...]:
        """Names without their dots, as LitEma of latent diffusion has them, and the names themselves."""
        return tuple(
            {n.removeprefix(prefix).replace(".", ""): n for n in self.tensors if n.startswith(prefix)}
            for prefix in ("model.", "")
        )

    def followed(self, copy: Tensors, name_of: Callable[[str], str]) -> dict[str, LazyTensor] | None:
        """The tensors of a copy by the names of their originals; None if one has no counterpart."""
        for name, tensor in copy.items():
            other = self.tensors.get(name_of(name))
            if other is None or other.shape != tensor.shape:
                return None
        return {name_of(name): tensor for name, tensor in copy.items()}


def _copy(root: str, tensors: Tensors, model: _Model) -> _Copy | None:
    counters = {name: tensors[name] for name in _COUNTERS if name in tensors and tensors[name].size == 1}
    inner = {n: s for n, s in tensors.items() if n not in counters and not n.startswith(_ORIGINAL)}
    if not inner:
        return None
    named = tuple(f"{name}." for name in partners(root))
    for names in _unwrapped(inner):
        for prefix in named + (model.prefixes if is_average(root) else ()):
            if found := model.followed(names, lambda name, prefix=prefix: prefix + name):
                return _Copy(root, found, counters, dotless=False)
    if is_average(root) and not any("." in name for name in inner):
        for dotless in model.dotless:
            if found := model.followed(inner, lambda name, dotless=dotless: dotless.get(name, "")):
                return _Copy(root, found, counters, dotless=True)
    return None


def _unwrapped(tensors: Tensors) -> Iterator[Tensors]:
    """The tensors by name, then without wrapper prefixes, one at a time."""
    for _ in range(_WRAPPED):
        yield tensors
        wrapper = next((w for w in _INNER if tensors and all(n.startswith(w) for n in tensors)), None)
        if wrapper is None:
            return
        tensors = below(tensors, wrapper)


def _joined(copies: Sequence[_Copy]) -> list[_Copy]:
    """Copies of different modules, as one average; copies of the same are several."""
    joined: list[_Copy] = []
    for copy in copies:
        for i, one in enumerate(joined):
            if not one.tensors.keys() & copy.tensors.keys():
                joined[i] = one._replace(tensors=one.tensors | copy.tensors)
                break
        else:
            joined.append(copy)
    return joined


def _schedule(counters: Tensors) -> tuple[Decay | None, int | None]:
    """LitEma counts from 0 when its decay warms up, as ``min(β, (1+t)/(10+t))``, and holds -1 when not."""
    updates = count_in(counters.get("num_updates", counters.get("n_averaged")))
    if "decay" not in counters or "num_updates" not in counters:
        return None, updates
    beta = float(str(np.float32(counters["decay"].read().reshape(-1)[0])))
    if not 0 <= beta <= 1:
        return None, updates
    return (Constant(beta) if updates is None else Capped(beta)), updates
