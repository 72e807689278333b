"""Opening a safetensors file, or a set of shards with its index, and polyak's header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.header import Header
from polyak._files.layout import HEADER_LIMIT, SUMS, parse, parse_json
from polyak._files.source import Source, Where, beside, open_source
from polyak._type_guards import is_dict
from polyak.errors import CheckpointError

INDEX = ".index.json"
SET = "polyak_set"  # in the metadata of polyak's shards and of their index: the same in all of one set


def read_safetensors(source: Source) -> Checkpoint:
    """The tensors of one file."""
    return Checkpoint(source.name, "safetensors", *parse(source), sources=(source,))


def read_index(where: Where, read: Callable[[Source], Checkpoint] = read_safetensors) -> Checkpoint:
    """The tensors of all files that an index names (``model.safetensors.index.json``).

    Args:
        where: the index.
        read: reads one of its files; those of older models are pickles.
    """
    places, mark = _index(where)
    with ExitStack() as opened:
        names = sorted(set(places.values()))
        shards = {name: opened.enter_context(open_source(beside(where, name))) for name in names}
        files = {name: read(source) for name, source in shards.items()}
        tensors: dict[str, LazyTensor] = {}
        for name, file in places.items():
            if name not in files[file].tensors:
                raise CheckpointError(f"{where} lists {name} in {file}, which does not contain it.")
            tensors[name] = files[file].tensors[name]
        _check_set(where, mark, files, len(tensors))
        opened.pop_all()
    first = next(iter(files.values()), Checkpoint(str(where), "safetensors", {}))
    metadata = {key: value for key, value in first.metadata.items() if key != SET}
    return Checkpoint(str(where), first.format, tensors, metadata, sources=tuple(shards.values()))


def header_of(weights: Checkpoint) -> Header:
    """The header of a file that polyak wrote."""
    header = Header.from_metadata(weights.metadata, weights.where)
    if SUMS not in weights.metadata:
        raise CheckpointError(
            f"{weights.where} has polyak's header but no checksums, so another program has rewritten it. "
            "Read it as plain weights, or use the original."
        )
    if SET in weights.metadata:
        raise CheckpointError(
            f"{weights.where} is one of several shards, a part of the tensors: open their index instead."
        )
    return header


def _index(where: Where) -> tuple[dict[str, str], str | None]:
    """Tensor to file, and the mark of the set."""
    with open_source(where) as source:
        if source.size > HEADER_LIMIT:
            raise CheckpointError(
                f"{where} is not an index of safetensors files: it has {source.size:,} bytes, "
                f"at most {HEADER_LIMIT:,} are read."
            )
        text = source.read(0, source.size)
    try:
        index = parse_json(text.strip(), fractions=True)  # a total_size may be 1.5e9
        listed, about = index["weight_map"], index.get("metadata")
        places = {str(k): v for k, v in listed.items() if isinstance(v, str)} if is_dict(listed) else {}
        if not is_dict(listed) or len(places) != len(listed):
            raise ValueError("weight_map must map names of tensors to names of files")
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{where} is not an index of safetensors files: {error!r}") from error
    mark = about.get(SET) if is_dict(about) else None
    return places, None if mark is None else str(mark)


def _check_set(where: Where, mark: str | None, files: Mapping[str, Checkpoint], named: int) -> None:
    """Check that a set of polyak's is complete: its index has no checksum, but its shards list its size."""
    for name, file in files.items():
        if file.metadata.get(SET) != mark:
            raise CheckpointError(f"{name} does not belong to the set of the index {where}: not read.")
        if mark is not None and SUMS not in file.metadata:
            raise CheckpointError(
                f"{name} is damaged: it has no checksums, unlike the other shards of its set."
            )
    if mark is None:
        return
    try:
        count = int(json.loads(mark)[2])
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{where} has the malformed mark {mark[:80]!r}.") from error
    present = sum(len(file.tensors) for file in files.values())
    if (len(files), named) != (count, present):
        raise CheckpointError(
            f"{where} was shortened: it names {named} tensors in {len(files)} files; the set has {count} "
            f"files, and those it names hold {present}."
        )
