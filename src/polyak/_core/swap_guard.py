"""Swapping averages into live tensors and restoring the raw weights, even after an interrupt.

An interrupt may come between any two lines, also while another is handled. So the restoring is prepared
before any tensor is changed, may run twice, and is completed at once when interrupted; an average that stays
in a model all the same is taken out by the next method that finds it.
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
    """Names of tensors that were written or moved to other memory while they held an average."""

    parameters: Sequence[str]
    buffers: Sequence[str]
    replaced: Sequence[str]

    def complain(self, track: str, error: BaseException | None) -> None:
        """Warn of the changes, or raise if parameters were written and the block itself did not raise.

        Raises:
            SwapError: parameters were written.
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
                "model.eval() first. polyak.update_batchnorm may write.",
                RuntimeWarning,
                stacklevel=4,
            )
        if self.replaced:
            warnings.warn(
                f"while the average {track!r} was in the model {_few(self.replaced)} got other memory (by "
                f".half(), .to() or an assignment). {back}, the average is unchanged, and the block's values "
                "are lost.",
                RuntimeWarning,
                stacklevel=4,
            )


NOTHING = Changed((), (), ())


def _few(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} other tensors" if len(names) > 1 else "")


class Swap(Protocol):
    """Swaps averages into live tensors and back; each framework has its own.

    It contains everything needed to restore, before any tensor is changed, and keeps the tensors alive.
    """

    @property
    def names(self) -> Mapping[int, str]:
        """The live tensors' names, by id."""
        ...

    def swap_in(self) -> None:
        """Put the averages into the tensors."""
        ...

    def swap_out(self) -> None:
        """Restore the raw weights, also after a partial ``swap_in``; twice is the same as once."""
        ...

    def note(self) -> None:
        """Record the tensors' current state as the expected one at the block's end."""
        ...

    def changed(self) -> Changed:
        """Changes of the tensors since the last ``note``."""
        ...


class Exchange:
    """An average in live tensors as long as a block is open.

    Args:
        swap: moves the tensors.
        track: the track's name.
        owner: the set of averages, by which an EMA recognises its own.
    """

    def __init__(self, swap: Swap, track: str = "average", owner: object = None) -> None:
        self.swap, self.names, self.track, self.owner = swap, swap.names, track, owner
        self._blocks: list[ref[Any]] = []  # weak: a block that was deleted without ending does not count

    def enter(self, block: object) -> None:
        """Swap the averages in, if they are not, until every block that entered has left or was deleted.

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
        """Restore the raw weights if no other block is open."""
        finished(partial(self._leave, block))

    def forget(self) -> None:
        """Drop the exchange: the tensors' current values are the raw weights."""
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


# Exchanges that are swapped in, or in progress; usually empty.
active_exchanges: list[Exchange] = []


class Block(Generic[ModelT]):
    """A context manager, and decorator, in which the model holds an average.

    Args:
        model: the value of ``with``.
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
        """The function, run in a new block at each call."""

        @wraps(function)
        def averaged(*args: P.args, **kwargs: P.kwargs) -> R:
            with Block(self._model, self._find):
                return function(*args, **kwargs)

        return averaged


def finished(act: Callable[[], object]) -> None:
    """Complete an action that can be repeated: an interrupt in its middle is raised afterwards."""
    try:
        act()
    except BaseException:
        act()
        raise


def exchange_in(ids: Collection[int], owner: object = None, collect: bool = False) -> Exchange | None:
    """The exchange active in one of these tensors, if any, the owner's own first.

    One that an interrupt left there is undone.

    Args:
        ids: of the tensors.
        owner: the caller's set of averages.
        collect: collect garbage first, since an interrupt's traceback may keep a block alive.
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
    """Accept writes to these tensors (ids) as intended, if they hold averages."""
    for exchange in active_exchanges:
        if not exchange.names.keys().isdisjoint(tensors):
            exchange.swap.note()


def refuse_swapped(names: Mapping[int, str]) -> None:
    """Refuse to swap an average into these tensors, names by id, while one of them holds another.

    Raises:
        SwapError: one does.
    """
    exchange = exchange_in(names, collect=True)
    if exchange is not None:
        taken = next(name for one, name in names.items() if one in exchange.names)
        raise SwapError(
            f"{taken} already holds another average: leave that block, or call its restore(), first."
        )
