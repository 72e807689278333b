"""The error of a command whose extra is not installed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from polyak.errors import MissingExtraError


@contextmanager
def needs(extra: str, *packages: str, instead: str = "") -> Generator[None]:
    """Turn a missing package, imported inside, into its pip line.

    Args:
        extra: the name of the extra that brings them.
        packages: top-level import names; the error of any other missing module is not changed.
        instead: an alternative without them.

    Raises:
        MissingExtraError: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        raise MissingExtraError(error.name, extra, instead) from error
