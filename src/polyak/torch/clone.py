"""A second module on given tensors: the structure is copied, not one tensor is.

``copy.deepcopy`` does this when its memo already knows every tensor, but it fails as a whole on the
first attribute that refuses to be copied (a lock, a process group, the computed weight of
``weight_norm``). So each module's attributes are deep-copied one by one, all with one memo, and those
that refuse are shared with the original.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from polyak.core.copying import copied
from polyak.errors import PlanError
from polyak.torch.plan import unwrap

# Where the classes are that compute through a graph of nodes. Nodes hold the live layers, and no copy of a
# module's attributes reaches them.
_BY_NODES = "keras.src.models.functional"


def clone_onto(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy of ``model`` in evaluation mode whose tensors are the given ones.

    Args:
        model: any module; wrappers (DDP, ``torch.compile``) are taken off.
        tensors: ``id`` of each live tensor to the tensor that takes its place; no tensor is copied.

    Returns:
        A module of the same classes. Its parameters need no gradient.

    Raises:
        PlanError: a module's ``forward`` was replaced by a function bound to the original, or it is of Keras
            and would compute with the original's layers.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        _refuse_nodes(module)
        inner = unwrap(module)
        if id(inner) not in memo:
            memo[id(inner)] = object.__new__(inner.__class__)  # a class's own __new__ may ask for arguments
        memo[id(module)] = memo[id(inner)]
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            given = tensors[id(tensor)].detach()  # the same memory, so that the twin's flags are its own
            memo[id(tensor)] = (
                nn.Parameter(given, requires_grad=False) if isinstance(tensor, nn.Parameter) else given
            )
    for module in model.modules():
        if unwrap(module) is module:
            _fill(memo[id(module)], module, memo)
    return memo[id(model)].eval()


def _refuse_nodes(module: nn.Module) -> None:
    if any(base.__module__ == _BY_NODES for base in type(module).__mro__):
        raise PlanError(
            f"the Keras {type(module).__name__} computes with its live layers, also as a copy, so the "
            "average cannot have a module of its own. Evaluate with average_parameters() instead."
        )


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any]) -> None:
    for key, value in module.__dict__.items():
        if key == "_compiled_call_impl":  # of module.compile(); it closes over the original's weights
            twin.__dict__[key] = None
        elif key != "forward" or not _closes_over(module, value):
            twin.__dict__[key] = _copied(value, memo)


def _closes_over(module: nn.Module, forward: Any) -> bool:
    """Whether this forward, set on the instance, is the class's own, wrapped around the original's weights.

    So does ``model.forward = torch.compile(model.forward)``; the twin then takes the class's. Copying a
    function copies no closure, so any other closure would have the twin compute with the live weights.
    """
    if not isinstance(forward, FunctionType) or forward.__closure__ is None:
        return False
    inner = inspect.unwrap(forward)
    if getattr(inner, "__func__", inner) is inspect.unwrap(type(module).forward):
        return True
    raise PlanError(
        f"{type(module).__name__}.forward was replaced by a function that may hold the live weights, so the "
        "average cannot have a module of its own. Evaluate with average_parameters() instead."
    )


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return memo.get(
            id(value), value.detach()
        )  # e.g. the weight that weight_norm computes before each call
    return copied(value, memo)
