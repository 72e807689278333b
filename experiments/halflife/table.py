"""The tables of the page "Try another decay": ``python -m experiments.halflife.table``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.halflife.run import COSINES, EPOCHS, FULL, exponent
from experiments.intervals import estimate

REPORT = Path(__file__).parent / "results" / "halflife.json"
WORDS = {
    "": {
        "caption": "Test loss, {data}, constant rate, {seeds} seeds, 95 % intervals; {machine}, {date}.",
        "half-life": "half-life, steps",
        "look": "{} epochs",
        "first look": "after 1 epoch",
        "made": "{}, made from snapshots",
        "raw": "raw weights",
        "lengths": "The best half-life by length of training, in steps, beside the default's and that of "
        "`suggest_half_life` for curvatures i^-1.5; and how much higher the test loss of the raw weights and "
        "of the default is than that of the best. Each length under the cosine is a run of its own.",
        "columns": "epochs|best, constant rate|best, cosine|default|suggested|raw − best, constant rate|"
        "raw − best, cosine|default − best, constant rate|default − best, cosine",
        "growth": "At the constant rate the best half-life grows as T^p, p = {short} over {most} epochs and "
        "{all} over {last}; the default's as T^⅔. {edge:,} is the longest tried, {low} the shortest.",
    },
    ".zh": {
        "caption": "测试损失，{data}，恒定学习率，{seeds} 个种子，95 % 区间；{machine}，{date}。",
        "half-life": "半衰期，步",
        "look": "{} 轮",
        "first look": "1 轮之后",
        "made": "{}，由快照合成",
        "raw": "原始权重",
        "lengths": "各训练长度的最佳半衰期，单位为步，并列出默认值的半衰期与 `suggest_half_life` 对曲率 "
        "i^-1.5 的建议；以及原始权重和默认值的测试损失比最佳值高出多少。余弦调度下每种长度各自单独训练。",
        "columns": "轮数|最佳，恒定学习率|最佳，余弦|默认值|建议值|原始 − 最佳，恒定学习率|"
        "原始 − 最佳，余弦|默认 − 最佳，恒定学习率|默认 − 最佳，余弦",
        "growth": "恒定学习率下最佳半衰期按 T^p 增长：{most} 轮之内 p = {short}，{last} 轮之内 p = {all}；"
        "默认值按 T^⅔ 增长。所试最长的是 {edge:,} 步，最短的是 {low} 步。",
    },
}
Runs = Sequence[dict[str, Any]]


def spread(values: Sequence[float | None], form: str = ".4f") -> str:
    """Mean and half of its 95 % interval; a dash if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "—"
    found = estimate(known)
    mean = round(found["mean"], 4) + 0.0  # not "-0.0000"
    return f"{mean:{form}} ± {found['half']:{form}}"


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, aligned on the right."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([first, f"|{'---:|' * len(header)}", *others])


def by_half_life(runs: Runs, words: dict[str, str]) -> str:
    """The losses of every half-life after as many epochs."""
    looks = [words["first look"], *(words["look"].format(epochs) for epochs in EPOCHS[1:])]
    header = [words["half-life"], *looks, words["made"].format(looks[-1])]
    curves = [*(f"constant {epochs} curve" for epochs in EPOCHS), "made curve"]
    raw = [spread([run[f"constant {epochs} raw"] for run in runs]) for epochs in EPOCHS]
    rows = [[words["raw"], *raw, ""]]
    for i, h in enumerate(FULL.half_lives):
        rows.append([f"{h:,}", *(spread([run[curve][i] for run in runs]) for curve in curves)])
    return lines(header, rows)


def by_length(runs: Runs, words: dict[str, str]) -> str:
    """The best half-life of every length, and what it brings over the raw weights and the default."""

    def both(epochs: int, of: Callable[[dict[str, Any], str], float], form: str = ".4f") -> list[str]:
        rates = ("constant", EPOCHS), ("cosine", COSINES)
        return [
            spread([of(run, f"{rate} {epochs}") for run in runs], form) if epochs in lengths else ""
            for rate, lengths in rates
        ]

    rows: list[list[str]] = []
    for epochs in EPOCHS:
        best = both(epochs, lambda run, name: run[f"{name} best"], ",.0f")
        known = [f"{runs[0][f'{name} {epochs}']:,.0f}" for name in ("default", "suggested")]
        raw = both(epochs, lambda run, name: run[f"{name} gain"])
        default = both(epochs, lambda run, name: run[f"{name} default"] - run[f"{name} lowest"])
        rows.append([str(epochs), *best, *known, *raw, *default])
    return lines(words["columns"].split("|"), rows)


def grown(runs: Runs, lengths: Sequence[int]) -> str:
    """p of ``h* ∝ Tᵖ`` at the constant rate, fitted to each seed."""
    return spread(
        [exponent({epochs: run[f"constant {epochs} best"] for epochs in lengths}) for run in runs], ".2f"
    )


def table(found: dict[str, Any], words: dict[str, str]) -> str:
    """Both tables, with what they show."""
    runs = list(found["runs"].values())
    facts = {"machine": found["machine"], "date": found["date"], "data": found["data"]["name"]}
    caption = words["caption"].format(**facts, seeds=len(runs))
    growth = words["growth"].format(
        short=grown(runs, EPOCHS[:-1]),
        most=EPOCHS[-2],
        all=grown(runs, EPOCHS),
        last=EPOCHS[-1],
        edge=FULL.half_lives[-1],
        low=FULL.half_lives[0],
    )
    parts = [caption, by_half_life(runs, words), words["lengths"], by_length(runs, words), growth]
    return "\n\n".join(parts) + "\n"


def tables() -> dict[Path, str]:
    """The page's part in both languages by its file."""
    found = json.loads(REPORT.read_text())
    return {REPORT.with_suffix(f"{language}.md"): table(found, words) for language, words in WORDS.items()}


if __name__ == "__main__":
    for path, text in tables().items():
        path.write_text(text)
