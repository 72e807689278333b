"""Averages in live tensors, and the way back, which is noted before the first of them is touched.

An interrupt may come between any two lines, while one is handled as well. So nothing here counts on being run
to its end: the way out can be gone twice, what is interrupted on it is finished at once, and what was left in
a model all the same is taken out by the next verb that comes upon it.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar
from weakref import ref

from polyak.errors import SwapError

ModelT = TypeVar("ModelT")
P = ParamSpec("P")
R = TypeVar("R")


class Exchange(ABC):
    """An average that goes into live tensors for a while.

    It is made with all that the way back takes, before anything is touched, and keeps the tensors alive.

    Args:
        names: of the live tensors, by id.
        track: whose average it is.
        owner: the averages it was made of, by which an EMA knows its own.
    """

    def __init__(self, names: Mapping[int, str], track: str = "average", owner: object = None) -> None:
        self.names, self.track, self.owner = names, track, owner
        self._blocks: list[ref[Any]] = []  # weak: a block that is gone without having ended is none

    @abstractmethod
    def put_in(self) -> None:
        """The averages into the tensors."""

    @abstractmethod
    def take_out(self) -> None:
        """The raw weights into the tensors, however far the averages came; twice is the same as once."""

    def enter(self, block: object) -> None:
        """Put the averages in, unless they are, until every block that entered has left or is gone.

        Raises:
            SwapError: another average is in one of the tensors.
        """
        if self not in _live:
            refuse_held(self.names)
        self._blocks.append(ref(block, self._leave))
        if self not in _live:
            _live.append(self)
            self.put_in()

    def leave(self, block: object) -> None:
        """Take the averages out if no other block is open."""
        finished(partial(self._leave, block))

    def forget(self) -> None:
        """Whatever the tensors hold now is theirs."""
        _live[:] = [other for other in _live if other is not self]
        self._blocks = []

    @property
    def abandoned(self) -> bool:
        """Whether no block is open."""
        return not [block for block in self._blocks if block() is not None]

    def _leave(self, gone: object) -> None:
        self._blocks = [block for block in self._blocks if block() not in (None, gone)]
        if not self._blocks and self in _live:
            self.take_out()
            self.forget()


_live: list[Exchange] = []  # averages in live tensors, or on their way


class Block(Generic[ModelT]):
    """``with`` it, and the model holds an average meanwhile; a function can be decorated with it.

    Args:
        model: what ``with`` gives.
        exchange: the exchange to enter.
    """

    def __init__(self, model: ModelT, exchange: Callable[[], Exchange]) -> None:
        self._model, self._find = model, exchange
        self._exchange: Exchange | None = None

    def __enter__(self) -> ModelT:
        if self._exchange is not None:
            raise SwapError(
                "this average_parameters() block is open already: call average_parameters() again."
            )
        try:
            self._exchange = self._find()
            self._exchange.enter(self)
            return self._model
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        if self._exchange is not None:
            self._exchange.leave(self)
            self._exchange = None

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, run in a block of its own each time."""

        @wraps(function)
        def averaged(*args: P.args, **kwargs: P.kwargs) -> R:
            with Block(self._model, self._find):
                return function(*args, **kwargs)

        return averaged


def finished(act: Callable[[], object]) -> None:
    """Do what can be done twice, to its end: an interrupt in the middle of it is raised after that."""
    try:
        act()
    except BaseException:
        act()
        raise


def none_held() -> bool:
    """Whether no live tensor at all holds an average, which is so at most times and costs nothing to ask."""
    return not _live


def exchange_in(ids: Collection[int], collect: bool = False) -> Exchange | None:
    """The average in one of these tensors (ids), if any; one that an interrupt left there is taken out."""
    for exchange in tuple(_live):
        if not exchange.names.keys().isdisjoint(ids):
            if collect and not exchange.abandoned:
                gc.collect()  # an interrupt's traceback may hold a block that is long gone
            if not exchange.abandoned:
                return exchange
            exchange.leave(None)
    return None


def refuse_held(names: Mapping[int, str]) -> None:
    """Refuse to put an average into these tensors, names by id, while another is in one of them.

    Raises:
        SwapError: it is.
    """
    exchange = exchange_in(names, collect=True)
    if exchange is not None:
        taken = next(name for one, name in names.items() if one in exchange.names)
        raise SwapError(
            f"{taken} already holds another average: leave that block, or call its restore(), first."
        )
