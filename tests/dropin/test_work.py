"""What a drop-in's update does besides averaging, counted.

Right after a training step each line of Python costs about a microsecond, and one decay that NumPy computes a
hundred.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from polyak.dropin.diffusers import EMAModel
from polyak.dropin.timm import ModelEmaV3
from polyak.dropin.ultralytics import ModelEMA
from tests.work import lines_run


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])


def test_an_update_of_a_module_runs_few_lines_of_python(model: nn.Module) -> None:
    yolo, timm = ModelEMA(model), ModelEmaV3(model, use_warmup=True)
    for step in range(1, 4):
        yolo.update(model)
        timm.update(model, step)
    assert lines_run(lambda: yolo.update(model)) < 45
    assert lines_run(lambda: timm.update(model, 4)) < 105  # nn.Module's own attribute lookup counts


def test_an_update_of_a_list_looks_at_the_trained_tensors_only(model: nn.Module) -> None:
    average = EMAModel(model.parameters(), use_ema_warmup=True)
    parameters = list(model.parameters())
    for _ in range(3):
        average.step(parameters)
    assert lines_run(lambda: average.step(parameters)) < 140


def test_the_decays_of_the_next_steps_are_computed_at_once(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo = ModelEMA(model, tau=1234.5)
    yolo.update(model)
    monkeypatch.setattr(np, "expm1", None)  # needed again only at step 257
    for _ in range(200):
        yolo.update(model)
    monkeypatch.undo()
    assert yolo.updates == 201
    assert torch.equal(next(yolo.ema.parameters()), next(model.parameters()))
