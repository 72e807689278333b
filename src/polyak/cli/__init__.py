"""The command line. One file per command: parse, one frozen options object, one call, print."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from polyak.cli.average import average
from polyak.cli.bench import bench
from polyak.cli.console import complain
from polyak.cli.convert import convert
from polyak.cli.demo import demo
from polyak.cli.doctor import doctor
from polyak.cli.gate import gate
from polyak.cli.inspect import inspect
from polyak.cli.report import report
from polyak.cli.serve import serve
from polyak.cli.sweep import sweep
from polyak.cli.synthesize import synthesize
from polyak.cli.watch import watch
from polyak.errors import PolyakError

# What --help shows below the options of each command; a test runs every line.
EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    average: (
        "polyak average step-*.pt -o mean.safetensors",
        "polyak average a.pt b.pt --weights 2,1 -o mean.safetensors",
    ),
    bench: (
        "polyak bench --model lenet",
        "polyak bench --model mine:factory --engine auto",
        "polyak bench --plan params=1e12 gpus=4096 dtype=split",
    ),
    convert: (
        "polyak convert checkpoint.pt ema.safetensors --part ema",
        "polyak convert average.safetensors model.pt --to torch",
    ),
    demo: ("polyak demo --data digits --epochs 3",),
    doctor: ("polyak doctor train.py", "polyak doctor src notebooks/train.ipynb"),
    gate: (
        'polyak gate new.pt best.pt --eval "python eval.py {weights}" --promote',
        'polyak gate new.pt a.pt b.pt --eval "python eval.py {weights}" --repeats 5',
    ),
    inspect: ("polyak inspect average.safetensors --plot", "polyak inspect step-*.pt snapshots"),
    report: ("polyak report snapshots", "polyak report runs/a runs/b -o both.html --figures figures"),
    serve: ("polyak serve model.pt --half-life 500 --folder avg",),
    sweep: ('polyak sweep snapshots --eval "python eval.py {weights}" --mode min',),
    synthesize: (
        "polyak synthesize snapshots",
        "polyak synthesize snapshots --half-life 600 -o average.safetensors",
    ),
    watch: ("polyak watch runs/a", "polyak watch runs/a runs/b --terminal"),
}


class _Commands(TyperGroup):
    def get_params(self, ctx: Any) -> Any:
        """``--show-completion`` has no place in the help, and its sister one line: it fits a screen."""
        params: list[Any] = super().get_params(ctx)
        for one in params:
            one.hidden = one.name == "show_completion"
            if one.name == "install_completion":
                one.help = "Install completion for this shell."
        return params


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
for command, examples in EXAMPLES.items():
    app.command(epilog="\n\n".join(["Examples:", *examples]))(command)


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
