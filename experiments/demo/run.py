"""Is the average better than the raw weights on real images, and steadier?

    python -m experiments.demo.run              # 3 epochs of Fashion-MNIST, seeds 0, 1, 2

Runs ``polyak demo`` once per seed, as a newcomer would, and reads what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch

HERE = Path(__file__).parent


def run(seed: int, epochs: int, data: str) -> list[dict]:
    """The records of one demo run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["demo", "--data", data, "--epochs", str(epochs), "--seed", str(seed), "--out", str(out)]
        polyak = Path(sys.executable).with_name("polyak")
        subprocess.run([polyak, *command], check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def figures(records: list[dict]) -> dict[str, float]:
    """What one run comes to."""
    epochs = [r for r in records if r["kind"] == "epoch"]
    losses = [r for r in records if r["kind"] == "loss"]
    seconds = records[-1]["seconds"]

    def jump(key: str) -> float:
        return mean([abs(b[key] - a[key]) for a, b in pairwise(epochs)])

    return {
        "best accuracy, raw": max(e["accuracy"] for e in epochs),
        "best accuracy, average": max(e["ema_accuracy"] for e in epochs),
        "last accuracy, raw": epochs[-1]["accuracy"],
        "last accuracy, average": epochs[-1]["ema_accuracy"],
        "mean jump, raw": jump("accuracy"),
        "mean jump, average": jump("ema_accuracy"),
        "last training loss, raw": losses[-1]["loss"],
        "last training loss, average": losses[-1]["ema_loss"],
        "last test loss, raw": epochs[-1]["test_loss"],
        "last test loss, average": epochs[-1]["ema_test_loss"],
        "share of time in the EMA": seconds["ema"] / (seconds["train"] + seconds["ema"]),
    }


PERCENT = ("accuracy", "jump", "share")


def cell(name: str, value: float) -> str:
    """Shares in percent, losses as they are."""
    return f"{value:.2%}" if any(word in name for word in PERCENT) else f"{value:.4f}"


def table(runs: dict[int, dict[str, float]]) -> list[str]:
    """One row per figure, one column per seed."""
    names = list(next(iter(runs.values())))
    return [
        "| | " + " | ".join(f"seed {seed}" for seed in runs) + " |",
        "|---|" + "---:|" * len(runs),
        *(
            f"| {name} | " + " | ".join(cell(name, run[name]) for run in runs.values()) + " |"
            for name in names
        ),
    ]


def main() -> None:
    """Run every seed, print the table, write it with date and machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    runs = {seed: figures(run(seed, options.epochs, options.data)) for seed in options.seeds}
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    machine = f"{platform.machine()} CPU, {threads} thread(s), torch {torch.__version__}"
    heading = f"`polyak demo --epochs {options.epochs}`, {machine}, {date.today()}."
    text = "\n".join([heading, "", *table(runs)]) + "\n"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{options.data}-{date.today()}"
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(
        json.dumps({"date": str(date.today()), "machine": machine, "runs": runs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
