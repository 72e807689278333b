"""Mixing stored averages into the target, tensor by tensor.

Tensors with the same history share one set of coefficients; usually that is all of them. A tensor that joined
late, or was reset, has its own history and its own coefficients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.weighted_sum import Input, TensorSum, shares
from polyak.archive.snapshots import Snapshot
from polyak.errors import CheckpointError
from polyak.schedules import Profile, Solution, solve_each
from polyak.schedules.posthoc import Movement, movement_of

# Indices of the snapshots that contain a tensor, and the step since which each has averaged it.
_History: TypeAlias = tuple[tuple[int, int], ...]


class Stored(NamedTuple):
    """A snapshot with its open tensors."""

    snapshot: Snapshot
    weights: Checkpoint


@dataclass(frozen=True)
class Mixture:
    """``Σ cᵢ·avgᵢ`` for every tensor of a model; made by ``mix``."""

    sums: Mapping[str, TensorSum]  # of each tensor
    solution: Solution  # coefficients, error and noise gain of most tensors, over the snapshots in order
    # the largest ``Solution.error`` of any history: expected distance from the target, as a share of
    # the target's from the raw weights
    error: float


def mix(stored: Sequence[Stored], wanted: Profile) -> Mixture:
    """The mixture of snapshots with the least expected error for a target.

    Args:
        stored: the snapshots, oldest first, including the base.
        wanted: the target's profile.
    """
    newest = stored[-1]
    state = newest.snapshot.state
    copied = set(state.copied)
    histories = _histories(stored)
    solved = {history: solutions[0] for history, solutions in _solved(stored, histories, [wanted]).items()}
    files = [s.weights.where for s in stored]
    sums: dict[str, TensorSum] = {}
    for name, history in histories.items():
        places = [i for i, _ in history]
        tensors = [stored[i].weights.tensors[name] for i in places]
        sums[name] = mixed(name, tensors, [files[i] for i in places], solved[history].coefficients.tolist())
    sums |= {name: _copied(name, newest.weights) for name in copied}
    sums |= {name: _frozen(stored, name) for name in state.shared}
    sums |= {alias: replace(sums[name], name=alias) for alias, name in state.aliases.items() if name in sums}
    solution, error = _overall(solved, histories, len(stored))
    return Mixture(sums, solution, error)


def solve_mixtures(stored: Sequence[Stored], wanted: Sequence[Profile]) -> list[Solution]:
    """The coefficients, error and noise gain of ``mix`` for several targets, without the sums.

    Returns:
        One for each target: the coefficients of most tensors over the snapshots in order, and the largest
        error of any tensor's history.
    """
    histories = _histories(stored)
    solved = _solved(stored, histories, wanted)
    found: list[Solution] = []
    for i in range(len(wanted)):
        of_target = {history: solutions[i] for history, solutions in solved.items()}
        solution, error = _overall(of_target, histories, len(stored))
        found.append(solution._replace(error=error))
    return found


def _overall(
    solved: Mapping[_History, Solution], histories: Mapping[str, _History], count: int
) -> tuple[Solution, float]:
    """The solution of most tensors, with coefficients over all snapshots, and the largest error of any."""
    usual = Counter(histories.values()).most_common(1)[0][0]
    coefficients = np.zeros(count)
    coefficients[[i for i, _ in usual]] = solved[usual].coefficients
    error = max(solution.error for solution in solved.values())
    return solved[usual]._replace(coefficients=coefficients), error


def mixed(
    name: str, tensors: Sequence[LazyTensor], files: Sequence[str], coefficients: Sequence[float]
) -> TensorSum:
    """``Σ cᵢ·avgᵢ`` of one tensor, in double precision; the result is float32 or wider."""
    newest = tensors[-1].dtype
    dtype = newest if newest.kind == "c" or newest == np.float64 else np.dtype(np.float32)
    inputs = [Input(tensors[i], share, files[i]) for i, share in shares(coefficients)]
    return TensorSum(name, inputs, dtype, np.dtype(np.float64))


def movement_in(snapshots: Sequence[Snapshot]) -> Movement:
    """How fast the parameters moved while the snapshots were taken."""
    seen = [s for s in snapshots if s.number]
    return movement_of([profile_of(s) for s in seen], [s.state.apart for s in seen])


def profile_of(snapshot: Snapshot) -> Profile:
    """The profile a snapshot must have."""
    if snapshot.header.profile is None:
        raise CheckpointError(f"{snapshot.path} has no profile: it was not written by an archive.")
    return snapshot.header.profile


def _histories(stored: Sequence[Stored]) -> dict[str, _History]:
    """The history of each averaged tensor."""
    newest = stored[-1]
    copied = set(newest.snapshot.state.copied)
    return {name: _history(stored, name) for name in newest.weights.tensors if name not in copied}


def _history(stored: Sequence[Stored], name: str) -> _History:
    """For each snapshot that contains a tensor, the step since which it was averaged; 0 for the start."""
    joined = stored[-1].snapshot.header.joined.get(name, 0)
    holding = [(i, s.snapshot) for i, s in enumerate(stored) if name in s.weights.tensors]
    # In the base, a tensor that was frozen until it joined has the value it joined with.
    frozen = not any(snapshot.number and snapshot.step < joined for _, snapshot in holding)
    return tuple(
        (i, joined if snapshot.number == 0 and frozen else snapshot.header.joined.get(name, 0))
        for i, snapshot in holding
    )


def _solved(
    stored: Sequence[Stored], histories: Mapping[str, _History], wanted: Sequence[Profile]
) -> dict[_History, list[Solution]]:
    """For each history, the solutions for all targets, from one pass over its profiles."""
    movement = movement_in([s.snapshot for s in stored])
    solved: dict[_History, list[Solution]] = {}
    for history in dict.fromkeys(histories.values()):
        profiles = [_since(profile_of(stored[i].snapshot), joined) for i, joined in history]
        rounding = [stored[i].snapshot.state.rounded for i, _ in history]
        late = max(joined for _, joined in history)
        solved[history] = solve_each(profiles, [_since(one, late) for one in wanted], movement, rounding)
    return solved


def _since(profile: Profile, joined: int) -> Profile:
    return profile.since(joined) if joined else profile


def _copied(name: str, weights: Checkpoint) -> TensorSum:
    tensor = weights.tensors[name]
    return TensorSum(name, [Input(tensor, 1.0, weights.where)], tensor.dtype, None)


def _frozen(stored: Sequence[Stored], name: str) -> TensorSum:
    base = stored[0].weights
    if name not in base.tensors:
        raise CheckpointError(
            f"{name} was added to the model, frozen, after the archive began: no snapshot holds it. "
            f"Add it to {base.where}."
        )
    return _copied(name, base)
