"""Writing an average of which several processes hold pieces: what a framework implements for it.

The first of the processes, rank 0 of the average, writes; every one of them calls the same method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from polyak._core.agreement import Report
from polyak._core.tensors import T, TensorLike
from polyak.errors import CheckpointError, PolyakError

ValueT = TypeVar("ValueT")
JudgementT = TypeVar("JudgementT")
T_co = TypeVar("T_co", bound=TensorLike, covariant=True)


@dataclass(frozen=True)
class Piece(Generic[T]):
    """The part of a sharded tensor that this process holds: a box of the whole.

    tensor: the values of the box.
    offset: of the box in the whole tensor.
    whole: the shape of the whole tensor.
    """

    tensor: T
    offset: tuple[int, ...]
    whole: tuple[int, ...]


@dataclass(frozen=True)
class Load(Generic[T]):
    """What a rank brings to a file.

    tensors: its pieces, by their names in the file.
    report: of them.
    check: raises CheckpointError if they were changed since they were looked up.
    """

    tensors: Mapping[str, T]
    report: Report
    check: Callable[[], None]


class Stream(Protocol[T_co]):
    """The pieces of one file on their way to rank 0."""

    def rows(self, name: str, /) -> Iterator[T_co]:
        """A whole tensor on rank 0, as blocks of rows in host memory; each is overwritten by the next."""
        ...

    @property
    def squares(self) -> tuple[float, float]:
        """On rank 0, the sums of the pieces' squares; see ``Held``."""
        ...

    def write(self, write: Callable[[Callable[[], None]], None], /) -> None:
        """Write the file: on rank 0 call ``write(confirm)``, elsewhere serve it until it has ended.

        Args:
            write: takes the function to call before the old file is replaced.

        Raises:
            CheckpointError: a rank was lost, tensors changed meanwhile, or rank 0 cannot write.
        """
        ...


class Ranks(Protocol[T]):
    """The processes that hold pieces of one average."""

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0 of the average."""
        ...

    def agree(
        self,
        mine: Callable[[], ValueT],
        judge: Callable[[dict[int, ValueT]], JudgementT],
        lost: type[PolyakError] = CheckpointError,
        /,
    ) -> JudgementT:
        """Every rank's value goes to rank 0, and its judgement on all of them back to each.

        Args:
            mine: makes this rank's value. An exception of one rank is raised by all.
            judge: called on rank 0 with the values by rank; its exceptions are raised by all, too.
            lost: the error to raise where a rank was lost.

        Returns:
            The judgement; both are anything that JSON can write.
        """
        ...

    def stream(self, load: Callable[[], Load[T]], /) -> Stream[T]:
        """Begin a file: every rank says what it brings, and rank 0 whether it fits together.

        Args:
            load: makes this rank's part. If it raises on one rank, no rank waits for it.

        Raises:
            CheckpointError: a rank was lost, or has another step or other tensors.
            PolyakError: the error of another rank.
        """
        ...
