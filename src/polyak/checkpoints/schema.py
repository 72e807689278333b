"""What an average's file says of itself: the JSON under ``polyak`` in the safetensors header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from polyak.errors import CheckpointError
from polyak.rules import Decay, Profile

Role: TypeAlias = Literal["average", "raw", "resumable"]
FORMAT = 1
KEY = "polyak"


@dataclass(frozen=True)
class Header:
    """What the weights of a file are.

    track: the average's name.  step: training steps when it was written.  run: the training run.
    decay: the schedule.  profile: the weight of each point of the trajectory.  role: whose weights these are.
    """

    track: str
    step: int
    decay: Decay
    profile: Profile
    role: Role
    run: str

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata that holds this header."""
        fields = asdict(self) | {
            "format": FORMAT,
            "decay": self.decay.to_config(),
            "profile": json.loads(self.profile.to_json()),
        }
        return {KEY: json.dumps(fields, separators=(",", ":"))}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str] | None, path: str) -> Header:
        """The header in a file's metadata.

        Raises:
            CheckpointError: there is none, it is of a newer format, or a field is missing or malformed.
        """
        if metadata is None or KEY not in metadata:
            raise CheckpointError(
                f"{path} has no {KEY!r} header: it is a plain weights file, not an average."
            )
        try:
            fields: dict[str, Any] = json.loads(metadata[KEY])
            if fields["format"] > FORMAT:
                raise ValueError(
                    f"format {fields['format']} is newer than the {FORMAT} this polyak reads: update it"
                )
            if fields["role"] not in get_args(Role):
                raise ValueError(f"role {fields['role']!r} is none of {get_args(Role)}")
            return cls(
                track=str(fields["track"]),
                step=int(fields["step"]),
                decay=Decay.from_config(fields["decay"]),
                profile=Profile.from_json(json.dumps(fields["profile"])),
                role=fields["role"],
                run=str(fields["run"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, CheckpointError) as error:
            raise CheckpointError(f"{path}: the {KEY!r} header cannot be read: {error!r}") from error
