"""The tensor operations that a framework implements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from polyak._core.change_detection import UnchangedCheck

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TensorLike(Protocol):
    """The attributes that the frameworks' tensors share."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> Any: ...

    def is_complex(self) -> bool: ...

    def is_floating_point(self) -> bool: ...


T = TypeVar("T", bound=TensorLike)


class Traces(NamedTuple):
    """Traces of training in a parameter.

    writes: in-place writes, as far as the framework counts them.
    graded: whether it has a gradient.
    """

    writes: int
    graded: bool


class TensorOps(Protocol[T]):
    """Tensor operations under common names; a framework's module ``tensors`` implements them."""

    def value_of(self, average: T, low: T | None, /) -> T:
        """All digits of an average: itself where it is kept in one part."""
        ...

    def put(self, average: T, low: T | None, value: T, /) -> None:
        """Write a value into an average, rounded to the nearest it can hold."""
        ...

    def overwrite(self, target: T, source: T, /) -> None:
        """Copy the values of a tensor of the same shape, of any device and dtype."""
        ...

    def duplicate(self, tensor: T, /) -> T:
        """A copy of a tensor with values, in memory of its own."""
        ...

    def holds_values(self, tensor: T, /) -> bool:
        """Whether its storage is as large as its shape requires."""
        ...

    def on_one_memory(self, one: T, other: T, /) -> bool:
        """Whether two tensors start at the same address."""
        ...

    def stamp(self, tensor: T, /) -> int:
        """A number that changes if the tensor may have been written."""
        ...

    def unchanged_check(self, tensors: Sequence[T], /) -> UnchangedCheck:
        """A check of the tensors' addresses and layouts."""
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
        """Set elements of an average that are not finite to θ."""
        ...

    def rounded(self, average: T, dtype: str, /) -> T:
        """A copy on the host in ``dtype``; in float32 or wider if values exceed the range of float16."""
        ...

    def on_host(self, tensor: T, /) -> T:
        """A copy in host memory."""
        ...

    def alias(self, tensor: T, /) -> T:
        """A second tensor on the same memory, unaffected when the first is moved."""
        ...

    def version(self, tensor: T, /) -> int:
        """The framework's count of in-place writes; an equal count does not prove that there were none."""
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
        """Its NumPy dtype.

        Raises:
            TypeError: there is none.
        """
        ...

    def refuse_unlike(self, where: str, given: object, mine: T, /) -> None:
        """Check that this is a tensor with values in the layout of ``mine``.

        Raises:
            CheckpointError: it is not.
        """
        ...

    def traces(self, parameter: T, /) -> Traces:
        """Traces of training in it."""
        ...

    def two_parts(self, average: T, low: T, /) -> bool:
        """Whether these are the parts of a two-part average."""
        ...


def alike(mine: TensorLike, theirs: TensorLike) -> bool:
    """Whether one can take the other's values: same shape, both real or both complex."""
    return tuple(mine.shape) == tuple(theirs.shape) and mine.is_complex() == theirs.is_complex()


def fill(
    mine: Mapping[str, T],
    residuals: Mapping[str, T],
    theirs: Mapping[str, T],
    their_residuals: Mapping[str, T],
    ops: TensorOps[T],
) -> None:
    """Copy tensors that match in name, shape and kind; bit by bit if stored in the same form."""
    for name in mine.keys() & theirs.keys():
        low, other = residuals.get(name), their_residuals.get(name)
        if not alike(mine[name], theirs[name]):
            continue
        if low is not None and other is not None and low.dtype == other.dtype:
            ops.overwrite(mine[name], theirs[name])
            ops.overwrite(low, other)
        else:
            ops.put(mine[name], low, ops.value_of(theirs[name], other))
