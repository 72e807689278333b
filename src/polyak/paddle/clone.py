"""A second layer on given tensors: the structure is copied, not one tensor is.

Attribute by attribute, because ``copy.deepcopy`` of a whole layer fails with the first attribute that
refuses (a lock, a process group); those that refuse are shared with the original.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from paddle import Tensor, nn
from paddle.base.framework import EagerParamBase

from polyak.core.copying import copied
from polyak.paddle.plan import unwrap
from polyak.paddle.tensors import alias, holds_values


def clone_onto(layer: nn.Layer, tensors: Mapping[int, Tensor]) -> nn.Layer:
    """A copy of ``layer`` in evaluation mode whose tensors are the given ones.

    Args:
        layer: any layer; what ``DataParallel`` or fleet put around it is taken off.
        tensors: ``id`` of a live tensor to the tensor that takes its place; the others are shared.

    Returns:
        A layer of the same classes. Its parameters need no gradient.
    """
    memo: dict[int, Any] = {}
    layers = layer.sublayers(include_self=True)
    for one in layers:
        inner = unwrap(one)
        memo.setdefault(id(inner), object.__new__(type(inner)))
        memo[id(one)] = memo[id(inner)]
        own = cast("list[Tensor | None]", [*one._parameters.values(), *one._buffers.values()])
        memo |= {id(t): _twin(t, tensors.get(id(t), t)) for t in own if t is not None}
    for one in layers:
        if unwrap(one) is one:
            memo[id(one)].__dict__.update({key: copied(value, memo) for key, value in vars(one).items()})
    memo[id(layer)].eval()
    return memo[id(layer)]


def _twin(live: Tensor, given: Tensor) -> Tensor:
    """Of the live tensor's class, on the memory of the given one."""
    if not (holds_values(given) and given.is_dense()):
        return given  # has no memory that could be shared: cuDNN's dropout state before its first use
    if isinstance(live, EagerParamBase):
        return EagerParamBase.from_tensor(alias(given), trainable=False)
    return alias(given)
