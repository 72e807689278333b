"""All checks over one script."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from polyak.doctor.checks import ALL, updates
from polyak.doctor.script import Average, Finding, Script, read
from polyak.doctor.sources import Source, read_source
from polyak.errors import ConfigError


@dataclass(frozen=True)
class Recognised:
    """An average that a script makes.

    Args:
        name: its variable; "" where it has none.
        what: its class or function in full, or "by hand".
        line: where it is made.
        updates: the lines where it is updated or attached to an optimizer; none where something else does it.
    """

    name: str
    what: str
    line: int
    updates: tuple[int, ...]


@dataclass(frozen=True)
class Examination:
    """What there is to say of a script.

    Args:
        recognised: the averages in it, by line.
        findings: the mistakes, by line; none also if no average was recognised.
        source: what was read; its ``place`` says in which cell of a notebook a line is.
    """

    recognised: tuple[Recognised, ...]
    findings: tuple[Finding, ...]
    source: Source = field(repr=False)


def examine(path: str | os.PathLike[str]) -> Examination:
    """The averages a training script makes, and the mistakes it makes with them. It is read, not run.

    Args:
        path: a Python file or a notebook (``.ipynb``), whose code cells are read in a row.

    Returns:
        What was recognised and found. Averages that other files make and update are not seen.

    Raises:
        ConfigError: the file cannot be read or is no Python.
    """
    try:
        source = read_source(path)
        script = read(source.text)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{os.fspath(path)} cannot be read as Python: {error}") from error
    found = {finding for average in script.averages for check in ALL for finding in check(script, average)}
    return Examination(
        tuple(_recognised(script, average) for average in script.averages),
        tuple(_placed(finding, source) for finding in sorted(found, key=lambda one: (one.line, one.check))),
        source,
    )


def _placed(finding: Finding, source: Source) -> Finding:
    """A finding whose words name cells where it names lines; only the checks' own words say "line 3"."""
    if not source.cells:
        return finding

    def placed(words: str) -> str:
        return re.sub(r"\bline (\d+)", lambda found: source.place(int(found[1])), words)

    return replace(finding, message=placed(finding.message), fix=placed(finding.fix))


def _recognised(script: Script, average: Average) -> Recognised:
    taken = (*updates(script, average), *script.of(average, "attach")) if average.name else ()
    lines = sorted({call.line for call in taken})
    return Recognised(average.name, average.path, average.call.line, tuple(lines))
