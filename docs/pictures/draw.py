"""The pictures of the README and the pages, from committed results: ``python -m docs.pictures.draw``.

Each is drawn in English and in Chinese, for a light and for a dark page. Text stays text, so it is set in the
reader's own fonts; a page in Chinese finds ``NAME.zh.svg`` where it says ``NAME.svg``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import polyak
from experiments.halflife.run import COSINES, EPOCHS
from experiments.results import reports as committed

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENGLISH, CHINESE = range(2)


class Ink(NamedTuple):
    """Colours that can be read on one kind of page."""

    text: str
    faint: str
    raw: str
    average: str
    others: tuple[str, str, str]


INKS = {
    "": Ink("#24292f", "#d0d7de", "#8a6d3b", "#3949ab", ("#00897b", "#c2185b", "#8a6d3b")),
    "-dark": Ink("#e6e6e6", "#4b5058", "#d7b56d", "#9fa8ff", ("#4db6ac", "#f48fb1", "#d7b56d")),
}
Say = Callable[[str, str], str]  # the one in the language of the picture
Draw = Callable[[Ink, Say], Figure]


def results(pattern: str) -> dict[str, Any]:
    """The newest committed results of this name."""
    return json.loads(max(ROOT.glob(pattern)).read_text())


def canvas(
    ink: Ink, width: float, height: float, panels: int = 1, rows: int = 1
) -> tuple[Figure, Sequence[Any]]:
    """A figure with this many panels side by side and this many rows, in a plain style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor("none")
    panes = np.ravel(figure.subplots(rows, panels))
    for axes in panes:
        axes.set_facecolor("none")
        axes.tick_params(colors=ink.text)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(ink.faint)
        axes.grid(visible=True, color=ink.faint, linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)
        for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
            label.set_color(ink.text)
    return figure, panes


def curves(ink: Ink, say: Say) -> Figure:
    """Raw and averaged weights of the same runs of the demo, at its constant learning rate."""
    found = results("experiments/tutorial/results/tutorial.json")
    figure, (axes,) = canvas(ink, 7.2, 3.4)
    names = {
        "raw": (ink.raw, say("raw weights", "原始权重")),
        "average": (ink.average, say("their average", "平均权重")),
    }
    epochs = np.arange(1, found["settings"]["epochs"] + 1)
    for name, (colour, label) in names.items():
        each = np.array([run[f"constant {name} accuracy curve"] for run in found["runs"].values()])
        axes.plot(epochs, each.T, color=colour, linewidth=0.8, alpha=0.45)
        axes.plot(epochs, each.mean(0), "o-", color=colour, linewidth=2.4, markersize=4)
        axes.annotate(
            f"{label} {each[:, -1].mean():.2f} %",
            (epochs[-1], each[:, -1].mean()),
            (8, -4),
            textcoords="offset points",
            color=colour,
            weight="bold",
        )
    axes.set(xticks=epochs, xlabel=say("epoch", "轮"), ylabel=say("test accuracy, %", "测试准确率，%"))
    return figure


def sweep(ink: Ink, say: Say) -> Figure:
    """The loss of averages over their half-life, one line for each length of training."""
    found = results("experiments/halflife/results/halflife.json")
    figure, panes = canvas(ink, 7.2, 3.4, panels=2)
    lengths, runs = found["settings"]["half_lives"], list(found["runs"].values())
    rates = (
        ("constant", EPOCHS, say("constant rate", "恒定学习率")),
        ("cosine", COSINES, say("cosine", "余弦")),
    )
    for axes, (rate, shown, title) in zip(panes, rates, strict=True):
        for epochs in shown:
            name, strength = f"{rate} {epochs}", (1 + EPOCHS.index(epochs)) / len(EPOCHS)
            each = np.array([[loss / run[f"{name} raw"] for loss in run[f"{name} curve"]] for run in runs])
            line = {"color": ink.average, "alpha": 0.25 + 0.75 * strength, "linewidth": 1 + 1.5 * strength}
            label = f"{epochs} " + say("epochs" if epochs > 1 else "epoch", "轮")
            axes.plot(lengths, 100 * each.mean(0), "o-", markersize=4, label=label, **line)
        axes.axhline(100, color=ink.raw, linestyle="--", linewidth=1.5)
        axes.set(xscale="log", ylim=(85, 106), xlabel=say("half-life, steps", "半衰期，步"), title=title)
        axes.set_xticks(lengths[::2], [f"{length:,}" for length in lengths[::2]])
        axes.minorticks_off()
    panes[0].text(lengths[0], 100.2, say("raw weights", "原始权重"), color=ink.raw, va="bottom")
    panes[0].set_ylabel(say("test loss, % of the raw weights'", "测试损失，为原始权重的 %"))
    panes[0].legend(frameon=False, labelcolor=ink.text, loc="lower left", fontsize=9)
    return figure


class Panel(NamedTuple):
    """Two curves of a report: their names, the least value shown, and the title in both languages."""

    report: str
    raw: str
    average: str
    bottom: float
    title: tuple[str, str]


PANELS = (
    Panel(
        "tutorial", "constant raw accuracy curve", "constant average accuracy curve", 82, ("tutorial", "教程")
    ),
    Panel("ocr", "raw curve", "Warmup(0.999) curve", 50, ("text lines", "文本行")),
    Panel("ocr-cosine", "raw curve", "Warmup(0.999) curve", 50, ("text lines, cosine", "文本行，余弦")),
    Panel("longrun", "constant raw accuracy", "constant average accuracy", 79, ("long run", "长时间训练")),
    Panel(
        "adversarial", "raw robust accuracy", "average robust accuracy", 45, ("under attack", "受到攻击时")
    ),
    Panel("entities", "raw", "h50", 15, ("names in text, F1", "文本中的名称，F1")),
)


def when(ink: Ink, say: Say) -> Figure:
    """Curves of raw weights and averages during the experiments: each seed, and the mean."""
    reports = {found["experiment"]: found for found in committed()}
    figure, panes = canvas(ink, 7.2, 4.6, panels=3, rows=2)
    for axes, panel in zip(panes, PANELS, strict=True):
        runs = reports[panel.report]["runs"].values()
        for curve, colour in ((panel.raw, ink.raw), (panel.average, ink.average)):
            each = np.array([run[curve] for run in runs])
            places = np.arange(1, each.shape[1] + 1)
            axes.plot(places, each.T, color=colour, linewidth=0.6, alpha=0.4)
            axes.plot(places, each.mean(0), color=colour, linewidth=2.2)
        axes.set(title=say(*panel.title), ylim=(panel.bottom, None))
    for axes in panes[3:]:
        axes.set_xlabel(say("evaluation", "评估次数"))
    for axes in panes[::3]:
        axes.set_ylabel(say("accuracy, %", "准确率，%"))
    labels = (say("raw weights", "原始权重"), ink.raw), (say("average", "平均权重"), ink.average)
    for place, (label, colour) in enumerate(labels):
        panes[0].text(
            0.95, 0.16 - 0.11 * place, label, color=colour, ha="right", transform=panes[0].transAxes
        )
    return figure


def decays(ink: Ink, say: Say) -> Figure:
    """The weight that each step's parameters have after 10,000 steps."""
    figure, (axes,) = canvas(ink, 7.2, 3.4)
    steps = 10_000
    shown = {
        "HalfLife(steps=1000)": (polyak.HalfLife(steps=1000), 0, ink.average),
        "Warmup(0.9999)": (polyak.Warmup(0.9999), 0, ink.others[0]),
        "Power(sigma_rel=0.1)": (polyak.Power(sigma_rel=0.1), 0, ink.others[1]),
        say("Uniform(), start=7000", "Uniform()，start=7000"): (polyak.Uniform(), 7000, ink.others[2]),
    }
    for label, (decay, start, colour) in shown.items():
        weights = polyak.Profile.from_decay(decay, steps=steps, start=start).weights()
        axes.plot(np.arange(len(weights)), 1e4 * weights, color=colour, linewidth=2, label=label)
    axes.set(xlim=(0, steps), ylim=(0, None), xlabel=say("training step", "训练步"))
    axes.set_ylabel(say("its weight in the average, ×10⁻⁴", "在平均权重中的系数，×10⁻⁴"))
    axes.legend(frameon=False, labelcolor=ink.text, loc="upper left")
    return figure


def anneal(ink: Ink, say: Say) -> Figure:
    """A falling learning rate, and the weights with which checkpoints are merged instead of it."""
    figure, (left, right) = canvas(ink, 7.2, 3.0, panels=2)
    x = np.linspace(0, 1, 201)
    falls = {"linear": 1 - x, "cosine": 0.5 + 0.5 * np.cos(np.pi * x), "1-sqrt": 1 - np.sqrt(x)}
    steps = range(0, 1001, 100)
    for (shape, fall), colour in zip(falls.items(), (ink.average, *ink.others[:2]), strict=True):
        left.plot(x, fall, color=colour, linewidth=2, label=shape)
        right.plot(steps, polyak.schedules.annealed(steps, shape), "o-", color=colour, markersize=4)
    left.set(xlabel=say("share of the anneal", "退火进度"), ylabel=say("factor of the rate", "学习率的系数"))
    right.set(xlabel=say("step of the checkpoint", "检查点所在步"), ylabel=say("its weight", "合并系数"))
    left.legend(frameon=False, labelcolor=ink.text)
    for axes in (left, right):
        axes.set_ylim(0, None)
    return figure


def bars(axes: Any, ink: Ink, values: dict[str, float], form: str) -> None:
    """Horizontal bars with their values, the first on top and in the colour of the average."""
    colours = [ink.average if name.startswith("polyak") else ink.faint for name in values]
    drawn = axes.barh(list(values), list(values.values()), color=colours, height=0.7)
    axes.bar_label(drawn, [form.format(value) for value in values.values()], padding=4, color=ink.text)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.25)
    axes.tick_params(left=False)


PEERS = ("ultralytics", "timm", "ema_pytorch", "swa_utils", "torch_ema", "diffusers")


def update(ink: Ink, say: Say) -> Figure:
    """The time of one update over that of the memory traffic it cannot avoid."""
    found = results("benchmarks/results/update-*.json")["figures"]
    figure, panes = canvas(ink, 7.2, 3.0, panels=2)
    for axes, model, title in zip(
        panes,
        ("750 small", "ResNet-50"),
        (say("750 small tensors", "750 个小张量"), "ResNet-50"),
        strict=True,
    ):
        figures = found[model]["figures"]
        values = {"polyak": figures["polyak, native"]["ratio"]} | {n: figures[n]["ratio"] for n in PEERS}
        bars(axes, ink, values, "{:.2f}")
        axes.axvline(1, color=ink.text, linewidth=1, linestyle=":")
        axes.set(title=title, xlabel=say("times the limit of memory", "内存极限的倍数"))
    return figure


def swap(ink: Ink, say: Say) -> Figure:
    """Putting the average into the model and taking it out again: time, and memory of its own."""
    found = results("benchmarks/results/swap-*.json")["figures"]["ViT-B"]["figures"]
    figure, (time, memory) = canvas(ink, 7.2, 1.9, panels=2)
    both = {name: 1e3 * (one["enter"] + one["leave"]) for name, one in found.items()}
    bars(time, ink, both, "{:.1f}")
    bars(memory, ink, {name: one["swap_memory"] / 1e6 for name, one in found.items()}, "{:.0f}")
    time.set_xlabel(say("swap in and out, ms", "换入并换回，毫秒"))
    memory.set_xlabel(say("extra memory, MB", "额外内存，MB"))
    return figure


PICTURES: tuple[Draw, ...] = (curves, when, sweep, decays, anneal, update, swap)


def save(folder: Path) -> None:
    """Draw every picture into a folder; drawn again, a file is the same to the byte."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "polyak", "font.size": 11, "axes.titlesize": 11}
    with mpl.rc_context(style), warnings.catch_warnings():
        # Where text goes is measured in matplotlib's own font, which has no Chinese; the reader's font does.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for draw in PICTURES:
            for language, suffix in ((ENGLISH, ""), (CHINESE, ".zh")):
                for page, ink in INKS.items():
                    figure = draw(ink, lambda *words, language=language: words[language])
                    path = folder / f"{draw.__name__}{page}{suffix}.svg"
                    figure.savefig(path, transparent=True, metadata={"Date": None})
                    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    save(HERE)
