"""A deep copy or a pickle of an EMA is another EMA, over another model, that goes on by itself."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak import EMA, Power
from polyak.errors import SwapError
from tests.states import opened
from tests.tensors import COPIES, same

Copying = Callable[[Any], Any]


EVERY_WAY = pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)


class Net(nn.Module):
    """Tied weights, a frozen layer, statistics, a counter and a channels-last weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen = nn.Linear(6, 6, bias=False), nn.Linear(6, 6).requires_grad_(False)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.last(self.frozen(self.first(x))))


def _train(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        model(torch.randn(5, 6, generator=generator))


def _step(ema: EMA, seed: int) -> None:
    _train(ema.model, seed)
    ema.update()


def _tensors(ema: EMA) -> dict[str, Tensor]:
    state = opened(ema.state_dict())
    found = {f"copy/{name}": tensor for name, tensor in state["copies"].items()}
    for track, held in state["tracks"].items():
        found |= {f"{track}/{name}": tensor for name, tensor in held["tensors"].items()}
        found |= {f"{track}/{name}/low": tensor for name, tensor in held["lows"].items()}
    return {name: tensor.clone() for name, tensor in found.items()}


@EVERY_WAY
@pytest.mark.parametrize(
    "kept",
    [{}, {"dtype": torch.bfloat16, "seed": 7}, {"dtype": "split"}, {"compensated": True}, {"every": 3}],
    ids=str,
)
def test_a_copy_goes_on_as_the_original_would(how: Copying, kept: dict[str, Any]) -> None:
    torch.manual_seed(0)
    decay = {"short": 0.5, "long": Power(gamma=3)}
    ema = EMA(Net(), decay, **kept)
    for seed in range(4):
        _step(ema, seed)
    twin = how(ema)
    assert (twin.step, twin.run) == (4, ema.run)
    assert same(_tensors(twin), _tensors(ema))
    before, model = _tensors(ema), {k: v.clone() for k, v in ema.model.state_dict().items()}
    for seed in range(4, 9):
        _step(twin, seed)
    assert ema.step == 4
    assert same(_tensors(ema), before)
    assert all(torch.equal(v, model[k]) for k, v in ema.model.state_dict().items())
    for seed in range(4, 9):
        _step(ema, seed)
    assert twin.step == ema.step == 9
    assert same(_tensors(twin), _tensors(ema))
    assert twin.metrics() == ema.metrics()
    for name, track in ema.tracks.items():
        assert twin.tracks[name].profile.to_json() == track.profile.to_json()
    assert same(twin.module.state_dict(), ema.module.state_dict())
    assert twin.module is not ema.module
    assert twin.module.last.weight is twin.module.first.weight


@EVERY_WAY
def test_a_copy_follows_the_recursion(how: Copying) -> None:
    torch.manual_seed(0)
    ema = EMA(nn.Linear(3, 2), 0.75)
    expected = ema.model.weight.detach().double().clone()
    for step in range(6):
        ema = how(ema)
        with torch.no_grad():
            ema.model.weight.mul_(-1.25)
        ema.update()
        expected = 0.75 * expected + 0.25 * ema.model.weight.detach().double()
        assert ema.step == step + 1
    torch.testing.assert_close(ema.module.weight.double(), expected, rtol=1e-6, atol=1e-6)


@EVERY_WAY
def test_a_copy_counts_on_what_was_not_finite(how: Copying) -> None:
    ema = EMA(nn.Linear(2, 1), 0.5)
    with torch.no_grad():
        ema.model.bias.fill_(torch.nan)
    ema.update()
    twin = how(ema)
    assert twin.metrics()["skipped"] == 1
    twin.update()
    assert twin.metrics()["skipped_tensors"] == {"bias": 2}
    assert ema.metrics()["skipped_tensors"] == {"bias": 1}


@EVERY_WAY
def test_in_one_structure_the_copy_is_of_the_same_model(how: Copying) -> None:
    model = nn.Linear(2, 2)
    for twin in (how({"ema": EMA(model), "model": model}), how({"model": model, "ema": EMA(model)})):
        assert twin["ema"].model is twin["model"]
        assert twin["model"] is not model


@EVERY_WAY
def test_a_model_that_holds_its_ema_can_be_copied(how: Copying) -> None:
    model = Net()
    object.__setattr__(model, "ema", EMA(model, 0.5))
    _step(model.ema, 0)
    twin = how(model)
    assert twin.ema.model is twin
    _step(twin.ema, 1)
    _step(model.ema, 1)
    assert same(_tensors(twin.ema), _tensors(model.ema))


@EVERY_WAY
def test_a_copy_follows_no_optimizer_and_calls_nobody(how: Copying) -> None:
    model, calls = nn.Linear(2, 2), list[int]()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.5)
    ema.attach(optimizer)
    ema.watch(lambda: calls.append(1))
    twin = how(ema)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (ema.step, twin.step, len(calls)) == (1, 0, 1)
    twin.update()
    assert (ema.step, twin.step, len(calls)) == (1, 1, 1)
    other = torch.optim.SGD(twin.model.parameters(), 0.1)
    twin.attach(other)
    twin.model(torch.ones(1, 2)).sum().backward()
    other.step()
    assert (ema.step, twin.step) == (1, 2)


@EVERY_WAY
@pytest.mark.parametrize("whose", ["own", "another's"])
def test_no_copy_while_an_average_is_live(how: Copying, whose: str) -> None:
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.5)
    holder = ema if whose == "own" else EMA(model, 0.9)
    with holder.average_parameters(), pytest.raises(SwapError, match="copy: the model holds"):
        how(ema)
    assert how(ema).step == 0


@pytest.mark.parametrize("verb", ["module", "state_dict", "average_parameters", "reset", "save", "metrics"])
def test_any_verb_may_come_first(verb: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    ema = EMA(Net(), 0.5)
    _step(ema, 0)
    twin, value = copy.deepcopy(ema), ema.module.first.weight.clone()
    if verb == "average_parameters":
        with twin.average_parameters() as model:
            assert torch.equal(model.first.weight, value)
    elif verb == "state_dict":
        assert not twin.load_state_dict(ema.state_dict())
    elif verb == "save":
        twin.save(tmp_path / "twin.safetensors")
    elif verb == "module":
        assert torch.equal(twin.module.first.weight, value)
    else:
        getattr(twin, verb)()
    _step(twin, 1)
    assert twin.step == 2


def _updated(ema: EMA, results: Any) -> None:
    _step(ema, 1)
    results.put((ema.step, {name: t.numpy() for name, t in _tensors(ema).items()}))


def test_a_spawned_process_goes_on() -> None:
    torch.manual_seed(0)
    ema = EMA(Net(), 0.5)
    _step(ema, 0)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    before, alone = _tensors(ema), copy.deepcopy(ema)
    process = context.Process(target=_updated, args=(ema, results))
    process.start()
    step, found = results.get(timeout=120)
    process.join(60)
    assert (step, ema.step) == (2, 1)
    assert same(_tensors(ema), before)  # only the model is shared, as torch does it
    _step(alone, 1)
    assert same({name: torch.from_numpy(array) for name, array in found.items()}, _tensors(alone))
