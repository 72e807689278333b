"""All engines of one EMA, run as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from polyak._core.nonfinite import refuse_nonfinite
from polyak.errors import ConfigError
from polyak.torch._engines.async_update import AsyncUpdate, CudaLane, Offload, Overlapped, StreamWorker
from polyak.torch._engines.base import Engine, Pair
from polyak.torch._engines.copies import Copies
from polyak.torch._engines.nonfinite_counter import NonFiniteCounter
from polyak.torch._engines.select import EngineName, choice, described, made, recordable
from polyak.torch.store import Settings

if TYPE_CHECKING:
    from polyak.torch._engines.triton import Triton

Way: TypeAlias = Literal["inline", "offload", "overlap"]


class Graph(Protocol):
    """What was recorded of a device's work, such as a ``torch.cuda.CUDAGraph``."""

    def replay(self) -> None: ...


class Updater:
    """An update of everything: each pair by the engine that suits it, each copied buffer copied.

    Args:
        pairs: θ and averages by name; those without elements are left out.
        copies: buffers of the average and the model's own that they follow.
        settings: policy for elements that cannot be stored, seed, preferred engine, overlap.
        tally: counts the updates in which there were some.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        copies: Sequence[tuple[Tensor, Tensor]],
        settings: Settings,
        tally: NonFiniteCounter,
    ) -> None:
        self._settings, self._tally = settings, tally
        self._skip = settings.policy == "skip"
        groups = _grouped(pairs, settings.overlap)
        carried = {device for how, device, _ in groups if how == "offload"}
        for device in carried & {source.device for _, source in copies}:
            groups.setdefault(("offload", device, True), [])
        self._guardable: list[AsyncUpdate] = []
        self._engines: list[Engine] = []
        for (how, device, buffers), members in groups.items():
            brought = [copy for copy in copies if buffers and copy[1].device == device]
            engines = self._made(how, device, members, brought)
            self._engines += engines
            self._guardable += [e for e in engines if isinstance(e, AsyncUpdate) and not buffers]
        inline = [copy for copy in copies if copy[1].device not in carried]
        self._asides = [engine for engine in self._engines if isinstance(engine, AsyncUpdate)]
        self._copies = Copies(inline)
        self._nothing = [None] * len(self._engines)
        self._on_gpu = any(pair.live.is_cuda for pair in pairs)
        self._recorded: list[Triton] = []  # whose updates a graph holds
        tally.open(self._engines)

    @property
    def name(self) -> str:
        """The engines in use and why no faster one is."""
        return "; ".join(described(engine, self._settings.engine, self._skip) for engine in self._engines)

    def update(self, betas: Sequence[float], step: int) -> None:
        """One update of every track; ``betas[k]`` is the composed decay of track k.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        if self._settings.policy == "raise":
            refuse_nonfinite([name for engine in self._engines for name in engine.bad()], step)
        weights = tuple([1 - beta for beta in betas])
        marks = [engine.update(weights, step, self._skip) for engine in self._engines]
        if marks != self._nothing:
            self._tally.add(marks)
        self._copies.run()

    def took(self, step: int) -> bool | None:
        """After an update was interrupted: whether all averages took it, copied buffers then as well.

        None if some did and others may not have.
        """
        answers = {engine.took(step) for engine in self._engines}
        if answers == {True}:
            self._copies.run()
        return answers.pop() if len(answers) == 1 else None

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

    def replay(self, graph: Graph, betas: Sequence[float], step: int) -> None:
        """The update that was recorded, with these decays, and all else in the graph."""
        weights = tuple([1 - beta for beta in betas])
        for engine in self._recorded:
            engine.began = step
            engine.prepare(weights, step)
        graph.replay()
        for engine in self._recorded:
            engine.ended = step

    def wait(self) -> None:
        """Finish what runs beside the training: somebody is about to read the averages.

        Raises:
            Exception: what an update raised on its thread.
        """
        for aside in self._asides:
            aside.wait()

    def before_step(self) -> None:
        """θ is about to be written: by a guarding optimizer, before each step.

        Raises:
            ConfigError: in a CUDA graph, which can hold no wait for what was begun outside of it.
        """
        if self._asides and self.capturing():
            raise ConfigError(
                "an optimizer's step was captured in a CUDA graph while its EMA runs "
                f"{self._asides[0].name}, beside the training: that cannot be captured. Make the EMA without "
                'overlap= and device="cpu", or remove() the handle and update after graph.replay().'
            )
        for aside in self._asides:
            aside.before_step()

    def guard(self, guarded: bool) -> None:
        """Whether ``before_step`` is called before θ is written. Only under ``overlap`` is it relied on."""
        for aside in self._guardable:
            aside.guarded = guarded and self._settings.overlap
        if not guarded:  # an update may be under way that only the next step would have waited for
            self.before_step()

    def _made(
        self, how: Way, device: torch.device, pairs: Sequence[Pair], copies: Sequence[tuple[Tensor, Tensor]]
    ) -> Sequence[Engine]:
        if how == "offload":
            return [Offload(pairs, copies, lane_of(device), partial(_chosen, settings=self._settings))]
        engines = _chosen(pairs, self._settings, beside=how == "overlap")
        return [Overlapped(engine, lane_of(device)) for engine in engines] if how == "overlap" else engines


def way(pair: Pair, overlap: bool) -> Way:
    """Where the update of a pair runs: in the training's way, or beside it."""
    device, kept = pair.live.device, pair.averages[0].device
    if device.type != "cuda":  # the only devices with streams here; ROCm's are called so too
        return "inline"
    if kept.type == "cpu":
        return "offload"
    return "overlap" if overlap and kept == device and not pair.buffer else "inline"


def lane_of(device: torch.device) -> StreamWorker:
    """The lane beside a device's work."""
    return CudaLane(device)


def _grouped(pairs: Sequence[Pair], overlap: bool) -> dict[tuple[Way, torch.device, bool], list[Pair]]:
    """Buffers apart beside the training: the next forward pass writes them, nothing may read them later."""
    groups: dict[tuple[Way, torch.device, bool], list[Pair]] = {}
    for pair in pairs:
        if pair.live.numel():
            how = way(pair, overlap)
            groups.setdefault((how, pair.live.device, pair.buffer and how != "inline"), []).append(pair)
    return groups


def _chosen(pairs: Sequence[Pair], settings: Settings, beside: bool = False) -> list[Engine]:
    groups: dict[EngineName, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(choice(pair, settings.engine, settings.policy == "skip", beside), []).append(pair)
    return [made(name, members, settings.seed, beside) for name, members in groups.items()]
