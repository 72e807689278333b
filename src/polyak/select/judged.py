"""The record of ``polyak gate --record``: the metrics of files, which ``polyak report`` shows.

Each line is a JSON object. A file is named relative to the record's folder, and known again by its
fingerprint, so that the metric of a file that was written again since is not taken for that of the new one.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from polyak.errors import CheckpointError, ConfigError
from polyak.schedules.metric import Mode, check_mode

RECORD = "gate.jsonl"
_FORMAT = 1
_END = 1 << 16  # bytes of a fingerprint at either end: headers, and the checksums at the end of a zip file


class Judged(NamedTuple):
    """A file that a command evaluated.

    file: relative to the record's folder, with slashes.
    metric: the mean of its evaluations.
    fingerprint: of the file at that time.
    """

    file: str
    metric: float
    fingerprint: str


class Judgement(NamedTuple):
    """The files that one call of ``polyak gate`` compared."""

    command: str
    mode: Mode
    files: tuple[Judged, ...]


def begin_record(folder: Path) -> None:
    """Make the folder and its record, before evaluations that may take hours.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).open("ab").close()
    except OSError as error:
        raise ConfigError(f"{folder} cannot hold the record: {error}. Give a folder that can.") from error


def record(folder: Path, command: str, mode: Mode, metrics: Mapping[Path, float]) -> None:
    """Append a line.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        files = [[_relative(path, folder), metric, fingerprint(path)] for path, metric in metrics.items()]
        line = json.dumps({"format": _FORMAT, "command": command, "mode": mode, "files": files})
        with (folder / RECORD).open("ab") as file:
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise CheckpointError(f"{folder / RECORD} cannot be written: {error}") from error


def judgements_in(path: Path) -> Iterator[Judgement]:
    """The lines of a record, oldest first.

    Raises:
        ValueError: a line is no judgement.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            fields: dict[str, Any] = json.loads(line)
            check_mode(fields["mode"])
            files = tuple([Judged(str(n), _finite(m), str(f)) for n, m, f in fields["files"]])
            yield Judgement(str(fields["command"]), fields["mode"], files)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} is not of polyak gate: {error!r}") from error


def fingerprint(path: Path) -> str:
    """Size and CRC-32 of both ends of a file; of a folder, of all files in it.

    The ends hold the headers and checksums of the usual formats, so that other weights have another
    fingerprint, and a copy of the file the same. A whole checkpoint would take minutes to read.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.bin")
        >>> path.write_bytes(b"123456789")
        9
        >>> fingerprint(path)
        '9-cbf43926'
    """
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    size, crc = 0, 0
    for one in files:
        with one.open("rb") as file:
            size += (length := file.seek(0, os.SEEK_END))
            for start in sorted({0, max(0, length - _END)}):
                file.seek(start)
                crc = zlib.crc32(file.read(_END), crc)
    return f"{size}-{crc:08x}"


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.parent.resolve() / path.name, folder.resolve()
    if path.drive != folder.drive:  # on Windows no relative path leads there
        return path.as_posix()
    return Path(os.path.relpath(path, folder)).as_posix()


def _finite(metric: float) -> float:
    if not math.isfinite(metric):
        raise ValueError(f"metric {metric} is not finite")
    return float(metric)
