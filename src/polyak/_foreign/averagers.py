"""The states of classes that keep an average: alone in a file, or somewhere in a training checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from polyak._files.checkpoint import LazyTensor
from polyak._foreign.parts import (
    Part,
    Recognised,
    Role,
    below,
    is_state_dict,
    mapping,
    part,
    unwrapped,
    whole,
)
from polyak._foreign.states import state_of_ema
from polyak.errors import ConfigError
from polyak.schedules import Capped, Constant, Decay, Warmup

_NO_NAMES = (
    "a list without names, in the order of model.parameters(): numbered here; load it with {library} to get "
    "the names back"
)


def state_of_an_averager(tree: Any, path: str) -> Recognised | None:
    """What a sub-tree is, if it is the state of an averaging class that is known, or of an optimizer.

    Args:
        tree: any node of a file.
        path: the keys that lead to it.
    """
    state = mapping(tree)
    if not state or not all(isinstance(key, str) for key in state):
        return None
    for recogniser in _RECOGNISERS:
        found = recogniser(state, path)
        if found is not None:
            return found
    return None


def _swa_utils(state: Mapping[str, Any], path: str) -> Recognised | None:
    rest = {name: value for name, value in state.items() if name != "n_averaged"}
    updates = whole(state.get("n_averaged"))
    if updates is None or not is_state_dict(rest) or not all(name.startswith("module.") for name in rest):
        return None
    average = unwrapped(part("average", "average", path, below(_slots(rest), "module.")))
    note = "n_averaged counts the updates; whether each had the same weight is not in the file"
    return Recognised("swa_utils", (average,), updates=updates, notes=(note,))


def _ema_pytorch(state: Mapping[str, Any], path: str) -> Recognised | None:
    slots = _slots(state)
    if "initted" not in slots or "step" not in slots or not below(slots, "ema_model."):
        return None
    parts = [Part("average", "average", path, below(slots, "ema_model."))]
    if online := below(slots, "online_model."):
        parts.append(Part("raw", "raw", path, online))
    calls = whole(slots["step"])
    notes = ["step counts the calls of update(); beta, update_every and the warm-up are not in the file"]
    if slots["step"].dtype.kind == "f":
        notes.append("PostHocEMA wrote step in the dtype of its weights: the file's name has it exactly")
        calls = None
    return Recognised("ema-pytorch", tuple(parts), updates=calls, notes=tuple(notes))


def _post_hoc_ema(state: Mapping[str, Any], path: str) -> Recognised | None:
    slots = _slots(state)
    found = [re.fullmatch(r"ema_models\.(\d+)\.initted", name) for name in slots]
    places = sorted(int(match[1]) for match in found if match)
    if not places:
        return None
    parts = [
        Part(f"average-{i}", "average", path, below(slots, f"ema_models.{i}.ema_model.")) for i in places
    ]
    return Recognised(
        "ema-pytorch",
        tuple(parts),
        updates=whole(slots.get(f"ema_models.{places[0]}.step")),
        notes=("PostHocEMA: one average for each gamma; the gammas themselves are not in the file",),
    )


def _torch_ema(state: Mapping[str, Any], path: str) -> Recognised | None:
    if not {"decay", "num_updates", "shadow_params", "collected_params"} <= set(state):
        return None
    updates = whole(state["num_updates"])
    decay = _try(lambda: (Constant if updates is None else Capped)(float(state["decay"])))
    parts = [numbered("average", "average", f"{path}.shadow_params", state["shadow_params"], "torch_ema")]
    if state["collected_params"]:
        stored = f"{path}.collected_params"
        parts.append(numbered("raw", "raw", stored, state["collected_params"], "torch_ema"))
    return Recognised("torch_ema", tuple(parts), updates=updates, decay=decay)


def _diffusers(state: Mapping[str, Any], path: str) -> Recognised | None:
    if not {"decay", "optimization_step", "shadow_params", "update_after_step"} <= set(state):
        return None
    average = numbered("average", "average", f"{path}.shadow_params", state["shadow_params"], "diffusers")
    step, decay, notes = diffusers_schedule(state)
    return Recognised("diffusers", (average,), step=step, updates=step, decay=decay, notes=notes)


def _nemo(state: Mapping[str, Any], path: str) -> Recognised | None:
    """NeMo's EMA optimizer, which keeps the average beside the state of the one it wraps."""
    if not {"opt", "ema", "current_step", "decay", "every_n_steps"} <= set(state):
        return None
    average = numbered("average", "average", f"{path}.ema", state["ema"], "NeMo")
    decay = _try(lambda: Constant(float(state["decay"]))) if state["every_n_steps"] == 1 else None
    return Recognised("NeMo", (average,), decay=decay)


def _optimizer(state: Mapping[str, Any], path: str) -> Recognised | None:
    if not {"state", "param_groups"} <= set(state) or isinstance(state["param_groups"], LazyTensor):
        return None  # in a distributed checkpoint the groups are a dict
    tensors: dict[str, LazyTensor] = {}
    for key, moments in mapping(state["state"]).items():
        tensors |= {f"{key}.{name}": slot for name, slot in _slots(mapping(moments)).items()}
    return Recognised("torch.optim", (Part("optimizer", "optimizer", path, tensors),))


_RECOGNISERS: tuple[Callable[[Mapping[str, Any], str], Recognised | None], ...] = (
    state_of_ema,
    _swa_utils,
    _ema_pytorch,
    _post_hoc_ema,
    _torch_ema,
    _diffusers,
    _nemo,
    _optimizer,
)


def optimizer_in(state: Mapping[str, Any]) -> tuple[Part, ...]:
    """The optimizer states of a training checkpoint, under the keys that everyone uses."""
    found: list[Part] = []
    for key in ("optimizer", "optimizer_states", "opt"):
        value: Any = state.get(key)
        listed: list[tuple[str, Any]] = [(key, value)]
        if isinstance(value, list):
            listed = [(f"{key}.{i}", one) for i, one in enumerate(value)]  # pyright: ignore
        for path, one in listed:
            recognised = _optimizer(mapping(one), path)
            found += recognised.parts if recognised is not None else ()
    return tuple(found)


def diffusers_schedule(config: Mapping[str, Any]) -> tuple[int | None, Decay | None, tuple[str, ...]]:
    """Step, decay and what to note of the settings that diffusers' EMAModel keeps.

    Without its warm-up the decay is ``min(β, (1+s)/(10+s))`` with ``s = t - update_after_step - 1``, which
    is ``Capped`` one step late: no decay of polyak's is exactly that, so it is told in words.
    """
    step, after = whole(config.get("optimization_step")), whole(config.get("update_after_step")) or 0
    words = ", ".join(f"{key}={config[key]}" for key in _DIFFUSERS if key in config)
    if not config.get("use_ema_warmup"):
        return step, None, (f"EMAModel({words})",)
    decay = _try(
        lambda: Warmup(
            float(config["decay"]),
            gamma=float(config["inv_gamma"]),
            power=float(config["power"]),
            min_decay=float(config["min_decay"]),
            after=after,
        )
    )
    return step, decay, (f"EMAModel({words})",)


_DIFFUSERS = ("decay", "min_decay", "update_after_step", "use_ema_warmup", "inv_gamma", "power")


def _try(make: Callable[[], Decay]) -> Decay | None:
    """A decay of a file's numbers; None where they make no decay."""
    try:
        return make()
    except (ConfigError, TypeError, ValueError, KeyError, OverflowError):
        return None


def numbered(name: str, role: Role, path: str, values: Any, library: str) -> Part:
    """Tensors in a list, numbered."""
    listed: list[Any] = list(values) if isinstance(values, (list, tuple)) else []  # pyright: ignore[reportUnknownArgumentType]
    tensors = {str(i): value for i, value in enumerate(listed) if isinstance(value, LazyTensor)}
    return Part(name, role, path.removeprefix("."), tensors, (_NO_NAMES.format(library=library),))


def _slots(state: Mapping[str, Any]) -> dict[str, LazyTensor]:
    return {name: value for name, value in state.items() if isinstance(value, LazyTensor)}
