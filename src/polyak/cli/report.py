"""`polyak report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import complain, say
from polyak.cli.extras import needs
from polyak.cli.options import Json
from polyak.report.collect import collect
from polyak.report.words import Language
from polyak.report.write import write_page


def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, archives, logs, averages, sweeps.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    lang: Annotated[Language, typer.Option(help="en: English; zh: 简体中文.")] = "en",
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the plots as SVG and PNG; needs matplotlib.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page with all that is known of runs.

    A folder is one run; several are shown side by side. Files of one folder are
    one run. The page is a single file that fetches nothing.
    """
    runs = collect(paths)
    write_page(runs, out, lang)
    drawn: list[Path] = []
    if figures is not None:
        with needs("plot", "matplotlib", instead="leave --figures out"):
            from polyak.report.figures import write_figures

            drawn = write_figures(runs, figures, lang)
    for run in runs:
        for problem in run.problems:
            complain(f"{run.name}: {problem}")
    names = [run.name for run in runs]
    if as_json:
        print(json.dumps({"out": str(out), "runs": names, "figures": [str(path) for path in drawn]}))
    else:
        say(
            f"wrote {out}: {', '.join(names)}", *([f"wrote {len(drawn)} files to {figures}"] if drawn else [])
        )
