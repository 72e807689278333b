"""What this room asks of a framework's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from numpy.typing import NDArray

from polyak._core.change_detection import UnchangedCheck


class TensorLike(Protocol):
    """What every framework's tensor tells in the same words."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> Any: ...

    def is_complex(self) -> bool: ...

    def is_floating_point(self) -> bool: ...


T = TypeVar("T", bound=TensorLike)


class Traces(NamedTuple):
    """What training leaves behind in a parameter.

    writes: how often it was written in place, as far as the framework counts that.
    graded: whether it has a gradient now.
    """

    writes: int
    graded: bool


class TensorOps(Protocol[T]):
    """What every framework's tensor does, in words of this room; a framework's module ``tensors`` is one."""

    def value_of(self, average: T, low: T | None, /) -> T:
        """All digits of an average: itself where it is kept in one part."""
        ...

    def put(self, average: T, low: T | None, value: T, /) -> None:
        """Write a value into an average, rounded to the nearest it can hold."""
        ...

    def overwrite(self, target: T, source: T, /) -> None:
        """Copy the values of a tensor of the same shape, from wherever it is and whatever its dtype."""
        ...

    def duplicate(self, tensor: T, /) -> T:
        """A copy of a tensor with values, in memory of its own."""
        ...

    def holds_values(self, tensor: T, /) -> bool:
        """Whether it has all the memory that its shape needs."""
        ...

    def on_one_memory(self, one: T, other: T, /) -> bool:
        """Whether two tensors begin at one address."""
        ...

    def stamp(self, tensor: T, /) -> int:
        """A number that is another one if the tensor may have been written since."""
        ...

    def unchanged_check(self, tensors: Sequence[T], /) -> UnchangedCheck:
        """Watch where tensors lie and in what form."""
        ...

    def squared_distances(self, pairs: Iterable[tuple[T, T | None]], /) -> list[float]:
        """``‖average-other‖²``, or ``‖average‖²``, each in the wider of the average's dtype and float32.

        Waits for a device once, however many there are.
        """
        ...

    def all_finite(self, tensors: Sequence[T], /) -> list[bool]:
        """Whether each holds no NaN and no infinity. Waits for a device once if they all do."""
        ...

    def fill_nonfinite(self, average: T, low: T | None, live: T, /) -> None:
        """Give elements of an average that are not finite the values of θ."""
        ...

    def rounded(self, average: T, dtype: str, /) -> T:
        """A copy on the host in ``dtype``; in float32 or wider where float16 has no number large enough."""
        ...

    def on_host(self, tensor: T, /) -> T:
        """A copy in host memory."""
        ...

    def alias(self, tensor: T, /) -> T:
        """A tensor of its own on the same memory, which stays there when the other is pointed elsewhere."""
        ...

    def version(self, tensor: T, /) -> int:
        """How often the framework counted a write in place: the same number proves nothing."""
        ...

    def as_array(self, tensor: T, /) -> NDArray[Any]:
        """The values for NumPy, on the tensor's memory where that is on the host and contiguous.

        Raises:
            TypeError: NumPy and the file format have no name for its dtype or layout.
        """
        ...

    def as_tensor(self, array: NDArray[Any], /) -> T:
        """A NumPy array as a tensor, on the same memory where the framework can."""
        ...

    def dtype_of(self, tensor: T, /) -> Any:
        """NumPy's dtype of it.

        Raises:
            TypeError: there is none.
        """
        ...

    def refuse_unlike(self, where: str, given: object, mine: T, /) -> None:
        """Refuse what is no tensor with values, laid out as ``mine``.

        Raises:
            CheckpointError: it says what of it.
        """
        ...

    def traces(self, parameter: T, /) -> Traces:
        """What training left behind in it."""
        ...

    def two_parts(self, average: T, low: T, /) -> bool:
        """Whether these are an average in two parts as polyak keeps them."""
        ...


def alike(mine: TensorLike, theirs: TensorLike) -> bool:
    """Whether one can go on with the other's values: same shape, both real or both complex."""
    return tuple(mine.shape) == tuple(theirs.shape) and mine.is_complex() == theirs.is_complex()
