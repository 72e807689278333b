"""timm's classes and polyak's, side by side on one training run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import timm as ours
from polyak.errors import CheckpointError, PlanError
from tests.dropin.side import Tied
from tests.shims import torchvision_without_ops

torchvision_without_ops()
theirs = pytest.importorskip("timm.utils")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_warmup": True},
    {"use_warmup": True, "min_decay": 0.3, "warmup_gamma": 5.0, "warmup_power": 0.7},
    {"use_warmup": True, "update_after_step": 7},
    {"min_decay": 0.995},
    {"exclude_buffers": True},
    {"dtype": torch.float64},
    {"device": "cpu"},
    {"foreach": False},
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), nn.LayerNorm(4)
    )


def train(model: nn.Module, steps: int, after: Callable[[int], object]) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        after(step)


def agree(a: nn.Module, b: nn.Module) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert x.dtype == y.dtype, name
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("counted", [True, False])
def test_v3_is_timms_step_by_step(options: dict[str, Any], counted: bool) -> None:
    model = network()
    a, b = theirs.ModelEmaV3(model, 0.99, **options), ours.ModelEmaV3(model, 0.99, **options)

    def after(step: int) -> None:
        given = step if counted else None
        a.update(model, given)
        b.update(model, given)
        assert a.get_decay(given) == pytest.approx(b.get_decay(given), abs=1e-12)
        agree(a, b)

    train(model, 20, after)
    x = torch.randn(2, 3, 8, 8).to(options.get("dtype"))
    torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-6)
    a.set(model)
    b.set(model)
    agree(a, b)
    public = {k for k in vars(a) if not k.startswith("_")}
    assert public <= {k for k in vars(b) if not k.startswith("_")}


def test_v2_and_v1_are_timms_but_for_whole_numbers() -> None:
    model = network()
    a, b = theirs.ModelEmaV2(model, 0.9), ours.ModelEmaV2(model, 0.9)
    c, d = theirs.ModelEma(model, 0.9), ours.ModelEma(model, 0.9)

    def after(step: int) -> None:
        for averaged in (a, b, c, d):
            averaged.update(model)

    train(model, 20, after)
    assert int(b.module[1].num_batches_tracked) == int(d.ema[1].num_batches_tracked) == 20
    assert int(a.module[1].num_batches_tracked) < 20, "timm averages the counter and cuts it off"
    for averaged in (a.module, b.module, c.ema, d.ema):
        averaged[1].num_batches_tracked.zero_()
    agree(a, b)
    agree(c.ema, d.ema)


def test_each_loads_the_others_state() -> None:
    model = network()
    a, b = theirs.ModelEmaV3(model, 0.9), ours.ModelEmaV3(model, 0.9)
    train(model, 3, lambda step: (a.update(model, step), b.update(model, step)))
    fresh_a, fresh_b = theirs.ModelEmaV3(network(), 0.9), ours.ModelEmaV3(network(), 0.9)
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(a.state_dict())
    agree(fresh_a, fresh_b)
    train(model, 3, lambda step: (fresh_a.update(model, step + 3), fresh_b.update(model, step + 3)))
    agree(fresh_a, fresh_b)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_v1_resumes_a_training_checkpoint(tmp_path: Path, prefix: str) -> None:
    kept = {f"{prefix}{k}": v + 1 for k, v in nn.Linear(2, 1).state_dict().items()}
    torch.save({"state_dict_ema": kept}, tmp_path / "last.pth.tar")
    model: nn.Module = nn.DataParallel(nn.Linear(2, 1)) if prefix else nn.Linear(2, 1)
    averaged = ours.ModelEma(model, resume=str(tmp_path / "last.pth.tar"))
    for name, tensor in averaged.ema.state_dict().items():
        assert torch.equal(tensor, kept[name])
    torch.save({"state_dict": kept}, tmp_path / "other.pth.tar")
    with pytest.raises(CheckpointError, match="no state_dict_ema"):
        ours.ModelEma(model, resume=str(tmp_path / "other.pth.tar"))


# What is different.


def test_tied_weights_are_averaged_once() -> None:
    model = Tied()
    a, b = theirs.ModelEmaV3(model, 0.9), ours.ModelEmaV3(model, 0.9)
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    a.update(model)
    b.update(model)
    torch.testing.assert_close(b.module.embed.weight, before + 0.1)
    torch.testing.assert_close(a.module.embed.weight, before + 0.19, msg="timm: 0.9 acts as 0.81")


def test_a_nan_is_not_for_ever() -> None:
    model = nn.Linear(2, 1)
    a, b = theirs.ModelEmaV3(model, 0.9), ours.ModelEmaV3(model, 0.9)
    kept = model.weight.detach().clone()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    a.update(model)
    b.update(model)
    with torch.no_grad():
        model.weight.copy_(kept)
    a.update(model)
    b.update(model)
    assert a.module.weight.isnan().any()
    torch.testing.assert_close(b.module.weight, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_keep_moving(dtype: torch.dtype) -> None:
    model = nn.Linear(64, 64, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
    averaged = ours.ModelEmaV3(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
    for _ in range(1000):
        averaged.update(model)
    assert averaged.module.weight.double().mean().item() == pytest.approx(2 - 0.999**1000, rel=1e-2)


def test_a_model_that_moved_is_followed_and_a_stranger_refused() -> None:
    model = network()
    averaged = ours.ModelEmaV3(model, 0.5)
    averaged.module.double()
    with torch.no_grad():
        model[0].weight.zero_()
    averaged.update(model)
    assert averaged.module[0].weight.dtype == torch.float64
    wrapped = nn.DataParallel(model)
    averaged.update(wrapped)
    with pytest.raises(PlanError, match=r"missing in the model|is \("):
        averaged.update(nn.Sequential(nn.Linear(2, 2)))
