"""`polyak inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from polyak.cli.console import say, width
from polyak.cli.describe import CheckpointSummary, Snapshots, Tensors, Weighting, describe, to_json
from polyak.cli.synthesize import say_reach
from polyak.errors import ConfigError
from polyak.report.profile import draw


def inspect(
    where: Annotated[str, typer.Argument(metavar="FILE|DIR|URL", help="Any checkpoint, or an archive.")],
    plot: Annotated[bool, typer.Option("--plot", help="Draw the weight of each training step.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Draw the weights on a logarithmic scale.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare all bytes with the file's checksums.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a checkpoint is and which of its weights are averages."""
    found = describe(where, verify)
    profiles = [] if isinstance(found, Snapshots) else [one for one in found.parts if one.figures is not None]
    if (plot or log) and not profiles:
        raise ConfigError(f"{where} holds no average with a profile that could be drawn: leave out --plot.")
    if as_json:
        print(json.dumps(to_json(found)))
        return
    if isinstance(found, Snapshots):
        _print_archive(found)
        return
    say(*_checkpoint(found))
    for one in profiles if plot or log else ():
        if one.profile is not None:
            drawing = draw(one.profile, width(), scale="log" if log else "linear")
            say("", one.name, *drawing.splitlines())


def _checkpoint(found: CheckpointSummary) -> Iterator[str]:
    kind = f"{found.role or found.format}, {found.library or 'of no library that is known'}"
    counts = [(found.step, f"step {found.step:,}" if found.step is not None else "")]
    counts += [(found.updates, f"updated {found.updates:,} times" if found.updates is not None else "")]
    yield ", ".join([f"{found.where}: {kind}", *(text for count, text in counts if count is not None)])
    for one in found.parts:
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


def _print_archive(found: Snapshots) -> None:
    say(f"{found.where}: archive of run {found.run}")
    say(f"  {'tracks':<18}{', '.join(found.tracks) or 'none yet'}")
    say(f"  {'snapshots':<18}{found.files} files, {_bytes(found.nbytes)}")
    say(f"  {'steps':<18}{len(found.steps)}, from {found.steps[0]:,} to {found.steps[-1]:,}")
    if found.reach:
        say_reach(found.reach)


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
