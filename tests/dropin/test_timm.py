"""timm's classes and polyak's, side by side on one training run."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import timm as ours
from polyak.errors import PlanError
from tests.dropin.side import (
    Averaging,
    Tied,
    check_complex_numbers,
    check_nan,
    check_sixteen_bits,
    check_spectral_vectors,
    network,
    train,
)
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
    assert averaged.ema_has_module == bool(prefix)


def test_v1_begins_at_the_model_where_a_checkpoint_holds_no_average(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    torch.save({"state_dict": {}}, tmp_path / "last.pth.tar")
    a = theirs.ModelEma(model, resume=str(tmp_path / "last.pth.tar"))
    with pytest.warns(UserWarning, match="holds state_dict and no state_dict_ema"):
        b = ours.ModelEma(model, resume=str(tmp_path / "last.pth.tar"))
    agree(a.ema, b.ema)


@pytest.mark.parametrize("name", ["ModelEma", "ModelEmaV2", "ModelEmaV3"])
def test_timms_own_tools_take_it(name: str, tmp_path: Path) -> None:
    model = network()
    averaged = getattr(ours, name)(model)
    assert isinstance(theirs.unwrap_model(averaged), nn.Sequential)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = theirs.CheckpointSaver(model, optimizer, model_ema=averaged, checkpoint_dir=tmp_path)
    saver.save_checkpoint(1)
    kept = torch.load(tmp_path / "last.pth.tar")["state_dict_ema"]
    assert list(kept) == list(model.state_dict())
    file = io.BytesIO()
    torch.save({"state_dict_ema": kept}, file)
    file.seek(0)
    ours.ModelEma(model)._load_checkpoint(file)  # as many scripts resume


@pytest.mark.parametrize("excluded", [False, True])
def test_v3_takes_a_decay_of_ones_own(excluded: bool) -> None:
    model = network()
    model.register_buffer("table", torch.zeros(3), persistent=False)
    a, b = theirs.ModelEmaV3(model), ours.ModelEmaV3(model)

    def after(step: int) -> None:
        model.table.add_(1.0)
        for averaged in (a, b):
            averaged.exclude_buffers = excluded  # may be said later
            averaged.update(model)
            apply = averaged.apply_update_no_buffers_ if excluded else averaged.apply_update_
            with torch.no_grad():
                apply(model, 0.5)

    train(model, 5, after)
    agree(a, b)
    assert torch.equal(a.module.table, b.module.table)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["ModelEmaV2", "ModelEmaV3"])
@pytest.mark.parametrize("when", ["before", "after", "inside"])
def test_torchscript_is_averaged(name: str, when: str) -> None:
    def run(library: Any) -> nn.Module:
        model = network()
        if when == "inside":
            model[0] = torch.jit.script(model[0])
        live = torch.jit.script(model) if when == "before" else model
        averaged = getattr(library, name)(live, decay=0.5)
        averaged.update(live)
        live = torch.jit.script(model) if when == "after" else live
        train(live, 4, lambda step: averaged.update(live))
        live.double()
        averaged.update(live)
        assert averaged(torch.ones(2, 3, 8, 8)).shape == (2, 4)
        averaged.get_buffer("module.1.num_batches_tracked").zero_()
        return averaged

    agree(run(theirs), run(ours))


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


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    averages = [of.ModelEmaV3(model, decay) for of in (theirs, ours)]
    return [Averaging(partial(e.update, model), e.module) for e in averages]


def test_spectral_vectors_keep_their_length() -> None:
    check_spectral_vectors(begun)


def test_complex_numbers_are_averaged() -> None:
    check_complex_numbers(begun, original=1.0)


def test_a_nan_is_not_for_ever() -> None:
    check_nan(begun)


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun, original_stops=False)  # by default timm rounds as we do


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
