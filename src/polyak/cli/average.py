"""`polyak average`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from polyak.cli.printing import printable, say
from polyak.cli.progress import progress
from polyak.errors import ConfigError
from polyak.merge import average_checkpoints
from polyak.merge.weighting import Contribution
from polyak.schedules import Constant, HalfLife, Recency
from polyak.schedules.pointwise import Shape


@dataclass(frozen=True)
class Options:
    """What each checkpoint shall weigh; at most one of these is given."""

    weights: str | None = None
    half_life: float | None = None
    decay: float | None = None
    recency: float | None = None
    shape: str | None = None

    def weighting(self) -> Any:
        """The ``weights`` of ``polyak.average_checkpoints``.

        Raises:
            ConfigError: several were given, or the numbers are none.
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
            if self.shape not in get_args(Shape):
                raise ConfigError(f"--shape {self.shape}: must be one of {', '.join(get_args(Shape))}.")
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
        str | None, typer.Option(help="Like 2,3,5, one for each.", show_default="uniform")
    ] = None,
    half_life: Annotated[
        float | None, typer.Option(help="In training steps, over those the checkpoints were written at.")
    ] = None,
    decay: Annotated[float | None, typer.Option(help="The same, said as β per training step.")] = None,
    recency: Annotated[
        float | None,
        typer.Option(help="Weights that halve with so many steps of age, of any files."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="As if the learning rate had fallen: linear, cosine or 1-sqrt.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16, bfloat16 or float64.", show_default="the first one's"),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Of files with several sets of weights: raw, average, or a name.")
    ] = None,
    accumulate: Annotated[str, typer.Option(help="What to add in: float32 or float64.")] = "float32",
    max_shard_size: Annotated[str | None, typer.Option(help="Above it, write shards: 5GB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Average checkpoints of any kind into one file."""
    weighting = Options(weights, half_life, decay, recency, shape).weighting()
    words: dict[str, Any] = {"dtype": dtype, "accumulate": accumulate}  # average checks them
    with progress("averaging") as moved:
        made = average_checkpoints(
            checkpoints, out, weighting, max_shard_size=max_shard_size, part=part, progress=moved, **words
        )
    if as_json:
        figures = {"averaged": made.averaged, "copied": made.copied, "weights": made.weights}
        files = [one._asdict() for one in made.files]
        told = {"step": made.header.step, "run": made.header.run, "newest": made.newest, "files": files}
        print(json.dumps({"out": str(out), **told, **figures}))
        return
    say(*_table(made.files))
    say(f"wrote {out}: {len(made.averaged)} averaged; {len(made.copied)} copied from {made.newest}")


def _table(files: Sequence[Contribution]) -> Iterator[str]:
    """Each file with its step, where that was found, and its weight; whose weights, where a file says."""
    rows = [("file", "step", "weight", "")]
    for one in files:
        step = "not known" if one.step is None else f"{one.step:,} ({one.source})"
        rows.append(
            (printable(one.file), step, f"{one.weight:.4g}", "" if one.role == "unknown" else one.role)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for file, step, weight, role in rows:
        yield f"{file:<{widths[0]}}  {step:<{widths[1]}}  {weight:>{widths[2]}}  {role}".rstrip()
