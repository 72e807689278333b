"""`polyak average`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import printable, progress, say
from polyak.cli.options import Json
from polyak.errors import ConfigError
from polyak.merge import average_checkpoints
from polyak.merge.average import Accumulate, RealType
from polyak.merge.weighting import Contribution, Weighting
from polyak.schedules import Constant, HalfLife, Recency
from polyak.schedules.pointwise import Shape


@dataclass(frozen=True)
class Options:
    """The weights of the checkpoints; at most one of these is given."""

    weights: str | None = None
    half_life: float | None = None
    decay: float | None = None
    recency: float | None = None
    shape: Shape | None = None

    def weighting(self) -> Weighting:
        """The argument ``weights`` of ``polyak.average_checkpoints``.

        Raises:
            ConfigError: several were given, or ``weights`` is not a list of numbers.
        """
        given = [f"--{name.replace('_', '-')}" for name, value in asdict(self).items() if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)}: give one of these.")
        if self.half_life is not None:
            return HalfLife(steps=self.half_life)
        if self.decay is not None:
            return Constant(self.decay)
        if self.recency is not None:
            return Recency(steps=self.recency)
        if self.shape is not None:
            return self.shape
        if self.weights is None or self.weights == "uniform":
            return "uniform"
        try:
            return [float(number) for number in self.weights.split(",")]
        except ValueError as error:
            raise ConfigError(
                f"--weights {self.weights}: must be uniform, or numbers like 0.2,0.3,0.5."
            ) from error


def average(
    checkpoints: Annotated[list[str], typer.Argument(help="Files, folders of shards, or URLs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    weights: Annotated[
        str | None, typer.Option(help="Numbers like 2,3,5, one for each.", show_default="uniform")
    ] = None,
    half_life: Annotated[float | None, typer.Option(help="Half-life in training steps.")] = None,
    decay: Annotated[float | None, typer.Option(help="The same as β per training step.")] = None,
    recency: Annotated[
        float | None,
        typer.Option(help="Steps of age in which a weight halves."),
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option(help="Imitate a learning rate that fell to 0."),
    ] = None,
    dtype: Annotated[
        RealType | None,
        typer.Option(
            metavar="DTYPE",
            help="float64, float32, float16 or bfloat16.",
            show_default="the first file's",
        ),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="In files with several sets of weights: raw, average or a name.")
    ] = None,
    accumulate: Annotated[Accumulate, typer.Option(help="Dtype of the sums.")] = "float32",
    max_shard_size: Annotated[str | None, typer.Option(help="Write shards above this size: 5GB.")] = None,
    as_json: Json = False,
) -> None:
    """Average checkpoints of any format into one file."""
    weighting = Options(weights, half_life, decay, recency, shape).weighting()
    with progress("averaging") as tick:
        made = average_checkpoints(checkpoints, out, weighting, dtype, accumulate, max_shard_size, part, tick)
    if as_json:
        figures = {"averaged": made.averaged, "copied": made.copied, "weights": made.weights}
        files = [one._asdict() for one in made.files]
        about = {"step": made.header.step, "run": made.header.run, "newest": made.newest, "files": files}
        print(json.dumps({"out": str(out), **about, **figures}))
        return
    say(*_table(made.files))
    say(f"wrote {out}: {len(made.averaged)} averaged; {len(made.copied)} copied from {made.newest}")


def _table(files: Sequence[Contribution]) -> Iterator[str]:
    """Each file with its step and the source of that, its weight in the average, and its role if known."""
    rows = [("file", "step", "weight", "")]
    for one in files:
        step = "not known" if one.step is None else f"{one.step:,} ({one.source})"
        rows.append(
            (printable(one.file), step, f"{one.weight:.4g}", "" if one.role == "unknown" else one.role)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for file, step, weight, role in rows:
        yield f"{file:<{widths[0]}}  {step:<{widths[1]}}  {weight:>{widths[2]}}  {role}".rstrip()
