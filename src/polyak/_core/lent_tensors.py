"""The tensors that ``state_dict`` handed out, into which another program may load.

``torch.distributed.checkpoint`` writes a checkpoint into them, one by one, and calls ``load_state_dict``. If
it fails between the two it tells nobody, and the averages hold two states; the counts of writes show that. A
second ``state_dict`` is not refused, because loading again begins with it: a save can still write such
averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from polyak._core.tensors import T, TensorOps
from polyak.errors import CheckpointError


class LentTensors(Generic[T]):
    """Averages of parameters as they were when they were handed out; buffers are written by forward passes.

    Args:
        tensors: handed out now.
        ops: the framework's tensors.
    """

    def __init__(self, tensors: Sequence[T], ops: TensorOps[T]) -> None:
        self._tensors, self._ops = tensors, ops
        self._versions = [ops.version(tensor) for tensor in tensors]

    @property
    def written(self) -> bool:
        """Whether one was written since."""
        return [self._ops.version(tensor) for tensor in self._tensors] != self._versions

    def check(self, verb: str) -> None:
        """Check that none was.

        Raises:
            CheckpointError: one was.
        """
        if self.written:
            raise CheckpointError(
                f"{verb}: after state_dict() something wrote to the averages, and no load_state_dict() "
                "accepted it. A checkpoint that could not be loaded to its end leaves them like this, partly "
                "of one state and partly of another. Load again, or start from the model with ema.reset(). "
                "If you wrote to them yourself: ema.load_state_dict(ema.state_dict())."
            )
