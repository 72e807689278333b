"""The folder of a server: each version as one file per shard and a record, which is written last.

A version exists when its record does. So a server killed at any moment goes on from a version that all shards
have, with the ids of the pushes it contains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyak._dtypes import Array
from polyak._files.checkpoint import Checkpoint
from polyak._files.open import read_safetensors
from polyak._files.source import open_source
from polyak._files.write import atomic, sweep_all, write_arrays
from polyak.errors import CheckpointError, ServerError
from polyak.server.contributions import Contributions
from polyak.server.layout import Layout, Piece
from polyak.server.weighting import Total

_FORMAT = 1
_FILE = re.compile(r"(\d{12})\.(json|\d+-of-\d+\.safetensors)")


@dataclass
class Record:
    """What a version is, besides its values.

    version: pushes counted.
    shards: how many files it has.
    decay: the schedule's ``to_config()``.
    step: the training step of the server's first value.
    ids: the highest id counted of each worker.  sessions: its newest client.
    counts: of what was refused, and so on, for ``metrics``.
    """

    version: int
    shards: int
    layout: Layout
    decay: dict[str, Any]
    step: int
    total: Total = field(default_factory=Total)
    ids: dict[str, int] = field(default_factory=dict[str, int])
    sessions: dict[str, int] = field(default_factory=dict[str, int])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    contributions: Contributions = field(default_factory=Contributions)

    def to_json(self) -> str:
        """As text; the inverse is ``from_json``."""
        plain = {key: value for key, value in vars(self).items() if key not in ("layout", "contributions")}
        nested = {"layout": self.layout.to_config(), "contributions": self.contributions.to_config()}
        return json.dumps({"format": _FORMAT, **plain, **nested}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """The record in a file.

        Raises:
            ValueError, LookupError or TypeError: it is none.
        """
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("format") != _FORMAT:
            raise ValueError("its format is not known here: update polyak")
        fields["layout"] = Layout.from_config(fields["layout"])
        fields["contributions"] = Contributions.from_config(fields["contributions"])
        fields["total"] = Total(*fields["total"])
        return cls(**fields)


class Versions:
    """The versions in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def all(self) -> list[int]:
        """The versions that are complete, oldest first."""
        return sorted(int(path.name[:12]) for path in self._files() if path.suffix == ".json")

    def newest(self) -> Record | None:
        """The newest version; None in an empty folder."""
        versions = self.all()
        return self.record(versions[-1]) if versions else None

    def record(self, version: int) -> Record:
        """The record of a version.

        Raises:
            ServerError: there is no such version any more.
            CheckpointError: its file is damaged.
        """
        path = self._path(version, "json")
        try:
            return Record.from_json(path.read_bytes())
        except FileNotFoundError as error:
            raise self._gone(version) from error
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}.") from error

    def write_record(self, record: Record) -> None:
        """Complete a version."""
        with atomic(self._path(record.version, "json")) as temporary:
            temporary.write_text(record.to_json(), encoding="utf-8")

    def write_pieces(self, version: int, index: int, shards: int, arrays: Mapping[str, Array]) -> None:
        """Write one shard's file."""
        write_arrays(self._shard(version, index, shards), arrays, {})

    def read_pieces(self, version: int, index: int, shards: int, pieces: Sequence[Piece]) -> list[Array]:
        """The values of a shard's pieces, compared with their checksums.

        Raises:
            ServerError: there is no such version any more.
            CheckpointError: the file is damaged.
        """
        path = self._shard(version, index, shards)
        if not path.exists():
            raise self._gone(version)
        with open_source(path) as source:
            found: Checkpoint = read_safetensors(source)
            return [found.tensors[piece.key].read() for piece in pieces]

    def arrays(self, record: Record) -> dict[str, Array]:
        """All tensors of a version."""
        kept: dict[str, list[Array]] = {}
        for index, pieces in enumerate(record.layout.divided(record.shards)):
            for piece, array in zip(
                pieces, self.read_pieces(record.version, index, record.shards, pieces), strict=True
            ):
                kept.setdefault(piece.field.name, []).append(array)
        return record.layout.assembled(kept)

    def write(self, record: Record, tensors: Mapping[str, Array]) -> None:
        """Write a whole version."""
        flat = record.layout.kept(tensors)
        for index, pieces in enumerate(record.layout.divided(record.shards)):
            arrays = {piece.key: flat[piece.field.name][piece.begin : piece.end] for piece in pieces}
            self.write_pieces(record.version, index, record.shards, arrays)
        self.write_record(record)

    def prune(self, keep: int) -> None:
        """Remove all but the newest versions, records first, and what killed processes left."""
        kept = set(self.all()[-keep:])
        gone = [path for path in self._files() if int(path.name[:12]) not in kept]
        for path in sorted(gone, key=lambda path: path.suffix != ".json"):
            with suppress(OSError):  # on the next occasion
                path.unlink()
        sweep_all(self.folder)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if _FILE.fullmatch(path.name)]

    def _path(self, version: int, end: str) -> Path:
        return self.folder / f"{version:012}.{end}"

    def _shard(self, version: int, index: int, shards: int) -> Path:
        return self._path(version, f"{index}-of-{shards}.safetensors")

    def _gone(self, version: int) -> ServerError:
        there = self.all()
        if there and version > there[-1]:
            return ServerError(f"version {version} is not there yet: the newest on disk is {there[-1]}.")
        return ServerError(f"version {version} is gone; there are {there}. Keep more of them with keep=.")
