"""The storage of averages: dtype, device and layout, from checked arguments."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from polyak._core.nonfinite import NonFinitePolicy, check_policy
from polyak.errors import ConfigError
from polyak.torch._engines.select import EngineName, check_engine
from polyak.torch.tensors import put

DType: TypeAlias = torch.dtype | Literal["split"] | None
_NO_FLOAT64 = ("mps",)  # types of devices
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Settings(NamedTuple):
    """How averages are stored and updated.

    dtype: of the averages; None for float32 or wider.  low: of their low parts, if any.
    device: of the averages; None for that of their parameters.
    policy: what to do with elements of θ that are not finite.
    seed: of the random bits of 16-bit storage.
    engine: "auto", or the preferred one.
    overlap: updates run under the next forward pass where the device can.
    """

    dtype: torch.dtype | None
    low: torch.dtype | None
    device: torch.device | None
    policy: NonFinitePolicy
    seed: int
    engine: EngineName
    overlap: bool

    @classmethod
    def of(
        cls,
        dtype: DType,
        compensated: bool,
        device: str | torch.device | None,
        policy: NonFinitePolicy,
        seed: int,
        engine: EngineName,
        overlap: bool,
    ) -> Settings:
        """The settings for these arguments of ``EMA``.

        Raises:
            ConfigError: a name or device is unknown, or two arguments are incompatible.
        """
        if dtype not in (None, "split", *_DTYPES):
            raise ConfigError(f'dtype={dtype}: must be one of {", ".join(map(str, _DTYPES))}, "split".')
        if compensated and dtype not in (None, torch.float32):
            raise ConfigError(f"compensated=True with dtype={dtype}: only float32 averages are compensated.")
        check_policy(policy)
        check_engine(engine)
        try:
            where = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"device={device!r} is not a device: {error}") from error
        if dtype == "split":
            return cls(torch.bfloat16, torch.int8, where, policy, seed, engine, overlap)
        return cls(dtype, torch.float32 if compensated else None, where, policy, seed, engine, overlap)

    def dtype_of(self, live: Tensor) -> torch.dtype:
        """The chosen dtype for real tensors; by default float32, or the tensor's own where that is wider.

        Complex tensors keep a complex dtype of at least 64 bits, since there is no narrower one.
        """
        if live.is_complex():
            return torch.promote_types(live.dtype, torch.complex64)
        if self.dtype is not None:
            return self.dtype
        return torch.float32 if live.dtype.itemsize < 4 else live.dtype

    def low_of(self, live: Tensor) -> torch.dtype | None:
        """The dtype of the low part; None for float64 and complex averages, which need no more digits."""
        return self.low if self.dtype_of(live) in (torch.float32, torch.bfloat16) else None


class TensorStore:
    """Creates the tensors of averages; see ``polyak._core.framework.TensorStore``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def initial(self, live: Tensor) -> tuple[Tensor, Tensor | None]:
        """An initial average equal to θ, and its residual.

        Raises:
            ConfigError: compensated averages would live on a device without float64.
        """
        average, residual = _copy(live, self.settings.dtype_of(live), self.settings.device), None
        if dtype := self.settings.low_of(live):
            if dtype == torch.float32 and average.device.type in _NO_FLOAT64:
                raise ConfigError(
                    f"compensated=True with averages on {average.device}: their parts are added in float64, "
                    'which does not exist there. device="cpu" keeps them on the host.'
                )
            with outside_inference_mode():
                residual = torch.zeros_like(average, dtype=dtype, memory_format=torch.preserve_format)
                put(average, residual, live)
        return average, residual

    def on_device(self, average: Tensor, live: Tensor, copy: bool) -> Tensor:
        with outside_inference_mode():
            return laid_out_as(live, average).to(self.settings.device or live.device, copy=copy)

    def buffer(self, live: Tensor, previous: Tensor | None) -> Tensor:
        fresh = _copy(live, live.dtype, self.settings.device)
        if previous is None or _layout(previous) != _layout(fresh):
            return fresh
        with outside_inference_mode():  # so that modules built on it keep following
            return previous.copy_(fresh)

    def duplicate(self, live: Tensor) -> Tensor:
        if type(live) in (Tensor, nn.Parameter):
            return self.buffer(live, None)
        with outside_inference_mode():
            return copy.deepcopy(live)  # a tensor subclass: quantised weights clone themselves


@contextmanager
def outside_inference_mode() -> Generator[None]:
    """Tensors created here can be updated anywhere, even if created under inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.device, tensor.stride()


def _copy(live: Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """A copy of a tensor: same strides, own memory."""
    with outside_inference_mode():
        return live.detach().to(device or live.device, dtype, copy=True, memory_format=torch.preserve_format)


def laid_out_as(live: Tensor, tensor: Tensor) -> Tensor:
    """The tensor itself if its strides are those of a copy of ``live``; otherwise a copy with these strides.

    A model may switch to channels-last at any time. Kernels run slower on weights in another layout than
    their inputs, and ``torch.compile`` recompiles for them.
    """
    strides = torch.empty_like(live, device="meta").stride()
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
