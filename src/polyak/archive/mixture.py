"""Stored averages mixed into the one wanted, tensor by tensor.

Tensors with one history share one set of coefficients; usually that is all of them. One that joined the
averages late, or was reset, has a history of its own and is solved for by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.layout import Spec
from polyak._files.rounding import widen_into
from polyak.archive.snapshots import Snapshot
from polyak.errors import CheckpointError
from polyak.schedules import Profile, Solution, solve
from polyak.schedules.posthoc import Movement, movement_of

_PIECE = 1 << 16  # elements

# Which snapshots hold a tensor, by place, and since when each has averaged it.
_History: TypeAlias = tuple[tuple[int, int], ...]


class Stored(NamedTuple):
    """A snapshot with its tensors at hand."""

    snapshot: Snapshot
    weights: Checkpoint


@dataclass(frozen=True)
class Mixture:
    """``Σ cᵢ·avgᵢ`` for every tensor of a model; made by ``mix``.

    Args:
        recipes: for each name the slots to sum and their coefficients; one slot and None to copy it.
        solution: coefficients, error and noise gain of most tensors, over the snapshots in order.
        error: that of the tensor farthest from what was wanted.
    """

    recipes: Mapping[str, Sequence[tuple[float | None, LazyTensor]]]
    solution: Solution
    error: float

    @property
    def specs(self) -> dict[str, Spec]:
        """What ``tensor`` returns for each name."""
        return {name: Spec(_dtype(recipe), recipe[0][1].shape) for name, recipe in self.recipes.items()}

    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor of the mixture, summed in double precision."""
        recipe = self.recipes[name]
        dtype = _dtype(recipe)
        wide = np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
        total, scratch = np.zeros(recipe[0][1].size, wide), np.empty(_PIECE, wide)
        for coefficient, slot in recipe:
            stored = slot.read()
            if coefficient is None:
                return stored
            flat = stored.reshape(-1)
            for start in range(0, len(flat), _PIECE):  # what is widened and scaled stays in cache
                sums = total[start : start + _PIECE]
                term = scratch[: len(sums)]
                widen_into(flat[start : start + _PIECE], term)
                term *= coefficient
                sums += term
        return total.astype(dtype).reshape(recipe[0][1].shape)


def mix(stored: Sequence[Stored], wanted: Profile) -> Mixture:
    """The mixture of snapshots nearest to a profile.

    Args:
        stored: the snapshots, oldest first, the base among them.
        wanted: the profile to come near to.

    Raises:
        CheckpointError: a tensor that no average holds is not in the base either.
    """
    newest = stored[-1]
    state = newest.snapshot.header.state
    copied, aliases = set(state.get("copied", ())), dict(state.get("aliases", {}))
    averaged = [name for name in newest.weights.slots if name not in copied]
    histories = {name: _history(stored, name) for name in averaged}
    counted = Counter(histories.values())
    movement = movement_in([s.snapshot for s in stored])
    solved = {history: _solved(stored, history, wanted, movement) for history in counted}
    recipes: dict[str, Sequence[tuple[float | None, LazyTensor]]] = {}
    for name, history in histories.items():
        slots = [stored[i].weights.slots[name] for i, _ in history]
        recipes[name] = list(zip(solved[history].coefficients.tolist(), slots, strict=True))
    recipes |= {name: [(None, newest.weights.slots[name])] for name in copied}
    recipes |= {name: [(None, _frozen(stored, name))] for name in state.get("shared", ())}
    recipes |= {alias: recipes[name] for alias, name in aliases.items() if name in recipes}
    usual = counted.most_common(1)[0][0]
    coefficients = np.zeros(len(stored))
    coefficients[[i for i, _ in usual]] = solved[usual].coefficients
    error = max(solution.error for solution in solved.values())
    return Mixture(recipes, solved[usual]._replace(coefficients=coefficients), error)


def movement_in(snapshots: Sequence[Snapshot]) -> Movement:
    """How fast the parameters moved while the snapshots were taken."""
    seen = [s for s in snapshots if s.number]
    apart = [float(s.header.state.get("apart", 0.0)) for s in seen]
    return movement_of([profile_of(s) for s in seen], apart)


def rounding_of(snapshot: Snapshot) -> float:
    """The squared error made when the snapshot was stored."""
    return float(snapshot.header.state.get("rounded", 0.0))


def profile_of(snapshot: Snapshot) -> Profile:
    """The profile a snapshot must have."""
    if snapshot.header.profile is None:
        raise CheckpointError(f"{snapshot.path} does not say its profile: no archive took it.")
    return snapshot.header.profile


def _history(stored: Sequence[Stored], name: str) -> _History:
    """Since when each snapshot that holds a tensor has averaged it, 0 from the beginning."""
    joined = stored[-1].snapshot.header.joined.get(name, 0)
    holding = [(i, s.snapshot) for i, s in enumerate(stored) if name in s.weights.slots]
    # In the base, a tensor that was frozen until it joined has the value it joined with.
    frozen = not any(snapshot.number and snapshot.step < joined for _, snapshot in holding)
    return tuple(
        (i, joined if snapshot.number == 0 and frozen else snapshot.header.joined.get(name, 0))
        for i, snapshot in holding
    )


def _solved(stored: Sequence[Stored], history: _History, wanted: Profile, movement: Movement) -> Solution:
    profiles = [_since(profile_of(stored[i].snapshot), joined) for i, joined in history]
    rounding = [rounding_of(stored[i].snapshot) for i, _ in history]
    return solve(profiles, _since(wanted, max(joined for _, joined in history)), movement, rounding)


def _since(profile: Profile, joined: int) -> Profile:
    return profile.since(joined) if joined else profile


def _frozen(stored: Sequence[Stored], name: str) -> LazyTensor:
    base = stored[0].weights
    if name not in base.slots:
        raise CheckpointError(
            f"{name} was added to the model, frozen, after the archive began: no snapshot holds it. "
            f"Add it to {base.where}."
        )
    return base.slots[name]


def _dtype(recipe: Sequence[tuple[float | None, LazyTensor]]) -> np.dtype[Any]:
    """Of what is made: averages at least float32, copies as they are."""
    coefficient, slot = recipe[-1]
    if coefficient is None or slot.dtype.kind == "c" or slot.dtype == np.float64:
        return slot.dtype
    return np.dtype(np.float32)
