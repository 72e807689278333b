"""What a model is made of, without importing what it does not use.

A DTensor or a module under ``fully_shard`` exists only if their modules were imported, which takes half as
long as importing torch. Everything else of this folder is for averages in several processes; it is imported
where one is met.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from typing_extensions import TypeIs

from polyak.errors import PlanError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# Where DTensor is: before torch 2.5 its public module held the functions of tensor parallelism alone.
_HOME = f"torch.distributed.{'tensor' if TorchVersion(torch.__version__) >= '2.5' else '_tensor'}"


def check_torch(what: str) -> None:
    """Refuse what is sharded on a torch in which ``fully_shard`` is not public, where nothing of it was run.

    Raises:
        PlanError: it is older than 2.6.
    """
    if TorchVersion(torch.__version__) < "2.6":
        raise PlanError(
            f"{what}: averages are sharded from torch 2.6 on, and this is {torch.__version__}. Average a "
            "model that is whole in each process, or install a newer torch."
        )


def is_dtensor(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether this is a DTensor, of which this process holds a part."""
    module = sys.modules.get(_HOME)
    return module is not None and isinstance(tensor, module.DTensor)


def fsdp_modules(modules: Iterable[nn.Module]) -> list[FSDPModule]:
    """Those modules to which ``fully_shard`` was applied; public since torch 2.6."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind: type[FSDPModule] | None = getattr(module, "FSDPModule", None)
    return [] if kind is None else [one for one in modules if isinstance(one, kind)]
