"""A second layer on given tensors: the structure is copied, and not one of the layer's own tensors is."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from paddle import Tensor, nn
from paddle.base.framework import EagerParamBase

from polyak._core.deepcopy import Copier
from polyak.paddle.tensor_map import unwrap
from polyak.paddle.tensors import alias, duplicate, holds_values

LayerT = TypeVar("LayerT", bound=nn.Layer)


def clone_onto(layer: LayerT, tensors: Mapping[int, Tensor]) -> tuple[LayerT, list[tuple[Tensor, Tensor]]]:
    """A copy of ``layer`` in evaluation mode whose tensors are the given ones.

    Args:
        layer: any layer; what ``DataParallel`` or fleet put around it is taken off.
        tensors: ``id`` of a live tensor to the tensor that takes its place; the others, which are computed in
            each forward or plain attributes, are copied.

    Returns:
        A layer of the same classes, whose parameters need no gradient, and pairs of its copies with what they
        are of.

    Raises:
        PlanError: something on a layer leads to the original.
    """
    memo: dict[int, Any] = {}
    copies: list[tuple[Tensor, Tensor]] = []
    layers = layer.sublayers(include_self=True)
    for one in layers:
        inner = unwrap(one)
        memo.setdefault(id(inner), object.__new__(type(inner)))
        memo[id(one)] = memo[id(inner)]
        own = cast("list[Tensor | None]", [*one._parameters.values(), *one._buffers.values()])
        for t in own:
            if t is not None and id(t) in tensors:
                memo[id(t)] = _as_class_of(t, tensors[id(t)])
            elif t is not None and id(t) not in memo:
                memo[id(t)] = _as_class_of(t, duplicate(t))
                copies.append((memo[id(t)], t))
    copier = Copier(memo, Tensor, duplicate)
    for one in layers:
        if unwrap(one) is one:
            copier.fill(memo[id(one)], one, vars(one))
    memo[id(layer)].eval()
    return memo[id(layer)], copies + copier.tensors


def _as_class_of(live: Tensor, memory: Tensor) -> Tensor:
    """Of the live tensor's class, on the memory of the given one."""
    if not (holds_values(memory) and memory.is_dense()):
        return memory  # has no memory that could be shared: cuDNN's dropout state before its first use
    if isinstance(live, EagerParamBase):
        return EagerParamBase.from_tensor(alias(memory), trainable=False)
    return alias(memory)
