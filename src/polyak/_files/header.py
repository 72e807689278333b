"""The description in an average's file: the JSON under ``polyak`` in the safetensors header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from polyak.errors import CheckpointError
from polyak.schedules import Decay, Profile
from polyak.schedules.decay import decay_in_file

Role: TypeAlias = Literal["average", "raw", "resumable"]
FORMAT = 1
KEY = "polyak"


class Rule(NamedTuple):
    """The tensors of an average by name that share a decay: the decay, their profile and all their names."""

    pattern: str
    decay: Decay
    profile: Profile
    tensors: Sequence[str]

    def to_config(self) -> dict[str, Any]:
        decay, profile = self.decay.to_config(), self.profile.to_config()
        return {"pattern": self.pattern, "decay": decay, "profile": profile, "tensors": list(self.tensors)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rule:
        decay, profile = decay_in_file(config["decay"]), Profile.from_config(config["profile"])
        return cls(str(config["pattern"]), decay, profile, tuple(map(str, config["tensors"])))


@dataclass(frozen=True)
class Header:
    """The description of a file's weights.

    Args:
        track: the average's name.
        step: training steps when it was written; None if unknown.
        decay: the schedule; None for a mixture, or if each tensor has its own.
        profile: the weight of each point of the trajectory; None if unknown, or if each tensor has its own.
        role: of the weights.
        run: the training run; "" if there are several or it is unknown.
        joined: the step at which a tensor joined the average, for those that joined late.
        state: for "resumable", the state besides tensors; of a snapshot of an archive, its number and
            measurements; of weights from other files, their ``Origin``.
        rules: of an average by name, in the order in which they were tried.
    """

    track: str
    step: int | None
    decay: Decay | None
    profile: Profile | None
    role: Role
    run: str
    joined: Mapping[str, int] = field(default_factory=dict[str, int])
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rules: Sequence[Rule] = ()

    def profile_of(self, name: str) -> Profile | None:
        """The profile of one tensor: the file's or its rule's, from the step at which the tensor joined."""
        profile = next((rule.profile for rule in self.rules if name in rule.tensors), self.profile)
        if profile is None or name not in self.joined:
            return profile
        return profile.since(self.joined[name])

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata with this header."""
        fields: dict[str, Any] = {
            "format": FORMAT,
            "track": self.track,
            "step": self.step,
            "decay": None if self.decay is None else self.decay.to_config(),
            "profile": None if self.profile is None else self.profile.to_config(),
            "role": self.role,
            "run": self.run,
            "joined": dict(self.joined),
            "state": dict(self.state),
        }
        if self.rules:  # beside the fields that readers without them know
            fields["rules"] = [rule.to_config() for rule in self.rules]
        return {KEY: json.dumps(fields, separators=(",", ":"))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: str) -> Header:
        """The header in a file's metadata."""
        if KEY not in metadata:
            raise CheckpointError(
                f"{path} has no {KEY!r} header: it is a plain weights file, not an average."
            )
        try:
            fields: dict[str, Any] = json.loads(metadata[KEY])
            if type(fields["format"]) is not int or fields["format"] < 1:
                raise ValueError(f"format {fields['format']!r} is no version")
            if fields["format"] > FORMAT:
                raise ValueError(
                    f"format {fields['format']} is newer than the {FORMAT} this polyak reads: update it"
                )
            if fields["role"] not in get_args(Role):
                raise ValueError(f"role {fields['role']!r} is none of {get_args(Role)}")
            decay, profile, step = fields["decay"], fields["profile"], fields["step"]
            return cls(
                track=str(fields["track"]),
                step=None if step is None else _count("step", step),
                decay=None if decay is None else decay_in_file(decay),
                profile=None if profile is None else Profile.from_config(profile),
                role=fields["role"],
                run=str(fields["run"]),
                joined={name: _count(f"joined/{name}", at) for name, at in fields["joined"].items()},
                state=dict(fields["state"]),
                rules=tuple(map(Rule.from_config, fields.get("rules", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path}: the {KEY!r} header cannot be read: {error!r}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: the {KEY!r} header cannot be read: {error}") from error


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name}={value!r} is no whole number, at least 0")
    return value


class FileShare(NamedTuple):
    """One file of a merge: its name, its training step (None if unknown), its weight."""

    name: str
    step: int | None
    weight: float


@dataclass(frozen=True)
class Origin:
    """The origin of weights that do not come directly from a training run: a part of a header's state."""

    # of the checkpoint they were converted from; "" if unknown, None if they were not converted
    library: str | None = None
    updates: int | None = None  # of the average in that checkpoint, if it counted them
    files: Sequence[FileShare] | None = None  # of a merge whose profile is unknown; None of anything else
    taken_as_raw: bool = False  # the user declared the merged files as raw

    def to_state(self) -> dict[str, Any]:
        """The entries of a header's state, plain values only.

        Examples:
            >>> Origin("timm", updates=3).to_state()
            {'library': 'timm', 'updates': 3}
            >>> Origin.from_state(Origin("timm", updates=3).to_state())
            Origin(library='timm', updates=3, files=None, taken_as_raw=False)
        """
        fields = {
            "library": self.library,
            "updates": self.updates,
            "weights_of_files": None if self.files is None else [list(one) for one in self.files],
            "taken_as_raw": self.taken_as_raw or None,
        }
        return {key: value for key, value in fields.items() if value is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Origin:
        """The origin in a header's state; malformed entries are ignored."""
        library, updates = state.get("library"), state.get("updates")
        try:
            files = tuple(FileShare(str(n), step, float(w)) for n, step, w in state["weights_of_files"])
        except (KeyError, TypeError, ValueError):
            files = None
        return cls(
            library=library if isinstance(library, str) else None,
            updates=updates if type(updates) is int and updates >= 0 else None,
            files=files,
            taken_as_raw=state.get("taken_as_raw") is True,
        )
