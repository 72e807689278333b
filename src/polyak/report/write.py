"""Writing a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from polyak._files.write import atomic
from polyak.errors import ConfigError
from polyak.report.collect import collect
from polyak.report.facts import Run
from polyak.report.page import html
from polyak.report.words import Language


def report(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    language: Language = "en",
    figures: str | os.PathLike[str] | None = None,
) -> Path:
    """Write what runs were averages of, how they did and what they cost, as one HTML file.

    Args:
        paths: folders of runs, archives, and files: logs (JSON lines, CSV, TensorBoard), averages, sweeps,
            logs of ``BestCheckpoint``. A folder is one run; single files of one folder are one too.
        out: the file; it fetches nothing and holds all it shows.
        language: "en" or "zh".
        figures: a folder for the plots as SVG and PNG; needs the ``plot`` extra.

    Returns:
        The file.

    Raises:
        ConfigError: a path does not exist, holds nothing that can be read, or the language is unknown.
        CheckpointError: a file cannot be written.
        ModuleNotFoundError: ``figures`` was given and matplotlib is not installed.

    Examples:
        >>> import tempfile, torch, polyak
        >>> folder = tempfile.mkdtemp()
        >>> polyak.EMA(torch.nn.Linear(2, 1), decay=0.999).save(f"{folder}/average.safetensors")
        >>> report([folder], f"{folder}/report.html").name
        'report.html'
    """
    if not paths:
        raise ConfigError("paths=[]: give the folder of a run, an archive or files.")
    write_page(runs := collect(paths), out, language)
    if figures is not None:
        from polyak.report.figures import write_figures

        write_figures(runs, Path(figures), language)
    return Path(out)


def write_page(runs: Sequence[Run], out: str | os.PathLike[str], language: Language = "en") -> None:
    """Write the page of records that were collected.

    Raises:
        ConfigError: the language is unknown.
        CheckpointError: the file cannot be written.
    """
    if language not in ("en", "zh"):
        raise ConfigError(f'language={language!r}: must be "en" or "zh".')
    text = html(runs, language)
    with atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
