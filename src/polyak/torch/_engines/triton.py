"""The engine for GPUs: one Triton kernel over a table of all tensors, whatever their number.

Tensors with the same dtypes of θ and storage share a launch. The tables of addresses are made once and valid
as long as the plan: before every update the plan checks whether θ has moved, and the averages' memory is kept
alive here. Nothing waits for the device, and counts stay there.

Whether Triton works is known only after it ran: it builds a launcher with the system's C compiler, writes to
a cache, and compiles for the GPU. So each variant of the kernel is launched once, with no effect, when an
engine is made, and not in the first step of a training run.

Not yet run on a GPU: it was compiled for several, and run in Triton's interpreter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from triton import JITFunction

from polyak._kernel.pair import Store
from polyak._kernel.several import Several
from polyak.errors import ConfigError
from polyak.torch._engines import triton_kernels as kernels
from polyak.torch._engines.base import Counts, Pair, is_dense
from polyak.torch._engines.foreach import bad_names

_LIVE = ("float32", "float64", "bfloat16", "float16")
_STORE: dict[Store, str] = {
    **{(name, None): name for name in _LIVE},
    ("bfloat16", "int8"): "split",
    ("float32", "float32"): "compensated",
}
_untyped: Any = kernels  # what Triton makes of its functions and constants
_BLOCK: int = _untyped.BLOCK.value
_COLUMNS: int = _untyped.COLUMNS.value
_SCALARS: int = _untyped.SCALARS.value
_WIDE = 16  # bytes one access can move, if the address is a multiple of them
_WARPS = 8  # 16 elements a thread
_OLDEST = (7, 0)  # compute capability; the kernel's atomics do not exist on Pascal (GTX 10xx, P100)

# Triton decides when a kernel is defined; TRITON_INTERPRET set later changes nothing.
INTERPRETED = not isinstance(_untyped.average, JITFunction)


class _Group(NamedTuple):
    """Tensors of one launch; ``table`` and ``blocks`` as the kernel wants them."""

    table: Tensor
    blocks: Tensor
    live: str
    store: str
    largest: float


class Triton(Several):
    """Averages on a GPU prepared for updating; see ``Foreach``.

    In a CUDA graph ``record`` replaces ``update``: its kernel reads the arguments that ``prepare`` wrote to
    device memory, so a replay after another ``prepare`` is another update, and a replay without one averages
    nothing.

    Args:
        pairs: θ and averages by name, none of them empty, on one GPU, such as the kernel ``takes``.
        seed: makes, with the step, the random bits that round 16-bit averages.
        concurrent: updates run beside other kernels, so few programs do all the work; not yet run on a GPU.

    Raises:
        ConfigError: the pairs are on several devices.
    """

    name = "triton"

    def __init__(self, pairs: Sequence[Pair], seed: int, concurrent: bool = False) -> None:
        self.pairs, self._seed, self._number = pairs, _signed(seed), 0
        device = _device(pairs)
        self._programs = _room(device) if concurrent else None
        groups: dict[tuple[str, Store], list[int]] = {}
        for place, pair in enumerate(pairs):
            groups.setdefault((pair.dtype, pair.store), []).append(place)
        # Aliases keep the memory alive even if the averages are moved.
        self._written = [tensor.detach() for pair in pairs for tensor in pair.written]
        self._tracks = len(pairs[0].averages)
        self._groups = [_group(pairs, places, *key) for key, places in groups.items()]
        self.counts = Counts.of(pairs)
        self._seen = torch.zeros(1 + len(pairs), dtype=torch.int64, device=device)
        size = _SCALARS + self._tracks
        # Arguments of an eager update and of the next replay, separate so that a replay never reads others.
        self._now, self._next = (torch.zeros(size, dtype=torch.int64, device=device) for _ in range(2))

    @property
    def ran(self) -> bool:
        """Whether its kernel was launched before, so that it is compiled."""
        return self._number > 0

    def bad(self) -> list[str]:
        return bad_names(self.pairs)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> None:
        self._send(self._now, weights, step)
        self.began = step
        self._launch(self._now, skip)
        self.ended = step

    def prepare(self, weights: Sequence[float], step: int) -> None:
        """Set the arguments of the next replay."""
        self._send(self._next, weights, step)

    def record(self, skip: bool) -> None:
        """An update that consumes the prepared arguments."""
        self._launch(self._next, skip)
        self._next.zero_()

    def _send(self, scalars: Tensor, weights: Sequence[float], step: int) -> None:
        """Send the arguments of an update in one small asynchronous copy."""
        self._number += 1
        bits = struct.unpack(f"{len(weights)}q", struct.pack(f"{len(weights)}d", *weights))
        words = [self._seed, _signed(step), self._number, *bits]
        # New pinned memory each time: torch reuses it only after the copy.
        host = torch.tensor(words, dtype=torch.int64, device="cpu", pin_memory=scalars.is_cuda)
        scalars.copy_(host, non_blocking=True)

    def _launch(self, scalars: Tensor, skip: bool) -> None:
        for group in self._groups:
            _launch(group, scalars, self._seen, self.counts, skip, self._programs)


def takes(pair: Pair) -> bool:
    """Whether the kernel supports these dtypes, and the tensors are plain memory of one GPU.

    The interpreter reads host memory instead.
    """
    device = pair.live.device
    known = pair.dtype in _LIVE and pair.store in _STORE
    seen = device.type in (("cpu", "cuda") if INTERPRETED else ("cuda",))
    # A piece that begins within a block of random words would need other words for each of its elements.
    known &= pair.store[0] not in ("bfloat16", "float16") or pair.offset % 1024 == 0
    return known and seen and all(t.device == device for t in pair.written) and is_dense(pair)


def failure(pair: Pair, skip: bool, concurrent: bool = False) -> str:
    """Why the variant of the kernel that this pair needs does not run on its device; "" if it does."""
    return _failure(pair.live.device, pair.dtype, pair.store, len(pair.averages), skip, concurrent)


@cache
def _failure(
    device: torch.device,
    live: str,
    store: Store,
    tracks: int,
    skip: bool,
    concurrent: bool,
) -> str:
    if device.type == "cuda" and INTERPRETED:
        return "TRITON_INTERPRET was set at import, and Triton's interpreter reads host memory only"
    try:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < _OLDEST:
            return f"{torch.cuda.get_device_name(device)} is too old: compute capability below {_OLDEST}"
        _launch_nothing(device, live, store, tracks, skip, concurrent)
    except Exception as error:  # of Triton, its compiler, the C compiler, the driver, the file system
        first = str(error).strip().partition("\n")[0]
        return f"Triton does not run here: {type(error).__name__}: {first}"
    return ""


def _launch_nothing(
    device: torch.device,
    live: str,
    store: Store,
    tracks: int,
    skip: bool,
    concurrent: bool,
) -> None:
    """Compile and launch a variant of the kernel, for one block of a tensor without elements."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    table = zeros(1, _COLUMNS + 2 * tracks)
    group = _Group(table, zeros(1, 2, dtype=torch.int32), live, _STORE[store], _largest(store))
    counts = Counts(zeros(1, dtype=torch.int32), zeros(dtype=torch.int32))
    _launch(
        group,
        zeros(_SCALARS + tracks),
        zeros(2),
        counts,
        skip,
        1 if concurrent else None,
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a launch can fail after it returned


def _room(device: torch.device) -> int:
    """The number of programs that leaves room for other kernels: one per multiprocessor."""
    if device.type != "cuda":
        return 1
    return cast(int, torch.cuda.get_device_properties(device).multi_processor_count)


def _launch(
    group: _Group, scalars: Tensor, seen: Tensor, counts: Counts, skip: bool, programs: int | None
) -> None:
    """Launch all blocks of a group, on ``programs`` that take turns, or a program each."""
    kernel = _untyped.average
    count = len(group.blocks)
    with torch.cuda.device_of(scalars):
        kernel[(count if programs is None else min(programs, count),)](
            group.table,
            group.blocks,
            scalars,
            seen,
            counts.tensors,
            counts.updates,
            count,
            TRACKS=len(scalars) - _SCALARS,
            LIVE=group.live,
            STORE=group.store,
            LARGEST=group.largest,
            SKIP=skip,
            PERSISTENT=programs is not None,
            num_warps=_WARPS,
        )


def _device(pairs: Sequence[Pair]) -> torch.device:
    device = pairs[0].live.device
    for pair in pairs:
        if pair.live.device != device:
            raise ConfigError(
                f"{pair.name} is on {pair.live.device} and {pairs[0].name} on {device}: one Triton engine "
                'averages on one device. engine="foreach" takes tensors wherever they are.'
            )
    return device


def _largest(store: Store) -> float:
    return torch.finfo(getattr(torch, store[0])).max


def _group(pairs: Sequence[Pair], places: Sequence[int], live: str, store: Store) -> _Group:
    members = [pairs[place] for place in places]
    rows = [_row(pair, place) for pair, place in zip(members, places, strict=True)]
    device = members[0].live.device
    table = torch.tensor(rows, dtype=torch.int64, device=device)
    return _Group(table, _blocks(members).to(device), live, _STORE[store], _largest(store))


def _row(pair: Pair, place: int) -> list[int]:
    """A pair's row of the kernel's table: see there."""
    addresses = [tensor.data_ptr() for tensor in pair.tensors]
    size = pair.live.numel()
    aligned = size if all(address % _WIDE == 0 for address in addresses) else 0
    live, *kept = addresses
    lows = [] if pair.residuals else [0] * len(kept)
    return [live, size, aligned, pair.key, place, pair.offset // 2, *kept, *lows]


def _blocks(pairs: Sequence[Pair]) -> Tensor:
    """int32 [programs, 2]: the index of a pair, and of one of its blocks."""
    each = torch.tensor([-(-pair.live.numel() // _BLOCK) for pair in pairs], device="cpu")
    pair = torch.repeat_interleave(torch.arange(len(pairs), device="cpu"), each)
    before = torch.repeat_interleave(each.cumsum(0) - each, each)
    return torch.stack([pair, torch.arange(len(pair), device="cpu") - before], dim=1).to(torch.int32)


def _signed(word: int) -> int:
    """The int64 with the low 64 bits of a number."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)
