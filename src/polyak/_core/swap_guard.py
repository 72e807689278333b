"""Averages in live tensors, and the way back, which is noted before the first of them is touched.

An interrupt may come between any two lines, while one is handled as well. So nothing here counts on being run
to its end: the way out can be gone twice, what is interrupted on it is finished at once, and what was left in
a model all the same is taken out by the next verb that comes upon it.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar
from weakref import ref

from polyak.errors import SwapError

ModelT = TypeVar("ModelT")
P = ParamSpec("P")
R = TypeVar("R")


class Changed(NamedTuple):
    """Tensors, by name, to which others wrote while an average was in them, or gave other memory."""

    parameters: Sequence[str]
    buffers: Sequence[str]
    replaced: Sequence[str]

    def complain(self, track: str, error: BaseException | None) -> None:
        """Say what happened, in an error if parameters were written to and the block raised nothing itself.

        Raises:
            SwapError: so it is.
        """
        back = "The raw weights are back as they were"
        if self.parameters:
            message = (
                f"while the average {track!r} was in the model something wrote to {_few(self.parameters)}. "
                f"{back}, but what was written is in the average where it shares the model's memory: load "
                "it from a file, or call ema.reset(). A schedule-free optimizer needs eval() before the "
                "block and train() after it; optimizer steps and load_state_dict belong outside of it too."
            )
            if error is None:
                raise SwapError(message)
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        elif self.buffers:
            warnings.warn(
                f"while the average {track!r} was in the model a forward pass in training mode, or something "
                f"else, wrote to {_few(self.buffers)}. {back}; the average keeps what was written. Call "
                "model.eval() first. polyak.update_batchnorm, which means to write, may.",
                RuntimeWarning,
                stacklevel=4,
            )
        if self.replaced:
            warnings.warn(
                f"while the average {track!r} was in the model {_few(self.replaced)} got other memory (by "
                f".half(), .to() or an assignment). {back}, the average is unchanged, and what the block put "
                "there is gone.",
                RuntimeWarning,
                stacklevel=4,
            )


NOTHING = Changed((), (), ())


def _few(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} other tensors" if len(names) > 1 else "")


class Swap(Protocol):
    """Moves averages into live tensors and back; each framework has its own.

    It is made with all that the way back takes, before anything is touched, and keeps the tensors alive.
    """

    @property
    def names(self) -> Mapping[int, str]:
        """The live tensors' names, by id."""
        ...

    def swap_in(self) -> None:
        """The averages into the tensors."""
        ...

    def swap_out(self) -> None:
        """The raw weights into the tensors, however far the averages came; twice is the same as once."""
        ...

    def note(self) -> None:
        """What the tensors hold now is what they are to hold at the block's end."""
        ...

    def changed(self) -> Changed:
        """What somebody else did to the tensors since the last ``note``."""
        ...


class Exchange:
    """An average in live tensors for as long as some block is open.

    Args:
        swap: moves it.
        track: whose average it is.
        owner: the averages it was made of, by which an EMA knows its own.
    """

    def __init__(self, swap: Swap, track: str = "average", owner: object = None) -> None:
        self.swap, self.names, self.track, self.owner = swap, swap.names, track, owner
        self._blocks: list[ref[Any]] = []  # weak: a block that is gone without having ended is none

    def enter(self, block: object) -> None:
        """Put the averages in, unless they are, until every block that entered has left or is gone.

        Raises:
            SwapError: another average is in one of the tensors.
        """
        if self not in active_exchanges:
            refuse_swapped(self.names)
        self._blocks.append(ref(block, self._leave))
        if self not in active_exchanges:
            active_exchanges.append(self)
            self.swap.swap_in()
            self.swap.note()

    def is_last(self, block: object) -> bool:
        """Whether no other block is open."""
        return not [other for other in self._blocks if other() not in (None, block)]

    def leave(self, block: object) -> None:
        """Take the averages out if no other block is open."""
        finished(partial(self._leave, block))

    def forget(self) -> None:
        """Whatever the tensors hold now is theirs."""
        active_exchanges[:] = [other for other in active_exchanges if other is not self]
        self._blocks = []

    @property
    def abandoned(self) -> bool:
        """Whether no block is open."""
        return not [block for block in self._blocks if block() is not None]

    def _leave(self, gone: object) -> None:
        self._blocks = [block for block in self._blocks if block() not in (None, gone)]
        if not self._blocks and self in active_exchanges:
            self.swap.swap_out()
            self.forget()


# Those whose averages are in live tensors, or on their way; usually empty.
active_exchanges: list[Exchange] = []


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
            self._leave()
            raise

    def __exit__(self, kind: object = None, error: BaseException | None = None, trace: object = None) -> None:
        exchange, changed = self._exchange, NOTHING
        if exchange is None:
            return
        try:
            if exchange.is_last(self):
                changed = exchange.swap.changed()
        finally:
            self._leave()
        if changed != NOTHING:
            changed.complain(exchange.track, error)

    def _leave(self) -> None:
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


def exchange_in(ids: Collection[int], owner: object = None, collect: bool = False) -> Exchange | None:
    """The average in one of these tensors, if any, the owner's own first.

    One that an interrupt left there is taken out.

    Args:
        ids: of the tensors.
        owner: the averages of who asks.
        collect: make sure that an interrupt's traceback is not all that keeps a block.
    """
    found: list[Exchange] = []
    for exchange in tuple(active_exchanges):
        if not exchange.names.keys().isdisjoint(ids):
            if collect and not exchange.abandoned:
                gc.collect()
            if exchange.abandoned:
                exchange.leave(None)
            else:
                found.append(exchange)
    mine = [exchange for exchange in found if exchange.owner is owner]
    return (mine or found or [None])[0]


def accept(tensors: Collection[int]) -> None:
    """What was written to these tensors (ids) was meant, should averages be in them."""
    for exchange in active_exchanges:
        if not exchange.names.keys().isdisjoint(tensors):
            exchange.swap.note()


def refuse_swapped(names: Mapping[int, str]) -> None:
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
