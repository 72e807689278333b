"""All checks over one script."""

from __future__ import annotations

import os

from polyak.doctor.checks import ALL
from polyak.doctor.script import Finding, read
from polyak.errors import ConfigError


def examine(path: str | os.PathLike[str]) -> list[Finding]:
    """The mistakes a training script makes with its averages, by line. It is read, not run.

    Args:
        path: a Python file.

    Returns:
        Findings; none if there is nothing to say, also if no average is made in it.

    Raises:
        ConfigError: the file cannot be read or is no Python.
    """
    try:
        with open(path, encoding="utf-8") as file:
            script = read(file.read())
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError(f"{os.fspath(path)} cannot be read as Python: {error}") from error
    found = {finding for average in script.averages for check in ALL for finding in check(script, average)}
    return sorted(found, key=lambda finding: (finding.line, finding.check))
