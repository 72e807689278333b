"""Updates that run concurrently with the training.

A stream worker runs jobs on a side stream and returns an event for each. ``Offload`` copies θ to pinned host
memory there and averages on a host thread; ``Overlapped`` runs the whole update on the side stream. Whatever
writes θ next must wait for the event, or the update would read half-stepped weights: an attached optimizer
waits before its next step, as late as possible; without one the current stream waits at once.

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

from polyak._kernel.several import Several
from polyak.torch._engines.base import Counts, Engine, Marks, Pair
from polyak.torch._engines.copies import Copies
from polyak.torch._engines.foreach import bad_names
from polyak.torch._engines.pinned import pinned_like


class StreamWorker(Protocol):
    """Runs jobs in order, concurrently with the device's current stream."""

    def run(self, job: Callable[[], object]) -> Any:
        """Start a job after all work queued on the device so far; returns an event that marks its end."""
        ...

    def wait_event(self, event: Any) -> None:
        """Work queued on the device from now on waits for the event; the host does not."""
        ...

    def wait(self, event: Any) -> None:
        """The host waits for the event."""
        ...

    def record_stream(self, tensors: Sequence[Tensor]) -> None:
        """Jobs use these tensors: the allocator must not reuse their memory before the jobs are done."""
        ...

    def pinned_like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Pinned host buffers shaped like these, for asynchronous copies."""
        ...


class CudaWorker:
    """A side stream of a CUDA or ROCm device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, torch.cuda.Stream(device)

    def run(self, job: Callable[[], object]) -> torch.cuda.Event:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            job()
            event = torch.cuda.Event(blocking=True)  # a host thread that waits sleeps, and burns no core
            event.record(self._side)
        return event

    def wait_event(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def record_stream(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.record_stream(self._side)

    def pinned_like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return pinned_like(tensors)


class AsyncUpdate(Several):
    """Common base: at most one update is in flight.

    guarded: ``before_step`` is called before θ is written again.

    Args:
        worker: where updates run.
        tensors: device tensors that updates read or write.
    """

    def __init__(self, worker: StreamWorker, tensors: Sequence[Tensor]) -> None:
        self.guarded = False
        self._worker = worker
        self._event: Any = None
        # Aliases, so that memory an update in flight reads stays allocated even if ``p.data`` is replaced.
        self._kept = [tensor.detach() for tensor in tensors]
        worker.record_stream(self._kept)

    def before_step(self) -> None:
        """Call before θ is written."""
        if self._event is not None:
            self._worker.wait_event(self._event)

    def wait(self) -> None:
        """Call before the averages are read."""
        self.before_step()

    def _begun(self, event: Any) -> None:
        self._event = event
        if not self.guarded:
            self.before_step()


class Offload(AsyncUpdate):
    """θ on a device, averages on the host: θ is copied to a pinned buffer and averaged on a host thread.

    Uses no device memory, and pinned host memory of the size of θ.

    Args:
        pairs: θ on one device, averages on the host.
        copies: host tensors and the device tensors they follow bit by bit.
        worker: of that device.
        make: makes the engines for pairs on the host.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        copies: Sequence[tuple[Tensor, Tensor]],
        worker: StreamWorker,
        make: Callable[[Sequence[Pair]], Sequence[Engine]],
    ) -> None:
        live = [pair.live for pair in pairs] + [source for _, source in copies]
        super().__init__(worker, live)
        staged = worker.pinned_like(live)
        self._to_host = Copies(zip(staged, self._kept, strict=True))
        # A copy from a GPU to pageable memory blocks the host, so buffers go through pinned memory too.
        targets = [target for target, _ in copies]
        self._followers = Copies(zip(targets, staged[len(pairs) :], strict=True))
        self._inner = make(
            [replace(pair, live=s) for pair, s in zip(pairs, staged[: len(pairs)], strict=True)]
        )
        self._device_pairs = pairs
        self.pairs = [pair for engine in self._inner for pair in engine.pairs]
        self.name = ", ".join([*(engine.name for engine in self._inner), "offloaded"])
        self.counts = Counts.of(self.pairs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyak")
        self._pending: Future[None] | None = None

    def bad(self) -> list[str]:
        return bad_names(self._device_pairs)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> None:
        """Start an update after the previous one has finished; raises what that one raised on its thread."""
        self.wait()
        self.began = step
        event = self._worker.run(partial(self._to_host.run, non_blocking=True))
        self._pending = self._thread.submit(self._average, event, weights, step, skip)
        self._begun(event)
        self.ended = step

    def wait(self) -> None:
        pending = self._pending
        if pending is not None:
            try:
                pending.result()
            finally:  # after an interrupt the next caller waits again
                if pending.done():
                    self._pending = None

    def _average(self, event: Any, weights: Sequence[float], step: int, skip: bool) -> None:
        self._worker.wait(event)
        self._followers.run()
        marks = [engine.update(weights, step, skip) for engine in self._inner]
        if any(mark is not None for mark in marks):
            each_engine = zip(marks, self._inner, strict=True)
            each = [
                torch.as_tensor([0] * len(e.pairs) if m is None else m, dtype=torch.bool, device="cpu")
                for m, e in each_engine
            ]
            _count(self.counts, torch.cat(each))


class Overlapped(AsyncUpdate):
    """θ and averages on one device: the update runs under the next forward pass.

    Args:
        inner: the engine to run.
        worker: of that device.
    """

    def __init__(self, inner: Engine, worker: StreamWorker) -> None:
        tensors = [t for pair in inner.pairs for t in pair.tensors]
        super().__init__(worker, tensors)
        self._inner = inner
        self.pairs, self.bad = inner.pairs, inner.bad
        self.name = f"{inner.name}, overlapped"
        self.counts = inner.counts or Counts.of(inner.pairs)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> None:
        """Start an update."""

        def job() -> None:
            _count(self.counts, self._inner.update(weights, step, skip))

        self.began = step
        self._begun(self._worker.run(job))
        self.ended = step


def _count(counts: Counts, found: Marks) -> None:
    if found is not None:
        marks = torch.as_tensor(found, dtype=torch.bool, device=counts.tensors.device)
        counts.tensors.add_(marks)
        counts.updates.add_(marks.any())
