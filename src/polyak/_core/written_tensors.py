"""The tensors that an update writes, checked for moves as the live ones are.

They can move in place: into shared memory, when they are sent to another process; with the storage that a
live tensor shares while it holds the average; by the user's ``.data``. An engine with stored addresses would
then write to memory that is no longer theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic

from polyak._core.change_detection import UnchangedCheck
from polyak._core.tensor_map import TensorMap
from polyak._core.tensors import T, TensorLike, TensorOps
from polyak.errors import PlanError


class WrittenTensors(Generic[T]):
    """Averages and copied buffers at their current addresses.

    Args:
        tensors: by their names in errors.
        ops: the framework's tensors.
    """

    def __init__(self, tensors: Mapping[str, T], ops: TensorOps[T]) -> None:
        self._tensors, self._ops = dict(tensors), ops
        self._forms = {name: _form(tensor) for name, tensor in tensors.items()}

    def unchanged_with(self, plan: TensorMap[T]) -> UnchangedCheck:
        """A check that neither the model's tensors nor these were moved or replaced."""
        return plan.unchanged(self._ops.unchanged_check([*plan.memories(), *self._tensors.values()]))

    def check(self) -> None:
        """Check that the tensors are still usable, at whatever addresses.

        Raises:
            PlanError: one has another shape or dtype, or no memory.
        """
        for name, tensor in self._tensors.items():
            if _form(tensor) != self._forms[name] or not self._ops.holds_values(tensor):
                lost = "" if self._ops.holds_values(tensor) else ", without the memory for it"
                dtype, shape = self._forms[name]
                raise PlanError(
                    f"{name} was {dtype} {shape} and is now {tensor.dtype} {tuple(tensor.shape)}{lost}: "
                    "something other than this EMA changed it. ema.reset() starts again from the model; "
                    "then a saved state can be loaded."
                )


def _form(tensor: TensorLike) -> tuple[object, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)
