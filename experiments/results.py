"""The page of results, written from the committed reports alone.

python -m experiments.results           # writes docs/results.md and docs/results.zh.md
python -m experiments.results --check   # fails when a page is stale
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.chinese import CHINESE
from experiments.intervals import estimate

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

NAMES: tuple[str, ...] = ()
"""The folders that hold an experiment of the harness, in the order of the page."""

ENGLISH_PAGE = {
    "title": "What averages bring, measured",
    "head": "| published | here | verdict | data |\n|---|---|---|---|",
    "rows": "| | without | with | difference, 95 % interval |\n|---|---:|---:|---:|",
    "run": "{seeds} seeds, {minutes:.0f} minutes in all; {machine}; {date}. "
    "How, and what it does not show: `experiments/{folder}/README.md`.",
    "intro": """Every claim that made people average weights, tried again on data that is really there, as
small as is honest, on a CPU. Differences are paired by seed; the interval is Student's. The verdict follows
from the interval of the row in bold and from nothing else: *holds* if it lies on the claimed side and reaches
the published figure, *holds, smaller* if it stays below, *no difference seen* if it contains zero, *does not
hold* on the other side. Nothing here ran on a GPU. `python -m experiments.NAME.run` repeats a row, `--quick`
in minutes and smaller; `python -m experiments.results` writes this page from the committed reports.""",
}
CHINESE_PAGE = {
    "title": "平均权重带来什么：实测",
    "head": "| 文献中的说法 | 本处结果 | 结论 | 数据 |\n|---|---|---|---|",
    "rows": "| | 不用 | 用 | 差值与 95 % 区间 |\n|---|---:|---:|---:|",
    "run": "{seeds} 个种子，共 {minutes:.0f} 分钟；{machine}；{date}。"
    "做法与它不能说明的内容见 `experiments/{folder}/README.md`。",
    "intro": "促使大家做权重平均的每一种说法，都在真实可得的数据上、以尽可能小而不失诚实的规模、"
    "在 CPU 上重做了一遍。差值按种子配对，区间为学生 t 分布的 95 % 区间。结论只由粗体那一行的区间得出："
    "区间在所声称的一侧并达到文献数值，即“成立”；在该侧但达不到，即“成立，但幅度更小”；"
    "包含零，即“未见差别”；在另一侧，即“不成立”。这里没有任何结果来自 GPU。"
    "`python -m experiments.NAME.run` 重做一行，加 `--quick` 则几分钟做一个小的；"
    "本页由 `python -m experiments.results` 根据已提交的结果写成。",
}


def reports() -> list[dict[str, Any]]:
    """The committed reports of full size, in order."""
    return [
        json.loads(path.read_text()) | {"folder": name}
        for name in NAMES
        for path in sorted((HERE / name / "results").glob("*.json"))
    ]


def change(row: Mapping[str, Any], unit: bool = True) -> str:
    """``+0.86 (+0.12 … +1.60) points``."""
    found = row["difference"]
    text = f"{found['mean']:+.3g} ({found['low']:+.3g} … {found['high']:+.3g})"
    return f"{text} {row['unit']}" if unit else text


def section(found: Mapping[str, Any], words: Mapping[str, str], say: Callable[[str], str]) -> str:
    """One experiment: its claim, all of its rows, and where it ran."""
    lines = [f"## {say(found['claim'])}", "", f"{say(found['published'])}", "", words["rows"]]
    for row in found["rows"]:
        bold = "**" if row["headline"] else ""
        sides = (
            f"{say(row[side]['what'])}: {estimate(row[side]['values'])['mean']:.4g}"
            for side in ("without", "with")
        )
        name = f"{bold}{say(row['metric'])}, {say(row['unit'])}{bold}"
        lines.append(f"| {name} | {' | '.join(sides)} | {change(row, unit=False)} |")
    facts = {key: found[key] for key in ("machine", "date", "folder")}
    facts |= {"seeds": len(found["seeds"]), "minutes": found["seconds"] / 60}
    return "\n".join([*lines, "", words["run"].format(**facts)])


def page(found: Sequence[Mapping[str, Any]], words: Mapping[str, str], say: Callable[[str], str]) -> str:
    """The whole page."""
    lines = [f"# {words['title']}", "", words["intro"], "", words["head"]]
    for one in found:
        (headline,) = [row for row in one["rows"] if row["headline"]]
        cells = [say(one["published"]), change(headline), say(one["verdict"]), say(one["data"]["name"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *(section(one, words, say) for one in found)]) + "\n"


def pages() -> dict[Path, str]:
    """The pages by their file."""
    found = reports()
    return {
        DOCS / "results.md": page(found, ENGLISH_PAGE, lambda text: text),
        DOCS / "results.zh.md": page(found, CHINESE_PAGE, CHINESE.__getitem__),
    }


def main() -> None:
    """Write the pages, or say which is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    options = parser.parse_args()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if options.check:
        sys.exit(f"{', '.join(p.name for p in stale)}: run python -m experiments.results" if stale else 0)
    for path in stale:
        path.write_text(pages()[path])


if __name__ == "__main__":
    main()
