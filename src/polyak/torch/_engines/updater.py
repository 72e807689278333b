"""All engines of one EMA behind one ``update``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from polyak._core.nonfinite import refuse_nonfinite
from polyak._core.updater import Skipped
from polyak._kernel.pair import Pick, pick
from polyak.errors import ConfigError
from polyak.torch._engines.async_update import AsyncUpdate, CudaWorker, Offload, Overlapped, StreamWorker
from polyak.torch._engines.base import Engine, Marks, Pair
from polyak.torch._engines.copies import Copies
from polyak.torch._engines.nonfinite_counter import NonFiniteCounter
from polyak.torch._engines.select import EngineName, describe, engine_for, make_engine, recordable
from polyak.torch.store import Settings

if TYPE_CHECKING:
    from polyak.torch._engines.triton import Triton

Placement: TypeAlias = Literal["inline", "offload", "overlap"]


class Graph(Protocol):
    """Recorded device work, such as a ``torch.cuda.CUDAGraph``."""

    def replay(self) -> None: ...


class Updater:
    """An update of everything: each pair by its engine, and the copied buffers.

    Args:
        pairs: θ and averages by name; those without elements are left out.
        copies: buffers of the average and the model's own that they follow.
        settings: policy for elements that cannot be stored, seed, preferred engine, overlap.
        counter: counts the updates in which there were some.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        copies: Sequence[tuple[Tensor, Tensor]],
        settings: Settings,
        counter: NonFiniteCounter,
    ) -> None:
        self._settings, self._counter = settings, counter
        self._skip = settings.policy == "skip"
        groups = _grouped(pairs, settings.overlap)
        offloaded = {group.device for group in groups if group.how == "offload"}
        to_host = {device: [c for c in copies if c[1].device == device] for device in offloaded}
        with_buffers = {group.device for group in groups if group.how == "offload" and group.buffers}
        for device in offloaded - with_buffers:
            if to_host[device]:
                groups[_Group("offload", device, True, ())] = []
        self._guardable: list[AsyncUpdate] = []
        self._engines: list[Engine] = []
        self._steps: list[tuple[Engine, Pick | None]] = []  # an engine, and which of the weights it takes
        for group, members in groups.items():
            how, device, buffers, places = group
            copied = to_host.pop(device, []) if how == "offload" and buffers else []
            engines = self._made(how, device, members, copied)
            self._engines += engines
            self._steps += [(engine, pick(places)) for engine in engines]
            self._guardable += [e for e in engines if isinstance(e, AsyncUpdate) and not buffers]
        inline = [copy for copy in copies if copy[1].device not in offloaded]
        self._async_updates = [engine for engine in self._engines if isinstance(engine, AsyncUpdate)]
        self._copies = Copies(inline)
        self._on_gpu = any(pair.live.is_cuda for pair in pairs)
        self._recorded: list[Triton] = []  # whose updates a graph holds
        counter.follow(self._engines)

    @property
    def name(self) -> str:
        """The engines in use and why no faster one is."""
        averaging = [engine for engine in self._engines if engine.pairs]  # one may only copy buffers
        named = [describe(engine, self._settings.engine, self._skip) for engine in averaging]
        return "; ".join(dict.fromkeys(named))

    def update(self, weights: Sequence[float], step: int) -> None:
        """One update of every track; to ``weights``, 1-β each, the pairs' places refer.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        if self._settings.policy == "raise":
            refuse_nonfinite([name for engine in self._engines for name in engine.bad()], step)
        found = False
        marks: list[Marks] = []
        for engine, at in self._steps:  # no comprehension: in Python below 3.12 it is a function of its own
            marks.append(engine.update(at(weights) if at else weights, step, self._skip))
            found |= marks[-1] is not None
        if found:
            self._counter.add(marks)
        self._copies.run()

    def applied(self, step: int) -> bool | None:
        """After an update was interrupted: whether all averages took it, copied buffers then as well.

        None if some did and others may not have.
        """
        answers = {engine.applied(step) for engine in self._engines}
        if answers == {True}:
            self._copies.run()
        return answers.pop() if len(answers) == 1 else None

    def skipped(self) -> Skipped:
        """Updates in which some θ was not finite, and in how many of them each tensor was. Synchronises."""
        return self._counter.read()

    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured, in which an update can only be recorded."""
        # Asked without a GPU in play, torch would set one up.
        return self._on_gpu and torch.cuda.is_current_stream_capturing()

    def record(self) -> None:
        """An update, but for what changes from one to the next, into the graph that is being captured.

        Raises:
            ConfigError: not all of it runs on the device, or not all of it did before.
        """
        if self._settings.policy == "raise":
            raise ConfigError(
                'on_nonfinite="raise" waits for the device, which cannot be captured: use "skip", and look '
                'at metrics()["skipped"].'
            )
        engines = [recordable(engine) for engine in self._engines]
        for engine in engines:
            engine.record(self._skip)
        self._copies.run()
        self._recorded = engines

    def replay(self, graph: Graph, weights: Sequence[float], step: int) -> None:
        """The update that was recorded, with these weights, and all else in the graph."""
        for engine, (_, at) in zip(self._recorded, self._steps, strict=True):
            engine.began = step
            engine.prepare(at(weights) if at else weights, step)
        graph.replay()
        for engine in self._recorded:
            engine.ended = step

    def wait(self) -> None:
        """Wait for updates in flight; call before the averages are read.

        Raises:
            Exception: what an update in flight raised on its thread.
        """
        for each in self._async_updates:
            each.wait()

    def before_step(self) -> None:
        """Call before θ is written; an attached optimizer does, before each step.

        Raises:
            ConfigError: while a CUDA graph is captured, which cannot wait for work outside of it.
        """
        if self._async_updates and self.capturing():
            raise ConfigError(
                "an optimizer's step was captured in a CUDA graph while its EMA runs "
                f"{self._async_updates[0].name}, concurrently: that cannot be captured. Make the EMA without "
                'overlap= and device="cpu", or remove() the handle and update after graph.replay().'
            )
        for each in self._async_updates:
            each.before_step()

    def guard(self, guarded: bool) -> None:
        """Say whether ``before_step`` is called before θ is written; only used with ``overlap``."""
        for each in self._guardable:
            each.guarded = guarded and self._settings.overlap
        if not guarded:  # an update may be in flight that only the next step would have waited for
            self.before_step()

    def _made(
        self,
        how: Placement,
        device: torch.device,
        pairs: Sequence[Pair],
        copies: Sequence[tuple[Tensor, Tensor]],
    ) -> Sequence[Engine]:
        if how == "offload":
            return [Offload(pairs, copies, worker_of(device), partial(_chosen, settings=self._settings))]
        engines = _chosen(pairs, self._settings, concurrent=how == "overlap")
        return [Overlapped(engine, worker_of(device)) for engine in engines] if how == "overlap" else engines


def placement(pair: Pair, overlap: bool) -> Placement:
    """How the update of a pair runs: inline, offloaded to the host, or overlapped on a side stream."""
    device, kept = pair.live.device, pair.averages[0].device
    if device.type != "cuda":  # ROCm devices are called cuda too
        return "inline"
    if kept.type == "cpu":
        return "offload"
    return "overlap" if overlap and kept == device and not pair.buffer else "inline"


def worker_of(device: torch.device) -> StreamWorker:
    """A side stream of a device."""
    return CudaWorker(device)


class _Group(NamedTuple):
    """Pairs that are updated alike, with decays at the same places.

    Buffers are apart when not inline: the next forward pass writes them, so it must wait.
    """

    how: Placement
    device: torch.device
    buffers: bool
    places: tuple[int, ...]


def _grouped(pairs: Sequence[Pair], overlap: bool) -> dict[_Group, list[Pair]]:
    groups: dict[_Group, list[Pair]] = {}
    for pair in pairs:
        if pair.live.numel():
            how = placement(pair, overlap)
            group = _Group(how, pair.live.device, pair.buffer and how != "inline", pair.places)
            groups.setdefault(group, []).append(pair)
    return groups


def _chosen(pairs: Sequence[Pair], settings: Settings, concurrent: bool = False) -> list[Engine]:
    groups: dict[EngineName, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(
            engine_for(pair, settings.engine, settings.policy == "skip", concurrent), []
        ).append(pair)
    return [make_engine(name, members, settings.seed, concurrent) for name, members in groups.items()]
