"""What the averages that Lightning, Keras and timm bring themselves do otherwise, as the pages say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyak
from tests.shims import torchvision_without_ops

torchvision_without_ops()

# Lightning's advice to small runs, and how Keras asks NumPy for a copy.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import EMAWeightAveraging

    from tests.trainers import test_lightning as ours

    def fit(average: Any, fail: bool = False) -> Any:
        module = ours.Digits(fail=fail)
        run = ours.trainer(tmp_path, average, logger=False)
        try:
            run.fit(module, ours.loader(), ours.loader())
        except RuntimeError:
            assert fail
        run.save_checkpoint(tmp_path / "end.ckpt")
        return module

    own, average = fit(EMAWeightAveraging(decay=0.9)), ours.WeightAveraging(0.9)
    raw = fit(average)
    assert not torch.equal(own.first.weight, raw.first.weight), "after fit the module has the average"
    assert torch.allclose(own.first.weight, average.ema.module.first.weight, atol=0.01)
    assert own.net[1].num_batches_tracked == 38, "an integer averaged through floats"
    assert average.ema.module.net[1].num_batches_tracked == 48

    def moved(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).detach().norm())

    seldom = ours.WeightAveraging(0.9, every=4)
    fit(seldom)
    own_seldom = fit(EMAWeightAveraging(decay=0.9, update_every_n_steps=4))
    theirs = moved(own_seldom.first.weight, own.first.weight)
    assert theirs > 5 * moved(seldom.ema.module.first.weight, average.ema.module.first.weight)

    failed, kept = fit(EMAWeightAveraging(decay=0.9), fail=True), ours.WeightAveraging(0.9)
    raw = fit(kept, fail=True)
    assert torch.equal(raw.first.weight, kept.ema.model.first.weight)
    assert not torch.equal(raw.first.weight, failed.first.weight), "the average stays in the module"
    assert torch.allclose(failed.first.weight, kept.ema.module.first.weight, atol=0.02)


def test_keras() -> None:
    pytest.importorskip("keras")
    from tests.trainers import test_keras as ours

    def fit(*callbacks: Any, epochs: int = 2, **options: Any) -> tuple[Any, Any]:
        model = ours.network(**options)
        ours.train(model, *callbacks, epochs=epochs, validation_data=(ours.X, ours.Y))
        return model, model.history.history["val_loss"]

    plain, raw_losses = fit()
    own, losses = fit(use_ema=True, ema_momentum=0.9)
    assert losses == raw_losses, "validated is the raw model"
    average = ours.WeightAveraging(0.9, evaluate="both")
    model, averaged = fit(average)
    assert np.array_equal(ours.kernel(model), ours.kernel(plain))
    assert not np.array_equal(ours.kernel(own), ours.kernel(plain)), "after fit the model has the average"
    assert averaged != raw_losses == model.history.history["raw/val_loss"]

    def statistics(of: Any) -> Any:
        return of.layers[1].moving_mean.numpy()

    assert np.array_equal(statistics(own), statistics(plain)), "the raw ones beside averaged weights"
    tensors = average.ema.tracks["average"].tensors
    mean = next(tensor for name, tensor in tensors.items() if name.endswith("moving_mean")).numpy()
    assert not np.array_equal(mean, statistics(plain))

    # 32 micro-batches are 8 steps, and a micro-batch between two steps is averaged as if it were one.
    own, _ = fit(use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=4, epochs=4)
    average = ours.WeightAveraging(0.9)
    fit(average, gradient_accumulation_steps=4, epochs=4)
    assert average.ema.step == 8
    as_steps = ours.WeightAveraging(0.9**4)
    fit(as_steps, gradient_accumulation_steps=4, epochs=4)
    near, far = (np.abs(ours.kernel(own) - ours.mean(one)).max() for one in (as_steps, average))
    assert near < far / 2


@pytest.mark.parametrize(("updates", "left"), [(1000, 0.819), (10000, 0.135)])
def test_timm(updates: int, left: float) -> None:
    """Of `--model-ema-decay 0.9998`, without `--model-ema-warmup`: how much is the first weights."""
    utils = pytest.importorskip("timm.utils")
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        theirs, ours = utils.ModelEmaV3(model, decay=0.9998), polyak.EMA(model, polyak.Warmup(0.9998))
        model.weight.fill_(0.0)
        for _ in range(updates):
            theirs.update(model)
            ours.update()
    assert theirs.module.weight.item() == pytest.approx(left, abs=1e-3)
    assert ours.tracks["average"].profile.initial_weight == 0
