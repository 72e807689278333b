"""An average on disk: one plain safetensors file, or several with an index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyak.checkpoints.dtypes import BY_NAME
from polyak.checkpoints.layout import Spec
from polyak.checkpoints.schema import Header
from polyak.checkpoints.shards import write_sharded
from polyak.errors import CheckpointError
from polyak.rules import Profile
from polyak.rules.profile import COPY
from polyak.torch.averages import Averages
from polyak.torch.plan import Plan
from polyak.torch.track import Track

Tensors: TypeAlias = dict[str, Tensor]

_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.bool: BY_NAME["BOOL"],
    torch.uint8: BY_NAME["U8"],
    torch.int8: BY_NAME["I8"],
    torch.uint16: BY_NAME["U16"],
    torch.int16: BY_NAME["I16"],
    torch.uint32: BY_NAME["U32"],
    torch.int32: BY_NAME["I32"],
    torch.uint64: BY_NAME["U64"],
    torch.int64: BY_NAME["I64"],
    torch.float16: BY_NAME["F16"],
    torch.bfloat16: BY_NAME["BF16"],
    torch.float32: BY_NAME["F32"],
    torch.float64: BY_NAME["F64"],
    torch.complex64: BY_NAME["C64"],
    torch.float8_e4m3fn: BY_NAME["F8_E4M3"],
    torch.float8_e5m2: BY_NAME["F8_E5M2"],
    torch.float8_e4m3fnuz: BY_NAME["F8_E4M3FNUZ"],
    torch.float8_e5m2fnuz: BY_NAME["F8_E5M2FNUZ"],
}
_E8M0: torch.dtype | None = getattr(torch, "float8_e8m0fnu", None)  # since torch 2.7
if _E8M0 is not None:
    _DTYPES[_E8M0] = BY_NAME["F8_E8M0"]


def header(track: Track, step: int, run: str) -> Header:
    """What the file of a track says of itself."""
    return Header(track.name, step, track.decay, track.profile, "average", run, dict(track.joined))


def raw_header(step: int, run: str) -> Header:
    """What a file of the model's own weights says of itself."""
    return Header("raw", step, COPY, Profile.raw(step), "raw", run)


def weights_of(averages: Averages, track: Track | None, step: int, run: str) -> tuple[Tensors, Header]:
    """A track's weights, or with None the model's own, and what they are."""
    if track is None:
        return exported(averages.plan, {}), raw_header(step, run)
    return exported(averages.plan, averages.held(track)), header(track, step, run)


def exported(plan: Plan, held: Mapping[str, Tensor]) -> Tensors:
    """A model's ``state_dict`` with what is held in place of its own tensors, without wrapper prefixes.

    Tied tensors are there once per name, so that a strict ``load_state_dict`` finds all it expects.

    Raises:
        CheckpointError: the file format has no name for a tensor.
    """
    tensors: dict[str, Tensor] = {}
    for entry in plan.entries.values():
        if entry.saved:
            tensor = held.get(entry.name, entry.live).detach()
            tensors |= dict.fromkeys((entry.name, *entry.aliases), tensor)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{name} is {tensor.dtype}, {tensor.layout}, for which the safetensors format has no "
                "name. Nothing was written; torch.save(ema.state_dict()) keeps it exactly."
            )
    return tensors


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Header,
    max_shard_size: int | str | None = None,
) -> None:
    """Write tensors and what they are; from a GPU one at a time.

    Raises:
        CheckpointError: the operating system refuses. Nothing is changed then.
    """
    specs = {name: Spec(_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}

    def pieces(name: str) -> Iterator[NDArray[Any]]:
        yield as_array(tensors[name])

    write_sharded(path, specs, header.to_metadata(), pieces, max_shard_size)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values for NumPy, on the tensor's memory where that is on the CPU and contiguous."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().view(_DTYPES[tensor.dtype]).reshape(tensor.shape)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A NumPy array as a tensor on the same memory, bfloat16 and 8-bit floats too."""
    dtype = next(torch_dtype for torch_dtype, dtype in _DTYPES.items() if dtype == array.dtype)
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).view(array.shape)
