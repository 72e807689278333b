"""Ultralytics really trains small models on a few drawn shapes and a few of scikit-learn's digits."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import polyak
from polyak.cli.describe import CheckpointSummary, describe
from polyak.report.collect import collect
from polyak.report.logged import logged_value
from tests.processes import check_it_kills_itself
from tests.shims import torchvision_with_nms
from tests.tensors import same
from tests.trainers.drawn import pictures, shapes

torchvision_with_nms()
os.environ |= {"YOLO_OFFLINE": "True", "YOLO_AUTOINSTALL": "False", "MPLBACKEND": "agg"}
pytest.importorskip("ultralytics")
from ultralytics import YOLO  # noqa: E402
from ultralytics.data import build_dataloader  # noqa: E402
from ultralytics.models.yolo.classify import ClassificationTrainer  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402

from polyak.trainers.ultralytics import WeightAveraging, _plain_numbers  # noqa: E402

ROOT = Path(__file__).parents[2]
DETECTOR, CLASSIFIER = (str(Path(__file__).with_name(name)) for name in ("small.yaml", "small-cls.yaml"))
PER_TRACK = {"decay", "mean_age", "initial_weight", "distance"}
LOGGED = {"ema/skipped", *(f"ema/{key}" for key in PER_TRACK)}


class Ordered:
    """Pictures as they are, in one order: Ultralytics resumes neither its shuffling nor its augmentation."""

    def get_dataloader(self: Any, path: str, batch_size: int = 4, rank: int = 0, mode: str = "") -> Any:
        dataset = self.build_dataset(path, "val", batch_size)
        return build_dataloader(dataset, batch_size, 0, shuffle=False, rank=rank)


class OrderedDetection(Ordered, DetectionTrainer):
    """Boxes."""


class OrderedClassification(Ordered, ClassificationTrainer):
    """Whole pictures."""


# SGD, whose momentum Ultralytics' own files hold in half precision.
def train(folder: Path, model: Any, **options: Any) -> None:
    """Sixteen pictures, four batches, three epochs; ``data`` is drawn when it is not there."""
    if not (folder / "data").exists():
        if model.task == "classify":
            pictures(folder / "data")
        else:
            shapes(folder / "data", keypoints=model.task == "pose")
    data = folder / "data" if model.task == "classify" else folder / "data" / "data.yaml"
    defaults: dict[str, Any] = {
        "data": str(data), "epochs": 3, "imgsz": 32, "batch": 4, "nbs": 4, "workers": 0, "device": "cpu",
        "plots": False, "verbose": False, "project": str(folder), "name": "runs", "exist_ok": True,
        "optimizer": "SGD", "lr0": 1e-2, "warmup_epochs": 1,
    }  # fmt: skip
    model.train(**{**defaults, **options})


def ordered(
    folder: Path, weights: str | Path, kill_at: int = -1, stop_at: int = -1, nan_at: int = -1, **options: Any
) -> Any:
    """A run that can be repeated, begun anew by the name of a model or continued from a file."""
    model = YOLO(weights)
    average = WeightAveraging(polyak.Warmup(0.99), every=2).attach(model)

    def batch_end(trainer: Any) -> None:
        if trainer.epoch == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.epoch == stop_at:
            raise KeyboardInterrupt
        if trainer.epoch == nan_at and not trainer.nan_recovery_attempts:
            trainer.loss = torch.tensor(float("nan"))

    model.add_callback("on_train_batch_end", batch_end)
    trainer = OrderedClassification if model.task == "classify" else OrderedDetection
    train(folder, model, trainer=trainer, resume=isinstance(weights, Path), **options)
    return average


@functools.cache
def whole(kind: str) -> Any:
    """What a run comes to that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        return ordered(Path(folder), kind)


def check_is_as_if_undisturbed(average: Any, kind: str) -> None:
    expected = whole(kind)
    assert average.ema.step == expected.ema.step == 12
    assert same(average.ema.module.state_dict(), expected.ema.module.state_dict())
    assert same(average.ema.model.state_dict(), expected.ema.model.state_dict())


def test_a_killed_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    check_it_kills_itself(__name__, f"ordered({tmp_path!r}, {DETECTOR!r}, kill_at=1)")
    check_is_as_if_undisturbed(ordered(tmp_path, tmp_path / "runs" / "weights" / "last.pt"), DETECTOR)


def test_an_earlier_file_goes_on_to_the_same_average(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ordered(tmp_path, CLASSIFIER, stop_at=2, save_period=1)
    check_is_as_if_undisturbed(ordered(tmp_path, tmp_path / "runs" / "weights" / "epoch0.pt"), CLASSIFIER)


def test_a_loss_that_is_no_number_goes_back_to_the_raw_weights_and_their_average(tmp_path: Path) -> None:
    check_is_as_if_undisturbed(ordered(tmp_path, DETECTOR, nan_at=1), DETECTOR)


@pytest.mark.parametrize(
    "kind", ["yolov8n.yaml", "yolo26n.yaml", "yolov8n-seg.yaml", "yolov8n-pose.yaml", "yolov8n-cls.yaml"]
)
def test_files_hold_the_average_and_the_raw_weights(kind: str, tmp_path: Path) -> None:
    model = YOLO(kind)
    average = WeightAveraging(polyak.Warmup(0.99), report=True).attach(model)
    train(tmp_path, model, epochs=1)
    assert average.ema.step == 4
    report = (tmp_path / "runs" / "report.html").read_text()
    assert "Warmup(0.99)" in report
    assert "metric-val/" in report, "the losses in results.csv"
    weights, mean = tmp_path / "runs" / "weights", average.ema.module.state_dict()
    last = YOLO(weights / "last.pt").model.state_dict()
    assert all(torch.equal(last[name].half(), mean[name].half()) for name in mean)
    kept = torch.load(weights / "last.polyak.pt", weights_only=True)
    assert same(kept["raw"], average.ema.model.state_dict())
    assert not same(kept["raw"], mean)
    assert (weights / "best.polyak.pt").exists()
    assert (weights / "last.pt.polyak.json").exists()
    # Stripped of the optimizer since they were first noted. A classifier's has its pictures' transforms.
    for name in ("last.pt", "best.pt") if kind == "yolov8n.yaml" else ():
        found = describe(weights / name)
        assert isinstance(found, CheckpointSummary)
        assert (found.library, found.step, found.run) == ("ultralytics", 4, average.ema.run)
        assert [(one.role, one.profile) for one in found.parts] == [
            ("average", average.ema.tracks["average"].profile)
        ]
    assert same(model.trainer.ema.ema.state_dict(), mean), "what was validated"
    with open(tmp_path / "runs" / "results.csv", newline="") as file:
        [row] = csv.DictReader(file)
    logged = average.ema.metrics()
    assert {key: float(row[key]) for key in LOGGED} == {
        key: pytest.approx(logged[key.removeprefix("ema/")], rel=1e-5) for key in LOGGED
    }


@pytest.mark.parametrize("kind", [DETECTOR, CLASSIFIER], ids=["detect", "classify"])
def test_an_exception_in_validation_and_micro_batches_leave_the_raw_weights(
    kind: str, tmp_path: Path
) -> None:
    model = YOLO(kind)
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate="long").attach(model)
    with pytest.raises(polyak.PlanError, match="no average before"):
        average.ema  # noqa: B018
    raw: list[torch.Tensor] = []

    def fail(validator: Any) -> None:
        raw.append(next(average.ema.model.parameters()).detach().clone())
        raise RuntimeError("the evaluation failed")

    model.add_callback("on_val_start", fail)
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        train(tmp_path, model, nbs=8, warmup_epochs=0)
    assert average.ema.step == 2, "sixteen pictures by four, two micro-batches to a step"
    assert average.ema.live == "raw"
    assert torch.equal(next(average.ema.model.parameters()), raw[0])
    shown, long = model.trainer.ema.ema, average.ema.module_of("long")
    assert torch.equal(next(shown.parameters()), next(long.parameters()))
    model.trainer.optimizer.step()  # nothing follows a run that is over
    assert average.ema.step == 2


def sided(folder: Path, kind: str, evaluate: Any, **options: Any) -> tuple[Any, Any, list[float]]:
    """Two epochs; and the weights validated, batch by batch, until training ends."""
    model = YOLO(kind)
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate, **options).attach(model)
    validated: list[float] = []

    def batch_end(validator: Any) -> None:
        if validator.training:
            validated.append(first_weights(model.trainer.ema.ema))
            torch.rand(())

    model.add_callback("on_val_batch_end", batch_end)
    torch.manual_seed(0)
    train(folder, model, epochs=2, lr0=0.1)  # so much that six losses differ in the table
    return model, average, validated


def first_weights(model: torch.nn.Module) -> float:
    return next(model.parameters()).sum().item()


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "runs" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("kind", "loss"), [(DETECTOR, "val/cls_loss"), (CLASSIFIER, "val/loss")], ids=["detect", "classify"]
)
def test_raw_and_averages_are_validated_once_each_and_have_a_best_file_each(
    kind: str, loss: str, tmp_path: Path
) -> None:
    kinds = {"short": loss, "raw": f"raw/{loss}", "long": f"ema=long/{loss}"}
    _, average, validated = sided(tmp_path, kind, list(kinds))
    each, rest = divmod(len(validated), 2 * 3)
    assert each > 0, "batches; by two epochs and three kinds"
    assert rest == 0
    assert len(set(validated)) == 2 * 3
    raw, long, short = validated[3 * each :: each]
    assert raw == first_weights(average.ema.model)
    assert short == first_weights(average.ema.module_of("short"))
    assert long == first_weights(average.ema.module_of("long"))
    table = rows(tmp_path)
    assert len({row[name] for row in table for name in kinds.values()}) == 2 * 3

    weights = tmp_path / "runs" / "weights"
    kept = torch.load(weights / "last.polyak.pt", weights_only=True)["best"]
    for nth, (name, prefix) in enumerate((("raw", "raw/"), ("long", "ema=long/"))):
        opened = YOLO(weights / f"best-{name}.pt").model
        if kind == DETECTOR:  # a classifier's file has its pictures' transforms, which describe does not open
            found = describe(weights / f"best-{name}.pt")
            assert isinstance(found, CheckpointSummary)
            assert {part.role for part in found.parts} == {"raw" if name == "raw" else "average"}
        else:
            tops = [f"{prefix}metrics/accuracy_top{n}" for n in (1, 5)]
            fitness = [sum(float(row[top]) for top in tops) / 2 for row in table]
            assert kept[name] == pytest.approx(max(fitness), abs=1e-4)
            epoch = fitness.index(max(fitness))
            assert first_weights(opened) == pytest.approx(validated[(3 * epoch + nth) * each], rel=1e-2)


def test_a_second_validation_changes_no_training(tmp_path: Path) -> None:
    once, average, _ = sided(tmp_path / "once", CLASSIFIER, None)
    twice, averages, _ = sided(tmp_path / "twice", CLASSIFIER, "both")
    assert same(average.ema.model.state_dict(), averages.ema.model.state_dict())
    assert same(once.trainer.ema.ema.state_dict(), twice.trainer.ema.ema.state_dict())
    assert [row["val/loss"] for row in rows(tmp_path / "once")] == [
        row["val/loss"] for row in rows(tmp_path / "twice")
    ]


def test_before_averaging_starts_the_average_is_validated_as_the_raw_weights(tmp_path: Path) -> None:
    sided(tmp_path, CLASSIFIER, "both", start=100)
    for row in rows(tmp_path):
        assert row["val/loss"] == row["raw/val/loss"]


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    """In a process of its own: Ultralytics logs nowhere under pytest."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "run.py").write_text(
        "from pathlib import Path\n"
        "from tests.shims import torchvision_with_nms\n"
        "torchvision_with_nms()\n"
        "from ultralytics import YOLO, settings\n"
        "from polyak.trainers.ultralytics import WeightAveraging\n"
        "from tests.trainers.drawn import shapes\n"
        "settings.update({'tensorboard': True, 'mlflow': False, 'raytune': False})\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"model = YOLO({DETECTOR!r})\n"
        "WeightAveraging({'short': 0.5, 'long': 0.9}).attach(model)\n"
        "model.train(data=str(shapes(folder / 'data')), epochs=2, imgsz=32, batch=8, device='cpu',\n"
        "            plots=False, project=str(folder), name='runs')\n"
    )
    env = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env.pop("PYTEST_CURRENT_TEST")
    done = subprocess.run([sys.executable, tmp_path / "run.py"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    logged = {"ema/skipped", *(f"ema/{track}/{key}" for track in ("short", "long") for key in PER_TRACK)}
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("ema/")} == logged
    assert [(one.step, one.value) for one in events.Scalars("ema/short/decay")] == [(1, 0.5), (2, 0.5)]


def test_several_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs are pretended; everything up to where Ultralytics would start its processes is real."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = SimpleNamespace(name="a GPU", total_memory=1 << 30, multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    model = YOLO(DETECTOR)
    WeightAveraging().attach(model)
    with pytest.raises(polyak.ConfigError, match=r"device='0,1': .* name one device"):
        train(tmp_path, model, device="0,1")


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    with pytest.raises(polyak.ConfigError, match=r"best\.pt and last\.pt hold an average"):
        WeightAveraging(0.9, evaluate="raw")
    with pytest.raises(polyak.ConfigError, match="evaluate='wide'"):
        WeightAveraging(0.9, evaluate="wide")
    last = tmp_path / "runs" / "weights" / "last.pt"
    with pytest.raises(KeyboardInterrupt):
        ordered(tmp_path, CLASSIFIER, stop_at=2)
    kept = torch.load(last.with_name("last.polyak.pt"), weights_only=True)
    torch.save(kept | {"epoch": 0}, last.with_name("last.polyak.pt"))
    with pytest.raises(polyak.CheckpointError, match=r"is of epoch 0, .* of epoch 1"):
        ordered(tmp_path, last)
    last.with_name("last.polyak.pt").unlink()
    with pytest.raises(polyak.CheckpointError, match=r"last\.polyak\.pt is missing"):
        ordered(tmp_path, last)


def test_the_followed_track_is_validated_and_files_name_the_one_they_hold(tmp_path: Path) -> None:
    model, validated = YOLO(CLASSIFIER), list[bool]()
    average = WeightAveraging(polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0)).attach(model)

    def observe(validator: Any) -> None:
        ema = average.ema
        validated.append(first_weights(model.trainer.ema.ema) == first_weights(ema.module))
        if len(validated) == 2:  # before its files are written
            ema.observe({name: float(name == "h1") for name in ema.tracks})

    model.add_callback("on_val_end", observe)
    torch.manual_seed(0)
    train(tmp_path, model, epochs=2, save_period=1)
    assert validated[:2] == [True] * 2
    assert average.ema.following == "h1"
    weights = tmp_path / "runs" / "weights"
    for name in ("last.pt", "epoch1.pt"):
        note = json.loads((weights / f"{name}.polyak.json").read_text())
        assert "h10" in json.dumps(note)
        assert '"h1"' not in json.dumps(note)
    assert torch.load(weights / "last.polyak.pt", weights_only=True)["track"] == "h10"


@pytest.mark.parametrize("averaging", [True, False])
def test_a_report_shows_each_file_with_its_row_though_the_two_count_epochs_two_ways(
    averaging: bool, tmp_path: Path
) -> None:
    model = YOLO(CLASSIFIER)
    if averaging:
        WeightAveraging(0.9).attach(model)
    train(tmp_path, model, epochs=2, save_period=1)
    with (tmp_path / "runs" / "results.csv").open(newline="") as file:
        rows = {int(row["epoch"]): float(row["val/loss"]) for row in csv.DictReader(file)}
    assert list(rows) == [1, 2]
    [run] = collect([tmp_path / "runs"])
    [logged] = [one for one in run.logged if one.name == "val/loss"]
    found = {one.file: logged_value(logged, one) for one in run.weights}
    epochs = {f"weights/epoch{epoch - 1}.pt": loss for epoch, loss in rows.items()}
    assert {file: value for file, value in found.items() if value is not None} == epochs


def test_numbers_of_numpy_do_not_reach_the_file() -> None:
    """A warm-up makes learning rates with ``np.interp``."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = np.interp(1, [0, 2], [0.0, 0.5])
    [group] = _plain_numbers(optimizer.state_dict())["param_groups"]
    assert (type(group["lr"]), group["lr"], group["params"]) == (float, 0.25, [0])
