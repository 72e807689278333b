"""A safetensors file, and a set of shards with its index."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from polyak.checkpoints.layout import parse
from polyak.checkpoints.source import Source, Where, beside, open_source
from polyak.checkpoints.weights import Slot, Weights
from polyak.errors import CheckpointError

INDEX = ".index.json"


def read_file(source: Source) -> Weights:
    """The tensors of one file."""
    spans, metadata = parse(source)
    return Weights(source.name, "safetensors", spans, metadata, sources=(source,))


def read_index(where: Where) -> Weights:
    """The tensors of all files that an index names (``model.safetensors.index.json``).

    Raises:
        CheckpointError: the index is malformed, names a file outside its folder, or a tensor that the
            file does not hold.
    """
    with open_source(where) as source:
        text = source.read(0, source.size)
    try:
        index: Any = json.loads(text)
        places = {str(name): str(file) for name, file in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where} is no index of safetensors files: {error!r}") from error
    with ExitStack() as opened:
        shards = {
            name: opened.enter_context(open_source(beside(where, name))) for name in set(places.values())
        }
        files = {name: read_file(source) for name, source in shards.items()}
        slots: dict[str, Slot] = {}
        for name, file in places.items():
            if name not in files[file].slots:
                raise CheckpointError(f"{where} says that {name} is in {file}, which does not hold it.")
            slots[name] = files[file].slots[name]
        opened.pop_all()
    metadata = next((file.metadata for file in files.values()), dict[str, str]())
    return Weights(str(where), "safetensors", slots, metadata, sources=tuple(shards.values()))
