"""Ultralytics really trains its smallest classifier on a few of scikit-learn's digits, as pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import polyak
from tests.shims import torchvision_without_ops
from tests.trainers.digits import same

torchvision_without_ops()
os.environ |= {"YOLO_OFFLINE": "True", "YOLO_AUTOINSTALL": "False", "MPLBACKEND": "agg"}
pytest.importorskip("ultralytics")
from ultralytics import YOLO  # noqa: E402
from ultralytics.data import build_dataloader  # noqa: E402
from ultralytics.models.yolo.classify import ClassificationTrainer  # noqa: E402

from polyak.trainers.ultralytics import use  # noqa: E402

ROOT = Path(__file__).parents[2]


class Ordered(ClassificationTrainer):
    """Pictures in one order: Ultralytics does not resume its own shuffling."""

    def get_dataloader(self, dataset_path: str, batch_size: int = 4, rank: int = 0, mode: str = "") -> Any:
        dataset = self.build_dataset(dataset_path, "val")
        return build_dataloader(dataset, batch_size, 0, shuffle=False, rank=rank)


def pictures(folder: Path) -> Path:
    digits = load_digits()
    for split in ("train", "val"):
        for index in range(16):
            path = folder / split / str(digits.target[index] % 2) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[index] * 15).astype(np.uint8)).convert("RGB").resize(
                (32, 32)
            ).save(path)
    return folder


# SGD, whose momentum Ultralytics' own files hold in half precision.
def train(
    folder: Path,
    kill_at: int = -1,
    resume: bool = False,
    stop_at: int = -1,
    model: Any = None,
    **options: Any,
) -> Any:
    average = None
    if model is None:
        model = YOLO(folder / "runs" / "weights" / "last.pt" if resume else "yolov8n-cls.yaml")
        average = use(model, polyak.Warmup(0.99), every=2)

    def batch_end(trainer: Any) -> None:
        if trainer.epoch == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.epoch == stop_at:
            raise KeyboardInterrupt

    model.add_callback("on_train_batch_end", batch_end)
    defaults: dict[str, Any] = {
        "data": str(folder / "data"), "epochs": 4, "imgsz": 32, "batch": 4, "nbs": 4, "workers": 0,
        "device": "cpu", "amp": False, "plots": False, "verbose": False, "project": str(folder),
        "name": "runs", "exist_ok": True, "optimizer": "SGD", "lr0": 1e-2, "trainer": Ordered,
    }  # fmt: skip
    arguments = {**defaults, **options} | ({"resume": True} if resume else {})
    model.train(**arguments)
    return average, model


def prepare(folder: Path) -> Path:
    pictures(folder / "data")
    return folder


def test_a_killed_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    whole, killed = prepare(tmp_path / "whole"), prepare(tmp_path / "killed")
    code = "from pathlib import Path; from tests.trainers.test_ultralytics import train; train(Path({!r}), 2)"
    done = subprocess.run(
        [sys.executable, "-c", code.format(str(killed))], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    (a, _), (b, _) = train(whole), train(killed, resume=True)
    assert a.ema.step == b.ema.step == 16
    assert same(a.ema.module.state_dict(), b.ema.module.state_dict())
    assert same(a.ema.model.state_dict(), b.ema.model.state_dict())


def test_files_hold_the_average_and_the_raw_weights(tmp_path: Path) -> None:
    average, model = train(prepare(tmp_path))
    assert average.ema.step == 16
    weights = tmp_path / "runs" / "weights"
    mean = average.ema.module.state_dict()
    last = YOLO(weights / "last.pt").model.state_dict()
    assert all(torch.equal(last[name].half(), mean[name].half()) for name in mean)
    kept = torch.load(weights / "last.polyak.pt", weights_only=True)
    assert same(kept["raw"], average.ema.model.state_dict())
    assert not same(kept["raw"], mean)
    assert (weights / "best.polyak.pt").exists()
    assert same(model.trainer.ema.ema.state_dict(), mean), "what was validated"


def test_an_exception_in_validation_and_micro_batches_leave_the_raw_weights(tmp_path: Path) -> None:
    model = YOLO("yolov8n-cls.yaml")
    average = use(model, {"short": 0.5, "long": 0.9}, evaluate="long")
    with pytest.raises(polyak.PlanError, match="no average before"):
        average.ema  # noqa: B018
    raw: list[torch.Tensor] = []

    def fail(validator: Any) -> None:
        raw.append(next(average.ema.model.parameters()).detach().clone())
        raise RuntimeError("the evaluation failed")

    model.add_callback("on_val_start", fail)
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        train(prepare(tmp_path), model=model, nbs=8, warmup_epochs=0)
    assert average.ema.step == 2, "sixteen pictures by four, two micro-batches to a step"
    assert average.ema.live == "raw"
    assert torch.equal(next(average.ema.model.parameters()), raw[0])
    shown, long = model.trainer.ema.ema, average.ema.module_of("long")
    assert torch.equal(next(shown.parameters()), next(long.parameters()))
    model.trainer.optimizer.step()  # nothing follows a run that is over
    assert average.ema.step == 2


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    with pytest.raises(polyak.ConfigError, match=r"best\.pt and last\.pt hold an average"):
        use(YOLO("yolov8n-cls.yaml"), 0.9, evaluate="raw")
    with pytest.raises(polyak.ConfigError, match="evaluate='wide'"):
        use(YOLO("yolov8n-cls.yaml"), 0.9, evaluate="wide")
    weights = prepare(tmp_path) / "runs" / "weights"
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=2)
    kept = torch.load(weights / "last.polyak.pt", weights_only=True)
    torch.save(kept | {"epoch": 0}, weights / "last.polyak.pt")
    with pytest.raises(polyak.CheckpointError, match=r"is of epoch 0, .* of epoch 1"):
        train(tmp_path, resume=True)
    (weights / "last.polyak.pt").unlink()
    with pytest.raises(polyak.CheckpointError, match=r"last\.polyak\.pt is missing"):
        train(tmp_path, resume=True)
