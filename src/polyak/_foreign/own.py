"""Polyak's own averages: ``ema.state_dict()`` in a pickle, and what ``ema.save(resumable=True)`` writes.

A state names its tensors as the model does, without what wrappers add, and holds what is averaged and what
is copied. The rest of the model, frozen or left out on purpose, is with the raw weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY, Header
from polyak._files.layout import SUMS
from polyak._foreign.nodes import Node, mapping, slots_of, whole
from polyak._foreign.parts import Part, Recognised, Tensors
from polyak.errors import CheckpointError
from polyak.schedules import Profile
from polyak.schedules.decay import decay_in_file

STATE = ("format", "run", "step", "tracks", "copies")  # keys of ``ema.state_dict()``


def is_own(weights: Checkpoint) -> bool:
    """Whether polyak wrote a file and no other program rewrote it, which its header would not tell."""
    return KEY in weights.metadata and SUMS in weights.metadata


def state_of_ema(node: Node) -> Recognised:
    """The averages in ``ema.state_dict()``, as a pickle holds it.

    Raises:
        CheckpointError: it is malformed.
    """
    tracks = {
        str(name): _Track(f"{node.at('tracks').path}.{name}.tensors", mapping(track))
        for name, track in node.at("tracks").keys.items()
    }
    tensors = {name: slots_of(track.fields.get("tensors")) for name, track in tracks.items()}
    return _averages(node.keys, tracks, tensors, node.at("copies").slots)


def resumable(weights: Checkpoint, header: Header) -> Recognised:
    """The averages in a resumable file, whose tensors are named by the place of their track.

    Raises:
        CheckpointError: the state in its header is malformed.
    """
    groups = weights.places()
    tracks = {
        str(name): _Track(f"{place}/", mapping(track))
        for place, (name, track) in enumerate(mapping(header.state.get("tracks")).items())
    }
    tensors = {name: groups.get(track.path[:-1], {}) for name, track in tracks.items()}
    state = {**mapping(header.state), "run": header.run}
    return _averages(state, tracks, tensors, groups.get("copies", {}))


class _Track(NamedTuple):
    """Where a track's tensors are, and what its state says besides."""

    path: str
    fields: Mapping[object, object]


def _averages(
    state: Mapping[object, object],
    tracks: Mapping[str, _Track],
    tensors: Mapping[str, Tensors],
    copies: Tensors,
) -> Recognised:
    step, run = whole(state.get("step")), str(state.get("run"))
    try:
        parts = tuple(
            Part(
                name,
                "average",
                track.path,
                {**tensors[name], **copies},
                header=_header(name, track.fields, step, run),
            )
            for name, track in tracks.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the state of an average cannot be read: {error!r}.") from error
    return Recognised("polyak", parts, step)


def _header(track_name: str, track: Mapping[object, object], step: int | None, run: str) -> Header:
    """What ``ema.save`` would write of a track."""
    joined = {name: whole(at) for name, at in cast("Mapping[str, object]", track["joined"]).items()}
    return Header(
        track=track_name,
        step=step,
        decay=decay_in_file(cast("Mapping[str, Any]", track["decay"])),
        profile=Profile.from_json(str(track["profile"])),
        role="average",
        run=run,
        joined={name: at for name, at in joined.items() if at is not None},
    )
