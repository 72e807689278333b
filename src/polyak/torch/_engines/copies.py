"""Copying many tensors in few calls."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's multi-tensor operations have no public names.

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Copies:
    """Tensors that follow others bit by bit.

    Args:
        pairs: (target, source), of the same shape each.
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        # torch copies tensors of one dtype and device in one call, and mixed ones in a call each.
        self._groups: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
        for target, source in pairs:
            kind = target.dtype, target.device, source.dtype, source.device
            targets, sources = self._groups.setdefault(kind, ([], []))
            targets.append(target)
            sources.append(source)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def run(self, non_blocking: bool = False) -> None:
        """Copy everything; ``non_blocking`` where a GPU writes to pinned memory by itself."""
        for targets, sources in self._groups.values():
            with torch.no_grad():  # in the loop: of an update that copies nothing it would be a tenth
                torch._foreach_copy_(targets, sources, non_blocking)
