"""Paddle's implementation of ``polyak._core.tensors.TensorOps``, where each function is documented."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from operator import attrgetter
from typing import Any
from typing import cast as typed

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from polyak._core.change_detection import UnchangedCheck, tensor_check
from polyak._core.tensors import Traces
from polyak._kernel.two_part import join, split
from polyak.errors import CheckpointError

# The safetensors names of dtypes.
_NAMES: dict[paddle.dtype, str] = {
    paddle.bool: "BOOL",
    paddle.uint8: "U8",
    paddle.int8: "I8",
    paddle.int16: "I16",
    paddle.int32: "I32",
    paddle.int64: "I64",
    paddle.float16: "F16",
    paddle.bfloat16: "BF16",
    paddle.float32: "F32",
    paddle.float64: "F64",
    paddle.complex64: "C64",
    paddle.float8_e4m3fn: "F8_E4M3",
    paddle.float8_e5m2: "F8_E5M2",
}
# Dtypes that NumPy does not have are passed as integers of the same width.
_AS_INTEGERS = {
    paddle.bfloat16: paddle.int16,
    paddle.float8_e4m3fn: paddle.int8,
    paddle.float8_e5m2: paddle.int8,
}
_asked = count()
_shape, _dtype = attrgetter("shape"), attrgetter("dtype")
_EXCHANGE: object = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # since Paddle 3.3
_TWO_PARTS = ((paddle.bfloat16, paddle.int8), (paddle.float32, paddle.float32))


def value_of(average: Tensor, low: Tensor | None) -> Tensor:
    """All digits of an average: itself where it is kept in one part."""
    if low is None:
        return average
    return to(as_tensor(join(as_array(average), as_array(low))), average.place)


def put(average: Tensor, low: Tensor | None, value: Tensor) -> None:
    """Write a value into an average, rounded to the nearest it can hold."""
    if low is None:
        overwrite(average, value)
        return
    high, rest = split(as_array(value), _NAMES[average.dtype])
    overwrite(average, as_tensor(high))
    overwrite(low, as_tensor(rest))


def overwrite(target: Tensor, source: Tensor) -> None:
    """Copy the values of a tensor of the same shape, of any device and dtype."""
    with paddle.no_grad():
        target.copy_(cast(source, target.dtype), True)  # pyright: ignore[reportCallIssue]  # its stub is wrong


def holds_values(tensor: Tensor) -> bool:
    """Whether it is initialised, which Paddle denies of tensors without elements."""
    return 0 in tensor.shape or tensor._is_initialized() is True


def on_one_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors start at the same address; those without values have none."""
    return not (holds_values(one) and one.is_dense()) or one.data_ptr() == other.data_ptr()


def stamp(tensor: Tensor) -> int:
    """A new number each time: ``set_value`` and ``set_state_dict`` count no ``inplace_version``."""
    return next(_asked)


def unchanged_check(tensors: Sequence[Tensor]) -> UnchangedCheck:
    """A check of the tensors' addresses and layouts."""
    return tensor_check(tensors, _EXCHANGE, (Tensor.data_ptr, _shape), (_dtype,))


def alias(tensor: Tensor) -> Tensor:
    """A second tensor on the same memory.

    ``detach`` returns the same tensor of Paddle's core: ``layer.to(dtype=...)`` would change both.
    """
    shared = Tensor()
    shared.get_tensor()._share_data_with(tensor.get_tensor())
    return shared


def laid_out_as(live: Tensor, tensor: Tensor) -> Tensor:
    """The tensor itself if its memory layout is that of ``live``; otherwise a copy in that layout.

    ``transpose`` returns a view, so a layer may have weights in any order of axes.
    """
    if tensor.strides == live.strides or not live.is_dense() or _axes(tensor) == _axes(live):
        return tensor
    order = _axes(live)
    back = sorted(range(live.ndim), key=order.__getitem__)
    with paddle.no_grad():
        return tensor.transpose(order).contiguous().transpose(back)


def fills_memory(tensor: Tensor) -> bool:
    """Whether it fills one contiguous range of memory, in any order of its axes."""
    step, shape, strides = 1, typed("list[int]", tensor.shape), tensor.strides
    for axis in reversed(_axes(tensor)):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def _axes(tensor: Tensor) -> list[int]:
    """The axes by descending stride."""
    return sorted(range(tensor.ndim), key=lambda axis: -tensor.strides[axis])


def version(tensor: Tensor) -> int:
    """Paddle's count of in-place writes."""
    return typed(int, tensor.inplace_version)


def cast(tensor: Tensor, dtype: paddle.dtype) -> Tensor:
    """The tensor in this dtype; itself if it has it already."""
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def duplicate(tensor: Tensor) -> Tensor:
    """A copy; the tensor itself if it has no values yet, or only a shard."""
    return tensor.detach().clone() if holds_values(tensor) and tensor.is_dense() else tensor


def copied_to(tensor: Tensor, place: Any) -> Tensor:
    """A copy in this place."""
    return typed(Tensor, tensor._copy_to(place, True))


def to(tensor: Tensor, place: Any) -> Tensor:
    """The tensor in this place; itself if it is there already."""
    return tensor if tensor.place == place else copied_to(tensor, place)


def wide(dtype: paddle.dtype) -> paddle.dtype:
    """The dtype, or float32 if it has fewer bits."""
    return paddle.float32 if dtype in (paddle.float16, paddle.bfloat16) else dtype


def squared_distances(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> list[float]:
    """``‖average-other‖²``, or ``‖average‖²``, each in the wider of the average's dtype and float32.

    Waits for the device once.
    """
    with paddle.no_grad():
        squares = [_squared_difference(average, other) for average, other in pairs]
        return typed(list[float], paddle.stack(squares).tolist()) if squares else []


def _squared_difference(average: Tensor, other: Tensor | None) -> Tensor:
    difference = cast(average.detach(), wide(average.dtype))
    if other is not None:
        difference = difference - to(cast(other.detach(), difference.dtype), difference.place)
    # The sum of no elements has their dtype, whatever ``dtype`` says.
    return cast(difference.abs().square().sum(dtype="float64"), paddle.float64)


def all_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each holds no NaN and no infinity. Waits for the device once."""
    if not tensors:
        return []
    return typed(list[bool], paddle.stack([tensor.isfinite().all() for tensor in tensors]).tolist())


def fill_nonfinite(average: Tensor, low: Tensor | None, live: Tensor) -> None:
    """Set elements of an average that are not finite to θ."""
    value = value_of(average, low)
    value = cast(value, wide(value.dtype))  # on a CPU Paddle's where() supports no narrower dtypes
    fresh = to(cast(live.detach(), value.dtype), value.place)
    with paddle.no_grad():
        put(average, low, paddle.where(value.isfinite(), value, fresh))


def rounded(average: Tensor, dtype: str) -> Tensor:
    """A copy on the host in ``dtype``; in float32 or wider if values exceed the range of float16."""
    if average.is_complex():
        return on_host(average)
    small = on_host(average.detach().astype(typed(Any, dtype)))
    if dtype == "float16" and not all_finite([small])[0]:
        return on_host(average.detach().astype(paddle.float32))
    return small


def on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory."""
    return copied_to(tensor.detach(), paddle.CPUPlace())


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values for NumPy; a copy."""
    dtype = dtype_of(tensor)
    # contiguous() of a view moves the tensor itself to other memory, so it is called on an alias.
    plain = tensor.detach() if tensor.is_contiguous() else alias(tensor).contiguous()
    if plain.dtype in _AS_INTEGERS:
        plain = plain.reshape([-1]).view(_AS_INTEGERS[plain.dtype])
    return plain.numpy().view(dtype).reshape(tuple(tensor.shape))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A NumPy array as a tensor in host memory; a copy."""
    dtype = next(dtype for dtype, numpys in _numpys().items() if numpys == array.dtype)
    integers = _AS_INTEGERS.get(dtype)
    if integers is None:
        return paddle.to_tensor(array, place=paddle.CPUPlace())
    flat = paddle.to_tensor(array.reshape(-1).view(_numpys()[integers]), place=paddle.CPUPlace())
    return flat.view(dtype).reshape(array.shape)


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """The NumPy dtype of a tensor; a sparse one has none."""
    if tensor.dtype not in _NAMES or not tensor.is_dense():
        raise TypeError(f"{tensor.dtype}, {'dense' if tensor.is_dense() else 'sparse'}")
    return _numpys()[tensor.dtype]


@cache
def _numpys() -> dict[paddle.dtype, np.dtype[Any]]:
    """NumPy's dtypes for Paddle's; those of ml_dtypes are imported with them, and only files need any."""
    from polyak._dtypes import BY_NAME

    return {dtype: BY_NAME[name] for dtype, name in _NAMES.items()}


def refuse_unlike(where: str, given: object, mine: Tensor) -> None:
    """Check that this is a dense tensor with values."""
    if not isinstance(given, Tensor):
        raise CheckpointError(f"{where} is a {type(given).__name__}, not a tensor.")
    if not holds_values(given) or given.is_dense() != mine.is_dense():
        raise CheckpointError(f"{where} is sparse or holds no values: must be dense and hold values.")


def two_parts(average: Tensor, low: Tensor) -> bool:
    """Whether these are the parts of a two-part average."""
    return (average.dtype, low.dtype) in _TWO_PARTS and holds_values(low)


def traces(parameter: Tensor) -> Traces:
    """Traces of training; optimizers' writes are not counted."""
    return Traces(version(parameter), parameter.grad is not None)
