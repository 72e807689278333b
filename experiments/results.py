"""The page of results, written from the committed reports alone.

python -m experiments.results           # writes docs/results.md and docs/results.zh.md
python -m experiments.results --check   # fails when a page is stale
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from experiments import harness
from experiments.chinese import CHINESE
from experiments.ocr.report import reports as text_lines

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

NAMES: tuple[str, ...] = (
    "tutorial",
    "detection",
    "distillation",
    "adversarial",
    "longrun",
    "text",
    "byol",
    "halflife",
    "precision",
)
"""The folders that hold an experiment of the harness, in the order of the page."""

ARTICLES = {
    "PaddleOCR, SVTR: line accuracy +1.2 points": ("ocr", "ocr-cosine"),
    "PaddleNLP, UIE: F1 +0.8 to +1.3 points": ("entities", "entities-japanese"),
    "YOLO: mAP50-95 +0.5 to +1.2 points": ("detection", "detection-constant", "detection-bf16"),
    "ImageNet, self-distillation: accuracy +0.8 points": ("distillation",),
    "CIFAR-100: accuracy +1.2 points": ("longrun",),
    "PGD: attacks that succeed 42 → 34 %": ("adversarial",),
    "BERT: the same loss in 15 % fewer steps": ("masked",),
}
"""The figures of the articles that made people average weights, and the reports that try each."""

UNTRIED = "not tried"
VERDICTS = (*get_args(harness.Verdict), UNTRIED)
ARROWS = {"higher": "↑", "lower": "↓", "equal": "="}

ENGLISH_PAGE = {
    "title": "What averages bring, measured",
    "articles": "**{total} figures in articles, tried in {ways} ways:** {counts}.",
    "claims": "**Of {total} claims on this page:** {counts}.",
    "count": "*{verdict}* {number}",
    "comma": ", ",
    "colon": ": ",
    "by article": "## The articles' figures\n\n"
    "| published | tried here | difference, 95 % interval | verdict |"
    "\n|---|---|---|---|",
    "by claim": "## All claims\n\n| | headline | difference, 95 % interval | verdict |\n|---|---|---|---|",
    "rows": "| | without | with | difference, 95 % interval |\n|---|---:|---:|---:|",
    "verdict": "Published: {published}. Verdict: **{verdict}**.",
    "run": "{data} ({licence}), {seeds} seeds, {minutes:.0f} minutes in all; {machine}; {date}. How, and "
    "what it does not show: `experiments/{folder}/README.md`.",
    "intro": """Every claim that made people average weights, tried again on data that is really there, as
small as is honest, on a CPU; nothing here ran on a GPU. A small network is not theirs: a figure that is not
reached here may be reached there, and the other way round. Differences are with minus without, paired by
seed; the interval is Student's. The verdict follows from the interval of the row in bold, and from nothing
else: *holds* if it lies on the claimed side and reaches the published figure, *holds, smaller* if it does not
reach it, *no difference seen* if it contains zero, *does not hold* on the other side. Where two are claimed
to be equal, that holds if the whole interval is within the difference named.""",
    "when": """## When

The last point of a curve says least. Jump, below, is the mean change between evaluations; wobble is the
distance from the middle of both neighbours, free of a steady rise; "when" is the moment at which a curve
first reaches the best that the raw weights ever reach.

![{alt}](pictures/when.svg#only-light)
![{alt}](pictures/when-dark.svg#only-dark)""",
    "alt": "Curves of the raw weights and of their average in the experiments' runs, each seed and the mean",
    "tables": """The rows of every experiment follow. ↑: higher is better; ↓: lower is; =: both should be
equal. `python -m experiments.NAME.run` repeats one, `--quick` in minutes and smaller;
`python -m experiments.results` writes this page.""",
}
CHINESE_PAGE = {
    "title": "平均权重带来什么：实测",
    "articles": "**各文章中的 {total} 个数值，共重做 {ways} 次：** {counts}。",
    "claims": "**本页的 {total} 项说法：** {counts}。",
    "count": "*{verdict}* {number}",
    "comma": "，",
    "colon": "：",
    "by article": "## 各文章的数值\n\n"
    "| 文章中的数值 | 本处所试的说法 | 差值与 95 % 区间 | 结论 |\n|---|---|---|---|",
    "by claim": "## 全部说法\n\n| | 判定所用指标 | 差值与 95 % 区间 | 结论 |\n|---|---|---|---|",
    "rows": "| | 不用 | 用 | 差值与 95 % 区间 |\n|---|---:|---:|---:|",
    "verdict": "文献：{published}。结论：**{verdict}**。",
    "run": "{data}（{licence}），{seeds} 个种子，共 {minutes:.0f} 分钟；{machine}；{date}。"
    "做法与它不能说明的内容见 `experiments/{folder}/README.md`。",
    "intro": "促使大家做权重平均的每一种说法，都在真实可得的数据上、以尽可能小而不失诚实的规模、"
    "在 CPU 上重做了一遍；这里没有任何结果来自 GPU。小网络不是原文的网络：这里达不到的数值，在那里也许能"
    "达到，反之亦然。差值为“用”减“不用”，按种子配对，区间为学生 t 分布的 95 % 区间。"
    "结论只由粗体那一行的区间得出：区间在所声称的一侧并达到文献数值，即“成立”；在该侧但达不到，即“成立，但幅度更小”；"
    "包含零，即“未见差别”；在另一侧，即“不成立”。若说法是两者相等，则整个区间都在所说的差值之内才算成立。",
    "when": """## 何时

曲线的最后一点说明得最少。下文的“跳动”是相邻评估之间变化的平均值；“抖动”是与前后两点中点的距离，不含平稳的上升；
“时刻”是曲线首次达到原始权重最高水平的时间。

![{alt}](pictures/when.svg#only-light)
![{alt}](pictures/when-dark.svg#only-dark)""",
    "alt": "各实验中原始权重与平均权重的曲线：每个种子及其均值",
    "tables": "以下是每个实验的全部指标。↑ 表示越高越好，↓ 表示越低越好，= 表示两者应当相等。"
    "`python -m experiments.NAME.run` 重做一个实验，加 `--quick` 则几分钟做一个小的；"
    "本页由 `python -m experiments.results` 写成。",
}

Found = Mapping[str, Any]
Say = Callable[[str], str]


def reports() -> list[dict[str, Any]]:
    """The committed reports of full size, in order, and those of the text lines, trained in Paddle."""
    found = [
        json.loads(path.read_text()) | {"folder": name}
        for name in NAMES
        for path in sorted((HERE / name / "results").glob("*.json"), key=lambda path: path.stem)
    ]
    return [*found, *(one | {"folder": "ocr"} for one in text_lines())]


def headline(found: Found) -> dict[str, Any]:
    """The row from which the verdict follows."""
    (row,) = [row for row in found["rows"] if row["headline"]]
    return row


def rounded(value: float, digits: int = 4, sign: str = "") -> str:
    """So many significant digits, and all those before the point."""
    return f"{value:{sign},.0f}" if abs(value) >= 10**digits else f"{value:{sign}.{digits}g}"


def change(row: Found) -> str:
    """``+0.86 (+0.12 … +1.6)``."""
    mean, low, high = (rounded(row["difference"][key], 3, "+") for key in ("mean", "low", "high"))
    return f"{mean} ({low} … {high})"


def counted(verdicts: Sequence[str], words: Found, say: Say) -> str:
    """How many there are of each verdict."""
    number = Counter(verdicts)
    counts = [
        words["count"].format(verdict=say(verdict), number=number[verdict])
        for verdict in VERDICTS
        if number[verdict] or verdict != UNTRIED
    ]
    return " · ".join(counts)


def article_rows(found: Sequence[Found], say: Say) -> list[tuple[str, ...]]:
    """Each published figure with each claim that tries it, what it is here, and the verdict."""
    by_name = {one["experiment"]: one for one in found}
    rows: list[tuple[str, ...]] = []
    for article, names in ARTICLES.items():
        tried = [by_name[name] for name in names if name in by_name]
        for one in tried:
            row = headline(one)
            link = f"[{say(one['claim'])}](#{one['experiment']})"
            rows.append((say(article), link, f"{change(row)} {say(row['unit'])}", one["verdict"]))
        if not tried:
            rows.append((say(article), "", "", UNTRIED))
    return rows


def measure(row: Found, words: Found, say: Say) -> str:
    """What a row measures, and in which unit."""
    return f"{say(row['metric'])}{words['comma']}{say(row['unit'])}"


def claim_row(found: Found, words: Found, say: Say) -> str:
    """A line of the table of all claims."""
    row = headline(found)
    cells = [f"[{say(found['claim'])}](#{found['experiment']})", measure(row, words, say)]
    return f"| {' | '.join([*cells, change(row), say(found['verdict'])])} |"


def section(found: Found, words: Found, say: Say) -> str:
    """One experiment: its claim, all of its rows, and where it ran."""
    said = {"published": say(found["published"]), "verdict": say(found["verdict"])}
    heading = f"## {say(found['claim']).rstrip('.。')} {{#{found['experiment']}}}"
    lines = [heading, "", words["verdict"].format(**said), "", words["rows"]]
    for row in found["rows"]:
        bold = "**" if row["headline"] else ""
        sides = (
            f"{say(row[side]['what'])}{words['colon']}{rounded(fmean(row[side]['values']))}"
            for side in ("without", "with")
        )
        name = f"{bold}{measure(row, words, say)} {ARROWS[row['better']]}{bold}"
        lines.append(f"| {name} | {' | '.join(sides)} | {change(row)} |")
    facts = {key: found[key] for key in ("machine", "date", "folder")}
    facts |= {"seeds": len(found["seeds"]), "minutes": found["seconds"] / 60}
    facts |= {"data": say(found["data"]["name"]), "licence": say(found["data"]["licence"])}
    return "\n".join([*lines, "", words["run"].format(**facts)])


def page(found: Sequence[Found], words: Found, say: Say) -> str:
    """The whole page."""
    articles = article_rows(found, say)
    by_article, by_claim = [row[-1] for row in articles], [one["verdict"] for one in found]
    table = [f"| {' | '.join([*cells, say(said)])} |" for *cells, said in articles]
    return (
        "\n\n".join(
            [
                f"# {words['title']}",
                words["articles"].format(
                    total=len(ARTICLES),
                    ways=len(articles) - by_article.count(UNTRIED),
                    counts=counted(by_article, words, say),
                ),
                words["claims"].format(total=len(found), counts=counted(by_claim, words, say)),
                words["intro"],
                "\n".join([words["by article"], *table]),
                "\n".join([words["by claim"], *(claim_row(one, words, say) for one in found)]),
                words["when"].format(alt=words["alt"]),
                words["tables"],
                *(section(one, words, say) for one in found),
            ]
        )
        + "\n"
    )


def pages() -> dict[Path, str]:
    """The pages by their file."""
    found = reports()
    return {
        DOCS / "results.md": page(found, ENGLISH_PAGE, lambda text: text),
        DOCS / "results.zh.md": page(found, CHINESE_PAGE, CHINESE.__getitem__),
    }


def stale() -> list[Path]:
    """The pages that are not what the reports say."""
    return [path for path, text in pages().items() if not path.exists() or path.read_text() != text]


def main() -> None:
    """Write the pages, or say which is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    options = parser.parse_args()
    if options.check:
        names = ", ".join(path.name for path in stale())
        sys.exit(f"{names}: run python -m experiments.results" if names else 0)
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
