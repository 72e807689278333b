"""Files with weights, as the header card and the profile show them. Only headers are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from polyak._files.header import FileShare, Header, Origin, Rule
from polyak._files.open import INDEX, header_of
from polyak._foreign.nodes import Node
from polyak._foreign.open_any import open_weights
from polyak._foreign.own import is_own
from polyak._foreign.parts import Part
from polyak._foreign.recognize import epoch_in_name, recognise, step_in_name
from polyak.report.facts import AdaptiveFacts, Weights
from polyak.report.lightning import steps_behind
from polyak.report.shares import shares_of
from polyak.schedules import Decay, Profile
from polyak.schedules.adaptive import from_state
from polyak.schedules.runs import length

ENDINGS = (
    *(".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".keras", ".weights.h5"),
    *(".pdparams", ".pdema", INDEX),
)
_EFFORT = 20_000_000  # evaluations of a decay: about a second


class FileFacts(NamedTuple):
    """What a file with weights says.

    adaptive: what an ``Adaptive`` in a resumable state decided.  behind: see ``steps_behind``.
    """

    weights: list[Weights]
    adaptive: AdaptiveFacts | None
    behind: int | None


def weights_in(path: Path, name: str) -> FileFacts:
    """The sets of weights in a file, and what it says of the run.

    Args:
        path: of a checkpoint of any kind.
        name: how the report calls it.

    Raises:
        CheckpointError: it cannot be read.
    """
    with open_weights(path) as weights:
        found = recognise(weights)
        own = header_of(weights) if is_own(weights) else None
        root = Node.root(weights)
        epoch = None if root.is_weights else root.at("epoch").count
        parts = [_part(one, name, found.step) for one in found.parts if one.role != "optimizer"]
        parts = [replace(_placed(one, weights.where, epoch), library=found.library) for one in parts]
        adaptive = None if own is None else adaptive_in(own.state, name)
        return FileFacts(parts, adaptive, steps_behind(root) if found.library == "lightning" else None)


def weights_of(header: Header, name: str, nbytes: int | None = None) -> Weights:
    """A header's weights; the figures of a profile whose weights are unknown stay out."""
    profile = header.profile
    known = header.role != "raw" and profile is not None and profile.known and profile.effort < _EFFORT
    plain = Weights(
        file=name,
        name=header.track,
        role=header.role,
        step=header.step,
        run=header.run,
        schedule=None if header.decay is None or header.role == "raw" else schedule_of(header.decay),
        nbytes=nbytes,
        made_of=sources_of(header),
        rules=tuple([_of_pattern(rule, header, name) for rule in header.rules]),
    )
    return _with_figures(plain, profile, header) if known and profile is not None else plain


def _of_pattern(rule: Rule, header: Header, name: str) -> Weights:
    """The tensors of an average by name that share a decay, as an average of their own."""
    alone = replace(header, decay=rule.decay, profile=rule.profile, rules=())
    return replace(weights_of(alone, name), pattern=rule.pattern)


def sources_of(header: Header) -> tuple[FileShare, ...]:
    """The checkpoints that ``polyak average`` averaged, those with a weight; empty for other weights.

    Where the profiles of all are known the header has the sum of them and no names.
    """
    if header.role != "average" or header.decay is not None or header.rules:
        return ()
    found = Origin.from_state(header.state).files
    if found is None:
        terms = () if header.profile is None else header.profile.terms
        found = [FileShare("", length(runs), weight) for weight, runs in terms] if len(terms) > 1 else []
    # What another program wrote there may be of any type.
    known = [one._replace(step=one.step if type(one.step) is int else None) for one in found]
    return tuple([one for one in known if one.weight and math.isfinite(one.weight)])


def _placed(one: Weights, where: str, epoch: int | None) -> Weights:
    """With the step and the epoch in the file's name, or the last in those of what was averaged.

    Args:
        one: of the file.
        where: the file.
        epoch: in the file.
    """
    named = step_in_name(where) if one.step is None else None
    step = one.step if named is None else named.number
    epochs = [epoch_in_name(source.name) for source in one.made_of] or [epoch_in_name(where)]
    known = [each for each in epochs if each is not None]
    last = max(known) if len(known) == len(epochs) else None if one.made_of else epoch
    return replace(one, step=step, epoch=last)


def _with_figures(plain: Weights, profile: Profile, header: Header) -> Weights:
    unit = None if header.decay is None or header.decay.unit == "steps" else header.decay.unit
    rate = units_per_step(profile) if unit else None
    return replace(
        plain,
        half_life=profile.half_life,
        mean_age=profile.mean_age,
        effective_samples=profile.effective_samples,
        initial_weight=profile.initial_weight,
        unit=unit,
        half_life_units=None if rate is None else profile.half_life * rate,
        profile=shares_of(profile),
    )


def schedule_of(decay: Decay) -> str:
    """A schedule with the arguments that are not its defaults.

    Examples:
        >>> from polyak import HalfLife, Warmup
        >>> schedule_of(Warmup(0.9998)), schedule_of(HalfLife(steps=500))
        ('Warmup(0.9998)', 'HalfLife(steps=500)')
    """
    config = {name: value for name, value in decay.to_config().items() if name != "kind"}
    defaults = {one.name: one.default for one in fields(decay)} if is_dataclass(decay) else {}
    given = {k: v for k, v in config.items() if k not in defaults or defaults[k] != v}
    if not all(isinstance(value, int | float | str) for value in given.values()):
        return str(decay)
    first = next(iter(config), None)
    texts = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in given.items()}
    shown = [text if k == first and k == "beta" else f"{k}={text}" for k, text in texts.items()]
    return f"{type(decay).__name__}({', '.join(shown)})"


def units_per_step(profile: Profile) -> float | None:
    """Samples or tokens in a training step, on average, by the history of an average that counts them."""
    runs = [run for _, runs in profile.terms for run in runs]
    steps = sum(run.count * run.stride for run in runs)
    return sum(run.count * run.advance for run in runs) / steps if steps else None


def _part(part: Part, name: str, step: int | None) -> Weights:
    nbytes = sum(tensor.nbytes for tensor in part.tensors.values())
    if part.header is None:
        return Weights(name, part.name, part.role, step, "", nbytes=nbytes)
    return weights_of(part.header, name, nbytes)


def adaptive_in(state: Mapping[str, Any], name: str) -> AdaptiveFacts | None:
    """The choice of an ``Adaptive`` in a resumable state, if there is one."""
    if "adaptive" not in state:
        return None
    _, choice = from_state(state["adaptive"])
    return AdaptiveFacts(name, choice.following, choice.switches, dict(choice.scores))
