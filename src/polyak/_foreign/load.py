"""Reading an average without any framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from polyak._files.header import Header
from polyak._files.open import header_of
from polyak._files.source import Where
from polyak._foreign.open_any import open_weights
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

    def __repr__(self) -> str:
        header, elements = self.header, sum(array.size for array in self.tensors.values())
        decay = "" if header.decay is None else f", {header.decay}"
        return (
            f"Average({header.track!r}: {header.role} at step {header.step}{decay}; "
            f"{len(self.tensors)} tensors, {elements:,} elements)"
        )


def load(path: Where) -> Average:
    """Read what ``ema.save`` wrote, checking every byte against the checksums written with it.

    Args:
        path: the ``.safetensors`` file of an average, the index or the name of one written in shards, or
            a URL that fsspec knows.

    Returns:
        The tensors as NumPy arrays (bfloat16 and 8-bit floats through ml_dtypes) and the header with step,
        decay and profile.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or no average.

    Examples:
        >>> import os, tempfile, torch, polyak
        >>> path = os.path.join(tempfile.mkdtemp(), "average.safetensors")
        >>> polyak.EMA(torch.nn.Linear(2, 1), decay=0.999).save(path)
        >>> average = load(path)
        >>> average
        Average('average': average at step 0, Constant(beta=0.999); 2 tensors, 3 elements)
        >>> average.tensors["weight"].shape
        (1, 2)
    """
    with open_weights(path) as weights:
        header = header_of(weights)
        if header.role == "resumable":
            raise CheckpointError(
                f"{path} holds a whole training state, not one average: ema.load({str(path)!r}) continues it."
            )
        return Average({name: slot.read() for name, slot in weights.slots.items()}, header)
