"""A track's average as a module of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from polyak._core.change_detection import dicts_unchanged
from polyak._core.tensor_map import TensorMap
from polyak._core.tensors import T, TensorOps

ModelT = TypeVar("ModelT")


class AveragedModule(Generic[ModelT, T]):
    """A module on a track's tensors, and copies of the rest of the model.

    Averages and copied buffers share the EMA's memory and follow every update by themselves. Of frozen and
    excluded tensors the module has copies, refreshed when it is requested after a step or a write.

    Args:
        module: on ``tensors``.
        plan: the module's tensor map.
        tensors: the tensors it was built on, by name.
        follows: (copy, live) pairs.
        step: of the copies.
        ops: the framework's tensors.
    """

    def __init__(
        self,
        module: ModelT,
        plan: TensorMap[T],
        tensors: Mapping[str, T],
        follows: Sequence[tuple[T, T]],
        step: int,
        ops: TensorOps[T],
    ) -> None:
        self.module = module
        self._plan, self._tensors, self._follows, self._ops = plan, tensors, follows, ops
        self._seen: object = self._moment(step)

    def intact(self) -> bool:
        """Whether the module still holds these tensors: ``half()`` and merging adapters replace them."""
        lies = self._ops.on_one_memory
        pairs = [
            (e.live, self._tensors[name]) for name, e in self._plan.entries.items() if name in self._tensors
        ]
        return dicts_unchanged(self._plan.contents) and all(lies(mine, given) for mine, given in pairs)

    def sync_with_model(self, step: int) -> None:
        """Refresh the copies after a step or a new version of a live tensor.

        The version alone is not enough: ``tensor.data.add_()`` and BatchNorm's forward do not increment it.
        """
        now = self._moment(step)
        if now != self._seen:
            for copy, live in self._follows:
                self._ops.overwrite(copy, live)
            self._seen = now

    def forget(self) -> None:
        """Refresh the copies at the next use whatever the step: a state was loaded."""
        self._seen = None

    def _moment(self, step: int) -> tuple[int, list[int]]:
        return step, [self._ops.stamp(live) for _, live in self._follows]
