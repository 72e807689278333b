"""Files of ``paddle.save``: a pickled dict of NumPy arrays (``.pdparams``, ``.pdopt``, ``.pdema``).

No paddle is needed and nothing is run. NumPy has no bfloat16, so Paddle writes such parameters as uint16,
which it has no other use for; here they are bfloat16 again.
"""

# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# What a pickle holds has no type until it is looked at.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from polyak._files.checkpoint import Checkpoint, ComputedTensor, LazyTensor
from polyak._files.source import Source
from polyak._foreign.flatten import flattened, within
from polyak._foreign.numpy_pickle import ArraySlot, shape_of
from polyak._foreign.pickle_objects import Record
from polyak.errors import CheckpointError

_NAMES = "StructuredToParameterName@@"
_PARTS = "UnpackBigParamInfor@@"  # as Paddle spells it


def weights_of(source: Source, pickled: Any, arrays: Iterable[ArraySlot]) -> Checkpoint:
    """What Paddle means by what a pickle holds.

    Args:
        source: the file.
        pickled: what the pickle built.
        arrays: all arrays in it.

    Raises:
        CheckpointError: what it says of its sliced parameters is malformed.
    """
    for array in arrays:
        array.as_bfloat16()
    tree = _whole(source.name, pickled)
    tensors: Any = tree
    if isinstance(tree, dict):
        tensors = {key: value for key, value in tree.items() if key != _NAMES}  # pyright: ignore
    slots = within(source.name, flattened(source.name, tensors), source.size)
    return Checkpoint(source.name, "paddle", slots, others=tree, sources=(source,))


def _whole(where: str, tree: Any) -> Any:
    """Parameters above 4 GB, which older pickles hold in slices, in one piece again."""
    if not isinstance(tree, dict) or _PARTS not in tree:
        return tree
    whole: dict[str, Any] = dict(tree)  # pyright: ignore[reportUnknownArgumentType]
    try:
        for name, info in dict(whole.pop(_PARTS)).items():
            parts = [whole.pop(part) for part in info["slices"]]
            whole[name] = _joined(parts, info["OriginShape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged: what it says of its sliced parameters.") from error
    return whole


def _joined(parts: list[LazyTensor], shape: Any) -> LazyTensor:
    first, *_ = parts
    made = ComputedTensor(
        first.dtype,
        shape_of(shape, first.dtype),
        lambda: np.concatenate([part.read().reshape(-1) for part in parts]).reshape(shape),
    )
    if any(part.dtype != made.dtype for part in parts) or sum(part.size for part in parts) != made.size:
        raise ValueError("the slices do not make up the whole")
    return made


def _data(*args: Any) -> Any:
    """Paddle pickles some tensors as ``eval("data", {"data": array})``: that, and no other expression."""
    match args:
        case ("data", {"data": data, **rest}) if not rest:
            return data
        case _:
            return Record("builtins", "eval", args)


MAKERS: dict[tuple[str, str], Any] = {
    ("builtins", "eval"): _data,
    ("builtins", "tuple"): lambda items=(): _named(tuple(items)),
}


def _named(items: tuple[Any, ...]) -> Any:
    """A tensor is pickled as the tuple of its name and its values."""
    return (
        items[1]
        if len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], LazyTensor)
        else items
    )
