"""What a teacher is in every framework: the average of a student, which is never trained itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args

from polyak._core.ema import BaseEMA
from polyak._core.track import check_single
from polyak.errors import ConfigError
from polyak.schedules import ByName
from polyak.schedules.decay import DecayLike

if TYPE_CHECKING:
    from typing_extensions import Self

EmaT = TypeVar("EmaT", bound=BaseEMA[Any, Any])
BatchNormMode: TypeAlias = Literal["average", "batch"]


def check_teacher(decay: DecayLike | ByName, batchnorm: BatchNormMode) -> None:
    """Check the arguments that only a teacher restricts.

    Raises:
        ConfigError: several decays, or an unknown ``batchnorm``.
    """
    check_single(decay)
    if batchnorm not in get_args(BatchNormMode):
        raise ConfigError(f'batchnorm={batchnorm!r}: must be "average" or "batch".')


class BaseTeacher(Generic[EmaT]):
    """A teacher without its forward pass; its class is a module of its framework too."""

    ema: EmaT  # the average: metrics, save, profile. Not a module, so the student is not registered.
    batchnorm: BatchNormMode

    def _begin(self, ema: EmaT, batchnorm: BatchNormMode) -> None:
        self.ema, self.batchnorm = ema, batchnorm
        ema.tracks["average"].trusted = True  # it lags by design, so θ₀ in it is no mistake

    def update(self, steps: int = 1, *, samples: int | None = None, tokens: int | None = None) -> None:
        """Move towards the student; call it after ``optimizer.step()``. See ``EMA.update``.

        Args:
            steps: training steps since the last call.
            samples: samples since then, for decays counted in samples.
            tokens: tokens since then, for decays counted in tokens.
        """
        self.ema.update(steps, samples=samples, tokens=tokens)

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a teacher answers in evaluation mode."""
        return self

    def eval(self) -> Self:
        """Does nothing: a teacher answers in evaluation mode."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Does nothing if False: a teacher is not trained.

        Raises:
            ConfigError: ``requires_grad`` is True.
        """
        if requires_grad:
            raise ConfigError(
                "requires_grad_(True): a teacher is the average of its student and is never trained itself. "
                "To train from it, copy it: copy.deepcopy(teacher.module).requires_grad_(True)."
            )
        return self

    def extra_repr(self) -> str:
        """What ``repr`` shows besides the modules in it."""
        return f"decay={self.ema.decay}, step={self.ema.step}, batchnorm={self.batchnorm!r}"
