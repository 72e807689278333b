"""Files of ``paddle.save``: a pickled dict of NumPy arrays (``.pdparams``, ``.pdopt``, ``.pdema``).

No paddle is needed and nothing is run. NumPy has no bfloat16, so Paddle writes such parameters as uint16,
which it has no other use for; here they are bfloat16 again.
"""

# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# What a pickle holds has no type until it is looked at.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak.checkpoints.dtypes import BFLOAT16
from polyak.checkpoints.formats.arrays import ARRAYS
from polyak.checkpoints.formats.pickles import Stream, load, refusal
from polyak.checkpoints.formats.tree import flattened
from polyak.checkpoints.source import Source
from polyak.checkpoints.weights import Held, Slot, Weights
from polyak.errors import CheckpointError

NAMES = "StructuredToParameterName@@"
_PARTS = "UnpackBigParamInfor@@"  # as Paddle spells it


@dataclass(frozen=True)
class _BFloat16(Slot):
    """An array of uint16 as the bfloat16 it is."""

    stored: Slot
    shape: tuple[int, ...]  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    dtype: np.dtype[Any] = field(default=BFLOAT16)  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        self.stored.read_into(start, buffer.view(np.uint16))


def read_paddle(source: Source) -> Weights:
    """The arrays of a file of ``paddle.save``.

    Raises:
        CheckpointError: it is damaged, or asks for a call.
    """
    return weights_of(source, load(Stream(source), MAKERS))


def weights_of(source: Source, pickled: Any) -> Weights:
    """What Paddle means by what a pickle holds."""
    tree = _whole(pickled)
    if isinstance(tree, Mapping):
        tensors: Any = {key: value for key, value in tree.items() if key != NAMES}  # pyright: ignore
    else:
        tensors = tree
    slots = {name: _typed(slot) for name, slot in flattened(tensors).items()}
    return Weights(source.name, "paddle", slots, others=tree, sources=(source,))


def _typed(slot: Slot) -> Slot:
    return _BFloat16(slot, slot.shape) if slot.dtype == np.uint16 else slot


def _whole(tree: Any) -> Any:
    """Parameters above 4 GB, which older pickles hold in slices, in one piece again."""
    if not isinstance(tree, dict) or _PARTS not in tree:
        return tree
    whole: dict[str, Any] = dict(tree)  # pyright: ignore
    for name, info in dict(whole.pop(_PARTS)).items():
        parts: list[Slot] = [whole.pop(part) for part in info["slices"]]
        whole[name] = _joined(name, parts, tuple(info["OriginShape"]))
    return whole


def _joined(name: str, parts: list[Slot], shape: tuple[int, ...]) -> Slot:
    made = Held(
        parts[0].dtype, shape, lambda: np.concatenate([p.read().reshape(-1) for p in parts]).reshape(shape)
    )
    if sum(part.size for part in parts) != made.size:
        raise CheckpointError(f"the slices of {name} do not add up to its shape {shape}")
    return made


def _data(*args: Any) -> Any:
    """Paddle pickles some tensors as ``eval("data", {"data": array})``: that, and no other expression."""
    match args:
        case ("data", {"data": data, **rest}) if not rest:
            return data
        case _:
            raise refusal("builtins.eval")


MAKERS: dict[tuple[str, str], Any] = ARRAYS | {
    ("builtins", "eval"): _data,
    ("builtins", "tuple"): lambda items=(): _named(tuple(items)),
}


def _named(items: tuple[Any, ...]) -> Any:
    """A tensor is pickled as the tuple of its name and its values."""
    return items[1] if len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], Slot) else items
