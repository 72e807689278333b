"""torch's implementation of ``polyak._core.tensors.TensorOps``, where each function is documented."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from polyak._core.change_detection import UnchangedCheck, tensor_check
from polyak._core.tensors import Traces
from polyak.errors import CheckpointError
from polyak.torch._engines.chunks import largest_values
from polyak.torch._engines.rounding import join, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The safetensors names of dtypes.
_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
_E8M0: torch.dtype | None = getattr(torch, "float8_e8m0fnu", None)  # since torch 2.7
if _E8M0 is not None:
    _NAMES[_E8M0] = "F8_E8M0"

_nbytes, _dtype = attrgetter("nbytes"), attrgetter("dtype")
_EXCHANGE: object = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # since torch 2.10

# Averages in two parts: "split" and compensated.
_TWO_PARTS = ((torch.bfloat16, torch.int8), (torch.float32, torch.float32))


def value_of(average: Tensor, low: Tensor | None) -> Tensor:
    """All digits of an average: itself where it is kept in one part."""
    return average if low is None else join(average, low)


def put(average: Tensor, low: Tensor | None, value: Tensor) -> None:
    """Write a value into an average, rounded to the nearest it can hold."""
    value = value.detach().to(average.device)
    with torch.no_grad():
        if low is None:
            average.copy_(value)
        elif low.dtype == torch.int8:
            high, rest = split(value.to(torch.float32))
            average.copy_(high)
            low.copy_(rest)
        else:
            average.copy_(value)
            rest = value - average  # in the wider of the two dtypes, where it is exact
            low.copy_(rest.nan_to_num(0.0, 0.0, 0.0))  # infinity has no rounding error


def overwrite(target: Tensor, source: Tensor) -> None:
    """Copy the values of a tensor of the same shape, of any device and dtype."""
    with torch.no_grad():
        target.copy_(source)


def duplicate(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, which can be updated anywhere, even if made under inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone()


def holds_values(tensor: Tensor) -> bool:
    """Whether its storage is as large as its shape requires; it may have been resized."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return True
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + last + 1) * tensor.itemsize


def on_one_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors start at the same address; sparse ones have none."""
    return one.layout != torch.strided or one.data_ptr() == other.data_ptr()


def unchanged_check(tensors: Sequence[Tensor]) -> UnchangedCheck:
    """A check of the addresses and layouts of dense tensors; sparse ones have no single address."""
    dense = [tensor for tensor in tensors if tensor.layout == torch.strided]
    return tensor_check(dense, _EXCHANGE, (Tensor.data_ptr, _nbytes), (_dtype, Tensor.stride))


def squared_distances(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> list[float]:
    """``‖average-other‖²``, or ``‖average‖²``, each in the wider of the average's dtype and float32.

    Waits for a device once, or twice if some are float64.
    """
    with torch.no_grad():
        norms = [_norm_of_difference(average, other) for average, other in pairs]
        groups: dict[object, list[int]] = {}
        for i, norm in enumerate(norms):
            groups.setdefault((norm.device, norm.dtype), []).append(i)
        out = [0.0] * len(norms)
        for places in groups.values():
            values = cast(list[float], torch.stack([norms[i] for i in places]).tolist())
            for i, value in zip(places, values, strict=True):
                out[i] = value**2
    return out


def _norm_of_difference(average: Tensor, other: Tensor | None) -> Tensor:
    wide = torch.promote_types(average.dtype, torch.float32)
    difference = average.to(wide)
    if other is not None:
        difference = difference - other.to(average.device, wide)
    return cast(Tensor, difference.norm())


def all_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each holds no NaN and no infinity. Waits for a device once if they all do."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    largest = dict(zip(map(id, filled), largest_values(filled), strict=True))
    return [t.numel() == 0 or math.isfinite(largest[id(t)]) or bool(t.isfinite().all()) for t in tensors]


def fill_nonfinite(average: Tensor, low: Tensor | None, live: Tensor) -> None:
    """Set elements of an average that are not finite to θ."""
    value = value_of(average, low)
    put(average, low, torch.where(value.isfinite(), value, live.detach().to(value.device, value.dtype)))


def rounded(average: Tensor, dtype: str) -> Tensor:
    """A copy on the host in ``dtype``; in float32 or wider if values exceed the range of float16."""
    average = average.detach()
    if average.is_complex():
        return on_host(average)
    small = average.to("cpu", getattr(torch, dtype), copy=True)
    if dtype == "float16" and not all_finite([small])[0]:
        return average.to("cpu", torch.float32, copy=True)
    return small


def on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory."""
    return tensor.detach().to("cpu", copy=True)


def alias(tensor: Tensor) -> Tensor:
    """A second tensor on the same memory, unaffected when the first is moved."""
    return tensor.detach()


def version(tensor: Tensor) -> int:
    """The count of in-place writes; tensors made in inference mode have none."""
    return 0 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]


stamp = version


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values for NumPy, on the tensor's memory where that is on the CPU and contiguous."""
    dtype = dtype_of(tensor)
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().view(dtype).reshape(tensor.shape)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A NumPy array as a tensor on the same memory, bfloat16 and 8-bit floats too."""
    dtype = next(dtype for dtype, numpys in _numpys().items() if numpys == array.dtype)
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).view(array.shape)


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """The NumPy dtype of a tensor; a sparse one has none."""
    if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
        raise TypeError(f"{tensor.dtype}, {tensor.layout}")
    return _numpys()[tensor.dtype]


@cache
def _numpys() -> dict[torch.dtype, np.dtype[Any]]:
    """NumPy's dtypes for torch's; those of ml_dtypes are imported with them, and only files need any."""
    from polyak._dtypes import BY_NAME

    return {dtype: BY_NAME[name] for dtype, name in _NAMES.items()}


def refuse_unlike(where: str, given: object, mine: Tensor) -> None:
    """Check that this is a tensor with values in the layout of ``mine``."""
    if not isinstance(given, Tensor):
        raise CheckpointError(f"{where} is a {type(given).__name__}, not a tensor.")
    if given.is_meta or given.layout != mine.layout:
        raise CheckpointError(
            f"{where} is {given.layout} on {given.device}: must be {mine.layout} and hold values."
        )


def two_parts(average: Tensor, low: Tensor) -> bool:
    """Whether these are the parts of a two-part average."""
    known = (average.dtype, low.dtype) in _TWO_PARTS
    return known and not low.is_meta and low.layout == average.layout


def traces(parameter: Tensor) -> Traces:
    """Traces of training; writes of fused optimizers are not counted."""
    return Traces(version(parameter), parameter.grad is not None)
