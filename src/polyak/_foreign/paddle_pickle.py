"""Files of ``paddle.save``: a pickled dict of NumPy arrays (``.pdparams``, ``.pdopt``, ``.pdema``).

No paddle is needed and nothing is run. NumPy has no bfloat16, so Paddle writes such parameters as uint16,
which it has no other use for; here they are bfloat16 again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak._files.checkpoint import Checkpoint, ComputedTensor, LazyTensor
from polyak._files.source import Source
from polyak._foreign.flatten import checkpoint_of
from polyak._foreign.numpy_pickle import ArraySlot, shape_of
from polyak._foreign.pickle_objects import Record
from polyak.errors import CheckpointError

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
    return checkpoint_of(source, "paddle", _whole(source.name, pickled))


def _whole(where: str, tree: Any) -> Any:
    """Parameters above 4 GB, which older pickles hold in slices, in one piece again."""
    if not isinstance(tree, dict):
        return tree
    whole: dict[str, Any] = {**tree}
    if _PARTS not in whole:
        return whole
    try:
        for name, info in dict(whole.pop(_PARTS)).items():
            whole[name] = _joined([whole.pop(part) for part in info["slices"]], info["OriginShape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged: what it says of its sliced parameters.") from error
    return whole


def _joined(parts: list[LazyTensor], shape: Any) -> LazyTensor:
    def read() -> NDArray[Any]:
        whole: NDArray[Any] = np.concatenate([part.read().reshape(-1) for part in parts])
        return whole.reshape(made.shape)

    first, *_ = parts
    made = ComputedTensor(first.dtype, shape_of(shape, first.dtype), read)
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


def _tuple(items: Iterable[Any] = ()) -> Any:
    """A tensor is pickled as the tuple of its name and its values."""
    match tuple(items):
        case (str(), LazyTensor() as values):
            return values
        case values:
            return values


MAKERS: dict[tuple[str, str], Any] = {("builtins", "eval"): _data, ("builtins", "tuple"): _tuple}
