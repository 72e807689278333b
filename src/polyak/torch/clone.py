"""Cloning a module onto given tensors: its structure is copied, its tensors are not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

from polyak._core.deepcopy import Copier
from polyak.errors import PlanError
from polyak.torch._sharding.kinds import is_dtensor
from polyak.torch.store import outside_inference_mode
from polyak.torch.tensor_map import NotAveraged, modules_of, unwrap

# Module of the classes that compute through a graph of nodes. Nodes hold the live layers, which copying a
# module's attributes does not replace.
_BY_NODES = "keras.src.models.functional"


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def clone_onto(model: ModuleT, tensors: Mapping[int, Tensor]) -> tuple[ModuleT, list[tuple[Tensor, Tensor]]]:
    """A copy of ``model`` in evaluation mode whose tensors are the given ones.

    Args:
        model: any module; wrappers (DDP, ``torch.compile``) are removed.
        tensors: the replacement of each live tensor, by its ``id``; no tensor is copied.

    Returns:
        A module of the same classes, whose parameters need no gradient, and (copy, original) pairs of tensors
        that are plain attributes.

    Raises:
        PlanError: an attribute reaches the original, or a Keras module would compute with the original's
            layers.
    """
    modules = modules_of(model)
    memo: dict[int, Any] = {id(module): None for module in modules if isinstance(module, NotAveraged)}
    modules = [module for module in modules if id(module) not in memo]
    for module in modules:
        _refuse_nodes(module)
        inner = unwrap(module)
        if id(inner) not in memo:
            memo[id(inner)] = object.__new__(inner.__class__)  # the class's own __new__ may require arguments
        memo[id(module)] = memo[id(inner)]
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            memo[id(tensor)] = _as_class_of(tensor, tensors[id(tensor)])
    copier = Copier(memo, Tensor, _copied)
    for module in modules:
        if unwrap(module) is module:
            copier.fill(
                memo[id(module)], module, [key for key in module.__dict__ if not _compiled(module, key)]
            )
    clone: ModuleT = memo[id(model)]
    with suppress(NotImplementedError):  # torch.export's have no modes
        clone.eval()
    return clone, copier.tensors


def _as_class_of(live: Tensor, memory: Tensor) -> Tensor:
    """A tensor on this memory, a parameter if the live one is, with its own flags."""
    if is_dtensor(live):
        from polyak.torch._sharding.layout import as_dtensor, piece_of  # see ``_sharding.kinds``

        memory = as_dtensor(piece_of(live, "a tensor"), memory)
    if not isinstance(live, nn.Parameter):
        return memory.detach()
    if type(live) is not nn.Parameter and type(memory) is type(live):  # a copy of a parameter subclass
        return memory.requires_grad_(False)
    return nn.Parameter(memory.detach(), requires_grad=False)


def _refuse_nodes(module: nn.Module) -> None:
    if any(base.__module__ == _BY_NODES for base in type(module).__mro__):
        raise PlanError(
            f"the Keras {type(module).__name__} computes with its live layers, also as a copy, so the "
            "average cannot have a module of its own. Evaluate with average_parameters() instead."
        )


def _compiled(module: nn.Module, key: str) -> bool:
    """Whether this attribute is a compiled version of the original, which the class's method replaces.

    ``module.compile()`` and ``module.forward = torch.compile(module.forward)`` leave one.
    """
    if key == "_compiled_call_impl":
        return True
    value = module.__dict__[key]
    if key != "forward" or not isinstance(value, FunctionType) or value.__closure__ is None:
        return False
    inner = inspect.unwrap(value)
    return getattr(inner, "__func__", inner) is inspect.unwrap(type(module).forward)


def _copied(tensor: Tensor) -> Tensor:
    """A copy of a tensor attribute, e.g. the weight that weight_norm computes before each call."""
    with outside_inference_mode():
        return copy.deepcopy(tensor) if tensor.is_leaf else tensor.detach().clone()
