"""What is an average worth at a constant learning rate, and what where the rate falls by itself?

    python -m experiments.demo.run              # 5 epochs, 5 seeds, both rates: 20 minutes
    python -m experiments.demo.run --tables     # the tables again, from the newest results

Runs ``polyak demo`` once per seed and rate, as a newcomer would, and reads what it wrote. A run that is
already below runs/ is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from experiments.intervals import estimate

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = Path("runs/experiments-demo")
RATES = ("constant", "cosine")
NUMBERS = ("last", "test_loss", "wobble")
WORDS = {
    "": {
        "caption": "`polyak demo --epochs {epochs} --lr …`, {data}, {seeds} seeds, {machine}, {date}. "
        "± is half of a 95 % interval (Student); the last column is paired by seed.",
        "head": "| learning rate | | raw | average | average - raw |",
        "constant": "constant, 1e-3",
        "cosine": "cosine, 1e-3 to 1e-4",
        "last": "last accuracy, %",
        "test_loss": "last loss",
        "wobble": "wobble of the accuracy, points",
    },
    ".zh": {
        "caption": "`polyak demo --epochs {epochs} --lr …`，{data}，{seeds} 个种子，{machine}，{date}。"
        "± 是 95 % 区间（学生 t 分布）的一半；最后一列按种子配对。",
        "head": "| 学习率 | | 原始权重 | 平均权重 | 平均 - 原始 |",
        "constant": "恒定 1e-3",
        "cosine": "余弦，1e-3 到 1e-4",
        "last": "最终准确率，%",
        "test_loss": "最终损失",
        "wobble": "准确率的抖动，百分点",
    },
}


def run(seed: int, rate: str, epochs: int, data: str) -> dict[str, Any]:
    """What one demo run comes to, with the accuracies and losses of its epochs."""
    folder = RUNS / f"{data}-{epochs}-{rate}-{seed}"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "polyak", "demo", "--data", data, "--epochs", str(epochs)]
        command += ["--lr", rate, "--seed", str(seed), "--out", str(folder), "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        (folder / "summary.json").write_text(done.stdout)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curves = ("accuracy", "ema_accuracy", "test_loss", "ema_test_loss")
    found = json.loads((folder / "summary.json").read_text())
    return {
        "raw": found["raw"],
        "ema": found["ema"],
        "ema_share": found["ema_share"],
        "curves": {key: [line[key] for line in lines if line["kind"] == "epoch"] for key in curves},
    }


def rows(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each number over the seeds of one rate: raw, average, and their difference by seed."""
    found = {}
    for number in NUMBERS:
        raw, ema = ([one[side][number] for one in runs.values()] for side in ("raw", "ema"))
        gain = [b - a for a, b in zip(raw, ema, strict=True)]
        found[number] = {"raw": estimate(raw), "average": estimate(ema), "gain": estimate(gain)}
    return found


def cell(found: dict[str, float], number: str, signed: bool = False) -> str:
    """``89.25 ± 0.31`` in percent, or a loss."""
    scale, digits = (1, 4) if number == "test_loss" else (100, 2)
    sign = "+" if signed else ""
    return f"{scale * found['mean']:{sign}.{digits}f} ± {scale * found['half']:.{digits}f}"


def table(report: dict[str, Any], words: dict[str, str]) -> str:
    """The results as the pages show them."""
    seeds = len(report["runs"][RATES[0]])
    lines = [words["caption"].format(**report, seeds=seeds), "", words["head"], "|---|---|---:|---:|---:|"]
    for rate in RATES:
        for number, row in rows(report["runs"][rate]).items():
            cells = [cell(row[side], number, side == "gain") for side in ("raw", "average", "gain")]
            lines.append(f"| {words[rate]} | {words[number]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def newest() -> Path:
    """The last results."""
    return max(RESULTS.glob("*.json"))


def write_tables(path: Path) -> None:
    """Both languages' tables beside the results."""
    report = json.loads(path.read_text())
    for language, words in WORDS.items():
        path.with_suffix(f"{language}.md").write_text(table(report, words))
        print(table(report, words))


def main() -> None:
    """Run every seed at both rates, write results and tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.tables:
        return write_tables(newest())
    runs: dict[str, dict[str, Any]] = {rate: {} for rate in RATES}
    for seed in range(options.seeds):
        for rate in RATES:
            runs[rate][str(seed)] = run(seed, rate, options.epochs, options.data)
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    machine = f"{platform.machine()} CPU, {threads} thread(s), torch {torch.__version__}"
    report = {"date": str(date.today()), "machine": machine, "data": options.data, "epochs": options.epochs}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.data}-{report['date']}.json"
    path.write_text(json.dumps(report | {"runs": runs}, indent=1) + "\n")
    return write_tables(path)


if __name__ == "__main__":
    main()
