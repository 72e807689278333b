"""polyak's own states of averages: ``ema.state_dict()`` in a pickle, resumable files, and notes.

A state contains averaged and copied tensors under the model's names, without wrapper prefixes. The rest of
the model, frozen or excluded, is with the raw weights only.

A note, ``<file>.polyak.json``, lies beside a file of another library (``save_pretrained``, ``torch.save``)
that has no place for polyak's header. It contains this header, and size and CRC-32 of each file it describes:
if a file was replaced since, the note no longer applies. Shards have one note, beside their index.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY, Header, Rule
from polyak._files.layout import SUMS, crc_of_both, parse_json
from polyak._files.open import INDEX
from polyak._files.source import Source, Where, exists, is_folder, open_source
from polyak._files.write import atomic
from polyak._foreign.dcp import Unread
from polyak._foreign.nodes import Node, count_in, mapping, tensor_values
from polyak._foreign.open_any import open_weights
from polyak._foreign.parts import Part, Recognised, Tensors
from polyak._type_guards import is_dict
from polyak.errors import CheckpointError
from polyak.schedules import Profile
from polyak.schedules.decay import decay_in_file

STATE = (KEY, "tracks")  # keys of ``ema.state_dict()``: a text, and tensors by track
OLD_STATE = ("format", "run", "step", "tracks", "copies")  # before it had a text
SUFFIX = ".polyak.json"
_LIMIT = 1 << 24  # bytes of a note; a long history takes a few hundred
_LONGEST_TEXT = 1 << 28  # bytes of a state's text, which lists all tensors of all tracks
_PIECE, _THREADS = 1 << 24, 4  # bytes summed together, and by how many threads: one sums about 1 GB/s


def is_own(weights: Checkpoint) -> bool:
    """Whether polyak wrote a file and no other program rewrote it with the same header."""
    return KEY in weights.metadata and SUMS in weights.metadata


def state_of_ema(node: Node) -> Recognised:
    """The averages in an ``ema.state_dict()`` that was pickled, or is in a distributed checkpoint."""
    values, places = _values(node), node.at("tracks")
    tracks = {
        str(name): _Track(f"{places.path}.{name}.tensors", mapping(track), tensor_values(held.get("tensors")))
        for name, track in mapping(values.get("tracks")).items()
        for held in [mapping(places.keys.get(name))]
    }
    return _averages(values, tracks, node.at("copies").tensors)


def _values(node: Node) -> Mapping[Any, object]:
    """Everything in a state but its tensors."""
    if KEY not in node.keys:
        return node.keys
    text = node.keys[KEY]
    try:
        return mapping(
            json.loads(cast("str", text.read(_LONGEST_TEXT) if isinstance(text, Unread) else text))
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{node.path}.{KEY} is not the text of an average's state: {error!r}."
        ) from error


def resumable(weights: Checkpoint, header: Header) -> Recognised:
    """The averages in a resumable file, whose tensors are named by the index of their track."""
    groups = weights.places()
    tracks = {
        str(name): _Track(f"{place}/", mapping(track), groups.get(str(place), {}))
        for place, (name, track) in enumerate(mapping(header.state.get("tracks")).items())
    }
    return _averages({**header.state, "run": header.run}, tracks, groups.get("copies", {}))


class _Track(NamedTuple):
    """A track: the path of its tensors, the other fields of its state, and the tensors."""

    path: str
    fields: Mapping[object, object]
    tensors: Tensors


def _averages(state: Mapping[Any, object], tracks: Mapping[str, _Track], copies: Tensors) -> Recognised:
    step, run = count_in(state.get("step")), str(state.get("run"))
    try:
        headers = {name: _header(name, track, step, run) for name, track in tracks.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the state of an average cannot be read: {error!r}.") from error
    parts = [
        Part(name, "average", track.path, {**track.tensors, **copies}, header=headers[name])
        for name, track in tracks.items()
    ]
    return Recognised("polyak", tuple(parts), step)


def _header(name: str, track: _Track, step: int | None, run: str) -> Header:
    """The header that ``ema.save`` would write for a track."""
    fields = cast("Mapping[str, Any]", track.fields)
    rules = _rules(fields) if "timelines" in fields else ()
    return Header(
        track=name,
        step=step,
        decay=None if rules else decay_in_file(fields["decay"]),
        profile=None if rules else Profile.from_json(str(fields["profile"])),
        role="average",
        run=run,
        joined={str(t): at for t, value in fields["joined"].items() if (at := count_in(value)) is not None},
        rules=rules,
    )


def _rules(fields: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of an average by name."""
    patterns: Mapping[str, str] = fields["patterns"]
    return tuple(
        Rule(
            pattern,
            decay_in_file(timeline["decay"]),
            Profile.from_json(str(timeline["profile"])),
            tuple([name for name, its in patterns.items() if its == pattern]),
        )
        for pattern, timeline in fields["timelines"].items()
    )


def write_note(where: Where, header: Header) -> None:
    """Write a note beside a file or an index of shards, also given by their folder."""
    with _opened(where) as weights:
        note = {KEY: json.loads(header.to_metadata()[KEY]), "files": _files(weights)}
        with atomic(f"{weights.where}{SUFFIX}") as temporary:
            temporary.write_text(json.dumps(note, separators=(",", ":")))


def _opened(where: Where) -> Checkpoint:
    """Without reading the content, which may be in a format that polyak does not read."""
    if is_folder(where) or str(where).endswith(INDEX):
        return open_weights(where)
    return Checkpoint(str(where), "", {}, sources=(open_source(where),))


def has_note(weights: Checkpoint) -> bool:
    """Whether there is a note beside a checkpoint."""
    return exists(f"{weights.where}{SUFFIX}")


def read_note(weights: Checkpoint) -> Header:
    """The header in the note beside a checkpoint, after comparing every byte of the checkpoint."""
    path = f"{weights.where}{SUFFIX}"
    with open_source(path) as source:
        if source.size > _LIMIT:
            raise CheckpointError(f"{path} has {source.size:,} bytes: a note has at most {_LIMIT:,}.")
        text = source.read(0, source.size)
    try:
        fields = parse_json(text, fractions=True)
        header = Header.from_metadata({KEY: json.dumps(fields[KEY])}, path)
        files: object = fields["files"]
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a note of polyak's: {error!r}.") from error
    if header.role == "resumable":
        raise CheckpointError(f"{path} has the role 'resumable', which only polyak's own files have.")
    # The sizes are compared first, which reads nothing.
    sizes = {name: source.size for name, source in _named(weights).items()}
    if not is_dict(files) or sizes != _sizes_in(files) or _files(weights) != files:
        raise CheckpointError(
            f"{path} describes other bytes than those of {weights.where}: the weights were replaced since, "
            "and the note does not apply to them."
        )
    return header


def _files(weights: Checkpoint) -> dict[str, dict[str, object]]:
    return {name: {"bytes": source.size, "crc32": _crc(source)} for name, source in _named(weights).items()}


def _sizes_in(files: Mapping[object, object]) -> dict[object, object]:
    return {name: mapping(file).get("bytes") for name, file in files.items()}


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
