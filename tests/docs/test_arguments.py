"""The tables of arguments on the pages from-*: each row, a class beside ``polyak.EMA``, step by step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from polyak import EMA, Capped, Ramp, Uniform, Warmup
from polyak.dropin.diffusers import EMAModel
from polyak.dropin.ema_pytorch import EMA as EMAPytorch
from polyak.dropin.mmengine import ExponentialMovingAverage as MMEngine
from polyak.dropin.mmengine import MomentumAnnealingEMA, StochasticWeightAverage
from polyak.dropin.swa_utils import AveragedModel, get_ema_multi_avg_fn
from polyak.dropin.timm import ModelEmaV2, ModelEmaV3
from polyak.dropin.torch_ema import ExponentialMovingAverage
from polyak.dropin.ultralytics import ModelEMA
from tests.dropin.side import close, network, train


class Library(NamedTuple):
    """How its classes are updated, where they keep their average, and what stands for which arguments."""

    update: Callable[[Any, nn.Module, int], object]
    kept: Callable[[Any], dict[str, Tensor]]
    rows: list[tuple[Callable[[nn.Module], Any], Callable[[nn.Module], EMA]]]


def in_order(of: Any) -> dict[str, Tensor]:
    """The averages of a class that keeps a list."""
    return dict(zip((name for name, _ in network().named_parameters()), of.shadow_params, strict=True))


HEAD = ("4.weight",)
WARMED = Warmup(0.9, gamma=5.0, power=0.7, min_decay=0.3, after=3)
LIBRARIES = {
    "timm": Library(
        lambda a, model, step: a.update(model, step=step),
        lambda a: a.module.state_dict(),
        [
            (lambda m: ModelEmaV3(m, 0.9), lambda m: EMA(m, 0.9, start=1)),
            (
                lambda m: ModelEmaV3(
                    m, 0.9, 0.3, update_after_step=3, use_warmup=True, warmup_gamma=5.0, warmup_power=0.7
                ),
                lambda m: EMA(m, WARMED),
            ),
            (
                lambda m: ModelEmaV3(m, 0.9, exclude_buffers=True),
                lambda m: EMA(m, 0.9, buffers="copy", start=1),
            ),
            (
                lambda m: ModelEmaV3(m, 0.9, dtype=torch.float64),
                lambda m: EMA(m, 0.9, dtype=torch.float64, start=1),
            ),
        ],
    ),
    "timm, older": Library(
        lambda a, model, step: a.update(model),
        lambda a: a.module.state_dict(),
        [(lambda m: ModelEmaV2(m, 0.9), lambda m: EMA(m, 0.9))],
    ),
    "torch_ema": Library(
        lambda a, model, step: a.update(),
        in_order,
        [
            (lambda m: ExponentialMovingAverage(m.parameters(), 0.9), lambda m: EMA(m, Capped(0.9))),
            (
                lambda m: ExponentialMovingAverage(m.parameters(), 0.9, use_num_updates=False),
                lambda m: EMA(m, 0.9),
            ),
        ],
    ),
    "swa_utils": Library(
        lambda a, model, step: a.update_parameters(model),
        lambda a: dict(a.module.named_parameters()),
        [
            (AveragedModel, lambda m: EMA(m, Uniform())),
            (
                lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
                lambda m: EMA(m, 0.9, start=1),
            ),
        ],
    ),
    "swa_utils, buffers": Library(
        lambda a, model, step: a.update_parameters(model),
        lambda a: a.module.state_dict(),
        [(lambda m: AveragedModel(m, use_buffers=True), lambda m: EMA(m, Uniform()))],
    ),
    "ema_pytorch": Library(
        lambda a, model, step: a.update(),
        lambda a: a.ema_model.state_dict(),
        [
            (
                lambda m: EMAPytorch(
                    m, beta=0.9, update_after_step=3, update_every=1, inv_gamma=5.0, power=0.7, min_value=0.3
                ),
                lambda m: EMA(m, WARMED),
            ),
            (
                lambda m: EMAPytorch(
                    m,
                    beta=0.9,
                    update_after_step=3,
                    update_every=1,
                    param_or_buffer_names_no_ema=HEAD,
                ),
                lambda m: EMA(m, Warmup(0.9, after=3), exclude=HEAD),
            ),
        ],
    ),
    "ultralytics": Library(
        lambda a, model, step: a.update(model),
        lambda a: a.ema.state_dict(),
        [(lambda m: ModelEMA(m, 0.9, tau=20), lambda m: EMA(m, Ramp(0.9, tau=20)))],
    ),
    "diffusers": Library(
        lambda a, model, step: a.step(model.parameters()),
        in_order,
        [
            (lambda m: EMAModel(m.parameters(), 0.9), lambda m: EMA(m, Capped(0.9), start=1)),
            (
                lambda m: EMAModel(m.parameters(), 0.9, update_after_step=3),
                lambda m: EMA(m, Capped(0.9), start=4),
            ),
            (
                lambda m: EMAModel(
                    m.parameters(), 0.9, 0.3, 3, use_ema_warmup=True, inv_gamma=5.0, power=0.7
                ),
                lambda m: EMA(m, WARMED),
            ),
        ],
    ),
    "mmengine": Library(
        lambda a, model, step: a.update_parameters(model),
        lambda a: a.module.state_dict(),
        [
            (lambda m: MMEngine(m, momentum=0.1), lambda m: EMA(m, 0.9, buffers="copy", start=1)),
            (lambda m: MMEngine(m, momentum=0.1, update_buffers=True), lambda m: EMA(m, 0.9, start=1)),
            (
                lambda m: MomentumAnnealingEMA(m, momentum=0.1, gamma=5),
                lambda m: EMA(m, Warmup(0.9, gamma=5, power=1), buffers="copy"),
            ),
            (StochasticWeightAverage, lambda m: EMA(m, Uniform(), buffers="copy")),
        ],
    ),
}
ROWS = [
    pytest.param(library, *row, id=f"{name}-{i}")
    for name, library in LIBRARIES.items()
    for i, row in enumerate(library.rows)
]


@pytest.mark.parametrize(("library", "theirs", "ours"), ROWS)
def test_arguments_have_counterparts(library: Library, theirs: Any, ours: Any) -> None:
    model = network()
    a, b = theirs(model), ours(model)

    def after(step: int) -> None:
        library.update(a, model, step)
        b.update()
        mine = b.module.state_dict()
        for name, tensor in library.kept(a).items():
            close(tensor, mine[name], name)

    train(model, 30, after)
