"""`polyak inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from polyak.cli.console import complain, say, say_table, width
from polyak.cli.describe import (
    CheckpointSummary,
    Snapshots,
    Tensors,
    Weighting,
    describe,
    expanded,
    to_json,
)
from polyak.cli.options import Json
from polyak.cli.synthesize import say_reach
from polyak.errors import ConfigError, PolyakError
from polyak.schedules.drawing import draw


def inspect(
    where: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Checkpoints, archives, URLs, globs, or folders of them."),
    ],
    plot: Annotated[bool, typer.Option("--plot", help="Draw the weight of each training step.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Draw the weights on a logarithmic scale.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare all bytes with the file's checksums.")] = True,
    as_json: Json = False,
) -> None:
    """Show what checkpoints are and which weights are averages.

    Several are shown in one table. The exit status is 1 if one cannot be read.
    """
    paths = list(dict.fromkeys(path for one in where for path in expanded(one)))
    found = [describe(paths[0], verify)] if len(paths) == 1 else list(_readable(paths, verify))
    profiles = [(one.where, part) for one in found for part in _profiles(one)]
    if (plot or log) and not profiles:
        raise ConfigError(
            f"{', '.join(where)} holds no average with a profile that could be drawn: leave out --plot."
        )
    if as_json:
        shown = [to_json(one) for one in found]
        print(json.dumps(shown[0] if len(paths) == 1 else {"checkpoints": shown}))
    elif len(paths) == 1:
        _print(found[0])
    else:
        headings = ("", "", "step", "half-life", "initial weight", "parameters")
        say_table(headings, [row for one in found for row in _rows(one)])
    for path, part in profiles if (plot or log) and not as_json else ():
        if part.profile is not None:
            title = part.name if len(paths) == 1 else f"{path}: {part.name}"
            say("", title, *draw(part.profile, width(), scale="log" if log else "linear").splitlines())
    if len(found) < len(paths):
        raise typer.Exit(1)


def _readable(paths: Sequence[str], verify: bool) -> Iterator[CheckpointSummary | Snapshots]:
    """The readable ones of several; each other is a line on stderr."""
    for path in paths:
        try:
            yield describe(path, verify)
        except PolyakError as error:
            complain(error)


def _print(found: CheckpointSummary | Snapshots) -> None:
    if isinstance(found, CheckpointSummary):
        say(*_checkpoint(found))
        return
    say(*_archive(found))
    if found.reach:
        say_reach(found.reach)


def _profiles(found: CheckpointSummary | Snapshots) -> list[Weighting]:
    return [] if isinstance(found, Snapshots) else [one for one in _each(found) if one.figures is not None]


def _each(found: CheckpointSummary) -> list[Weighting]:
    """Each set of weights, followed by the patterns of an average by name."""
    return [one for part in found.parts for one in (part, *part.rules)]


def _rows(found: CheckpointSummary | Snapshots) -> Iterator[tuple[str, ...]]:
    """A line for each set of weights; the first has the file's name."""
    if isinstance(found, Snapshots):
        yield found.where, f"archive, {found.files} files", f"{found.steps[-1]:,}", "", "", ""
        return
    step = "" if found.step is None else f"{found.step:,}"
    for i, one in enumerate(every := _each(found)):
        what = f"{one.role} {one.name}" if len(every) > 1 and one.name != one.role else one.role
        half_life, initial = "", ""
        if one.figures is not None:
            half_life, initial = f"{one.figures.half_life:,.4g}", f"{one.figures.initial_weight:.1%}"
        library = f", {found.library}" if found.library not in ("", "polyak") else ""
        first = (found.where, what + library, step)
        yield (
            *(("", what, "") if i else first),
            half_life,
            initial,
            f"{one.tensors.elements:,}" if one.tensors.count else "",
        )


def _checkpoint(found: CheckpointSummary) -> Iterator[str]:
    kind = f"{found.role or found.format}, {found.library or 'of no library that is known'}"
    counts = [(found.step, f"step {found.step:,}" if found.step is not None else "")]
    counts += [(found.updates, f"updated {found.updates:,} times" if found.updates is not None else "")]
    yield ", ".join([f"{found.where}: {kind}", *(text for count, text in counts if count is not None)])
    for one in _each(found):
        yield f"{one.name}"
        yield from (f"  {name:<18}{value}" for name, value in _weighting(one))
    yield "file"
    if found.run:
        yield f"  {'run':<18}{found.run}"
    yield from (f"  {name:<18}{json.dumps(value)}" for name, value in found.counters.items())
    yield f"  {'integrity':<18}{found.integrity}"
    yield from (f"  {'note':<18}{note}" for note in found.notes)


def _weighting(one: Weighting) -> Iterator[tuple[str, str]]:
    yield "role", f"{one.role}, under the key {one.path}" if one.path else one.role
    if one.tensors.count:
        yield "tensors", _size(one.tensors)
    if one.decay is not None:
        yield "schedule", str(one.decay)
    if one.figures is not None:
        yield "mean age", f"{one.figures.mean_age:,.6g} steps"
        yield "half-life", f"{one.figures.half_life:,.6g} steps"
        yield "effective samples", f"{one.figures.effective_samples:,.6g}"
        yield "initial weight", f"{one.figures.initial_weight:.3g}"
    yield from (("note", note) for note in one.notes)


def _archive(found: Snapshots) -> Iterator[str]:
    yield f"{found.where}: archive of run {found.run}"
    yield f"  {'tracks':<18}{', '.join(found.tracks) or 'none yet'}"
    yield f"  {'snapshots':<18}{found.files} files, {_bytes(found.nbytes)}"
    yield f"  {'steps':<18}{len(found.steps)}, from {found.steps[0]:,} to {found.steps[-1]:,}"


def _size(tensors: Tensors) -> str:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in tensors.dtypes.items())
    return (
        f"{tensors.count:,} ({dtypes or 'none'}), {tensors.elements:,} parameters, {_bytes(tensors.nbytes)}"
    )


def _bytes(count: int) -> str:
    """A size in the largest unit that fits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
