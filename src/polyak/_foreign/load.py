"""Reading an average without any framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polyak._dtypes import Array
from polyak._files.header import Header
from polyak._files.open import header_of
from polyak._files.source import Where
from polyak._foreign.open_any import open_weights
from polyak._foreign.own import is_own
from polyak._foreign.recognize import recognise
from polyak.errors import CheckpointError


@dataclass(frozen=True)
class Average:
    """A file's weights and their header; returned by ``load``.

    Args:
        tensors: NumPy arrays by the model's names; any shape and dtype.
        header: track, step, decay, profile, role and run.
    """

    tensors: Mapping[str, Array]
    header: Header

    def __repr__(self) -> str:
        header, elements = self.header, sum(array.size for array in self.tensors.values())
        decay = "" if header.decay is None else f", {header.decay}"
        return (
            f"Average({header.track!r}: {header.role} at step {header.step}{decay}; "
            f"{len(self.tensors)} tensors, {elements:,} elements)"
        )


def load(path: Where, track: str | None = None) -> Average:
    """Read a file written by ``ema.save``, or an average in a checkpoint that holds ``ema.state_dict()``.

    Every byte of a file of ``ema.save`` is compared with its checksums. A checkpoint is a file of
    ``torch.save`` or ``paddle.save``, or a folder of ``torch.distributed.checkpoint``; tensors are whole.

    Args:
        path: the ``.safetensors`` file of an average, the index or the name of one written in shards, a
            checkpoint, or a URL that fsspec knows.
        track: the average; by default the first.

    Returns:
        The tensors as NumPy arrays (bfloat16 and 8-bit floats through ml_dtypes) and the header with step,
        decay and profile.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or holds no such average.

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
        parts = () if is_own(weights) else recognise(weights).parts
        held = {one.header.track: (one.tensors, one.header) for one in parts if one.header is not None}
        if not held:
            header = header_of(weights)
            if header.role == "resumable":
                raise CheckpointError(
                    f"{path} holds a whole training state, not one average: "
                    f"ema.load({str(path)!r}) continues it."
                )
            held = {header.track: (weights.tensors, header)}
        if (track or next(iter(held))) not in held:
            raise CheckpointError(f"{path} holds no average {track!r}, but {', '.join(map(repr, held))}.")
        tensors, header = held[track or next(iter(held))]
        return Average({name: tensor.read() for name, tensor in tensors.items()}, header)
