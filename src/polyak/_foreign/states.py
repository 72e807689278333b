"""States of ``polyak.EMA``: alone in a file, or where a trainer keeps one beside the raw weights.

A state names its tensors as the model does, without what wrappers add, and holds what is averaged and what
is copied. The rest of the model, frozen or left out on purpose, stands with the raw weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.header import Header
from polyak._foreign.parts import Part, Recognised, mapping, whole
from polyak.errors import CheckpointError
from polyak.schedules import Decay, Profile

_KEYS = {"format", "run", "step", "tracks", "copies"}
# Child names under which a wrapper keeps the model it wraps; torch reserves them.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def state_of_ema(state: Mapping[str, Any], path: str) -> Recognised | None:
    """``ema.state_dict()``, as a pickle holds it.

    Args:
        state: any node of a file.
        path: the keys that lead to it.

    Raises:
        CheckpointError: it is one, and malformed.
    """
    if not set(state) >= _KEYS:
        return None
    tracks = f"{path}.tracks" if path else "tracks"
    held = {
        name: (f"{tracks}.{name}.tensors", _slots(mapping(track).get("tensors")))
        for name, track in mapping(state["tracks"]).items()
    }
    return _recognised(state, held, _slots(state["copies"]))


def resumable(weights: Checkpoint, header: Header) -> Recognised:
    """What ``ema.save(resumable=True)`` wrote, whose tensors are named by the place of their track.

    Raises:
        CheckpointError: the header names no tracks.
    """
    groups = weights.places()
    held = {
        name: (f"{place}/", groups.get(str(place), {}))
        for place, name in enumerate(mapping(header.state.get("tracks")))
    }
    return _recognised({**header.state, "run": header.run}, held, groups.get("copies", {}))


def completed(average: Part, raw: Part) -> Part:
    """The average as a whole model: what the state does not hold is as in the raw weights.

    A tensor with several names is averaged under one of them, and stands at one place in the file under all.
    """
    plain = {_unwrapped(name): slot for name, slot in raw.tensors.items()}
    averaged = average.tensors
    if not averaged.keys() & plain.keys():
        return average  # of another model
    tied = {plain[name]: slot for name, slot in averaged.items() if name in plain}
    tensors = {name: averaged.get(name) or tied.get(slot, slot) for name, slot in plain.items()}
    left = sum(tensors[name] is slot for name, slot in plain.items())
    note = f"{left} tensors are not averaged, and are as in the raw weights"
    return replace(average, tensors=tensors, notes=(*average.notes, note) if left else average.notes)


def _recognised(
    state: Mapping[str, Any],
    held: Mapping[str, tuple[str, dict[str, LazyTensor]]],
    copies: Mapping[str, LazyTensor],
) -> Recognised:
    step = whole(state["step"])
    try:
        parts = tuple(
            Part(name, "average", path, {**tensors, **copies}, header=_header(name, state, step))
            for name, (path, tensors) in held.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the state of an average cannot be read: {error!r}.") from error
    return Recognised("polyak", parts, step)


def _header(name: str, state: Mapping[str, Any], step: int | None) -> Header:
    """What ``ema.save`` would write of a track."""
    track = state["tracks"][name]
    return Header(
        track=name,
        step=step,
        decay=Decay.from_config(track["decay"]),
        profile=Profile.from_json(track["profile"]),
        role="average",
        run=str(state["run"]),
        joined=dict(_joined(track["joined"])),
    )


def _joined(joined: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, step in joined.items():
        if (known := whole(step)) is not None:
            yield name, known


def _slots(tree: Any) -> dict[str, LazyTensor]:
    return {name: slot for name, slot in mapping(tree).items() if isinstance(slot, LazyTensor)}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPED)
