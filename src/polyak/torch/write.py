"""Files that ``torch.load`` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from polyak._files.write import atomic
from polyak._type_guards import is_mapping
from polyak.torch.tensors import as_tensor


def write_torch(out: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
    """Write dicts of NumPy arrays with ``torch.save``, arrays as tensors; completely or not at all.

    The file contains only dicts, numbers, strings and tensors: ``torch.load(weights_only=True)`` reads it.

    Raises:
        CheckpointError: an error of the operating system. An old file is intact.
    """
    with atomic(Path(out)) as temporary:
        torch.save(_tensors(tree), temporary)


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        return as_tensor(np.require(array, requirements="W"))  # torch warns of read-only memory
    if is_mapping(value):
        return {key: _tensors(one) for key, one in value.items()}
    return value
