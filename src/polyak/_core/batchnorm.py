"""Recomputing BatchNorm statistics, for both frameworks; see ``polyak.update_batchnorm``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from polyak._core.swap_guard import accept
from polyak._core.tensors import T, TensorOps
from polyak._type_guards import is_mapping, is_sequence
from polyak.errors import ConfigError

BatchT = TypeVar("BatchT")


class Module(Protocol):
    """What modules and layers have in common."""

    training: bool

    def train(self) -> object: ...

    def eval(self) -> object: ...


@dataclass(frozen=True)
class Norms(Generic[T]):
    """The BatchNorms of a model.

    statistics: their tensors, which forward passes write in place.
    cumulative: a context in which these become the mean over all forward passes.
    """

    modules: Sequence[Module]
    statistics: Sequence[T]
    cumulative: AbstractContextManager[None]


def measure(
    norms: Norms[T],
    model: Module,
    modules: Iterable[Module],
    loader: Iterable[BatchT],
    run: Callable[[BatchT], object],
    ops: TensorOps[T],
) -> None:
    """Run the loader with all of ``modules`` but the norms in evaluation mode.

    Raises:
        ConfigError: the loader is empty. On this and any other exception the statistics are restored.
    """
    modes = [(module, module.training) for module in modules]
    before = [(tensor, ops.duplicate(tensor)) for tensor in norms.statistics]
    try:
        model.eval()
        for norm in norms.modules:
            norm.train()
        with norms.cumulative:
            empty = True
            for batch in loader:
                run(batch)
                empty = False
        if empty:
            raise ConfigError(
                "loader gave no batch, so there is nothing to measure (a generator can be used only once). "
                "The statistics are unchanged."
            )
    except BaseException:
        for tensor, old in before:
            ops.overwrite(tensor, old)
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        accept([id(tensor) for tensor in norms.statistics])


def pass_batch(model: Callable[..., object], batch: object, move: Callable[[Any], Any]) -> object:
    """Pass a mapping as keyword arguments, the first element of a list or tuple, anything else as it is."""
    if is_mapping(batch):
        return model(**{key: move(value) for key, value in batch.items()})
    return model(move(batch[0] if is_sequence(batch) else batch))
