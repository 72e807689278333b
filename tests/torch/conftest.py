"""What the tests of the PyTorch core share: an EMA driven beside the reference, and a meter for memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyak import reference
from polyak.torch import EMA

WRAPPERS = ("_orig_mod.", "module.")


def plain(name: str) -> str:
    """The name without what ``torch.compile`` and DDP put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def array(tensor: Tensor) -> np.ndarray:
    """The values in float64, or complex128, or as they are."""
    if tensor.is_floating_point():
        return tensor.detach().double().cpu().numpy().copy()
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128).cpu().numpy().copy()
    return tensor.detach().cpu().numpy().copy()


class Beside:
    """An ``EMA`` and the reference, over the same model and driven together.

    The reference looks names and values up in the module itself, so it shares nothing with the plan.
    """

    def __init__(self, model: nn.Module, decay: Any = 0.9, **settings: Any) -> None:
        self.model, self.ema = model, EMA(model, decay, **settings)
        self.random = torch.Generator().manual_seed(7)
        timing = {key: settings[key] for key in ("every", "start") if key in settings}
        self.state = reference.init(self.live(), decay, **timing)

    def tensors(self) -> dict[str, Tensor]:
        named = [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()]
        return {plain(name): tensor for name, tensor in named}

    def live(self) -> dict[str, np.ndarray]:
        averaged = self.ema.tracks["average"].tensors
        return {name: array(tensor) for name, tensor in self.tensors().items() if name in averaged}

    def train(self) -> None:
        """Move what an optimizer or a forward pass would move: every floating tensor that is not frozen."""
        buffers = {id(buffer) for buffer in self.model.buffers()}
        with torch.no_grad():
            for tensor in {id(t): t for t in self.tensors().values()}.values():
                if not (tensor.requires_grad or id(tensor) in buffers) or tensor.layout != torch.strided:
                    continue
                if tensor.is_floating_point() or tensor.is_complex():
                    noise = torch.rand(tensor.shape, generator=self.random, dtype=torch.float64)
                    tensor.mul_(0.7).add_(noise.to(tensor.dtype))
                elif tensor.dtype == torch.bool:
                    tensor.logical_not_()
                else:
                    tensor.add_(1)

    def update(self, steps: int = 1) -> None:
        self.ema.update(steps)
        self.state = reference.update(self.state, self.live(), steps)

    def run(self, updates: int = 4) -> Beside:
        for _ in range(updates):
            self.train()
            self.update()
        return self

    def check(self) -> None:
        averages = self.ema.tracks["average"].tensors
        assert set(averages) == set(self.state.average)
        for name, average in averages.items():
            tolerance = 1e-13 if average.dtype in (torch.float64, torch.complex128) else 3e-6
            np.testing.assert_allclose(
                array(average), self.state.average[name], rtol=tolerance, atol=tolerance, err_msg=name
            )


def trained(model: nn.Module, decay: Any = 0.9, **settings: Any) -> EMA:
    """After a few updates."""
    return Beside(model, decay, **settings).run().ema


def network() -> nn.Module:
    """A linear layer on either side of BatchNorm."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.fixture
def beside() -> type[Beside]:
    return Beside


@pytest.fixture
def peak_bytes(tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """The most memory that torch's CPU allocator held above the start while a function ran."""

    def measure(function: Callable[[], object]) -> int:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            function()
        profile.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
        held = np.cumsum([size for _, size in sorted(changes)])
        return int(max(0, *held)) if len(held) else 0

    return measure


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
