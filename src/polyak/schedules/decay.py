"""Decays: the interface, the constant decay, and user-defined functions.

Legend: t counts from 1 in the decay's own unit (training steps, samples or tokens);
βₜ is the decay applied at t, ``avgₜ = βₜ·avgₜ₋₁ + (1-βₜ)·θₜ``; B(t, k) = βₜ₊₁·…·βₜ₊ₖ is the
decay of the k steps after t taken at once, so that updating every k-th step keeps the half-life.

A decay has no state: the counter is part of the average. So two averages with equal decays are equal, and a
resumed one continues exactly.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import import_module
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np

from polyak.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Unit: TypeAlias = Literal["steps", "samples", "tokens"]
Config: TypeAlias = dict[str, Any]


class Decay(ABC):
    """A decay schedule: a pure function from time to βₜ.

    Subclasses are frozen dataclasses and define ``betas``; those whose product has a closed form
    also define ``products``. Everything else in the library is written against these two.
    """

    unit: ClassVar[Unit] | Unit = "steps"
    constant: ClassVar[bool] | bool = False  # βₜ is the same at every t
    closed: ClassVar[bool] = False  # the cost of products does not depend on k
    ahead: ClassVar[int] | int = 256  # number of future decays that may be computed at once
    known: ClassVar[bool] = True  # βₜ can be computed here
    _kinds: ClassVar[dict[str, type[Decay]]] = {}

    def __init_subclass__(cls, in_files: bool = True) -> None:
        # A user's class keeps its name, though polyak's own of that name may be imported after it.
        if in_files and not (cls.__module__.startswith("polyak.") and cls.__name__ in Decay._kinds):
            Decay._kinds[cls.__name__] = cls

    @abstractmethod
    def betas(self, t: Array) -> Array:
        """βₜ for an array of times t ≥ 1."""

    def products(self, t: Array, k: int) -> Array:
        """B(t, k) for an array of times t ≥ 0 and k ≥ 1; by default the product of the k decays."""
        out = np.ones_like(t)
        for i in range(1, k + 1):
            out *= self.betas(t + i)
        return out

    def effort(self, k: int) -> int:
        """The number of evaluations of βₜ in one of ``products(t, k)``."""
        return 1 if self.closed else k

    def __call__(self, t: int) -> float:
        """βₜ at one time t ≥ 1."""
        if t < 1:
            raise ConfigError(f"t={t}: a decay is defined for t = 1, 2, … (the first update is t=1).")
        return compose(self, t - 1, 1)

    def to_config(self) -> Config:
        """A JSON-able description, ``{"kind": …, argument: value, …}``, that ``from_config`` reads back."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        return {"kind": type(self).__name__, **{k: v for k, v in given.items() if v is not None}}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Decay:
        """The inverse of ``to_config``.

        Args:
            config: from ``to_config``, also after JSON.

        Raises:
            ConfigError: the kind is unknown or an argument is not one of its arguments.

        Examples:
            >>> Decay.from_config({"kind": "Constant", "beta": 0.9998}) == Constant(0.9998)
            True
        """
        import_module("polyak.schedules.kinds")  # an EMA needs few of them
        try:
            arguments = dict(config)
            cls = Decay._kinds[arguments.pop("kind", None)]
        except (KeyError, TypeError, ValueError) as error:
            known = ", ".join(sorted(Decay._kinds))
            kind = _UnknownKindError if isinstance(error, KeyError) else ConfigError
            raise kind(f"{config!r} names no known decay; known kinds: {known}.") from error
        try:
            return cls._from_arguments(arguments)
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{cls.__name__} cannot be made from {arguments}: {error}") from error

    @classmethod
    def _from_arguments(cls, arguments: Config) -> Decay:
        return cls(**arguments)


class _UnknownKindError(ConfigError):
    """A config with a class that this process does not know."""


DecayLike: TypeAlias = float | Decay | Callable[[int], float]


class SeveralDecays:
    """A value that means several decays, so only an EMA takes it: ``ByName``, ``Adaptive``."""


def refuse_several(name: str, value: object) -> None:
    """Refuse several decays where one is needed."""
    if isinstance(value, SeveralDecays):
        raise ConfigError(
            f"{name}={value} is several decays, which polyak.EMA(…, decay=…) and trainers take: give one."
        )


def as_decay(decay: DecayLike) -> Decay:
    """Convert a float to ``Constant`` and a function of t to ``Custom``; a ``Decay`` is returned as it is.

    Raises:
        ConfigError: it is none of them, or the function does not return a decay.
    """
    if isinstance(decay, Decay):
        return decay
    if isinstance(decay, type):
        raise ConfigError(f"decay={decay!r} is a class: make an object, {decay.__name__}(…).")
    if callable(decay):
        return Custom(decay)
    refuse_several("decay", decay)
    if not isinstance(decay, Real) or isinstance(decay, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"decay={decay!r}: must be a number in [0, 1], a polyak.Decay or a function of the step t."
        )
    return Constant(decay)


def decay_in_file(config: Mapping[str, Any]) -> Decay:
    """The decay of a file; ``Unknown`` if its class or function is not available.

    Raises:
        ConfigError: it is not a description of a decay.
    """
    try:
        return Decay.from_config(config)
    except _UnknownKindError:
        kind = config.get("kind")
        if not (isinstance(kind, str) and kind.isidentifier()):  # no class and no function has such a name
            raise
        return Unknown(json.dumps(config))


def compose(decay: DecayLike, t: int, k: int) -> float:
    """The decay of the k steps that follow step t, taken at once.

    ``B(t, k) = βₜ₊₁ · βₜ₊₂ · … · βₜ₊ₖ``; ``B(t, 1) = decay(t + 1)``, ``B(t, 0) = 1``.

    Args:
        decay: the schedule, a float for a constant one, or a function of t.
        t: steps already taken, ≥ 0, in the decay's unit.
        k: number of steps, ≥ 0, in the decay's unit.

    Returns:
        The factor in [0, 1] of the old average.

    Raises:
        ConfigError: t or k is negative.

    Examples:
        >>> compose(0.9, 0, 2) == 0.9 * 0.9
        True
        >>> from polyak import HalfLife
        >>> compose(HalfLife(steps=10), 0, 10)
        0.5
    """
    if t < 0 or k < 0:
        raise ConfigError(f"compose(t={t}, k={k}): steps cannot be negative.")
    return float(composed(as_decay(decay), t, k, 1)[0]) if k else 1.0


def composed(decay: Decay, t: int, k: int, n: int) -> Array:
    """``B(t, k), B(t+k, k), …``: the decays of the next n updates of k ≥ 1 steps each; float64 [n].

    Bit-identical to n calls of ``compose``, which use arrays of one element: NumPy computes scalars by other
    functions than arrays, with different rounding.
    """
    before = t + k * np.arange(n, dtype=np.float64)
    return decay.betas(before + 1) if k == 1 else decay.products(before, k)


_BLOCK = 256


def beta_at(decay: Decay, t: int) -> float:
    """βₜ, as ``decay(t)``, for callers that ask for one step after the other.

    256 of them are computed at once and remembered: right after a training step NumPy takes longer for one
    decay than the kernel takes for a small model.
    """
    block, place = divmod(t - 1, _BLOCK)
    return _block(decay, block)[place]


@lru_cache(maxsize=64)
def _block(decay: Decay, block: int) -> list[float]:
    return composed(decay, block * _BLOCK, 1, _BLOCK).tolist()


def warn_if_rate(given: DecayLike, stacklevel: int) -> None:
    """Warn of a plain β so small that it is probably 1-β, which others call momentum, rate or τ.

    Zero, which copies the model, and ``Constant``, which is explicit, give no warning.
    """
    if not callable(given) and 0 < given < 0.5:
        warnings.warn(
            f"decay={given!r} keeps only {given:.3g} of the average at each step. If it is a momentum, "
            f"rate or τ, which is 1-decay, did you mean {1 - given:.12g}? If not, "
            f"polyak.Constant({given!r}) says so without this warning.",
            stacklevel=stacklevel + 1,
        )


def check(name: str, value: float, rule: str, holds: bool) -> None:
    """Refuse an argument that breaks its rule, naming both."""
    if not holds:  # NaN fails every comparison, so it is refused as well
        raise ConfigError(f"{name}={value!r}: {rule}.")


def check_integer(name: str, value: int, least: int) -> None:
    """Refuse a count that is not a whole number or too small."""
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}={value!r}: must be a whole number, at least {least}.")


def check_beta(name: str, value: float) -> None:
    """Refuse a decay outside [0, 1]."""
    refuse_several(name, value)
    check(
        name,
        value,
        "a decay must lie in [0, 1] (1 keeps the average forever, 0 copies the model)",
        0 <= value <= 1,
    )


@dataclass(frozen=True)
class Constant(Decay):
    """The plain exponential average, ``βₜ = β``.

    The first parameters keep the weight βᵗ; with a small number of steps the average is mostly θ₀.
    ``Debiased`` and ``Warmup`` are the usual cures.

    Args:
        beta: β in [0, 1]; its half-life is ``ln ½ / ln β`` steps (6931 for 0.9999).

    Raises:
        ConfigError: β is outside [0, 1].

    Examples:
        >>> Constant(0.999)(1)
        0.999
    """

    beta: float
    constant = closed = True

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)

    def betas(self, t: Array) -> Array:
        return np.full_like(t, self.beta)

    def products(self, t: Array, k: int | Array) -> Array:
        return np.full_like(t, self.beta**k)


@dataclass(frozen=True, repr=False)
class Custom(Decay, in_files=False):
    """A user-defined decay: any function of t.

    A function is accepted wherever a decay is: ``EMA(model, lambda t: min(0.999, t / (t + 10)))``. It must be
    pure, since profiles evaluate it again. Files contain its name only: to resume, make the EMA with the same
    function; without it such a file can be read, but the profile of its average is unknown. A subclass of
    ``Decay`` is restored with its arguments wherever the class has been imported.

    Args:
        function: takes the training step t = 1, 2, … since averaging began and returns βₜ in [0, 1].
        name: for files; by default the function's own.

    Raises:
        ConfigError: for t = 1 the function raises or returns no number in [0, 1]; ``update`` checks later t.

    Examples:
        >>> def a_third(t):
        ...     return (t - 1) / (t + 2)
        >>> a_third_of_the_run = Custom(a_third)
        >>> a_third_of_the_run, a_third_of_the_run(4)
        (Custom('a_third'), 0.5)
    """

    function: Callable[[int], float] = field(hash=False)
    name: str = ""
    ahead = 1  # a function may be right up to the run's last step only

    def __post_init__(self) -> None:
        name = self.name or getattr(self.function, "__qualname__", type(self.function).__qualname__)
        object.__setattr__(self, "name", name)
        try:
            self(1)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"decay={name}: must take the step t = 1, 2, … and return a decay in [0, 1], but {name}(1) "
                f"raised {error!r}."
            ) from error

    def __repr__(self) -> str:
        return f"Custom({self.name!r})"

    def __call__(self, t: int) -> float:
        beta = float(self.function(t))
        check(f"{self.name}({t})", beta, "a decay must lie in [0, 1]", 0 <= beta <= 1)
        return beta

    def betas(self, t: Array) -> Array:
        return np.array([self(int(one)) for one in np.ravel(t)], np.float64).reshape(np.shape(t))

    def effort(self, k: int) -> int:
        return 10 * k  # a call takes about half a microsecond

    def to_config(self) -> Config:
        return {"kind": "Custom", "name": self.name}


@dataclass(frozen=True, repr=False)
class Unknown(Decay, in_files=False):
    """A decay from a file that this process cannot compute.

    Args:
        config: its description in the file, as JSON.
    """

    config: str
    known = False

    def __repr__(self) -> str:
        arguments = self.to_config()
        kind = arguments.pop("kind")
        if kind == "Custom":
            return f"Custom({arguments.get('name')!r}), a function, which is not in the file"
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{kind}({given}), which is not known here"

    def betas(self, t: Array) -> Array:
        raise ConfigError(
            f"the weights of this average are unknown: its decay is {self}. To continue it, make the EMA "
            "with the same function or import the class first."
        )

    def to_config(self) -> Config:
        return dict(json.loads(self.config))
