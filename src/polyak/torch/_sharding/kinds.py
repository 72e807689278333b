"""What a model is made of, without importing what it does not use.

A DTensor or a module under ``fully_shard`` exists only if their modules were imported, which takes half as
long as importing torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether this is a DTensor, of which this process holds a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def fsdp_modules(modules: Iterable[nn.Module]) -> list[FSDPModule]:
    """Those modules to which ``fully_shard`` was applied; public since torch 2.6."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind: type[FSDPModule] | None = getattr(module, "FSDPModule", None)
    return [] if kind is None else [one for one in modules if isinstance(one, kind)]
