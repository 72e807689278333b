"""PaddleDetection's and PaddleOCR's average: a weighted sum that starts at zero, divided by its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from glob import escape
from typing import Literal, TypeAlias, get_args

from paddle import Tensor, nn

from polyak._core.state_dict import opened
from polyak.errors import CheckpointError, ConfigError
from polyak.paddle import EMA
from polyak.paddle.tensor_map import unwrap
from polyak.schedules import Capped, Constant, Decay, Profile, Ramp

DecayType: TypeAlias = Literal["threshold", "exponential", "normal"]
_TRACK = "average"


class FromZero:
    """``vₜ = βₜ·vₜ₋₁ + (1-βₜ)·θₜ``, ``v₀ = 0``, ``avgₜ = vₜ / (1 - β₁·β₂·…·βₜ)``

    Args:
        model: the layer, wrapped by ``paddle.DataParallel`` or fleet or not.
        decay: the schedule of βₜ.
        left: parts of names of tensors that are not averaged.
    """

    def __init__(self, model: nn.Layer, decay: Decay, left: Collection[str] = ()) -> None:
        self._schedule = decay
        self._ema = EMA(model, decay, exclude=[f"*{escape(key)}*" for key in left], buffers="average")
        self._to_zero()

    @property
    def step(self) -> int:
        """Updates since the average began."""
        return self._ema.tracks[_TRACK].clock

    def _sums(self) -> dict[str, Tensor]:
        """vₜ by name, and the layer's own tensors where they are not averaged."""
        return {**self._ema.model.state_dict(), **self._ema.tracks[_TRACK].tensors}

    def _averages(self) -> dict[str, Tensor]:
        """avgₜ by name, in the layer's dtypes; before the first update the layer itself."""
        tensors = dict(self._ema.model.state_dict())
        whole = 1 - self._ema.tracks[_TRACK].profile.initial_weight
        for name, value in self._ema.tracks[_TRACK].tensors.items() if self.step else ():
            tensors[name] = (value / whole).astype(tensors[name].dtype)
            tensors[name].stop_gradient = True
        return tensors

    def _take(self, model: nn.Layer) -> None:
        check_same(model, self._ema, "update")
        self._ema.update()

    def _resume(self, verb: str, state: Mapping[str, Tensor], step: int, divided: bool) -> None:
        """Continue from averages or, if not ``divided``, from sums after ``step`` updates."""
        mine = opened(self._ema.state_dict())
        track = mine["tracks"][_TRACK]
        profile = Profile.from_decay(self._schedule, step)
        whole = 1 - profile.initial_weight if divided else 1.0
        missing = [name for name in track["tensors"] if name not in state]
        if missing:
            raise CheckpointError(f"{verb}: {', '.join(missing)}: not in the state. Nothing was loaded.")
        tensors = {name: state[name].astype(v.dtype) * whole for name, v in track["tensors"].items()}
        history = {"clock": step, "profile": profile.to_json(), "joined": {}, "tensors": tensors}
        self._ema.load_state_dict({**mine, "step": step, "tracks": {_TRACK: {**track, **history}}})

    def _to_zero(self) -> None:
        for tensor in self._ema.tracks[_TRACK].tensors.values():
            tensor.zero_()


def check_same(model: nn.Layer, ema: EMA, verb: str) -> None:
    """Refuse a layer other than the one the average was made for, wrapped or not."""
    if unwrap(model) is not unwrap(ema.model):
        raise ConfigError(f"{verb}: this is not the averaged model; make a new average for it.")


def schedule(decay: float, ema_decay_type: DecayType, tau: int = 2000) -> Decay:
    """βₜ of PaddleDetection, which counts updates from 0."""
    if ema_decay_type not in get_args(DecayType):
        raise ConfigError(
            f'ema_decay_type={ema_decay_type!r}: must be "threshold", "exponential" or "normal".'
        )
    if ema_decay_type == "threshold":
        return Capped(decay, after=1)
    return Ramp(decay, tau=tau) if ema_decay_type == "exponential" else Constant(decay)
