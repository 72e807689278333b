"""All checks over one script."""

from __future__ import annotations

import os
from dataclasses import dataclass

from polyak.doctor.checks import ALL, updates
from polyak.doctor.script import Average, Finding, Script, read
from polyak.errors import ConfigError


@dataclass(frozen=True)
class Recognised:
    """An average that a script makes.

    Args:
        name: its variable; "" where it has none.
        what: its class or function in full, or "by hand".
        line: where it is made.
        updates: the lines where it is updated; none where something else does that.
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
    """

    recognised: tuple[Recognised, ...]
    findings: tuple[Finding, ...]


def examine(path: str | os.PathLike[str]) -> Examination:
    """The averages a training script makes, and the mistakes it makes with them. It is read, not run.

    Args:
        path: a Python file.

    Returns:
        What was recognised and found. Averages that other files make and update are not seen.

    Raises:
        ConfigError: the file cannot be read or is no Python.
    """
    try:
        with open(path, encoding="utf-8") as file:
            script = read(file.read())
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError(f"{os.fspath(path)} cannot be read as Python: {error}") from error
    found = {finding for average in script.averages for check in ALL for finding in check(script, average)}
    return Examination(
        tuple(_recognised(script, average) for average in script.averages),
        tuple(sorted(found, key=lambda finding: (finding.line, finding.check))),
    )


def _recognised(script: Script, average: Average) -> Recognised:
    lines = sorted({update.line for update in updates(script, average)}) if average.name else []
    return Recognised(average.name, average.path, average.call.line, tuple(lines))
