"""The interfaces a framework implements for ``AverageSet``: four parts with one job each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from polyak._core.averaged_module import ModelT
from polyak._core.swap_guard import Swap
from polyak._core.tensor_map import Selection, TensorEntry, TensorMap
from polyak._core.tensors import T, TensorOps
from polyak._core.track import Track
from polyak._core.updater import Skipped, Updater


class Models(Protocol[ModelT, T]):
    """Reads and copies whole models."""

    @property
    def ops(self) -> TensorOps[T]:
        """The framework's tensor operations."""
        ...

    def tensor_map(
        self, model: ModelT, selection: Selection, averaged: Sequence[TensorEntry[T]], /
    ) -> TensorMap[T]:
        """The live model's tensors; those ``averaged`` so far stay averaged, even if frozen or renamed."""
        ...

    def map_of_other(self, model: ModelT, selection: Selection, /) -> TensorMap[T]:
        """The tensors of a copy of the live model, or of another one."""
        ...

    def in_state(self, entry: TensorEntry[T], tensor: T, /) -> T:
        """A tensor with the layout of ``entry`` as it is in a state: with the shape of the whole."""
        ...

    def from_state(self, entry: TensorEntry[T], tensor: T, /) -> T:
        """This process's part of a tensor of a state, in whatever layout."""
        ...

    def copy_over(self, source: TensorEntry[T], tensor: T, target: TensorEntry[T], /) -> None:
        """Overwrite another entry's live tensors with a tensor that has the layout of ``source``."""
        ...

    def clone(self, model: ModelT, tensors: Mapping[int, T], /) -> tuple[ModelT, list[tuple[T, T]]]:
        """A copy of a model in evaluation mode, on the tensors given by the ``id`` of the live ones.

        Returns:
            The copy, and (copy, live) pairs of further tensors it needs.

        Raises:
            PlanError: it cannot be copied.
        """
        ...

    def extra_states(self, model: ModelT, /) -> dict[str, T]:
        """What modules save besides parameters and buffers."""
        ...

    def class_name(self, model: ModelT, /) -> str:
        """The model's class, without wrappers."""
        ...


class TensorStore(Protocol[T]):
    """Creates the tensors of averages and copied buffers."""

    def initial(self, live: T, /) -> tuple[T, T | None]:
        """An initial average equal to θ, and its residual."""
        ...

    def on_device(self, average: T, live: T, copy: bool, /) -> T:
        """The existing average on this entry's device; always a copy if ``copy``."""
        ...

    def buffer(self, live: T, previous: T | None, /) -> T:
        """The current values of a copied buffer, in the memory of its previous copy if that fits."""
        ...

    def duplicate(self, live: T, /) -> T:
        """A copy of a tensor that is neither averaged nor copied, on the averages' device."""
        ...


class UpdaterFactory(Protocol[T]):
    """Makes an ``Updater`` for each state of the tensor map. Copies and pickles contain its settings only."""

    def make(
        self,
        averaged: Sequence[TensorEntry[T]],
        copied: Sequence[TensorEntry[T]],
        copies: Mapping[str, T],
        tracks: Sequence[Track[T]],
        skipped: Skipped,
        /,
    ) -> Updater:
        """An updater of these entries' averages in all tracks.

        Args:
            averaged: entries that each track has an average of.
            copied: buffers that are copied.
            copies: their copies, by name.
            tracks: all tracks.
            skipped: the counts to start from.
        """
        ...

    def record(self, plan: TensorMap[T], /) -> None:
        """Record an update into the graph being captured; only if ``updater.capturing()``."""
        ...


class Swapper(Protocol[T]):
    """Exchanges the live model's tensors for averages."""

    def swap(
        self, plan: TensorMap[T], track: str, averages: Mapping[str, T], eval_tensors: Mapping[str, T], /
    ) -> Swap:
        """Prepare to swap a track's averages into the live model and out again; changes nothing yet.

        Args:
            plan: the live model's tensors.
            track: the track's name.
            averages: its averages and the copied buffers.
            eval_tensors: the same, two-part averages joined where they have to be cast anyway.
        """
        ...

    def forget(self) -> None:
        """Drop preparations for the previous tensors."""
        ...
