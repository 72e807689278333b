"""Synthesis of any average of a run from the snapshots of an archive.

The stored averages are mixed with the coefficients of least expected error (``schedules.posthoc``); a tensor
that joined late is mixed by its own profiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from polyak._dtypes import Array
from polyak._files.header import Header
from polyak._files.layout import in_file_order
from polyak._files.weighted_sum import counted, in_memory, summed
from polyak._files.write import write_safetensors
from polyak._foreign.open_any import open_weights
from polyak.archive.archive import Archive
from polyak.archive.mixture import Stored, mix, movement_in, profile_of, solve_mixtures
from polyak.archive.snapshots import Snapshot
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import Decay, HalfLife, Profile, as_decay, replay, solve_each
from polyak.schedules.decay import DecayLike


@dataclass(frozen=True)
class Synthesis:
    """A synthesised average; made by ``synthesize``.

    Args:
        tensors: NumPy arrays by the model's names, float32 where averaged; empty when written to a file.
        header: with the exact profile of the result, not that of the target.
        error: ``√(E‖Σcᵢ·avgᵢ - avg*‖² / E‖avg* - θ_T‖²)``: the expected distance between this average and
            the target, rounding of the snapshots included, as a share of the target's expected distance from
            the raw weights θ_T at its step; the largest of any tensor's history.
        noise_gain: ``Σ|cᵢ|``, the worst amplification of the snapshots' rounding errors; 1 is best.
        coefficients: cᵢ by the snapshot's file name.
    """

    tensors: Mapping[str, Array] = field(repr=False)
    header: Header = field(repr=False)
    error: float
    noise_gain: float
    coefficients: Mapping[str, float] = field(repr=False)


class Reach(NamedTuple):
    """The accuracy with which one half-life can be synthesised.

    half_life: in training steps.  error: as in ``Synthesis``, of tensors that were averaged from the
    beginning.  noise_gain: ``Σ|cᵢ|``.
    """

    half_life: float
    error: float
    noise_gain: float


class Preview(NamedTuple):
    """What ``synthesize`` would give for one half-life, without its tensors.

    half_life: in training steps.  error, noise_gain: as in ``Synthesis``.  profile: the exact profile of the
    result.  target: that of the average with this half-life itself.
    """

    half_life: float
    error: float
    noise_gain: float
    profile: Profile
    target: Profile


def synthesize(
    archive: Archive | str | os.PathLike[str],
    target: DecayLike | Profile,
    at: int | None = None,
    *,
    last: int | None = None,
    max_error: float = 0.02,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Synthesis:
    """Synthesise the average that another decay would have given from the snapshots of a run.

    ``Σ cᵢ·avgᵢ`` over every snapshot up to ``at``, with ``min E‖Σ cᵢ·avgᵢ - avg*‖²`` subject to ``Σc = 1``.

    Args:
        archive: the archive or its folder.
        target: β, any decay, or a profile. ``Uniform()`` with ``last=k`` is the mean of the last k steps,
            ``Anneal(k)`` with ``last=k`` approximates annealing the learning rate over them.
        at: the training step of the average; by default the newest snapshot's.
        last: begin averaging only this many steps before ``at``.
        max_error: the largest accepted ``error``: the expected distance from the target, as a share of the
            target's distance from the raw weights.
        out: write the average to this ``.safetensors`` file instead of returning its tensors, piece by piece.
        progress: called with the bytes computed so far and in total.

    Returns:
        The tensors or the file's header, with expected error and noise gain.

    Raises:
        ConfigError: ``at`` or ``last`` lies outside the run, or the target counts in a unit it does not.
        CheckpointError: a snapshot is damaged or holds NaN, or infinity where others do not; or the profile
            cannot be met. Nothing is written then.

    Examples:
        >>> import tempfile, torch, polyak
        >>> ema = polyak.EMA(torch.nn.Linear(2, 1), {"a": polyak.Power(gamma=7), "b": polyak.Power(gamma=17)})
        >>> with polyak.Archive(tempfile.mkdtemp(), ema, every=20) as archive:
        ...     for _ in range(400):
        ...         ema.update()
        >>> made = synthesize(archive, polyak.HalfLife(steps=60))
        >>> made.tensors["weight"].shape, made.error < 0.02
        ((1, 2), True)

    Source: Karras et al. 2024, arXiv 2312.02696, §3.2, for any schedule.
    """
    with ExitStack() as files:
        snapshots, step, stored = _opened(archive, at, files)
        wanted = (
            target
            if isinstance(target, Profile)
            else _target_profile(snapshots, as_decay(target), step, last)
        )
        mixture = mix(stored, wanted)
        if mixture.error > max_error:
            raise CheckpointError(
                f"the requested average can only be made with an expected error of {mixture.error:.1%} of"
                f" its distance from the raw weights; max_error is {max_error:.1%}. Denser snapshots or "
                "another track allow more; polyak.synthesizable(archive) lists what can be made."
            )
        coefficients = mixture.solution.coefficients.tolist()
        header = Header(
            track="synthesized",
            step=step,
            decay=None if isinstance(target, Profile) else as_decay(target),
            profile=Profile.mix([profile_of(s.snapshot) for s in stored], coefficients),
            role="average",
            run=snapshots[0].header.run,
        )
        tensors: dict[str, Array] = {}
        specs = in_file_order({name: one.spec for name, one in mixture.sums.items()})
        report = counted(progress, sum(spec.nbytes for spec in specs.values()), lambda p: p.values.nbytes)
        with summed((mixture.sums[name] for name in specs), report) as pieces:
            if out is None:
                tensors = {name: in_memory(mixture.sums[name], pieces) for name in specs}
            else:
                write_safetensors(out, specs, header.to_metadata(), pieces)
    names = [s.snapshot.path.name for s in stored]
    gain = mixture.solution.noise_gain
    return Synthesis(tensors, header, mixture.error, gain, dict(zip(names, coefficients, strict=True)))


def synthesizable(
    archive: Archive | str | os.PathLike[str],
    at: int | None = None,
    half_lives: Sequence[float] | None = None,
) -> list[Reach]:
    """The half-lives that can be synthesised, with their errors.

    Args:
        archive: the archive or its folder.
        at: the training step of the average; by default the newest snapshot's.
        half_lives: in training steps; by default 25 from ``at``/1000 to ``at``, on a logarithmic scale.

    Returns:
        One row each: half-life, expected error, noise gain.

    Raises:
        ConfigError: ``at`` lies outside the run.
        CheckpointError: a snapshot is damaged.

    Examples:
        >>> import tempfile, torch, polyak
        >>> ema = polyak.EMA(torch.nn.Linear(2, 1), {"a": polyak.Power(gamma=7), "b": polyak.Power(gamma=17)})
        >>> with polyak.Archive(tempfile.mkdtemp(), ema, every=20) as archive:
        ...     for _ in range(400):
        ...         ema.update()
        >>> [round(row.error, 3) for row in synthesizable(archive, half_lives=[5, 40, 100])]
        [0.048, 0.0, 0.003]
    """
    snapshots = (archive if isinstance(archive, Archive) else Archive(archive)).snapshots
    step = _step_at(snapshots, at)
    chosen: list[float] = list(half_lives or np.geomspace(max(1.0, step / 1000), max(2.0, step), 25).tolist())
    wanted = [_target_profile(snapshots, HalfLife(steps=h), step, None) for h in chosen]
    stored = [s for s in snapshots if s.step <= step]
    rounding = [s.state.rounded for s in stored]
    solutions = solve_each([profile_of(s) for s in stored], wanted, movement_in(stored), rounding)
    return [Reach(h, s.error, s.noise_gain) for h, s in zip(chosen, solutions, strict=True)]


def preview(
    archive: Archive | str | os.PathLike[str],
    half_lives: Sequence[float],
    at: int | None = None,
) -> list[Preview]:
    """The errors and profiles of the averages that ``synthesize`` would make, from the snapshots' headers.

    Args:
        archive: the archive or its folder.
        half_lives: in training steps.
        at: the training step of the average; by default the newest snapshot's.

    Returns:
        One row for each half-life.

    Raises:
        ConfigError: ``at`` lies outside the run.
        CheckpointError: a snapshot is damaged.

    Examples:
        >>> import tempfile, torch, polyak
        >>> ema = polyak.EMA(torch.nn.Linear(2, 1), {"a": polyak.Power(gamma=7), "b": polyak.Power(gamma=17)})
        >>> with polyak.Archive(tempfile.mkdtemp(), ema, every=20) as archive:
        ...     for _ in range(400):
        ...         ema.update()
        >>> [row] = preview(archive, [60])
        >>> row.error == synthesize(archive, HalfLife(steps=60)).error
        True
    """
    with ExitStack() as files:
        snapshots, step, stored = _opened(archive, at, files)
        wanted = [_target_profile(snapshots, HalfLife(steps=h), step, None) for h in half_lives]
        solutions = solve_mixtures(stored, wanted)
    profiles = [profile_of(s.snapshot) for s in stored]
    return [
        Preview(h, s.error, s.noise_gain, Profile.mix(profiles, s.coefficients.tolist()), target)
        for h, s, target in zip(half_lives, solutions, wanted, strict=True)
    ]


def _opened(
    archive: Archive | str | os.PathLike[str], at: int | None, files: ExitStack
) -> tuple[list[Snapshot], int, list[Stored]]:
    """All snapshots, the step of the average, and the open snapshots up to it, which ``files`` will close.

    A continuing run may remove a snapshot after it was listed; then they are listed again. Open files stay
    readable.
    """
    reader = archive if isinstance(archive, Archive) else Archive(archive)
    while True:
        snapshots = reader.snapshots
        step = _step_at(snapshots, at)
        chosen = [snapshot for snapshot in snapshots if snapshot.step <= step]
        try:
            with ExitStack() as opening:
                stored = [Stored(s, opening.enter_context(open_weights(s.path))) for s in chosen]
                files.push(opening.pop_all())
            return snapshots, step, stored
        except (CheckpointError, FileNotFoundError):
            if all(snapshot.path.exists() for snapshot in chosen):
                raise


def _step_at(snapshots: Sequence[Snapshot], at: int | None) -> int:
    taken = [s.step for s in snapshots if s.number]
    if not taken:
        raise CheckpointError(
            f"{snapshots[0].path.parent} holds only the base: there is no snapshot of an average yet."
        )
    if at is None:
        return max(taken)
    if not min(taken) <= at <= max(taken):
        raise ConfigError(f"at={at}: the snapshots reach from step {min(taken)} to {max(taken)}.")
    return at


def _target_profile(snapshots: Sequence[Snapshot], decay: Decay, at: int, last: int | None) -> Profile:
    """The profile of the decay at ``at``, over the points of the run that its averages used."""
    later = [s for s in snapshots if s.number and s.step >= at]
    units = {s.header.decay.unit: s for s in reversed(later) if s.header.decay is not None}
    return replay(profile_of(units.get(decay.unit, later[0])), decay, at, last)
