"""The parts of ``ema.state_dict()``, for tests that compare or damage them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def opened(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as it was before it had a text: one dict, in which the values are beside the tensors."""
    values = json.loads(state["polyak"])
    tracks = {
        name: {**track, "lows": {}, **state["tracks"][name]} for name, track in values["tracks"].items()
    }
    for one in (values, *tracks.values()):
        del one["stored"]
    return {**values, "tracks": tracks, "copies": state.get("copies", {})}


def closed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite."""
    tracks = {name: dict(track) for name, track in state["tracks"].items()}
    tensors = {
        name: {key: track.pop(key) for key in ("tensors", "lows") if track.get(key)}
        for name, track in tracks.items()
    }
    values = {**{key: value for key, value in state.items() if key != "copies"}, "tracks": tracks}
    copies = {"copies": state["copies"]} if state["copies"] else {}
    return {"polyak": json.dumps(values), "tracks": tensors, **copies}


def flat(state: Any, at: str = "") -> dict[str, Any]:
    """What is in a tree of dicts, by path."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{at}/{key}").items()}
    return {at: state}
