"""`polyak watch`."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import say
from polyak.cli.dashboard import draw, is_screen, lines
from polyak.report.live import Live
from polyak.report.live_server import LiveServer
from polyak.report.words import Language


def watch(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, archives, logs, averages, sweeps.")
    ],
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Draw here, as over SSH, and serve no page.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks at the files.")] = 2.0,
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Of the page, on 127.0.0.1.", show_default="any that is free"),
    ] = 0,
    lang: Annotated[Language, typer.Option(help="Of the page. en: English; zh: 简体中文.")] = "en",
) -> None:
    """Follow runs while they train: a page, or a view in the terminal.

    The page of `polyak report`, which changes as the files do. Only those who
    have its address can read it, and only on this machine. The training's files
    are read, never written. Ctrl-C stops it.
    """
    live = Live(paths, every)
    with _until_stopped():
        if terminal:
            _follow(live, every)
        else:
            with LiveServer(live, port, lang, every) as server:
                say(server.address, "Ctrl-C stops it.")
                server.serve_forever()


@contextmanager
def _until_stopped() -> Generator[None]:
    """Ctrl-C or SIGTERM ends the block, which has no other end; also where a shell had Ctrl-C ignored."""
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _follow(live: Live, every: float) -> None:
    if is_screen():
        draw(live)
        return
    known: Sequence[str] = ()
    while True:
        now = lines(live.look().runs)
        if now != known:
            say(*now)
            known = now
        time.sleep(every)
