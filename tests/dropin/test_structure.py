"""Every class that keeps a copy of the model: of weights that are computed, and of a model that grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import ema_pytorch, mmengine, simple, swa_utils, timm, ultralytics, yolo
from polyak.errors import PlanError
from tests.shims import torchvision_without_ops

torchvision_without_ops()

# torch's older functions, which timm's and everybody's code still uses.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")

Kept = tuple[Callable[[], nn.Module], Callable[[], object]]


def ema(model: nn.Module) -> Kept:
    average = ema_pytorch.EMA(model, update_after_step=0, update_every=1)
    return lambda: average.ema_model, average.update  # type: ignore[return-value]


def post_hoc(model: nn.Module) -> Kept:
    average = ema_pytorch.KarrasEMA(model, gamma=3.0, update_every=1)
    return lambda: average.ema_model, average.update


def by_attribute(make: Callable[[nn.Module], Any], attribute: str, verb: str) -> Callable[[nn.Module], Kept]:
    def kept(model: nn.Module) -> Kept:
        average = make(model)
        return lambda: getattr(average, attribute), lambda: getattr(average, verb)(model)

    return kept


COPIES: dict[str, Callable[[nn.Module], Kept]] = {
    "timm.ModelEma": by_attribute(timm.ModelEma, "ema", "update"),
    "timm.ModelEmaV2": by_attribute(timm.ModelEmaV2, "module", "update"),
    "timm.ModelEmaV3": by_attribute(timm.ModelEmaV3, "module", "update"),
    "swa_utils": by_attribute(swa_utils.AveragedModel, "module", "update_parameters"),
    "mmengine.SWA": by_attribute(mmengine.StochasticWeightAverage, "module", "update_parameters"),
    "mmengine.EMA": by_attribute(mmengine.ExponentialMovingAverage, "module", "update_parameters"),
    "ultralytics": by_attribute(ultralytics.ModelEMA, "ema", "update"),
    "ema_pytorch.EMA": ema,
    "ema_pytorch.KarrasEMA": post_hoc,
}


class Recurrent(nn.Module):
    """Weight norm inside an LSTM, which has its weights in a list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
    "spectral_norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
    "lstm": Recurrent,
    "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("name", COPIES)
def test_a_model_that_has_run_is_copied_with_the_weights_it_computed(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model, x = COMPUTED[kind](), torch.randn(2, 3)
    model(x).sum().backward()
    module, update = COPIES[name](model)
    copy = module()
    with torch.no_grad():
        before = model.eval()(x)
        assert torch.equal(copy.eval()(x), before)
        for parameter in model.parameters():
            parameter.add_(0.5)
        assert torch.equal(copy(x), before), "the copy computes with its own weights"
    update()
    assert torch.isfinite(copy(x)).all()
    assert model(x).requires_grad


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", COPIES)
def test_a_layer_added_to_the_model_is_refused_by_name(name: str, wrapped: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    _, update = COPIES[name](nn.DataParallel(model) if wrapped and "ema_pytorch" not in name else model)
    update()
    model.register_buffer("cache", torch.ones(3), persistent=False)  # which no state_dict holds
    update()
    model.add_module("head", nn.Linear(2, 1))
    with pytest.raises(PlanError, match=r"head\.weight was added to the model after the average was made"):
        update()
    del model.head
    update()


@pytest.mark.parametrize("verb", ["simple", "yolo"])
def test_a_layer_added_to_the_model_joins_an_average_by_name(verb: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    average: Any = simple.EMA(model, 0.9) if verb == "simple" else yolo.ModelEMA(model, 0.9)
    model.add_module("head", nn.Linear(2, 1))
    average.update() if verb == "simple" else average.update(model)
    assert torch.equal(average.shadow["head.weight"], model.head.weight)


def test_a_copy_of_a_model_from_timm_itself(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from tests.shims import torchvision_without_ops

    torchvision_without_ops()
    from timm.layers import NormMlpClassifierHead

    head = NormMlpClassifierHead(4, 2)
    head.fc = nn.utils.weight_norm(head.fc)
    x = torch.randn(1, 4, 2, 2)
    head(x).sum().backward()
    for name in ("timm.ModelEma", "timm.ModelEmaV2", "timm.ModelEmaV3"):
        module, update = COPIES[name](head)
        update()
        assert torch.equal(module()(x), head.eval()(x))
