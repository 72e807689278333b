"""Checkpoints of Lightning's Trainer, with or without a callback that averages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, cast

from polyak._files.header import KEY
from polyak._foreign.averagers import optimizer_in
from polyak._foreign.inside import divided
from polyak._foreign.keys import averages_in
from polyak._foreign.parts import Recognised, at, is_weights, mapping, part, same_values, whole
from polyak._foreign.states import completed, state_of_ema

_AVERAGING = re.compile(r"WeightAverag|EMA|MovingAverage|SWA", re.ASCII)  # names of callbacks
_NO_AVERAGES = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "hyper_parameters")


def lightning(tree: Any, where: str) -> Recognised | None:
    """``Trainer.save_checkpoint``, with or without a callback that averages."""
    state = mapping(tree)
    if "pytorch-lightning_version" not in state or not is_weights(state.get("state_dict")):
        return None
    for look in (_polyak_callback, _weight_averaging, _stochastic_weight_averaging, _nemo, _other_average):
        found = look(state, where)
        if found is not None:
            break
    else:
        found = _no_average(state)
    notes = (f"version {state['pytorch-lightning_version']}, epoch {state.get('epoch')}", *found.notes)
    return replace(found, library="lightning", parts=(*found.parts, *optimizer_in(state)), notes=notes)


def _polyak_callback(state: Mapping[str, Any], where: str) -> Recognised | None:
    """Polyak's leaves ``state_dict`` the model that trains."""
    del where
    own = [one for key in state if (one := _kept_by_polyak(state, str(key))) is not None]
    if not own:
        return None
    raw = part("raw", "raw", "state_dict", state["state_dict"])
    return Recognised("", (*(completed(one, raw) for found in own for one in found.parts), raw))


def _weight_averaging(state: Mapping[str, Any], where: str) -> Recognised | None:
    """While it is at work ``state_dict`` is the average; the model that trains is ``current_model_state``."""
    del where
    if not is_weights(state.get("current_model_state")):
        return None
    average = part("average", "average", "state_dict", state["state_dict"])
    raw = part("raw", "raw", "current_model_state", state["current_model_state"])
    if same_values(average.tensors, raw.tensors):
        note = "equal to the average: Lightning copies it over the model when training ends"
        raw = replace(raw, notes=(*raw.notes, note))
    return Recognised("", (average, raw), updates=whole(at(state, "averaging_state.n_averaged")))


def _stochastic_weight_averaging(state: Mapping[str, Any], where: str) -> Recognised | None:
    del where
    for name, kept in mapping(state.get("callbacks")).items():
        average = mapping(kept).get("average_model_state")
        if is_weights(average):
            path = f"callbacks.{name}.average_model_state"
            raw = part("raw", "raw", "state_dict", state["state_dict"])
            parts = (part("average", "average", path, average), raw)
            return Recognised("", parts, updates=whole(mapping(kept).get("n_averaged")))
    return None


def _nemo(state: Mapping[str, Any], where: str) -> Recognised | None:
    """NeMo's EMA writes ``NAME.ckpt`` as ever, and ``NAME-EMA.ckpt``, whose model is the average."""
    if not PurePath(where.replace("\\", "/")).stem.endswith("-EMA"):
        return None
    note = "an average by the name of its file, as NeMo calls it; the raw model is in the file without -EMA"
    return Recognised("", (part("average", "average", "state_dict", state["state_dict"], note),))


def _other_average(state: Mapping[str, Any], where: str) -> Recognised | None:
    """An average of a callback that is not known, or of a child module, or in NeMo's optimizer."""
    del where
    seen: set[int] = set()
    rest = {key: value for key, value in state.items() if key not in _NO_AVERAGES}
    rest |= {f"optimizer_states.{i}": one for i, one in enumerate(_listed(state.get("optimizer_states")))}
    found = [one for key, value in rest.items() for one in averages_in(value, str(key), seen)]
    found = [one for one in found if any(each.role != "optimizer" for each in one.parts)]
    if not found:
        return divided(part("weights", "unknown", "state_dict", state["state_dict"]))
    note = (
        "beside an average of a callback that may exchange the two when it saves: nothing says which this is"
    )
    model = part("weights", "unknown", "state_dict", state["state_dict"], note)
    only = found[0] if len(found) == 1 else Recognised("", ())
    return replace(only, parts=(*(one for each in found for one in each.parts), model))


def _no_average(state: Mapping[str, Any]) -> Recognised:
    """The model, without a sign of an average: raw, if no callback can have put an average in its place."""
    model = state["state_dict"]
    if any(_AVERAGING.search(str(name)) for name in mapping(state.get("callbacks"))):
        note = (
            "a weight averaging callback was there but at rest: after training state_dict is the average, "
            "before it began the raw model"
        )
        return Recognised("", (part("weights", "unknown", "state_dict", model, note),))
    if "optimizer_states" not in state:
        note = "saved without the states of callbacks, which would say whether it was averaged"
        return Recognised("", (part("weights", "unknown", "state_dict", model, note),))
    return Recognised("", (part("raw", "raw", "state_dict", model),))


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _kept_by_polyak(state: Mapping[str, Any], key: str) -> Recognised | None:
    """The average of one callback of polyak's, under "polyak" or, of several, under "polyak.NAME"."""
    if key.split(".")[0] != KEY:
        return None
    found = state_of_ema(mapping(mapping(state[key]).get("ema")), f"{key}.ema")
    name = key.removeprefix(KEY).removeprefix(".")
    if found is None or not name:
        return found
    return replace(found, parts=tuple(replace(one, name=f"{name}-{one.name}") for one in found.parts))
