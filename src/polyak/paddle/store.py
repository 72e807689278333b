"""The storage of averages: dtype and layout, from checked arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import paddle
from paddle import Tensor

from polyak._core.nonfinite import NonFinitePolicy, check_policy
from polyak.errors import ConfigError
from polyak.paddle.tensors import cast, copied_to, duplicate, laid_out_as, overwrite, put

EngineName: TypeAlias = Literal["auto", "native", "ops"]
DType: TypeAlias = "paddle.dtype | str | None"

_DTYPES = (paddle.float32, paddle.float64, paddle.bfloat16, paddle.float16)


@dataclass(frozen=True)
class Settings:
    """How averages are stored and updated.

    dtype: of the averages; None for float32 or wider.  low: of their low parts, if any.
    policy: what to do with elements of θ that are not finite.
    seed: of the random bits of 16-bit storage.
    engine: "auto", or the preferred one.
    """

    dtype: paddle.dtype | None
    low: paddle.dtype | None
    policy: NonFinitePolicy
    seed: int
    engine: EngineName

    @classmethod
    def of(
        cls, dtype: DType, compensated: bool, policy: NonFinitePolicy, seed: int, engine: EngineName
    ) -> Settings:
        """The settings for these arguments of ``EMA``.

        Raises:
            ConfigError: a name is unknown, or two arguments are incompatible.
        """
        chosen = paddle.bfloat16 if dtype == "split" else _dtype(dtype)
        if compensated and (dtype == "split" or chosen not in (None, paddle.float32)):
            raise ConfigError(f"compensated=True with dtype={dtype}: only float32 averages are compensated.")
        check_policy(policy)
        if engine not in get_args(EngineName):
            raise ConfigError(f"engine={engine!r}: must be one of {', '.join(get_args(EngineName))}.")
        low = paddle.int8 if dtype == "split" else paddle.float32 if compensated else None
        return cls(chosen, low, policy, seed, engine)

    def dtype_of(self, live: Tensor) -> paddle.dtype:
        """The chosen dtype for real tensors; by default float32, or the tensor's own where that is wider."""
        if live.is_complex():
            return live.dtype
        if self.dtype is not None:
            return self.dtype
        return live.dtype if live.dtype == paddle.float64 else paddle.float32


@dataclass(frozen=True)
class TensorStore:
    """Creates the tensors of averages; see ``polyak._core.framework.TensorStore``."""

    settings: Settings

    def initial(self, live: Tensor) -> tuple[Tensor, Tensor | None]:
        dtype, low = self.settings.dtype_of(live), self.settings.low
        with paddle.no_grad():
            average = laid_out_as(live, cast(live.detach(), dtype).clone())
            if low is None or dtype not in (paddle.float32, paddle.bfloat16):
                return average, None
            residual = laid_out_as(live, paddle.zeros_like(average, dtype=low))
            put(average, residual, live)
        return average, residual

    def on_device(self, average: Tensor, live: Tensor, copy: bool) -> Tensor:
        if copy or average.place != live.place:
            average = copied_to(average, live.place)
        return laid_out_as(live, average)

    def buffer(self, live: Tensor, previous: Tensor | None) -> Tensor:
        if previous is None or _layout(previous) != _layout(live):
            return laid_out_as(live, live.detach().clone())
        overwrite(previous, live)  # so that layers built on it keep following
        return previous

    def duplicate(self, live: Tensor) -> Tensor:
        return duplicate(live)


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.place, tensor.strides if tensor.is_dense() else None


def _dtype(given: DType) -> paddle.dtype | None:
    if given is None:
        return None
    for dtype in _DTYPES:
        if given in (dtype, str(dtype).removeprefix("paddle.")):
            return dtype
    raise ConfigError(f'dtype={given}: must be one of {", ".join(map(str, _DTYPES))}, "split".')
