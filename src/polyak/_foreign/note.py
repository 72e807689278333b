"""What the weights are in a file that another program wrote: a note beside it, ``<file>.polyak.json``.

A trainer writes the average with its own library (``save_pretrained``, ``torch.save``), which has no place
for polyak's header. The note holds the same header, and size and CRC-32 of each file it describes: a file
that was replaced since has other bytes, and the note is then not believed. Shards have one note, beside
their index.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from polyak._files.checkpoint import Checkpoint
from polyak._files.crc import crc_of_both
from polyak._files.header import KEY, Header
from polyak._files.layout import parse_json
from polyak._files.open import INDEX
from polyak._files.source import Source, Where, exists, is_folder, open_source
from polyak._files.write import atomic
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError

SUFFIX = ".polyak.json"
_LIMIT = 1 << 24  # bytes of a note; a long history takes a few hundred
_PIECE, _THREADS = 1 << 24, 4  # bytes summed together, and by how many threads: one sums about 1 GB/s


def write_note(where: Where, header: Header) -> None:
    """Say beside a checkpoint of any format what its weights are.

    Args:
        where: a file, the index of shards, or the folder that holds either.
        header: role, track, step, decay, profile and run of its weights.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the note cannot be written.
    """
    with _opened(where) as weights:
        note = {KEY: json.loads(header.to_metadata()[KEY]), "files": _files(weights)}
        with atomic(f"{weights.where}{SUFFIX}") as temporary:
            temporary.write_text(json.dumps(note, separators=(",", ":")))


def _opened(where: Where) -> Checkpoint:
    """A file is not looked into: it may hold what polyak does not read."""
    if is_folder(where) or str(where).endswith(INDEX):
        return open_weights(where)
    return Checkpoint(str(where), "", {}, sources=(open_source(where),))


def has_note(weights: Checkpoint) -> bool:
    """Whether there is a note beside a checkpoint."""
    return exists(f"{weights.where}{SUFFIX}")


def read_note(weights: Checkpoint) -> Header:
    """What the note beside a checkpoint says; every byte of the checkpoint is read and compared first.

    Raises:
        CheckpointError: the note is malformed, or not of these files.
    """
    path = f"{weights.where}{SUFFIX}"
    with open_source(path) as source:
        if source.size > _LIMIT:
            raise CheckpointError(f"{path} has {source.size:,} bytes: a note has at most {_LIMIT:,}.")
        text = source.read(0, source.size)
    try:
        fields = parse_json(text, fraction=float)
        header_fields, files = fields[KEY], fields["files"]
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is no note of polyak's: {error!r}.") from error
    header = Header.from_metadata({KEY: json.dumps(header_fields)}, path)
    if header.role == "resumable":
        raise CheckpointError(f"{path} says its role is 'resumable', which only polyak's own files have.")
    if _sizes(weights) != _sizes_in(files) or _files(weights) != files:
        raise CheckpointError(
            f"{path} is of other bytes than are in {weights.where} now: the weights were replaced since, and "
            "the note says nothing of them."
        )
    return header


def _files(weights: Checkpoint) -> dict[str, Any]:
    return {name: {"bytes": source.size, "crc32": _crc(source)} for name, source in _named(weights).items()}


def _sizes(weights: Checkpoint) -> dict[str, int]:
    return {name: source.size for name, source in _named(weights).items()}


def _sizes_in(files: Any) -> Any:
    """The sizes in a note, compared first because that reads nothing; None if it is malformed."""
    try:
        return {name: file["bytes"] for name, file in files.items()}
    except (AttributeError, TypeError, KeyError):
        return None


def _named(weights: Checkpoint) -> dict[str, Source]:
    return {source.name.replace("\\", "/").rpartition("/")[2]: source for source in weights.sources}


def _crc(source: Source) -> str:
    def summed(start: int) -> tuple[int, int]:
        piece = source.read(start, min(_PIECE, source.size - start))
        return zlib.crc32(piece), len(piece)

    crc = 0
    with ThreadPoolExecutor(_THREADS, "polyak-note") as threads:
        for one, length in threads.map(summed, range(0, source.size, _PIECE)):
            crc = crc_of_both(crc, one, length)
    return f"{crc:08x}"
