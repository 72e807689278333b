"""What only a GPU can show; `make gpu` runs it where there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 8)
    return nn.Sequential(*layers).cuda()


def stepping(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("options", [{}, {"on_nonfinite": "ignore"}, {"decay": polyak.Warmup(0.99)}], ids=str)
def test_a_step_compiled_by_inductor_averages(mode: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    options = {"decay": 0.9} | options
    ema = polyak.EMA(model, **options)
    want = {name: tensor.double().clone() for name, tensor in ema.tracks["average"].tensors.items()}
    live = dict(model.named_parameters()) | dict(model.named_buffers())
    x = torch.randn(16, 64, device="cuda")

    def step() -> None:
        stepping(model, optimizer, x)()
        ema.update()

    compiled = torch.compile(step, mode=mode)
    decay = options["decay"]
    for t in range(1, 13):
        compiled()
        beta = decay if isinstance(decay, float) else decay(t)
        for name in want:
            want[name].lerp_(live[name].detach().double(), 1 - beta)
    for name, tensor in ema.tracks["average"].tensors.items():
        torch.testing.assert_close(tensor.double(), want[name], rtol=1e-5, atol=1e-6)


def test_a_graph_replayed_a_thousand_times_and_refused_after_a_load() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ema = polyak.EMA(model, polyak.Warmup(0.99))
    train = stepping(model, optimizer, torch.randn(16, 64, device="cuda"))

    def step() -> None:
        train()
        ema.update()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(1000):
        ema.replay(graph)
    assert ema.step == 1003
    ema.load_state_dict(copy.deepcopy(ema.state_dict()))
    with pytest.raises(polyak.PlanError, match="no update of the model's present tensors"):
        ema.replay(graph)
    before = {name: tensor.clone() for name, tensor in ema.tracks["average"].tensors.items()}
    graph.replay()  # by itself: trains, and leaves the average where it is
    torch.cuda.synchronize()
    for name, tensor in ema.tracks["average"].tensors.items():
        if "running" not in name:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "options", [{"overlap": True}, {"device": "cpu"}, {"device": "cpu", "overlap": True}]
)
def test_memory_given_up_under_an_update_is_not_reused_before_it_ended(options: dict[str, Any]) -> None:
    model = nn.Linear(2048, 2048, bias=False).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for _ in range(20):
        ema = polyak.EMA(model, 0.0, **options)
        ema.attach(optimizer)
        model.weight.grad = torch.zeros_like(model.weight)
        with torch.no_grad():
            model.weight.fill_(1.0)
        optimizer.step()
        model.weight.data = torch.full((2048, 2048), 7.0, device="cuda")
        junk = [torch.full((2048, 2048), 9.0, device="cuda") for _ in range(8)]
        assert ema.tracks["average"].tensors["weight"].unique().tolist() == [1.0]
        del junk, ema


def test_a_fused_optimizer_under_a_scaler_skips_what_the_scaler_skips() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    ema = polyak.EMA(model, 0.9)
    ema.attach(optimizer)
    scaler = torch.amp.GradScaler("cuda")
    for poisoned in (False, True, False):
        optimizer.zero_grad()
        x = torch.randn(16, 64, device="cuda")
        loss = model(x).square().mean() * (float("inf") if poisoned else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert ema.step == 2
