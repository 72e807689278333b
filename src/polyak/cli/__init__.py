"""The command line. One file per command: parse, one frozen options object, one call, print."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from polyak.cli.average import average
from polyak.cli.bench import bench
from polyak.cli.console import complain
from polyak.cli.convert import convert
from polyak.cli.demo import demo
from polyak.cli.doctor import doctor
from polyak.cli.gate import gate
from polyak.cli.inspect import inspect
from polyak.cli.sweep import sweep
from polyak.cli.synthesize import synthesize
from polyak.errors import PolyakError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(average)
app.command()(bench)
app.command()(convert)
app.command()(demo)
app.command()(doctor)
app.command()(gate)
app.command()(inspect)
app.command()(sweep)
app.command()(synthesize)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"polyak {version('polyak')}")
        raise typer.Exit


@app.callback()
def polyak(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Average the weights of a neural network while it trains."""


def main() -> None:
    """Run the command line; an error of polyak is one line on stderr and exit status 1."""
    try:
        app()
    except PolyakError as error:
        complain(error)
        raise SystemExit(1) from error
