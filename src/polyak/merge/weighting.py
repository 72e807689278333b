"""The weights of checkpoints in a mean, and the header of the result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Literal, NamedTuple, TypeAlias, get_args

from polyak._files.header import FileShare, Header, Origin
from polyak._foreign.recognize import Step
from polyak.errors import CheckpointError, ConfigError
from polyak.merge.inputs import MergeInput
from polyak.schedules import Decay, Profile, Recency, annealed, solve
from polyak.schedules.pointwise import Shape

Weighting: TypeAlias = Literal["uniform"] | Shape | Recency | Profile | Decay | Sequence[float]


class Contribution(NamedTuple):
    """One checkpoint of a mean.

    file: as it was given.
    role: of its weights: "average", "raw", or "unknown".
    step: the training step it was written at; None if unknown.
    source: of the step: a key of the file, "file name", …; "" without one.
    weight: in the mean.
    """

    file: str
    role: str
    step: int | None
    source: str
    weight: float


def contributions(
    weighting: Weighting, inputs: Sequence[MergeInput], files: Sequence[str]
) -> tuple[Contribution, ...]:
    """The weight of each checkpoint."""
    weights = _weights(weighting, inputs)
    if len(weights) != len(inputs):
        raise ConfigError(
            f"weights={list(weights)}: {len(weights)} for {len(inputs)} checkpoints; give one each."
        )
    rows = zip(files, inputs, weights, strict=True)
    return tuple(
        Contribution(file, one.role, *(one.step or (None, "")), weight) for file, one, weight in rows
    )


def newest(inputs: Sequence[MergeInput]) -> int:
    """The index of the checkpoint of the latest step, or the last if not all steps are known."""
    steps = [one.step.number for one in inputs if one.step is not None]
    if len(steps) < len(inputs):
        return len(inputs) - 1
    return max(range(len(steps)), key=lambda i: (steps[i], i))


def header_of(weighting: Weighting, inputs: Sequence[MergeInput], shares: Sequence[Contribution]) -> Header:
    """The header of the mean, as far as the checkpoints' headers determine it."""
    used = [share.weight for share in shares]
    steps = [share.step for share in shares if share.step is not None]
    headers = [one.header for one in inputs]
    runs = {"" if header is None else header.run for header in headers}
    joined = [{} if header is None else dict(header.joined) for header in headers]
    trusted = isinstance(weighting, (Profile, Decay))  # these weightings assume raw files
    profiles = [_as_point(one) if trusted else one.profile for one in inputs]
    known = [profile for profile in profiles if profile is not None]
    # A tensor's own profile is known only if it joined all averages at the same step.
    exact = len(known) == len(inputs) and all(other == joined[0] for other in joined)
    taken = exact and any(one.profile is None for one in inputs)
    return Header(
        track="average",
        step=max(steps) if len(steps) == len(shares) else None,
        decay=None,
        profile=Profile.mix(known, used) if exact else None,
        role="average",
        run=runs.pop() if len(runs) == 1 else "",
        joined=joined[0] if exact else {},
        state=Origin(files=None if exact else _of_files(shares), taken_as_raw=taken).to_state(),
    )


def _weights(weighting: Weighting, inputs: Sequence[MergeInput]) -> tuple[float, ...]:
    if isinstance(weighting, (Profile, Decay)):
        return _solved(weighting, inputs)
    if isinstance(weighting, Recency):
        return tuple(weighting.weights(_rising(inputs)).tolist())
    if isinstance(weighting, str):
        if weighting == "uniform":
            return (1 / len(inputs),) * len(inputs)
        if weighting not in get_args(Shape):
            raise ConfigError(
                f'weights={weighting!r}: must be "uniform", {", ".join(get_args(Shape))}, a Recency, a '
                "profile, a decay or numbers."
            )
        return tuple(annealed(_rising(inputs), weighting).tolist())
    numbers = tuple(float(weight) for weight in weighting)
    total = math.fsum(numbers)
    if not (total > 0 and math.isfinite(total)):  # NaN fails as well
        raise ConfigError(f"weights={list(numbers)} sum to {total:g}: must sum to more than 0.")
    return tuple(number / total for number in numbers)


def _solved(weighting: Profile | Decay, inputs: Sequence[MergeInput]) -> tuple[float, ...]:
    """The mixture nearest to the target profile; raw weights are points of the trajectory."""
    profiles: list[Profile] = []
    for one in inputs:
        point = _as_point(one)
        if point is None and one.role == "average":
            raise CheckpointError(
                f"{one.weights.where} holds an average {_why_unknown(one)}, so that of a mixture with "
                'it would be too. Take the raw weights with part="raw" (--part raw), or weigh the '
                "files by age with Recency(steps) (--recency) or by numbers (--weights)."
            )
        profiles.append(Profile.raw(_step(one).number) if point is None else point)
    _rising([one for one in inputs if one.header is None or one.header.role == "raw"])
    newest = max(profile.steps for profile in profiles)
    wanted = Profile.from_decay(weighting, newest) if isinstance(weighting, Decay) else weighting
    return tuple(solve(profiles, wanted).coefficients.tolist())


def _why_unknown(one: MergeInput) -> str:
    if one.header is not None and one.header.rules:
        return "by name, whose tensors have several profiles and no common one"
    return "whose profile is unknown"


def _as_point(one: MergeInput) -> Profile | None:
    """The profile; unidentified weights count as raw."""
    if one.profile is None and one.role == "unknown" and one.step is not None:
        return Profile.raw(one.step.number)
    return one.profile


def _rising(inputs: Sequence[MergeInput]) -> list[int]:
    """The steps of checkpoints of one run, which must increase."""
    steps = [_step(one) for one in inputs]
    for (before, earlier), (after, later) in pairwise(zip(inputs, steps, strict=True)):
        if later.number <= earlier.number:
            how = "again" if later.number == earlier.number else "before that"
            raise CheckpointError(
                f"{after.weights.where} is of step {later.number:,} ({later.source}), {how} after "
                f"{before.weights.where} of step {earlier.number:,} ({earlier.source}). Steps must rise: "
                "give each checkpoint once, oldest first (in a shell: ls -v), or a weight for each "
                "(--weights)."
            )
    return [step.number for step in steps]


def _step(one: MergeInput) -> Step:
    if one.step is None:
        raise CheckpointError(
            f"{one.weights.where} does not contain its training step, neither inside nor in "
            "a name in which one number is called a step: name it like step-5000.safetensors, or give a "
            "weight for each file (--weights)."
        )
    return one.step


def _of_files(shares: Sequence[Contribution]) -> list[FileShare]:
    """Name, step and weight of each file, for a header; with its folder if several names are equal."""
    paths = [PurePath(share.file.replace("\\", "/")) for share in shares]
    names = Counter(path.name for path in paths)
    shown = [path.name if names[path.name] == 1 else "/".join(path.parts[-2:]) for path in paths]
    return [FileShare(name, share.step, share.weight) for name, share in zip(shown, shares, strict=True)]
