"""Cloning a layer onto given tensors: its structure is copied, its tensors are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from paddle import Tensor, nn
from paddle.base.framework import EagerParamBase

from polyak._core.deepcopy import Copier
from polyak.paddle.tensor_map import NotAveraged, layers_of, stores_of, unwrap
from polyak.paddle.tensors import alias, duplicate, holds_values

LayerT = TypeVar("LayerT", bound=nn.Layer)


def clone_onto(layer: LayerT, tensors: Mapping[int, Tensor]) -> tuple[LayerT, list[tuple[Tensor, Tensor]]]:
    """A copy of ``layer`` in evaluation mode whose tensors are the given ones.

    Args:
        layer: any layer; wrappers of ``DataParallel`` or fleet are removed.
        tensors: the replacement of a live tensor, by its ``id``; other tensors, which are computed in each
            forward or plain attributes, are copied.

    Returns:
        A layer of the same classes, whose parameters need no gradient, and its (copy, original) pairs.

    Raises:
        PlanError: an attribute reaches the original.
    """
    copies: list[tuple[Tensor, Tensor]] = []
    layers = layers_of(layer)
    memo: dict[int, Any] = {id(one): None for one in layers if isinstance(one, NotAveraged)}
    layers = [one for one in layers if id(one) not in memo]
    for one in layers:
        inner = unwrap(one)
        memo.setdefault(id(inner), object.__new__(type(inner)))
        memo[id(one)] = memo[id(inner)]
        parameters, buffers, _ = stores_of(one)
        for t in (*parameters.values(), *buffers.values()):
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
    """A tensor of the live one's class on this memory."""
    if not (holds_values(memory) and memory.is_dense()):
        return memory  # no memory to share: cuDNN's dropout state before its first use
    if isinstance(live, EagerParamBase):
        return EagerParamBase.from_tensor(alias(memory), trainable=False)
    return alias(memory)
