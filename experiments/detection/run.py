"""Detection with Ultralytics: raw weights, its own average, and averages that fit the length of the run.

    python -m experiments.detection.run --quick      # minutes
    python -m experiments.detection.run              # three ways to train: an hour or more

Ultralytics is under AGPL-3.0. It is imported, its description of YOLOv8 is read when this runs, and nothing
of it is here.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import polyak
from experiments import harness
from experiments.detection.garments import prepared
from experiments.harness import Data, Experiment, Row
from experiments.intervals import jump, second_half, wobble

PICTURES = Path("runs/detection")
MAP, LOSS = "metrics/mAP50-95(B)", "val/cls_loss"


@dataclass(frozen=True)
class Size:
    """A detector, its pictures, and how long it is trained.

    Args:
        train: pictures to train on.
        test: pictures to test on.
        epochs: through the training pictures.
        every: epochs between evaluations.
        last_rate: the rate at the end, as a share of ``rate``; 1 for a constant one.
        bf16: forward and loss under ``torch.autocast`` to bfloat16; validation stays in float32.
        side: of a picture, in pixels.
        width: of YOLOv8's layers, as a share; its smallest published one has 0.25.
        batch: pictures in a step.
        rate: AdamW's, after Ultralytics' own warm-up.
    """

    train: int
    test: int
    epochs: int
    every: int
    last_rate: float = 0.01
    bf16: bool = False
    side: int = 96
    width: float = 0.125
    batch: int = 16
    rate: float = 4e-3

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.train // self.batch)


def tracks(steps: int) -> dict[str, polyak.Decay]:
    """Ultralytics' own schedule, the same with a tau of a tenth of the run, and two half-lives in steps."""
    return {
        "ramp": polyak.Ramp(0.9999, tau=2000),
        "tenth": polyak.Ramp(0.9999, tau=steps / 10),
        "h25": polyak.Debiased(0.5 ** (1 / 25)),
        "h100": polyak.Debiased(0.5 ** (1 / 100)),
    }


def detector(size: Size, folder: Path) -> Any:
    """YOLOv8's layers at one more width, from Ultralytics' own description, with weights not yet trained."""
    os.environ |= {"YOLO_OFFLINE": "True", "YOLO_AUTOINSTALL": "False", "MPLBACKEND": "agg"}
    import yaml
    from ultralytics import YOLO  # which reads these when it is imported, and is needed by nothing else here
    from ultralytics.utils import ROOT, nms

    log = logging.getLogger("ultralytics")
    log.setLevel(logging.WARNING)  # a line a step is too much for several runs
    log.addFilter(refuse_partial)  # the same function once, however often
    nms.non_max_suppression = partial(nms.non_max_suppression, max_time_img=60)  # not 0.05 s a picture
    described = yaml.safe_load((ROOT / "cfg" / "models" / "v8" / "yolov8.yaml").read_text())
    depth, _, most = described["scales"]["n"]
    described["scales"] = {"n": [depth, size.width, most]}
    path = folder / "yolov8n.yaml"  # the letter names the scale
    path.write_text(yaml.safe_dump(described))
    return YOLO(path, task="detect")


class SummedInFloat32(TorchFunctionMode):
    """Convolutions of bfloat16 numbers as hardware does them: summed in float32, the sum rounded once.

    A CPU without such instructions does them one number at a time: a step takes ten times as long.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.conv2d:
            return func(*args, **(kwargs or {}))
        image, weight, bias, *how = args
        with torch.autocast("cpu", enabled=False):
            rounded = [None if one is None else one.bfloat16().float() for one in (image, weight, bias)]
            return torch.conv2d(*rounded, *how).bfloat16()  # and so are both gradients, on the way back


def in_bf16(trainer: Any) -> None:
    """For ``on_train_start``: the model's forward pass and loss under bfloat16 autocast.

    Ultralytics' ``amp=True`` trains in float32 on a CPU, without a word, and its ``amp="bf16"`` refuses one.
    Its averaged copy of the model, which is validated, was made before and stays in float32.
    """
    plain = trainer.model.loss

    def loss(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16), SummedInFloat32():
            return plain(*args)

    trainer.model.loss = loss


def refuse_partial(record: logging.LogRecord) -> bool:
    """A filter of Ultralytics' log, where it says that it left pictures out of its metrics in haste."""
    if "NMS time limit" in record.getMessage():
        raise RuntimeError(f"{record.getMessage()}: mAP would depend on the machine's load; run it again.")
    return True


def curves(seed: int, size: Size, averaged: dict[str, polyak.Decay]) -> dict[str, list[float]]:
    """mAP50-95 and the classes' loss of the raw weights and of each average, several times in one run."""
    facts = asdict(size)
    pictures = PICTURES / "-".join(str(facts[key]) for key in ("train", "test", "side"))
    data = prepared(pictures, size.train, size.test, size.side)
    with tempfile.TemporaryDirectory() as folder:
        model = detector(size, Path(folder))
        from polyak.trainers.ultralytics import WeightAveraging

        WeightAveraging(averaged, evaluate=[*averaged, "raw"]).attach(model)

        def choose(trainer: Any) -> None:
            trainer.args.val = (trainer.epoch + 1) % size.every == 0

        evaluations: dict[int, dict[str, float]] = {}

        def note(trainer: Any) -> None:
            if trainer.args.val and trainer.epoch < size.epochs:  # once more at the end, about best.pt
                evaluations[trainer.epoch] = trainer.metrics

        model.add_callback("on_train_epoch_start", choose)
        model.add_callback("on_fit_epoch_end", note)
        if size.bf16:
            model.add_callback("on_train_start", in_bf16)
        model.train(
            data=str(data), epochs=size.epochs, imgsz=size.side, batch=size.batch, nbs=size.batch, seed=seed,
            optimizer="AdamW", lr0=size.rate, lrf=size.last_rate, warmup_epochs=1, mosaic=0, workers=0,
            device="cpu", amp=False, plots=False, verbose=False, save=False, project=folder, name="run",
        )  # fmt: skip
    first, *others = averaged
    prefixes = {first: "", **{track: f"ema={track}/" for track in others}, "raw": "raw/"}
    found: dict[str, list[float]] = {}
    for kind, prefix in prefixes.items():
        found[kind] = [100 * float(metrics[prefix + MAP]) for metrics in evaluations.values()]
        found[f"{kind}_loss"] = [float(metrics[prefix + LOSS]) for metrics in evaluations.values()]
    return found


def run(seed: int, size: Size) -> dict[str, Any]:
    """The curves of one run, and what is said of each."""
    found = curves(seed, size, tracks(size.steps))
    numbers: dict[str, Any] = dict(found)
    for kind in WORDS:
        points = found[kind]
        after = second_half(points)
        numbers |= {
            f"{kind}_last_loss": found[f"{kind}_loss"][-1],
            f"{kind}_last": points[-1],
            f"{kind}_middle": after[0],
            f"{kind}_mean": fmean(after),
            f"{kind}_jump": jump(after),
            f"{kind}_wobble": wobble(after),
        }
    return numbers


WORDS = {
    "raw": "raw weights",
    "ramp": "Ultralytics' own average, tau 2000",
    "tenth": "its schedule with a tau of a tenth of the run",
    "h25": "h25",
    "h100": "h100",
}


def row(metric: str, number: str, track: str = "h25", better: Any = "higher", headline: bool = False) -> Row:
    sides = (("raw" + number, "raw weights"), (track + number, WORDS[track]))
    unit = "nats" if number == "_last_loss" else "points"
    return Row(metric, unit, better, *sides, headline)


ROWS = (
    row("mAP50-95 at the end", "_last", headline=True),
    row("mAP50-95, mean over the second half", "_mean"),
    row("mAP50-95 in the middle of the run", "_middle"),
    row("loss of the garments' classes at the end", "_last_loss", better="lower"),
    row("jump of mAP50-95, second half", "_jump", better="lower"),
    row("wobble of mAP50-95, second half", "_wobble", better="lower"),
    *(row("mAP50-95 at the end", "_last", track) for track in ("h100", "ramp", "tenth")),
)
QUICK = Size(train=160, test=60, epochs=8, every=2)
FULL = Size(train=640, test=200, epochs=16, every=2)


def arm(name: str, how: str, **settings: Any) -> Experiment:
    """One of the ways to train; all have the same rows and the same seeds' pictures and initial weights."""
    return Experiment(
        name=name,
        claim=f"Detection with Ultralytics{how}: an average ends with the higher mAP50-95.",
        published="YOLO: mAP50-95 +0.5 to +1.2 points",
        gain=0.5,
        data=Data("garments of Fashion-MNIST on a grey ground, with boxes", "MIT"),
        rows=ROWS,
        run=run,
        quick=replace(QUICK, **settings),
        full=replace(FULL, **settings),
        curves=dict.fromkeys(WORDS, "mAP50-95 in points, at each evaluation"),
    )


EXPERIMENTS = (
    arm("detection", ", the rate falls to a hundredth"),
    arm("detection-constant", " at a constant rate", last_rate=1.0),
    arm("detection-bf16", " in bfloat16, the rate falls to a hundredth", bf16=True, epochs=8),
)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
