"""Reading an average without any framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes as ml_dtypes  # registers bfloat16 and the 8-bit floats with NumPy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from polyak.checkpoints.schema import Header
from polyak.errors import CheckpointError


@dataclass(frozen=True)
class Average:
    """A file's weights, as NumPy arrays by name, and what they are."""

    tensors: Mapping[str, NDArray[Any]]
    header: Header


def load(path: str | os.PathLike[str]) -> Average:
    """Read what ``ema.save`` wrote.

    Args:
        path: a ``.safetensors`` file of an average.

    Returns:
        The tensors as NumPy arrays (bfloat16 through ml_dtypes) and the header with step, decay and profile.

    Raises:
        CheckpointError: the file is missing, truncated or no average.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # pyright: ignore[reportUnknownVariableType, reportArgumentType]
            names: list[str] = list(file.keys())  # pyright: ignore
            header = Header.from_metadata(file.metadata(), str(path))  # pyright: ignore
            return Average({name: file.get_tensor(name) for name in names}, header)  # pyright: ignore
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
