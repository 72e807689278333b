"""An average on disk: one plain safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from polyak.checkpoints.schema import Header
from polyak.checkpoints.write import atomic
from polyak.errors import CheckpointError
from polyak.torch.plan import Plan
from polyak.torch.track import Track


def header(track: Track, step: int, run: str) -> Header:
    """What the file of a track says of itself."""
    return Header(
        track=track.name, step=step, decay=track.decay, profile=track.profile, role="average", run=run
    )


def save(path: str | os.PathLike[str], plan: Plan, averages: Mapping[str, Tensor], header: Header) -> None:
    """Write averages, and the model's own tensors where they are shared, under every name they have.

    Tied tensors are written once per name, so that a strict ``load_state_dict`` finds all it expects.

    Raises:
        CheckpointError: the format has no name for a tensor, or the operating system refuses.
    """
    tensors: dict[str, Tensor] = {}
    memories: set[int] = set()
    for entry in plan.entries.values():
        if not entry.saved:
            continue
        tensor = averages.get(entry.name, entry.live).detach().cpu()
        if tensor.dtype == torch.complex128 or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{entry.name} is {tensor.dtype}, {tensor.layout}, for which the safetensors format has no "
                "name. Nothing was written; torch.save(ema.state_dict()) keeps it exactly."
            )
        tensor = tensor.resolve_conj().contiguous()
        for name in (entry.name, *entry.aliases):
            # The format allows no two tensors in one memory, as tied ones and frozen views are.
            memory = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if memory in memories else tensor
            memories.add(memory)
    with atomic(path) as temporary:
        try:
            save_file(tensors, temporary, header.to_metadata())
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be written: {error!r}. Nothing was changed.") from error
