"""The table of the page "Tutorial", in both languages: ``python -m experiments.tutorial.table`` prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.intervals import estimate

REPORT = Path(__file__).parent / "results" / "tutorial.json"
RATES = ("constant", "cosine")
NUMBERS = ("accuracy", "loss", "wobble")
WORDS = {
    "": {
        "caption": "`python -m experiments.tutorial.run`, {data}, {epochs} epochs, {seeds} seeds, {machine}, "
        "{date}. ± is half of a 95 % interval (Student); the last column is paired by seed.",
        "head": "| learning rate | | raw | average | average - raw |",
        "constant": "constant, 1e-3",
        "cosine": "cosine, 1e-3 to 1e-4",
        "accuracy": "last accuracy, %",
        "loss": "last loss",
        "wobble": "wobble of the accuracy, points",
    },
    ".zh": {
        "caption": "`python -m experiments.tutorial.run`，{data}，{epochs} 个 epoch，{seeds} 个种子，"
        "{machine}，{date}。± 是 95 % 区间（学生 t 分布）的一半；最后一列按种子配对。",
        "head": "| 学习率 | | 原始权重 | 平均权重 | 平均 - 原始 |",
        "constant": "恒定 1e-3",
        "cosine": "余弦，1e-3 到 1e-4",
        "accuracy": "最终准确率，%",
        "loss": "最终损失",
        "wobble": "准确率的抖动，百分点",
    },
}


def report() -> dict[str, Any]:
    return json.loads(REPORT.read_text())


def rows(found: dict[str, Any], rate: str) -> dict[str, dict[str, Any]]:
    """Each number over the seeds of one rate: raw, average, and their difference by seed."""
    kept = {}
    for number in NUMBERS:
        raw, average = (
            [run[f"{rate} {side} {number}"] for run in found["runs"].values()] for side in ("raw", "average")
        )
        gain = [b - a for a, b in zip(raw, average, strict=True)]
        kept[number] = {"raw": estimate(raw), "average": estimate(average), "gain": estimate(gain)}
    return kept


def cell(found: dict[str, float], number: str, signed: bool = False) -> str:
    """``89.25 ± 0.31`` in percent, or a loss."""
    digits = 4 if number == "loss" else 2
    return f"{found['mean']:{'+' if signed else ''}.{digits}f} ± {found['half']:.{digits}f}"


def table(found: dict[str, Any], words: dict[str, str]) -> str:
    """The results as the page shows them."""
    facts = {key: found[key] for key in ("machine", "date")} | {"data": found["data"]["name"]}
    facts |= {"seeds": len(found["seeds"]), "epochs": found["settings"]["epochs"]}
    lines = [words["caption"].format(**facts), "", words["head"], "|---|---|---:|---:|---:|"]
    for rate in RATES:
        for number, row in rows(found, rate).items():
            cells = [cell(row[side], number, side == "gain") for side in ("raw", "average", "gain")]
            lines.append(f"| {words[rate]} | {words[number]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for words in WORDS.values():
        print(table(report(), words))
