"""Averages that somebody moves in place, as sending them to another process does, stay right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak import EMA
from polyak.dropin.swa_utils import AveragedModel, get_ema_multi_avg_fn
from polyak.dropin.timm import ModelEmaV3
from polyak.dropin.torch_ema import ExponentialMovingAverage
from polyak.errors import PlanError

ENGINES = ("native", "blocked", "foreach")
Move = Callable[[EMA, nn.Module], object]


def averages(ema: EMA) -> list[Tensor]:
    return [
        t for track in ema.tracks.values() for held in (track.tensors, track.residuals) for t in held.values()
    ]


def within_a_block(ema: EMA, model: nn.Module) -> None:
    with ema.average_parameters():
        model.share_memory()


def grown(ema: EMA, model: nn.Module) -> None:
    for tensor in averages(ema):
        tensor.untyped_storage().resize_(3 * tensor.nbytes)


def pointed_elsewhere(ema: EMA, model: nn.Module) -> None:
    for tensor in averages(ema):
        tensor.data = tensor.clone()


def other_strides(ema: EMA, model: nn.Module) -> None:
    for tensor in averages(ema):
        if tensor.dim() == 2:
            tensor.data = tensor.t().clone().t()


MOVES: dict[str, Move] = {
    "its module is shared": lambda ema, model: ema.module.share_memory(),
    "one tensor is shared": lambda ema, model: (
        next(iter(ema.tracks.values())).tensors["0.weight"].share_memory_()
    ),
    "all are shared": lambda ema, model: [tensor.share_memory_() for tensor in averages(ema)],
    "the model is shared while it holds them": within_a_block,
    "storages grow": grown,
    "pointed elsewhere": pointed_elsewhere,
    "laid out otherwise": other_strides,
}
FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "two tracks": {"decay": {"a": 0.5, "b": 0.75}},
    "compensated": {"compensated": True},
    "split": {"dtype": "split"},
    "float64": {"dtype": torch.float64},
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 70), nn.BatchNorm1d(70), nn.Linear(70, 3))


def moved_on(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(1.0)
        for buffer in model.buffers():
            buffer.add_(1)


def values(ema: EMA) -> list[Tensor]:
    """All that is kept, with every digit."""
    named = [track.value(name) for track in ema.tracks.values() for name in track.tensors]
    return [value.clone() for value in [*named, *ema.state_dict()["copies"].values()]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("move", MOVES)
def test_averages_go_on_where_they_lie(move: str, form: str, engine: Any) -> None:
    options: dict[str, Any] = {"decay": 0.5, "engine": engine} | FORMS[form]
    left, right = net(), net()
    still, moved = EMA(left, **options), EMA(right, **options)
    for i in range(4):
        for model, ema in ((left, still), (right, moved)):
            moved_on(model)
            ema.update()
        if i == 1:
            MOVES[move](moved, right)
    for mine, theirs in zip(values(moved), values(still), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5)
    for mine, theirs in zip(
        moved.module.state_dict().values(), still.module.state_dict().values(), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-2 if form == "split" else 1e-5)
    assert moved.step == still.step == 4


def test_a_module_given_away_in_shared_memory_follows_on() -> None:
    model = net()
    ema = EMA(model, 0.5)
    given = ema.module.share_memory()
    moved_on(model)
    ema.update()
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), ema.module.parameters(), strict=True))
    assert torch.equal(given[0].weight, ema.tracks["average"].tensors["0.weight"])
    assert given[0].weight.is_shared()


def shrunk(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(tensor.nbytes // 2)


SPOILS: dict[str, Callable[[Tensor], object]] = {
    "emptied": lambda tensor: tensor.untyped_storage().resize_(0),
    "shrunk": shrunk,
    "halved": lambda tensor: setattr(tensor, "data", tensor.half()),
    "reshaped": lambda tensor: tensor.resize_(3),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("verb", ["update", "module", "copy_to"])
def test_an_average_that_somebody_took_away_is_named_and_nothing_is_done(spoil: str, verb: str) -> None:
    model = net()
    ema = EMA(model, 0.5)
    ema.update()
    other = ema.tracks["average"].tensors["2.weight"].clone()
    SPOILS[spoil](ema.tracks["average"].tensors["0.weight"])
    moved_on(model)
    with pytest.raises(PlanError, match=r"the average 'average' of 0\.weight"):
        getattr(ema, verb) if verb == "module" else getattr(ema, verb)()
    assert ema.step == 1
    assert torch.equal(ema.tracks["average"].tensors["2.weight"], other)
    ema.reset()
    ema.update()
    assert torch.equal(ema.module[0].weight, model[0].weight)


def test_a_parameter_whose_storage_is_too_small_is_refused() -> None:
    model = net()
    ema = EMA(model, 0.5)
    shrunk(model[0].weight.data)
    with pytest.raises(PlanError, match=r"0\.weight is torch\.float32 \(70, 70\) on a storage of only"):
        ema.update()
    model[0].weight.data.untyped_storage().resize_(70 * 70 * 4)
    ema.update()


def step_timm(model: nn.Module) -> tuple[Callable[[], object], list[Tensor]]:
    averaged = ModelEmaV3(model, 0.5)
    return lambda: averaged.update(model), list(averaged.module.parameters())


def step_torch_ema(model: nn.Module) -> tuple[Callable[[], object], list[Tensor]]:
    averaged = ExponentialMovingAverage(model.parameters(), 0.5, use_num_updates=False)
    return averaged.update, averaged.shadow_params


def step_swa(model: nn.Module) -> tuple[Callable[[], object], list[Tensor]]:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    return lambda: averaged.update_parameters(model), list(averaged.module.parameters())


@pytest.mark.parametrize("make", [step_timm, step_torch_ema, step_swa])
def test_averages_of_drop_ins_go_on_where_they_lie(
    make: Callable[[nn.Module], tuple[Callable[[], object], list[Tensor]]],
) -> None:
    model = net()
    update, kept = make(model)
    want = [tensor.detach().clone() for tensor in kept]
    for i in range(4):
        moved_on(model)
        update()
        for average, live in zip(want, model.parameters(), strict=True):
            average.lerp_(live.detach(), 0.5)
        if i == 1:
            for tensor in kept:
                tensor.share_memory_()
    for mine, theirs in zip(kept, want, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5)
