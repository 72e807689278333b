"""A training step under ``torch.compile`` averages as an eager one: Dynamo never looks into an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyak
from polyak import reference
from polyak.dropin._follower import Follower

# Dynamo warns of hooks that it leaves alone.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {"decay": 0.9},
    "warm-up": {"decay": polyak.Warmup(0.99)},
    "power": {"decay": polyak.Power(0.1)},
    "ignore": {"decay": 0.9, "on_nonfinite": "ignore"},
    "raise": {"decay": polyak.Debiased(0.9), "on_nonfinite": "raise"},
    "foreach": {"decay": polyak.Uniform(), "engine": "foreach"},
    "blocked": {"decay": polyak.HalfLife(steps=3), "engine": "blocked"},
    "every": {"decay": polyak.Warmup(0.9), "every": 3},
}
STEPS = 14


class Recorder:
    """A backend that runs what it is given, and remembers it."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    @property
    def operations(self) -> str:
        return "\n".join(str(node) for graph in self.graphs for node in graph.graph.nodes)


@pytest.fixture
def backend() -> Any:
    torch._dynamo.reset()
    yield Recorder()
    torch._dynamo.reset()


def trained(options: dict[str, Any], how: str, backend: Recorder) -> list[int]:
    """Train, check every average against the recursion, and return the number of graphs after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = polyak.EMA(model, **options)
    live = dict(model.named_parameters())

    def values() -> dict[str, np.ndarray]:
        return {name: parameter.detach().double().numpy().copy() for name, parameter in live.items()}

    state = reference.init(values(), options["decay"], every=options.get("every", 1))
    if how == "attach":
        ema.attach(optimizer)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if how == "update":
            ema.update()

    compiled = torch.compile(step, backend=backend)
    counts: list[int] = []
    for _ in range(STEPS):
        compiled(torch.randn(4, 8))
        state = reference.update(state, values())
        counts.append(len(backend.graphs))
        for name, average in ema.tracks["average"].tensors.items():
            np.testing.assert_allclose(average.numpy(), state.average[name], rtol=3e-6, atol=3e-6)
    assert ema.step == STEPS
    return counts


@pytest.mark.parametrize("how", ["update", "attach"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_compiled_step_averages_and_compiles_once(
    options: dict[str, Any], how: str, backend: Recorder
) -> None:
    counts = trained(options, how, backend)
    assert counts[0] > 0, "something was compiled"
    assert counts[4:] == [counts[4]] * (STEPS - 4), "nothing is compiled again as decays and steps change"
    for operation in ("lerp", "foreach_norm", "foreach_copy", "isfinite"):
        assert operation not in backend.operations


def test_a_compiled_optimizer_step_with_an_ema_attached_averages(backend: Recorder) -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = polyak.EMA(model, polyak.Warmup(0.99), engine="foreach")
    ema.attach(optimizer)
    step = torch.compile(optimizer.step, backend=backend)
    for n in range(1, 7):
        model(torch.ones(1, 4)).sum().backward()
        before, beta = ema.tracks["average"].tensors["weight"].clone(), polyak.Warmup(0.99)(n)
        step()
        want = before.lerp(model.weight.detach(), 1 - beta)
        assert torch.allclose(ema.tracks["average"].tensors["weight"], want, atol=1e-6)
        assert ema.step == n
    assert "lerp" not in backend.operations


def test_updates_behind_the_names_of_other_libraries_are_not_traced(backend: Recorder) -> None:
    live, average = torch.ones(5), torch.zeros(5, dtype=torch.float64)
    follower = Follower()

    def step(x: Tensor) -> Tensor:
        live.add_(x)
        follower.update({"w": average}, {"w": live}, 0.5)
        return live * 2

    torch.compile(step, backend=backend)(torch.ones(5))
    assert average.tolist() == [1.0] * 5
    assert "lerp" not in backend.operations
    assert "add_" in backend.operations
