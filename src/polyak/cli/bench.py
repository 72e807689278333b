"""`polyak bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.table import Table

from polyak.bench.cost import LIMIT
from polyak.bench.options import Engine, Options, Params, Store
from polyak.cli.extras import needs

if TYPE_CHECKING:
    from polyak.bench.run import Report

_PADDLE = (
    "This command measures PyTorch. For PaddlePaddle: python -m benchmarks.paddle, in polyak's repository; "
    'polyak.paddle.EMA\'s metrics()["engine"] says which engine runs.'
)


def bench(
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what an average of a model costs on this machine."""
    options = Options(model, engine, dtype, params, tracks, threads, rounds, device)
    with needs("torch", "torch", instead=_PADDLE):
        from polyak.bench.run import run

        with _progress() as tick:
            report = run(options, tick)
    if as_json:
        print(json.dumps(asdict(report) | {"bandwidth": report.measured.bandwidth}))
    else:
        _show(report, Console(highlight=False))


def _show(report: Report, console: Console) -> None:
    measured, table = report.measured, Table()
    table.add_column()
    for heading in ("update, ms", "of the limit", "swap, ms", "memory, MB", "of a step"):
        table.add_column(heading, justify="right")
    limit = _number(measured.limit, 1e3)
    table.add_row("memory limit", limit, "1.00", "", "", _part(measured.limit_share))
    for name, one in measured.figures.items():
        swap = None if one.enter is None or one.leave is None else one.enter + one.leave
        memory = "" if one.memory is None else f"{one.memory / 1e6:.1f}"
        update = _number(one.update, 1e3)
        table.add_row(name, update, f"{one.ratio:.2f}", _number(swap, 1e3), memory, _part(one.share))
    console.print(
        f"{report.model}: {measured.parameters:,} parameters in {report.tensors} tensors of {report.params}, "
        f"{report.tracks} average(s) in {report.dtype}; {report.device}, {report.threads} thread(s)",
        soft_wrap=True,
        markup=False,
    )
    console.print(table)
    for line in _words(report):
        console.print(line, soft_wrap=True, markup=False)


def _words(report: Report) -> Generator[str]:
    measured, advice = report.measured, report.advice
    yield f"limit      one lerp_ over flat float32 buffers: {measured.bandwidth / 1e9:.1f} GB/s"
    apart = f"; {report.moved_apart} if kept apart" if report.moved_apart != report.moved else ""
    yield f"bytes      {report.moved} per parameter, {report.moved / LIMIT:.2f} of the limit's {LIMIT}{apart}"
    yield f"engine     {next(iter(measured.figures.values())).engine}"
    yield from (f"wrong      {name}: {one.wrong}" for name, one in measured.figures.items() if one.wrong)
    yield from (f"left out   {name}: {why}" for name, why in report.left_out.items())
    yield (
        f'advice     polyak.EMA(model, …, engine="{advice.engine}", dtype={_argument(advice.dtype)}, '
        f'every={advice.every}, device="{advice.device}")'
    )
    yield from (f"           {reason}" for reason in advice.reasons)


def _argument(dtype: str) -> str:
    return '"split"' if dtype == "split" else f"torch.{dtype}"


def _number(value: float | None, scale: float) -> str:
    return "" if value is None else f"{value * scale:.3g}"


def _part(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


@contextmanager
def _progress() -> Generator[Callable[[int, int], None]]:
    """A bar on stderr where a person looks, moved by calling what is yielded."""
    console = Console(stderr=True)
    columns = TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), RemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield move
