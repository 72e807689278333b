"""What a trainer logs of the average is in the files of TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shims import torchvision_without_ops
from tests.trainers.digits import loss, network

torchvision_without_ops()
accelerate = pytest.importorskip("accelerate")
mlflow = pytest.importorskip("mlflow")
wandb = pytest.importorskip("wandb")
for package in ("ignite", "lightning", "tensorboard", "transformers"):
    pytest.importorskip(package)
from ignite.engine import Events  # noqa: E402
from ignite.handlers import MLflowLogger, TensorboardLogger, WandBLogger  # noqa: E402
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from wandb.proto.wandb_internal_pb2 import Record  # noqa: E402

from polyak.trainers.accelerate import numbers, weight_averaging  # noqa: E402
from tests.trainers import test_ignite as ignite  # noqa: E402
from tests.trainers import test_lightning as lightning  # noqa: E402
from tests.trainers import test_transformers as hf  # noqa: E402

pytestmark = lightning.pytestmark

Logged = dict[str, dict[int, float]]  # metric to step to value
TRACKS: Any = {"a": 0.9, "b": 0.5}
PER_TRACK = ("decay", "distance", "initial_weight", "mean_age")
KEYS = {f"ema/{track}/{key}" for track in TRACKS for key in PER_TRACK} | {"ema/skipped"}


@pytest.fixture(autouse=True)
def _all_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path),
        "MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": tracking(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(tracking(tmp_path))
    yield
    wandb.finish()
    wandb.teardown()  # it remembers the folder
    mlflow.end_run()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def tracking(folder: Path) -> str:
    return f"file://{folder}/mlruns"


def in_tensorboard(folder: Path) -> Logged:
    found: Logged = {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def in_wandb(folder: Path) -> Logged:
    wandb.finish()
    wandb.teardown()  # its service may write the last records at its own end
    (file,) = folder.rglob("*.wandb")
    found: Logged = {}
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            found.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
    return found


def records(log: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it, in blocks of 32 KiB, after the 7 bytes W&B begins with."""
    place, parts = 7, b""
    while place < len(log):
        if 32768 - place % 32768 < 7:  # too little of the block is left for a record
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def in_mlflow(folder: Path) -> Logged:
    client = mlflow.MlflowClient(tracking(folder))
    (run,) = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    return {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}


def check(folder: Path, steps: list[int], prefixes: dict[str, str]) -> None:
    """Each logger has each number as often as it was logged; W&B counts the calls, not the steps."""
    for logger, read in READERS.items():
        prefix, found = prefixes.get(logger, ""), read(folder)
        assert {name.removeprefix(prefix) for name in found if name.startswith(prefix)} >= KEYS, logger
        for track, decay in TRACKS.items():
            values = found[f"{prefix}ema/{track}/decay"]
            assert list(values.values()) == pytest.approx([decay] * len(steps)), logger
            assert logger == "wandb" or list(values) == steps, logger
            assert all(age > 0 for age in found[f"{prefix}ema/{track}/mean_age"].values()), logger


def test_lightning(tmp_path: Path) -> None:
    loggers = [
        TensorBoardLogger(tmp_path),
        WandbLogger(offline=True, save_dir=tmp_path),
        MLFlowLogger(tracking_uri=tracking(tmp_path)),
    ]
    options: dict[str, Any] = {"max_epochs": 1, "logger": loggers, "log_every_n_steps": 5}
    run = lightning.trainer(tmp_path, lightning.WeightAveraging(TRACKS), **options)
    run.fit(lightning.Digits(), lightning.loader())
    check(tmp_path, [4, 9, 14], {})


def test_transformers(tmp_path: Path) -> None:
    run = hf.trainer(tmp_path, logging_strategy="steps", logging_steps=6, report_to=list(READERS))
    hf.WeightAveraging(TRACKS).attach(run)
    run.train()
    check(tmp_path, [6, 12], {"tensorboard": "train/", "wandb": "train/"})


def test_ignite(tmp_path: Path) -> None:
    run = ignite.Run(decay=TRACKS, log_every=4)
    loggers = [
        TensorboardLogger(str(tmp_path)),
        WandBLogger(project="digits"),
        MLflowLogger(tracking(tmp_path)),
    ]
    for logger in loggers:
        logger.attach_output_handler(
            run.trainer, Events.ITERATION_COMPLETED(every=4), tag="training", metric_names="all"
        )
    run.go()
    for logger in loggers:
        logger.close()
    check(
        tmp_path,
        [4, 8, 12, 16, 20, 24],
        {"tensorboard": "training/", "wandb": "training/", "mlflow": "training "},
    )


def test_accelerate(tmp_path: Path) -> None:
    accelerator: Any = accelerate.Accelerator(cpu=True, log_with=list(READERS), project_dir=str(tmp_path))
    accelerator.init_trackers("digits")
    model = network()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = weight_averaging(accelerator, model, optimizer, TRACKS)
    for step in range(4):
        accelerator.backward(loss(model, step))
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log(numbers(ema), step=step)
    accelerator.end_training()
    check(tmp_path, [0, 1, 2, 3], {})
