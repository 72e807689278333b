"""The table of the page "Try another decay": ``python -m experiments.halflife.table``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.intervals import estimate

REPORT = Path(__file__).parent / "results" / "halflife.json"
COLUMNS = ("first curve", "second curve", "last curve", "made curve")
WORDS = {
    "": {
        "caption": "Test loss, {data}, constant rate, {seeds} seeds, 95 % intervals; {machine}, {date}.",
        "head": "| half-life, steps | after {0:,} steps | {1:,} | {2:,} | {2:,}, made from snapshots |",
        "raw": "raw weights",
    },
    ".zh": {
        "caption": "测试损失，{data}，恒定学习率，{seeds} 个种子，95 % 区间；{machine}，{date}。",
        "head": "| 半衰期，步 | {0:,} 步之后 | {1:,} 步 | {2:,} 步 | {2:,} 步，由快照合成 |",
        "raw": "原始权重",
    },
}


def spread(values: list[float | None]) -> str:
    """Mean and half of its 95 % interval; a dash if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "—"
    found = estimate(known)
    return f"{found['mean']:.4f} ± {found['half']:.4f}"


def table(found: dict[str, Any], words: dict[str, str]) -> str:
    """The losses of every half-life at each look."""
    runs, settings = list(found["runs"].values()), found["settings"]
    facts = {key: found[key] for key in ("machine", "date")}
    caption = words["caption"].format(**facts, data=found["data"]["name"], seeds=len(runs))
    raw = [spread([run[f"{look} raw"] for run in runs]) for look in ("first", "second", "last")]
    lines = [caption, "", words["head"].format(*settings["looks"]), "|---:|---:|---:|---:|---:|"]
    lines.append(f"| {words['raw']} | {' | '.join(raw)} | |")
    for i, h in enumerate(settings["half_lives"]):
        cells = [spread([run[column][i] for run in runs]) for column in COLUMNS]
        lines.append(f"| {h} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tables() -> dict[Path, str]:
    """Both tables by their file."""
    found = json.loads(REPORT.read_text())
    return {REPORT.with_suffix(f"{language}.md"): table(found, words) for language, words in WORDS.items()}


if __name__ == "__main__":
    for path, text in tables().items():
        path.write_text(text)
