"""Capture an update in a CUDA graph and replay it, in a process of its own; save what came out.

``python -m tests.torch.engines.graph_worker DEVICE FILE``; on "cpu" under ``TRITON_INTERPRET=1``. There the
graph is a tape: what is told to the device while it records is kept and not done, until it is replayed.
"""

from __future__ import annotations

import copy
import gc
import math
import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import polyak
from polyak.errors import PolyakError
from polyak.torch._engines import triton_kernels
from polyak.torch._engines import updater as updater

STEPS, BEFORE, BAD = 9, 3, 6  # BEFORE of the steps run before the capture; in step BAD a weight is NaN
OPTIONS: dict[str, dict[str, Any]] = {
    "one decay": {"decay": 0.9},
    "a schedule": {"decay": polyak.Warmup(0.99)},
    "tracks": {"decay": {"short": 0.5, "long": polyak.HalfLife(steps=20)}},
    "bfloat16": {"decay": 0.9, "dtype": torch.bfloat16},
    "every third": {"decay": 0.9, "every": 3},
    "from step five": {"decay": 0.9, "start": 5},
    "tokens": {"decay": polyak.HalfLife(tokens=700)},
    "copied buffers": {"decay": 0.9, "buffers": "copy"},
    "nothing skipped": {"decay": 0.9, "on_nonfinite": "ignore"},
}


UNANNOUNCED: tuple[dict[str, Any], ...] = (
    {},
    {"on_nonfinite": "ignore"},
    {"on_nonfinite": "ignore", "compensated": True},
    {"on_nonfinite": "ignore", "dtype": torch.bfloat16},
    {"on_nonfinite": "ignore", "dtype": "split"},
)


class Tape(TorchDispatchMode):
    """A graph for a device that there is none of."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], object]] = []
        self.on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            return func(*args, **(kwargs or {}))
        self.work.append(partial(func, *args, **(kwargs or {})))
        return args[0] if isinstance(args[0], Tensor) else None

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """In the kernel's place."""
        return lambda *args, **kwargs: self.work.append(lambda: kernel[grid](*args, **kwargs))

    def replay(self) -> None:
        for job in self.work:
            job()

    @contextmanager
    def recording(self) -> Generator[None]:
        self.on, triton_kernels.average = True, self
        try:
            with self:
                yield
        finally:
            self.on, triton_kernels.average = False, kernel


kernel: Any = triton_kernels.average
tape = Tape()


def captured(device: str, record: Callable[[], None]) -> Any:
    """A graph that holds what ``record`` tells the device."""
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            record()
        return graph
    tape.__init__()
    with tape.recording():
        record()
    return tape


def network(device: str) -> nn.Module:
    """Parameters and buffers, and no more of them: each tensor's block costs the interpreter 20 ms."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50, affine=False)).to(device)


@torch.no_grad()
def step(model: nn.Module, t: int) -> None:
    """Some training: every tensor gets other values where it is."""
    generator = torch.Generator().manual_seed(t)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator).mul(100))
    if t == BAD:
        model.state_dict()["0.weight"][0, 0] = math.nan


def average(device: str, **options: Any) -> polyak.EMA:
    return polyak.EMA(network(device), engine="triton", **options)


def told(options: dict[str, Any]) -> dict[str, int]:
    return {"tokens": 10} if "tokens" in str(options["decay"]) else {}


def seen(ema: polyak.EMA) -> dict[str, Any]:
    """All of an average that can be compared."""
    metrics = {key: str(value) for key, value in ema.metrics().items()}
    profiles = {name: track.profile.to_json() for name, track in ema.tracks.items()}
    tensors = {
        f"{name}/{key}": tensor.cpu().clone()
        for name, track in ema.tracks.items()
        for key, tensor in track.tensors.items()
    }
    copied = {key: tensor.cpu().clone() for key, tensor in ema.module.state_dict().items()}
    return {"metrics": metrics, "profiles": profiles, "tensors": tensors | copied, "step": ema.step}


def both(device: str, options: dict[str, Any]) -> dict[str, Any]:
    """One run twice: every update called, and the later ones replayed. What a watcher saw comes along."""
    out: dict[str, Any] = {}
    for how in ("called", "replayed"):
        ema = average(device, **options)
        watched: list[float] = []
        first = next(iter(ema.tracks.values()))
        ema.watch(lambda first=first, watched=watched: watched.append(float(first.tensors["0.bias"][0])))
        graph: Any = None
        trained = torch.zeros((), device=device)

        def whole(ema: polyak.EMA = ema, trained: Tensor = trained) -> None:
            trained.add_(1)
            ema.update()

        for t in range(STEPS):
            step(ema.model, t)
            if graph is not None:
                ema.replay(graph, **told(options))
            else:
                ema.update(**told(options))
            if how == "replayed" and t + 1 == BEFORE:
                graph = captured(device, whole)
        out[how] = {**seen(ema), "watched": watched, "trained": trained.item()}
    return out


def unannounced(device: str, **options: Any) -> tuple[Any, Any]:
    """What there is to see of an average before and after a graph replayed by itself, twice, with θ NaN."""
    ema = average(device, decay=0.9, **options)
    ema.update()
    graph = captured(device, ema.update)

    def look() -> dict[str, Any]:
        tensors = {name: tensor.tolist() for name, tensor in ema.tracks["average"].tensors.items()}
        return tensors | {key: value for key, value in ema.metrics().items() if key != "distance"}

    found: list[Any] = []
    for announced in (False, True):
        if announced:
            ema.replay(graph)
        found.append(look())
        step(ema.model, BAD)
        graph.replay()
        graph.replay()
        found.append(look())
        step(ema.model, 0)
    return found[::2], found[1::2]


def error(call: Callable[[], object]) -> str:
    try:
        call()
    except PolyakError as found:
        return f"{type(found).__name__}: {found}"
    return "nothing"


def refused(device: str) -> dict[str, str]:
    """What is said when it cannot be done."""
    fresh, strict = average(device, decay=0.9), average(device, decay=0.9, on_nonfinite="raise")
    plain = polyak.EMA(network(device), 0.9, engine="foreach")
    moved, apart = average(device, decay=0.9), average(device, decay=0.9)
    for ema in (strict, plain, moved, apart):
        ema.update()
    out = {
        "fresh": error(lambda: captured(device, fresh.update)),
        "strict": error(lambda: captured(device, strict.update)),
        "plain": error(lambda: captured(device, plain.update)),
    }
    graph = captured(device, moved.update)
    moved.model[0].weight.data = moved.model[0].weight.data.clone()
    before = seen(moved)["tensors"]
    out["moved"] = error(lambda: moved.replay(graph))
    unchanged = all(map(torch.equal, before.values(), seen(moved)["tensors"].values()))
    out["after it"] = f"step {moved.step}, {'the same' if unchanged else 'other'} tensors"
    apart.model[0].weight.data = apart.model[0].weight.data.clone()
    out["stale"] = error(lambda: captured(device, apart.update))
    out["never captured"] = error(lambda: plain.replay(graph))
    return out


def left_behind(device: str, every: int) -> dict[str, dict[str, Any]]:
    """Replays after the engine a graph was captured with was replaced, at each step of ``every``.

    Returns:
        For each way to replace it what every replay said, whether any moved anything, and whether the
        engine that the graph points to is still there.
    """
    out: dict[str, dict[str, Any]] = {}
    for how in ("load_state_dict", "reset", "moved"):
        ema = average(device, decay=0.9, every=every)
        for _ in range(every):
            ema.update()
        graph = captured(device, ema.update)
        engine = weakref.ref(ema._averages.updater)  # pyright: ignore[reportPrivateUsage]
        if how == "load_state_dict":
            ema.load_state_dict(copy.deepcopy(ema.state_dict()))
        elif how == "reset":
            ema.reset()
        else:
            ema.model[0].weight.data = ema.model[0].weight.data.clone()
        gc.collect()
        before = seen(ema)
        said = [error(lambda ema=ema, graph=graph: ema.replay(graph)) for _ in range(2 * every)]
        after = seen(ema)
        kept = all(map(torch.equal, before["tensors"].values(), after["tensors"].values()))
        same = kept and (before["step"], before["profiles"]) == (after["step"], after["profiles"])
        out[how] = {"said": said, "same": same, "alive": engine() is not None}
    return out


def host_buffer(device: str) -> str:
    """What is said when a copied buffer is not on the model's device."""
    model = network(device)
    model.register_buffer("table", torch.zeros(3, device="meta" if device == "cpu" else "cpu"))
    model.table = torch.zeros(3)
    ema = polyak.EMA(model, 0.9, engine="triton")
    ema.update()
    entry = ema._averages.plan.entries["table"]  # pyright: ignore[reportPrivateUsage]
    if device == "cpu":  # there is but one device here: say that the rest of the model is on another
        entry.tensors[0] = torch.zeros(3, device="meta")
    return error(lambda: captured(device, ema.update))


if __name__ == "__main__":
    device, file = sys.argv[1:]
    if device == "cpu":
        updater.Updater.capturing = lambda self: tape.on
    runs = {name: both(device, options) for name, options in OPTIONS.items()}
    alone = [unannounced(device, **options) for options in UNANNOUNCED]
    behind = {every: left_behind(device, every) for every in (1, 3)}
    out = {"runs": runs, "unannounced": alone, "refused": refused(device), "left behind": behind}
    torch.save(out | {"host buffer": host_buffer(device)}, file)
