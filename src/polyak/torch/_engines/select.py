"""Selecting the engine of each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import torch
from torch import Tensor

from polyak._kernel import NO_KERNEL, native, why_not
from polyak._kernel.pair import describe as describe_engine
from polyak.errors import ConfigError
from polyak.torch._engines.base import Engine, Pair, is_dense
from polyak.torch._engines.blocked import Blocked
from polyak.torch._engines.foreach import Foreach

if TYPE_CHECKING:
    from types import ModuleType

    from polyak.torch._engines.triton import Triton

_NO_TRITON = "triton 3.2 or newer is not installed: it comes with torch 2.6, or pip install -U triton"

EngineName: TypeAlias = Literal["auto", "foreach", "blocked", "native", "triton"]
NAMES: tuple[EngineName, ...] = ("auto", "foreach", "blocked", "native", "triton")


@cache
def load_triton() -> ModuleType | None:
    """The engine on Triton, imported when a tensor is on a GPU: importing it takes long."""
    try:
        from polyak.torch._engines import triton
    except ImportError:
        return None
    return triton


def check_engine(preferred: EngineName) -> None:
    """Refuse an engine that does not exist or cannot run here.

    Raises:
        ConfigError: the message explains how to get it.
    """
    if preferred not in NAMES:
        raise ConfigError(f"engine={preferred!r}: must be one of {', '.join(NAMES)}.")
    if preferred == "native" and native is None:
        raise ConfigError(f'engine="native": {NO_KERNEL}.')
    if preferred == "triton" and load_triton() is None:
        raise ConfigError(f'engine="triton": {_NO_TRITON}.')


def engine_for(pair: Pair, preferred: EngineName, skip: bool, concurrent: bool = False) -> EngineName:
    """The preferred engine's name if it supports the pair; otherwise that of the fastest that does.

    Args:
        pair: θ and its averages.
        preferred: an engine, or "auto".
        skip: elements that cannot be stored are skipped.
        concurrent: updates run beside other kernels; Triton has a variant for each case.

    Raises:
        ConfigError: "triton" is preferred and does not run on the pair's device.
    """
    able: list[EngineName] = []
    if _triton_runs(pair, preferred, skip, concurrent):
        able.append("triton")
    if _native_runs(pair):
        able.append("native")
    if all(tensor.device.type == "cpu" for tensor in (pair.live, *pair.averages)):
        able.append("blocked")
    able.append("foreach")
    return preferred if preferred in able else able[0]


def _native_runs(pair: Pair) -> bool:
    on_cpu = all(tensor.device.type == "cpu" for tensor in pair.tensors)
    return native is not None and on_cpu and native.takes(pair) and is_dense(pair)


def _triton_runs(pair: Pair, preferred: EngineName, skip: bool, concurrent: bool) -> bool:
    if preferred == "foreach" or (pair.live.is_cpu and preferred != "triton"):
        return False  # on the CPU it is Triton's interpreter, which is for debugging kernels
    triton = load_triton()
    if triton is None or not triton.takes(pair):
        return False
    why_not = triton.failure(pair, skip, concurrent)
    if why_not and preferred == "triton":
        raise ConfigError(f'engine="triton": {why_not}. engine="auto" takes another.')
    return not why_not


def make_engine(name: EngineName, pairs: Sequence[Pair], seed: int, concurrent: bool = False) -> Engine:
    """The engine of that name."""
    if name == "native":
        assert native is not None
        return native.Native(pairs, seed, Tensor.detach, torch.get_num_threads)
    if name == "triton":
        triton = load_triton()
        assert triton is not None
        return triton.Triton(pairs, seed, concurrent)
    return Blocked(pairs, seed) if name == "blocked" else Foreach(pairs, seed)


def recordable(engine: Engine) -> Triton:
    """Check that a CUDA graph can capture this engine's updates.

    Raises:
        ConfigError: it cannot, or the engine did not run before.
    """
    if engine.name != "triton":
        raise ConfigError(
            f"ema.update() of {engine.pairs[0].name} by the engine {engine.name} cannot be captured in a "
            "CUDA graph: only triton's can. Call it after graph.replay() instead."
        )
    triton = cast("Triton", engine)
    if not triton.ran:
        raise ConfigError(
            "ema.update() was captured in a CUDA graph before it ran once: let some steps run first."
        )
    return triton


def describe(engine: Engine, preferred: EngineName, skip: bool) -> str:
    """The engine's name, and why not a faster one."""
    pair, reason = engine.pairs[0], ""
    if engine.name == "blocked":
        reason = why_not(pair, pair.live.device)
    elif engine.name == "foreach":
        reason = _no_triton(pair, skip)
    return describe_engine(engine.name, preferred, reason)


def _no_triton(pair: Pair, skip: bool) -> str:
    if pair.live.is_cuda:
        triton = load_triton()
        if triton is None:
            return _NO_TRITON
        if triton.takes(pair):
            return triton.failure(pair, skip)
    kept = pair.averages[0]
    return f"{pair.name}: {pair.live.dtype} on {pair.live.device} into {kept.dtype} on {kept.device}"
