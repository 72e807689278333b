"""diffusers' EMAModel and polyak's, side by side on one training run."""

import copy
import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import diffusers as ours
from polyak.errors import ConfigError
from tests.dropin.side import Averaging, check_nan, check_sixteen_bits, close, network, train
from tests.shims import torchvision_without_ops

torchvision_without_ops()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("diffusers.training_utils")
    diffusers = pytest.importorskip("diffusers")
    UNet = diffusers.UNet2DModel

OPTIONS: list[dict[str, Any]] = [
    {},
    {"decay": 0.5},
    {"min_decay": 0.7},
    {"decay": 0.5, "min_decay": 0.7},
    {"update_after_step": 7},
    {"use_ema_warmup": True},
    {"use_ema_warmup": True, "inv_gamma": 5.0, "power": 0.8, "min_decay": 0.2, "update_after_step": 3},
    {"decay": 1.0, "use_ema_warmup": True},
    {"foreach": True},
    {"max_value": 0.6, "min_value": 0.1, "device": "cpu"},
]


def agree(a: Any, b: Any) -> None:
    for key, value in a.state_dict().items():
        if key != "shadow_params":
            assert value == b.state_dict()[key], key
    for x, y in zip(a.shadow_params, b.shadow_params, strict=True):
        close(x, y)


def both(parameters: Any, **options: Any) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        given = list(parameters) if not isinstance(parameters, nn.Module) else parameters
        return theirs.EMAModel(given, **options), ours.EMAModel(given, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_diffusers_step_by_step(options: dict[str, Any], frozen: bool) -> None:
    model = network()
    if frozen:
        model[0].weight.requires_grad_(False)
    a, b = both(model.parameters(), **options)

    def after(step: int) -> None:
        if frozen:
            model[0].weight.add_(1.0)
        if step == 12:
            model[4].bias.requires_grad_(False)
        a.step(model.parameters())
        b.step(model.parameters())
        agree(a, b)
        assert a.cur_decay_value == pytest.approx(b.cur_decay_value, abs=1e-12)

    train(model, 20, after)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert {name for name in (*dir(a), *vars(a)) if name[0] != "_"} <= {*dir(b), *vars(b)}
    for name, function in inspect.getmembers(theirs.EMAModel, callable):
        if name[0] != "_" or name == "__init__":
            mine = inspect.signature(getattr(ours.EMAModel, name)).parameters
            assert [(p.name, p.default) for p in mine.values()] == [
                (p.name, p.default) for p in inspect.signature(function).parameters.values()
            ]


def test_a_module_means_its_parameters_with_warmup() -> None:
    model = network()
    a, b = both(model)
    for ema in (a, b):
        with pytest.warns(FutureWarning, match=r"(?s)odule.*deprecated.*parameters"):
            ema.step(model)
    agree(a, b)
    assert b.use_ema_warmup


@pytest.mark.parametrize("old", [{"max_value": 0.9}, {"min_value": 0.1}, {"device": "cpu"}, {}], ids=str)
def test_what_the_original_calls_deprecated_is_called_so_here(old: dict[str, Any]) -> None:
    model = network()
    for library in (theirs, ours):
        with pytest.warns(FutureWarning, match=next(iter(old), "odule")) as told:
            library.EMAModel(model.parameters() if old else model, **old)
        assert len(told) == 1


@pytest.mark.parametrize("foreach", [False, True])
def test_weights_go_in_and_out_of_the_model(foreach: bool) -> None:
    def run(library: Any) -> list[torch.Tensor]:
        model = network()
        ema = library.EMAModel(model.parameters(), 0.9, foreach=foreach)
        train(model, 5, lambda step: ema.step(model.parameters()))
        seen: list[torch.Tensor] = []
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        seen.extend(p.detach().clone() for p in model.parameters())
        ema.restore(model.parameters())
        assert ema.temp_stored_params is None
        return seen + list(model.parameters())

    for x, y in zip(run(theirs), run(ours), strict=True):
        close(x, y)


def test_each_loads_the_others_state() -> None:
    model = network()
    a, b = both(model.parameters(), decay=0.95, use_ema_warmup=True)
    train(model, 4, lambda step: (a.step(model.parameters()), b.step(model.parameters())))
    fresh_a, fresh_b = both(model.parameters())
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(a.state_dict())
    agree(fresh_a, fresh_b)
    train(model, 3, lambda step: (fresh_a.step(model.parameters()), fresh_b.step(model.parameters())))
    agree(fresh_a, fresh_b)
    fresh_b.load_state_dict({"decay": 0.5})
    assert (fresh_b.decay, fresh_b.optimization_step) == (0.5, 7)


def test_to_moves_the_averages() -> None:
    model = network()
    a, b = both(model.parameters())
    for ema in (a, b):
        ema.to(dtype=torch.float64)
    train(model, 3, lambda step: (a.step(model.parameters()), b.step(model.parameters())))
    agree(a, b)
    assert b.shadow_params[0].dtype == torch.float64


def small() -> Any:
    torch.manual_seed(0)
    return UNet(
        sample_size=4,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("writer", "reader"), [(theirs, ours), (ours, theirs), (ours, ours)])
def test_folders_are_diffusers(writer: Any, reader: Any, tmp_path: Path) -> None:
    model = small()
    ema = writer.EMAModel(model.parameters(), 0.9, model_cls=UNet, model_config=model.config)
    with torch.no_grad():
        model.conv_in.weight.add_(1.0)
    for _ in range(3):
        ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    loaded = reader.EMAModel.from_pretrained(tmp_path, UNet)
    agree(ema, loaded)
    assert loaded.optimization_step == 3
    assert loaded.decay == 0.9


def test_wrong_calls_are_refused_by_both() -> None:
    model = network()
    a, b = both(model.parameters())
    for ema in (a, b):
        with pytest.raises(RuntimeError):
            ema.restore(model.parameters())
        with pytest.raises(ValueError, match="model_cls"):
            ema.save_pretrained("nowhere")
        ema.model_cls = UNet
        with pytest.raises(ValueError, match="model_config"):
            ema.save_pretrained("nowhere")
    with pytest.raises(ConfigError, match="decay"):
        ours.EMAModel(model.parameters(), 1.1)
    with pytest.raises(ConfigError, match="dekay: no such"):
        ours.EMAModel(model.parameters(), dekay=0.9)


BAD = {
    "decay": 1.5,
    "min_decay": "0",
    "optimization_step": 1.5,
    "update_after_step": None,
    "use_ema_warmup": 1,
    "inv_gamma": "1",
    "power": "1",
    "shadow_params": (),
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_state_is_refused_by_both_and_changes_nothing(key: str) -> None:
    a, b = both(network().parameters())
    before = copy.deepcopy(b.state_dict())
    for ema in (a, b):
        with pytest.raises(ValueError):
            ema.load_state_dict(ema.state_dict() | {"decay": 0.5, key: BAD[key]})
    assert str(before) == str(b.state_dict())
    with pytest.raises(ConfigError, match=key):
        b.load_state_dict(b.state_dict() | {key: BAD[key]})


# What is different.


def test_an_unknown_argument_is_refused() -> None:
    model = network()
    theirs.EMAModel(model.parameters(), decai=0.9)
    with pytest.raises(ConfigError, match="decai: no such argument"):
        ours.EMAModel(model.parameters(), decai=0.9)


def test_a_list_of_another_length_is_refused() -> None:
    model = network()
    a, b = both(model.parameters())
    few = list(model.parameters())[:-1]
    a.step(few)
    for call in (b.step, b.store, b.copy_to):
        with pytest.raises(ConfigError, match="7 of them for 8"):
            call(few)
    assert b.optimization_step == 0


def test_wrong_shapes_are_refused_when_loaded() -> None:
    a, b = both(nn.Linear(2, 1).parameters())
    foreign = theirs.EMAModel(nn.Linear(3, 1).parameters()).state_dict()
    a.load_state_dict(foreign)
    with pytest.raises(ConfigError, match=r"shadow_params\[0\] is \(1, 3\)"):
        b.load_state_dict(foreign)


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    parameters = list(model.parameters())
    averages = both(parameters, decay=decay, min_decay=decay)
    for e in averages:
        e.step(parameters)  # a copy
    return [Averaging(partial(e.step, parameters), e.shadow_params) for e in averages]


def test_a_nan_is_not_for_ever() -> None:
    check_nan(begun)


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)


def test_a_loaded_state_is_a_copy() -> None:
    model = network()
    _, b = both(model.parameters())
    state = b.state_dict()
    fresh = ours.EMAModel(model.parameters())
    fresh.load_state_dict(state)
    fresh.shadow_params[0].zero_()
    assert bool(state["shadow_params"][0].any())
