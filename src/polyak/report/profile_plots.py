"""Plots of what averages are made of, and of how far they are from the raw weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polyak.report.facts import ArchiveFacts, Choice, LayerDistances, Series, Shares, Weights
from polyak.report.plot import Band, Frame, Line, Plot, Style
from polyak.report.words import Words, number


def archive_plot(archive: ArchiveFacts, weights: Sequence[Weights], words: Words, run: str = "") -> Plot:
    """The profile for each half-life of the slider, which starts at that of the average itself."""
    choices = archive.choices
    ours = [one for one in weights if one.run == archive.run]
    own = next((one.half_life for one in (*ours, *archive.newest) if one.half_life), None)
    near = [abs(np.log(one.half_life / own)) for one in choices] if own else [one.error for one in choices]
    start = int(np.argmin(near))
    return _profile_plot(
        name=f"profile-{archive.name}",
        title=f"{run}{archive.name}",
        frames=[_frame(choice) for choice in choices],
        start=start,
        edges=choices[0].made.edges,
        words=words,
        note=words("profile note", snapshots=len(archive.steps)),
    )


def weights_plot(weights: Weights, profile: Shares, words: Words, run: str = "") -> Plot:
    """The profile of an average without an archive."""
    frame = Frame(
        half_life=weights.half_life or 0.0,
        error=0.0,
        noise_gain=1.0,
        mean_age=weights.mean_age or 0.0,
        initial=profile.initial,
        median=profile.median,
        most=profile.most,
        made=_heights(profile),
        target=(),
    )
    note = words("profile static", median=number(profile.median), most=number(profile.most))
    name = f"{weights.file or weights.name}{', ' if weights.pattern else ''}{weights.pattern}"
    return _profile_plot(f"profile-{name}", f"{run}{name}", [frame], 0, profile.edges, words, note)


def _profile_plot(
    name: str, title: str, frames: list[Frame], start: int, edges: tuple[int, ...], words: Words, note: str
) -> Plot:
    shown = frames[start]
    facts = {
        "steps": number(edges[-1]),
        "name": title,
        "median": number(shown.median),
        "most": number(shown.most),
    }
    return Plot(
        name=name,
        title=title,
        alt=words("profile alt", **facts),
        note=note,
        x=words("x step"),
        y=words("y share"),
        percent_y=True,
        edges=edges,
        frames=tuple(frames),
        start=start,
    )


def _frame(choice: Choice) -> Frame:
    return Frame(
        half_life=choice.half_life,
        error=choice.error,
        noise_gain=choice.noise_gain,
        mean_age=choice.mean_age,
        initial=choice.made.initial,
        median=choice.made.median,
        most=choice.made.most,
        made=_heights(choice.made),
        target=_heights(choice.target),
    )


def _heights(shares: Shares) -> tuple[float, ...]:
    """Share per step in each piece."""
    widths = np.diff(np.array(shares.edges))
    return tuple(float(f"{h:.4g}") for h in (np.array(shares.shares) / widths).tolist())


def distance_plot(facts: LayerDistances, name: str, words: Words, run: str = "") -> Plot:
    """Distances of layers from their averages over the run."""
    styles: dict[str, Style] = {"norm": "dashed", "expert": "dotted"}
    lines = [
        Line(layer, f"run{i % 6}", facts.steps, values, styles.get(facts.kinds[layer], "solid"), 1.6)
        for i, (layer, values) in enumerate(facts.named.items())
    ]
    middle = Line(words("median layer"), "raw", facts.steps, facts.middle, width=2.2)
    return Plot(
        name=f"distance-{name}",
        title=f"{run}{name}",
        alt=words("distance alt", layers=facts.layers, first=next(iter(facts.named))),
        note=words("distance note", layers=facts.layers),
        x=words("x step"),
        y=words("y distance"),
        lines=(*lines, middle),
        bands=(Band("faint", facts.steps, facts.low, facts.high),),
    )


def logged_distance_plot(distances: Mapping[str, Series], name: str, words: Words, run: str = "") -> Plot:
    """The distances of the whole model as a trainer logged them, by track."""
    lines = [
        Line(track or words("whole model"), f"run{i % 6}", series.steps, series.values)
        for i, (track, series) in enumerate(distances.items())
    ]
    last = next(iter(distances.values())).values[-1]
    return Plot(
        name=f"distance-log-{name}",
        title=f"{run}{words('whole model')}",
        alt=words("distance alt all", last=number(last)),
        note="",
        x=words("x step"),
        y=words("y distance"),
        lines=tuple(lines),
    )
