"""A second module on given tensors: the structure is copied, not one tensor is.

``copy.deepcopy`` does this when its memo already knows every tensor, but it fails as a whole on the
first attribute that refuses to be copied (a lock, a process group, the computed weight of
``weight_norm``). So each module's attributes are deep-copied one by one, all with one memo, and those
that refuse are shared with the original.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from polyak.torch.plan import unwrap


def clone_onto(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy of ``model`` in evaluation mode whose tensors are the given ones.

    Args:
        model: any module; wrappers (DDP, ``torch.compile``) are taken off.
        tensors: ``id`` of each live tensor to the tensor that takes its place; no tensor is copied.

    Returns:
        A module of the same classes. Its parameters need no gradient.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        inner = unwrap(module)
        if id(inner) not in memo:
            memo[id(inner)] = inner.__class__.__new__(inner.__class__)
        memo[id(module)] = memo[id(inner)]
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            given = tensors[id(tensor)]
            own = isinstance(tensor, nn.Parameter) and given is not tensor
            memo[id(tensor)] = nn.Parameter(given, requires_grad=False) if own else given
    for module in model.modules():
        if unwrap(module) is module:
            _fill(memo[id(module)], module, memo)
    return memo[id(model)].eval()


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any]) -> None:
    for key, value in module.__dict__.items():
        # A compiled call (module.compile()) closes over the original's weights.
        twin.__dict__[key] = None if key == "_compiled_call_impl" else _copied(value, memo)


class _Scratch(dict[int, Any]):
    """A memo on top of another, so that what a failed copy left behind can be dropped."""

    def __init__(self, known: dict[int, Any]) -> None:
        super().__init__()
        self._known = known

    def get(self, key: int, default: Any = None) -> Any:
        return super().get(key, self._known.get(key, default))

    def __missing__(self, key: int) -> Any:
        return self._known[key]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return memo.get(
            id(value), value.detach()
        )  # e.g. the weight that weight_norm computes before each call
    scratch = _Scratch(memo)
    try:
        twin = copy.deepcopy(value, scratch)
    except Exception:  # third-party attributes refuse in every way there is
        return value
    memo.update(scratch)
    return twin
