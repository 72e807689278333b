"""Updates beside the training instead of in its way.

A lane is where work runs beside the device's current stream, and the ticket of a piece of work is what can
be waited for. ``Offload`` copies θ to pinned host memory on the lane and averages there on a thread;
``Overlapped`` runs the whole update on the lane. Whatever writes θ next must wait for the ticket, or the
update would read half-stepped weights: with the optimizer attached its step does, as late as possible;
otherwise the current stream waits at once.

Not yet run on a GPU: the tests simulate its streams with threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from polyak._core.several import Several
from polyak.torch._engines.base import Counts, Engine, Pair
from polyak.torch._engines.copies import Copies
from polyak.torch._engines.foreach import bad_names
from polyak.torch._engines.pinned import pinned_like


class StreamWorker(Protocol):
    """Work in order beside the training."""

    def run(self, job: Callable[[], object]) -> Any:
        """Begin a job when all the device was told so far is done; returns its ticket."""
        ...

    def hold(self, ticket: Any) -> None:
        """What the device is told from now on waits for the ticket; the host does not."""
        ...

    def wait(self, ticket: Any) -> None:
        """The host waits for the ticket."""
        ...

    def uses(self, tensors: Sequence[Tensor]) -> None:
        """Jobs read or write these: their memory is not given to others before the jobs are done."""
        ...

    def staging(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Pinned host buffers shaped like these, for asynchronous copies."""
        ...


class CudaLane:
    """A side stream of a CUDA or ROCm device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, torch.cuda.Stream(device)

    def run(self, job: Callable[[], object]) -> torch.cuda.Event:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            job()
            ticket = torch.cuda.Event(blocking=True)  # a host thread that waits sleeps, and burns no core
            ticket.record(self._side)
        return ticket

    def hold(self, ticket: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(ticket)

    def wait(self, ticket: torch.cuda.Event) -> None:
        ticket.synchronize()

    def uses(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.record_stream(self._side)

    def staging(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return pinned_like(tensors)


class AsyncUpdate(Several):
    """What both ways have in common: one update under way at most.

    guarded: somebody calls ``before_step`` before θ is written again.

    Args:
        lane: where updates run.
        tensors: of the device, which updates read or write.
    """

    def __init__(self, lane: StreamWorker, tensors: Sequence[Tensor]) -> None:
        self.guarded = False
        self._lane = lane
        self._ticket: Any = None
        # Aliases, so that the memory an update under way reads stays even if ``p.data`` is pointed elsewhere.
        self._kept = [tensor.detach() for tensor in tensors]
        lane.uses(self._kept)

    def before_step(self) -> None:
        """θ is about to be written."""
        if self._ticket is not None:
            self._lane.hold(self._ticket)

    def wait(self) -> None:
        """The averages are about to be read."""
        self.before_step()

    def _hold(self, ticket: Any) -> None:
        self._ticket = ticket
        if not self.guarded:
            self.before_step()


class Offload(AsyncUpdate):
    """θ on a device, averages on the host: copied to pinned memory that lasts, averaged on a thread.

    The device needs no memory for it. The host needs the size of θ once, pinned.

    Args:
        pairs: θ on one device, averages on the host.
        copies: host tensors and the device tensors they follow bit by bit.
        lane: beside that device's work.
        make: the host's engines for pairs there.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        copies: Sequence[tuple[Tensor, Tensor]],
        lane: StreamWorker,
        make: Callable[[Sequence[Pair]], Sequence[Engine]],
    ) -> None:
        live = [pair.live for pair in pairs] + [source for _, source in copies]
        super().__init__(lane, live)
        staged = lane.staging(live)
        self._to_host = Copies(zip(staged, self._kept, strict=True))
        # To pageable memory a GPU copies only while the host waits, so buffers are staged as well.
        targets = [target for target, _ in copies]
        self._followers = Copies(zip(targets, staged[len(pairs) :], strict=True))
        self._inner = make(
            [replace(pair, live=s) for pair, s in zip(pairs, staged[: len(pairs)], strict=True)]
        )
        self._device_pairs = pairs
        self.pairs = [pair for engine in self._inner for pair in engine.pairs]
        self.name = ", ".join([*(engine.name for engine in self._inner), "offloaded"])
        self.counts = Counts.of(self.pairs)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="polyak")
        self._pending: Future[None] | None = None

    def bad(self) -> list[str]:
        return bad_names(self._device_pairs)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        """Begin an update. The one before is finished first; what its thread raised comes out here."""
        self.wait()
        self.began = step
        ticket = self._lane.run(partial(self._to_host.run, non_blocking=True))
        self._pending = self._worker.submit(self._average, ticket, weights, step, skip)
        self._hold(ticket)
        self.ended = step

    def wait(self) -> None:
        pending = self._pending
        if pending is not None:
            try:
                pending.result()
            finally:  # an interrupt while it runs leaves it to the next who waits
                if pending.done():
                    self._pending = None

    def _average(self, ticket: Any, weights: Sequence[float], step: int, skip: bool) -> None:
        self._lane.wait(ticket)
        self._followers.run()
        marks = [engine.update(weights, step, skip) for engine in self._inner]
        if any(mark is not None for mark in marks):
            known = zip(marks, self._inner, strict=True)
            each = [
                torch.zeros(len(e.pairs), dtype=torch.bool, device="cpu") if m is None else m
                for m, e in known
            ]
            _count(self.counts, torch.cat(each))


class Overlapped(AsyncUpdate):
    """θ and averages on one device: the update runs under the next forward pass.

    Args:
        inner: the engine to run aside.
        lane: beside the device's work.
    """

    def __init__(self, inner: Engine, lane: StreamWorker) -> None:
        tensors = [t for pair in inner.pairs for t in (pair.live, *pair.averages, *pair.lows)]
        super().__init__(lane, tensors)
        self._inner = inner
        self.pairs, self.bad = inner.pairs, inner.bad
        self.name = f"{inner.name}, overlapped"
        self.counts = inner.counts or Counts.of(inner.pairs)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        """Begin an update."""

        def job() -> None:
            _count(self.counts, self._inner.update(weights, step, skip))

        self.began = step
        self._hold(self._lane.run(job))
        self.ended = step


def _count(counts: Counts, marks: Tensor | None) -> None:
    if marks is not None:
        counts.tensors.add_(marks)
        counts.updates.add_(marks.any())
