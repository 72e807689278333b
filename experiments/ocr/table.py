"""Write the tables of README.md and README.zh.md from results/.

python -m experiments.ocr.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORDS = {
    "README.md": {
        "heading": "## Results",
        "best": "best line accuracy",
        "last": "last line accuracy",
        "edit": "normalised edit distance, last",
        "jump_mean": "jump of the curve, mean",
        "jump_largest": "jump of the curve, largest",
        "wobble": "wobble of the curve, mean",
        "raw": "raw",
        "title": "{name}, learning rate {schedule}: {seeds} seeds, {steps:,} steps of {batch} lines",
        "cost": (
            "One step takes {step:.0f} ms. Averages take {one:.2%} of it if there is one, {all:.2%} if there "
            "are {tracks} (engine: {engine}). Each holds {track:,} kB beside {model:,} kB of weights."
        ),
    },
    "README.zh.md": {
        "heading": "## 结果",
        "best": "最高行准确率",
        "last": "最终行准确率",
        "edit": "最终归一化编辑距离",
        "jump_mean": "曲线跳动，平均",
        "jump_largest": "曲线跳动，最大",
        "wobble": "曲线抖动，平均",
        "raw": "原始权重",
        "title": "{name}，学习率 {schedule}：{seeds} 个种子，各 {steps:,} 步，每步 {batch} 行",
        "cost": (
            "每步 {step:.0f} 毫秒。维护一个平均值占其 {one:.2%}，{tracks} 个占 {all:.2%}（引擎：{engine}）。"
            "每个平均值占 {track:,} kB，权重本身占 {model:,} kB。"
        ),
    },
}
NUMBERS = ("best", "last", "edit", "jump_mean", "jump_largest", "wobble")


def cell(found: dict[str, float | None], signed: bool = False) -> str:
    """``61.2 ± 0.8``, in percent."""
    text = f"{100 * found['mean']:{'+' if signed else ''}.1f}"
    return text if found["half"] is None else f"{text} ± {100 * found['half']:.1f}"


def table(report: dict[str, Any], words: dict[str, str]) -> str:
    models, training, cost = (
        report["summary"]["models"],
        report["config"]["training"],
        report["summary"]["cost"],
    )
    names = [words["raw"], *(f"`{name}`" for name in models if name != "raw")]
    about = {"name": report["config"]["name"], "seeds": len(report["seeds"]), **training}
    lines = [f"### {words['title'].format(**about)}", "", f"{report['machine']}, {report['date']}", ""]
    lines += [f"| % | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    for number in NUMBERS:
        cells = [
            cell(model[number]) + (f" ({cell(model['gain'][number], True)})" if "gain" in model else "")
            for model in models.values()
        ]
        lines.append(f"| {words[number]} | {' | '.join(cells)} |")
    paid = words["cost"].format(
        step=1000 * cost["step_seconds"],
        one=cost["one_track"],
        all=cost["all_tracks"],
        tracks=len(models) - 1,
        engine=cost["engine"],
        track=cost["track_bytes"] // 1000,
        model=cost["model_bytes"] // 1000,
    )
    return "\n".join([*lines, "", paid])


def newest() -> list[dict[str, Any]]:
    """The last report of each size and schedule."""
    files = sorted(RESULTS.glob("*.json"))
    last = {file.stem[: -len("-2026-01-01")]: file for file in files}
    return [json.loads(file.read_text()) for file in last.values()]


def main() -> None:
    for page, words in WORDS.items():
        head = (HERE / page).read_text().partition(f"{words['heading']}\n")[0]
        tables = "\n\n".join(table(report, words) for report in newest())
        (HERE / page).write_text(f"{head}{words['heading']}\n\n{tables}\n")


if __name__ == "__main__":
    main()
