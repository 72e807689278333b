"""The scripts of docs/how-to with a trainer: training goes as before, its evaluation is of the average."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from tests.docs.pages import FOLDERS, Run, run, same_path
from tests.dropin.side import close
from tests.shims import torchvision_without_ops

torchvision_without_ops()

# What Lightning calls in torch, and its advice about workers; what a run on CPU is told of pinned memory.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in (
        "`isinstance\\(treespec, LeafSpec\\)`",
        "does not have many workers",
        "pin_memory",
        "__array__ implementation doesn't accept a copy keyword",  # how Keras asks NumPy for a copy
    )
]


def hits(model: Callable[..., Any], of: Run) -> float:
    images, labels = of.variables["images"].float()[1500:], of.variables["labels"][1500:]
    return float((model(images).argmax(1) == labels).float().mean())


def lightning(of: Run, average: bool) -> tuple[float, float]:
    model, held_out = of.variables["model"], of.variables["held_out"]
    ((images, labels),) = held_out
    layers = of.variables["average"].ema.module.layers if average else model.layers.eval()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(layers(images), labels))
    return loss, float(of.variables["trainer"].callback_metrics["val_loss"])


def transformers(of: Run, average: bool) -> tuple[float, float]:
    rows = of.variables["rows"][1500:]
    inputs, labels = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels"))
    model = of.variables["averaged" if average else "model"].eval()
    with torch.no_grad():
        loss = float(model(input_ids=inputs, labels=labels).loss)
    log = of.variables["trainer"].state.log_history
    return loss, [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1]


def accelerate(of: Run, average: bool) -> tuple[float, float]:
    return hits(of.variables["ema" if average else "model"], of), float(of.variables["accuracy"])


def ignite(of: Run, average: bool) -> tuple[float, float]:
    model = of.variables["average"].ema if average else of.variables["model"].eval()
    right = [
        float((model(images).argmax(1) == labels).sum()) for images, labels in of.variables["batches"][30:]
    ]
    return sum(right) / 297, of.variables["evaluator"].state.metrics["accuracy"]


TOLD = {"lightning": lightning, "transformers": transformers, "accelerate": accelerate, "ignite": ignite}


@pytest.mark.parametrize("page", TOLD)
def test_training_goes_as_before_and_evaluation_is_of_the_average(page: str, tmp_path: Path) -> None:
    pytest.importorskip(page)
    before, after = (run(page, script, tmp_path) for script in ("before", "after"))
    assert same_path(before, after)
    raw, told_before = TOLD[page](before, average=False)
    assert told_before == pytest.approx(raw, rel=2e-6)
    average, told_after = TOLD[page](after, average=True)
    assert told_after == pytest.approx(average, rel=2e-6)
    assert told_after != pytest.approx(told_before, rel=2e-5)
    kept = after.variables
    ema = kept["ema"] if page == "accelerate" else kept["average"].ema
    assert isinstance(ema, polyak.EMA)
    assert ema.live == "raw"
    assert ema.step == len(after.path)


def test_the_average_of_ultralytics_is_its_own(tmp_path: Path) -> None:
    """``Ramp(0.9999, tau=2000)`` is its schedule."""
    pytest.importorskip("ultralytics")
    before, after = (run("ultralytics", script, tmp_path) for script in ("before", "after"))
    assert same_path(before, after)
    theirs = before.variables["model"].trainer.ema.ema.state_dict()
    ours = after.variables["average"].ema.module.state_dict()
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        if "num_batches_tracked" not in name:  # which Ultralytics leaves where it was
            close(tensor, ours[name], name)
    raw = after.variables["model"].trainer.model.state_dict()
    assert any((raw[name] - tensor).abs().max() > 1e-4 for name, tensor in ours.items())
    assert (after.folder / "runs" / "weights" / "last.polyak.pt").exists()


def test_keras_trains_as_before_and_validates_the_average(tmp_path: Path) -> None:
    """It has optimizers of its own, so the weights are compared where the training ends."""
    keras = pytest.importorskip("keras")
    before, after = (run("keras", script, tmp_path) for script in ("before", "after"))
    models = [of.variables["model"] for of in (before, after)]
    raw, same = (model.get_weights() for model in models)
    assert all((a == b).all() for a, b in zip(raw, same, strict=True))
    told = [model.history.history["val_loss"][-1] for model in models]
    averaged = keras.saving.load_model(after.folder / "average.keras")
    for model, loss in zip((models[0], averaged), told, strict=True):
        assert model.evaluate(*before.variables["held_out"], verbose=0)[0] == pytest.approx(loss, rel=2e-6)
    assert told[0] != pytest.approx(told[1], rel=2e-5)
    ema, best = after.variables["average"].ema, after.variables["best"].ema
    assert ema.step == 3 * 47 >= best.step > 0
    assert ema.live == best.live == "raw"
    assert (after.folder / "best.average.keras").exists()


def test_every_trainer_has_a_page() -> None:
    files = {path.stem for path in Path(polyak.__file__).parent.glob("trainers/[!_]*.py")}
    in_paddle = {path.stem for path in (Path(__file__).parents[2] / "docs/paddle").glob("*.md")}
    assert files - {"checkpoint"} <= set(FOLDERS) | in_paddle
