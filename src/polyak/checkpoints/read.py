"""Reading an average without any framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes as ml_dtypes  # registers bfloat16 with NumPy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from polyak.checkpoints.schema import Header
from polyak.errors import CheckpointError


@dataclass(frozen=True)
class Average:
    """A file's weights and what they are; made by ``load``.

    Args:
        tensors: NumPy arrays by the model's names; any shape and dtype.
        header: track, step, decay, profile, role and run.
    """

    tensors: Mapping[str, NDArray[Any]]
    header: Header


def load(path: str | os.PathLike[str]) -> Average:
    """Read what ``ema.save`` wrote.

    Args:
        path: a ``.safetensors`` file of an average.

    Returns:
        The tensors as NumPy arrays (bfloat16 through ml_dtypes) and the header with step, decay and profile.

    Raises:
        CheckpointError: the file is missing, truncated or no average, or NumPy lacks a tensor's dtype.

    >>> import tempfile, torch, polyak
    >>> path = os.path.join(tempfile.mkdtemp(), "average.safetensors")
    >>> polyak.EMA(torch.nn.Linear(2, 1), decay=0.999).save(path)
    >>> average = load(path)
    >>> average.tensors["weight"].shape, average.header.decay
    ((1, 2), Constant(beta=0.999))
    """
    try:
        with safe_open(path, framework="numpy") as file:  # pyright: ignore[reportUnknownVariableType, reportArgumentType]
            names: list[str] = list(file.keys())  # pyright: ignore
            header = Header.from_metadata(file.metadata(), str(path))  # pyright: ignore
            return Average({name: _array(file, name, path) for name in names}, header)  # pyright: ignore
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _array(file: Any, name: str, path: str | os.PathLike[str]) -> NDArray[Any]:
    try:
        return file.get_tensor(name)
    except AttributeError as error:  # safetensors looks 8-bit and narrower floats up in NumPy itself
        raise CheckpointError(
            f"{path}: {name} has a dtype that NumPy does not know ({error}). "
            "safetensors.torch.load_file reads it."
        ) from error
