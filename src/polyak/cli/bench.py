"""`polyak bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from polyak.bench.cost import LIMIT
from polyak.bench.options import Engine, Options, Params, Store
from polyak.bench.plan import Cluster, Row, parse
from polyak.bench.plan import plan as plan_of
from polyak.cli.console import progress, say, say_table
from polyak.cli.extras import needs
from polyak.cli.options import Json
from polyak.errors import ConfigError

if TYPE_CHECKING:
    from polyak.bench.measure import Figures
    from polyak.bench.run import Report

_PADDLE = (
    "This command measures PyTorch. For PaddlePaddle: python -m benchmarks.paddle, in polyak's repository; "
    'polyak.paddle.EMA\'s metrics()["engine"] says which engine runs.'
)


def bench(
    quantities: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="With --plan.", show_default=False)
    ] = None,
    model: Annotated[
        str, typer.Option(help="resnet50, vit_b, many_small, lenet or YOUR.module:factory.")
    ] = "resnet50",
    engine: Annotated[
        Engine | None,
        typer.Option(
            metavar="ENGINE",
            help="Only auto, native, triton, blocked or foreach.",
            show_default="all that run here",
        ),
    ] = None,
    dtype: Annotated[
        Store,
        typer.Option(
            metavar="DTYPE",
            help="Of the averages: float32, float64, bfloat16, float16, split or compensated.",
        ),
    ] = "float32",
    params: Annotated[
        Params | None,
        typer.Option(
            metavar="DTYPE",
            help="Cast the model first: float32, float64, bfloat16 or float16.",
            show_default="as built",
        ),
    ] = None,
    tracks: Annotated[int, typer.Option(min=1, help="Number of averages.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.", show_default="torch's own")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds; figures are medians.")] = 15,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    plan: Annotated[bool, typer.Option("--plan", help="Compute instead: params=1e12 gpus=4096 ...")] = False,
    as_json: Json = False,
) -> None:
    """Measure what an average costs here, or compute it for a cluster."""
    options = Options(model, engine, dtype, params, tracks, threads, rounds, device)
    if plan:
        if options != Options():
            raise ConfigError(
                "--plan measures nothing: instead of options write NAME=VALUE, such as dtype=split."
            )
        _show_plan(parse(quantities or []), as_json)
        return
    if quantities:
        raise ConfigError(f"{quantities[0]}: needs --plan, as in: polyak bench --plan params=1e12 gpus=4096")
    with needs("torch", "torch", instead=_PADDLE):
        from polyak.bench.run import run

        with progress("rounds", "count") as tick:
            report = run(options, tick)
    if as_json:
        print(json.dumps(asdict(report) | {"bandwidth": report.measured.bandwidth}))
    else:
        _show(report)


def _show_plan(cluster: Cluster, as_json: bool) -> None:
    rows = plan_of(cluster)
    if as_json:
        print(json.dumps(asdict(cluster) | {"modes": [asdict(row) for row in rows]}))
        return
    say(
        f"{cluster.params:,.0f} parameters of {cluster.live} on {cluster.gpus:,} GPU(s), "
        f"groups of {cluster.group};",
        f"{cluster.tracks} average(s) in {cluster.dtype}, every={cluster.every}. Each GPU, by formula:",
    )
    say_table(("", "bytes", "model", "averages", "update", "swap", "file"), map(_plan_row, rows))
    speeds = [size(speed) for speed in (cluster.bandwidth, cluster.link, cluster.host)]
    say(
        "bytes      of averages, for each parameter of the whole model",
        f"update     each step, at {speeds[0]}/s of memory; sends nothing to other GPUs",
        f"host       beside the training: {speeds[1]}/s to the host, {speeds[2]}/s of its memory",
        "swap       received to enter and leave average_parameters",
        "file       received by rank 0 to save one average as one file",
    )


def _plan_row(row: Row) -> tuple[str, ...]:
    averages, update = size(row.host or row.held), duration(row.update)
    sent = size(row.block), size(row.file)
    return row.mode, f"{row.each:.2g}", size(row.model), averages, update, *sent


def size(count: float) -> str:
    """Bytes, with three digits.

    Examples:
        >>> size(0), size(976562500), size(4e12)
        ('0', '977 MB', '4 TB')
    """
    return _scaled(count, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1})


def duration(seconds: float) -> str:
    """Seconds, with three digits.

    Examples:
        >>> duration(280), duration(3.3e-5)
        ('280 s', '0.033 ms')
    """
    return _scaled(seconds, {"s": 1, "ms": 1e-3})


def _scaled(value: float, units: dict[str, float]) -> str:
    unit = next((one for one, size in units.items() if value >= 0.9995 * size), [*units][-1])
    return f"{value / units[unit]:,.3g} {unit}" if value else "0"


def _show(report: Report) -> None:
    measured = report.measured
    say(
        f"{report.model}: {measured.parameters:,} parameters in {report.tensors} tensors of {report.params}, "
        f"{report.tracks} average(s) in {report.dtype}; {report.device}, {report.threads} thread(s)"
    )
    limit = ("memory limit", _milliseconds(measured.limit), "1.00", "", "", _part(measured.limit_share))
    rows = [_row(name, figures) for name, figures in measured.figures.items()]
    say_table(("", "update, ms", "of the limit", "swap, ms", "memory, MB", "of a step"), [limit, *rows])
    say(*_lines(report))


def _row(name: str, one: Figures) -> tuple[str, ...]:
    swap = None if one.enter is None or one.leave is None else one.enter + one.leave
    memory = "" if one.memory is None else f"{one.memory / 1e6:.1f}"
    return name, _milliseconds(one.update), f"{one.ratio:.2f}", _milliseconds(swap), memory, _part(one.share)


def _lines(report: Report) -> Iterator[str]:
    measured, advice = report.measured, report.advice
    yield f"limit      one lerp_ over flat float32 buffers: {measured.bandwidth / 1e9:.1f} GB/s"
    apart = f"; {report.moved_separately} in separate EMAs" if report.moved_separately != report.moved else ""
    yield f"bytes      {report.moved} per parameter, {report.moved / LIMIT:.2f} of the limit's {LIMIT}{apart}"
    yield f"engine     {next(iter(measured.figures.values())).engine}"
    yield from (f"wrong      {name}: {one.wrong}" for name, one in measured.figures.items() if one.wrong)
    yield from (f"left out   {name}: {why}" for name, why in report.left_out.items())
    yield (
        f"advice     polyak.EMA(model, ..., dtype={_argument(advice.dtype)}, every={advice.every}, "
        f'device="{advice.device}")'
    )
    yield from (f"           {reason}" for reason in advice.reasons)


def _argument(dtype: str) -> str:
    return '"split"' if dtype == "split" else f"torch.{dtype}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def _part(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
