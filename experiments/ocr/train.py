"""One training run: raw weights and their averages, read at the same moments on the same lines."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn

import polyak
from experiments.ocr import data
from experiments.ocr.configs import Config, Training
from experiments.ocr.model import Recogniser, loss_of, read
from experiments.ocr.summary import distance
from polyak.paddle import EMA

SAVED = "checkpoint.pdparams"


def tracks(steps: int) -> dict[str, polyak.Decay]:
    """What is averaged beside the run."""
    half = max(1, steps // 40)
    return {"Warmup(0.999)": polyak.Warmup(0.999), f"HalfLife(steps={half})": polyak.HalfLife(steps=half)}


def rate(training: Training, step: int) -> float:
    """The learning rate: a linear warm-up, then constant or down to nothing along a cosine."""
    rising = min(1.0, (step + 1) / training.warmup)
    if training.schedule == "constant":
        return training.rate * rising
    return training.rate * rising * (1 + math.cos(math.pi * step / training.steps)) / 2


def moments(training: Training) -> list[int]:
    """The steps after which everything is evaluated; the last is the end."""
    late = training.steps // 2 / training.evaluations
    second = [training.steps - round(late * i) for i in range(training.evaluations)]
    first = [round(late * i) for i in range(4, training.evaluations + 1, 4)]
    return sorted({*first, *second, training.steps - training.steps // 2})


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """Each image with mean 0 and about unit contrast: [B, height, width] -> [B, 1, height, width]."""
    grey = np.asarray(images, np.float32)
    middle, contrast = grey.mean((1, 2), keepdims=True), grey.std((1, 2), keepdims=True)
    return paddle.to_tensor(((grey - middle) / (contrast + 8))[:, None])


class Run:
    """A training run that can stop anywhere and go on, bit for bit on a CPU. One at a time.

    Args:
        config: how large.
        seed: of the weights and of the order of the lines.
        lines: a folder ``data.prepared`` filled.
    """

    def __init__(self, config: Config, seed: int, lines: Path) -> None:
        self.config, self.seed, self.step = config, seed, 0
        paddle.seed(seed)
        paddle.utils.unique_name.switch()  # the optimizer's state goes by names, which count models
        self.model = Recogniser(config.net, config.lines)
        self.optimizer = paddle.optimizer.AdamW(
            parameters=self.model.parameters(), weight_decay=0.05, grad_clip=nn.ClipGradByGlobalNorm(5.0)
        )
        self.ema = EMA(self.model, tracks(config.training.steps))
        self.images, self.labels = data.load(lines, "train")
        self.test = data.load(lines, "test")
        self.rows: list[dict[str, Any]] = []

    def train(self) -> None:
        """One step and the averages' update. The batch is a function of seed and step, so nothing is kept."""
        self.optimize()
        self.ema.update()
        self.step += 1

    def optimize(self) -> None:
        training = self.config.training
        epoch, within = divmod(self.step, len(self.labels) // training.batch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))
        batch = np.sort(order[within * training.batch :][: training.batch])
        self.model.train()
        loss = loss_of(self.model(as_input(self.images[batch])), paddle.to_tensor(self.labels[batch]))
        loss.backward()
        self.optimizer.set_lr(rate(training, self.step))
        self.optimizer.step()
        self.optimizer.clear_grad()

    def evaluate(self) -> None:
        """Read the test lines with the raw weights and with each average."""
        row: dict[str, Any] = {"step": self.step, "raw": self.score()}
        for name in self.ema.tracks:
            with self.ema.average_parameters(name):
                row[name] = self.score()
        self.rows.append(row)

    def score(self) -> dict[str, float]:
        """Lines read without an error, and edits over the longer of both lengths; means over the lines."""
        self.model.eval()
        images, labels = self.test
        right, edits = 0, 0.0
        with paddle.no_grad():
            for i in range(0, len(labels), 100):
                found = read(self.model(as_input(images[i : i + 100])))
                for line, label in zip(found, labels[i : i + 100].tolist(), strict=True):
                    wanted = [c for c in label if c]
                    right += line == wanted
                    edits += distance(line, wanted) / max(len(line), len(wanted))
        return {"accuracy": right / len(labels), "edit": edits / len(labels)}

    def save(self, folder: Path) -> None:
        """Everything going on takes, in one file; an old one stays until the new one is complete."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "rows": json.dumps(self.rows),
        }
        paddle.save(state, str(folder / f"{SAVED}.new"))
        os.replace(folder / f"{SAVED}.new", folder / SAVED)

    def resume(self, folder: Path) -> None:
        """Go on from ``save``, if there was one."""
        if not (folder / SAVED).exists():
            return
        state = paddle.load(str(folder / SAVED))
        self.model.set_state_dict(state["model"])
        self.optimizer.set_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step, self.rows = state["step"], json.loads(state["rows"])

    def cost(self) -> dict[str, Any]:
        """What averaging costs, timed at the end so that the run itself waits for no clock."""
        one = EMA(self.model, polyak.Warmup(0.999))
        step = self._seconds(self.optimize, 5)
        sizes = {name: int(np.prod(tensor.shape)) for name, tensor in self.model.state_dict().items()}
        track = next(iter(one.tracks.values()))
        return {
            "engine": one.metrics()["engine"],
            "step_seconds": step,
            "one_track": self._seconds(one.update, 50) / step,
            "all_tracks": self._seconds(self.ema.update, 50) / step,
            "model_bytes": 4 * sum(sizes.values()),
            "track_bytes": sum(4 * sizes[name] for name in track.tensors),
        }

    def _seconds(self, call: Any, times: int) -> float:
        """The fastest of five goes of so many calls, since others may use the machine too."""
        took = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(times):
                call()
            float(self.model.head.weight.sum())  # a GPU has then done what it was asked
            took.append((time.perf_counter() - began) / times)
        return min(took)


def trained(config: Config, seed: int, lines: Path, folder: Path) -> dict[str, Any]:
    """The result of one seed; goes on where it was stopped, and does nothing when it is there."""
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(config, seed, lines)
    run.resume(folder)
    for moment in moments(config.training):
        while run.step < moment:
            run.train()
        if not run.rows or run.rows[-1]["step"] < moment:
            run.evaluate()
            run.save(folder)
            shown = {k: f"{v['accuracy']:.1%}" for k, v in run.rows[-1].items() if k != "step"}
            print(f"seed {seed} step {moment}: {shown}", flush=True)
    found = {"seed": seed, "rows": run.rows, "cost": run.cost()}
    result.write_text(json.dumps(found, indent=1) + "\n")
    return found
