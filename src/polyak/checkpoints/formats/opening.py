"""Which format a file or folder is in, by its first bytes, not by its name."""

from __future__ import annotations

from polyak.checkpoints.formats import safetensors
from polyak.checkpoints.source import Where, exists, inside, is_folder, open_source
from polyak.checkpoints.weights import Weights
from polyak.errors import CheckpointError

_INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
_SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors")


def open_weights(where: Where) -> Weights:
    """Open a checkpoint of any format; close it by leaving its ``with`` block.

    Args:
        where: a file, a folder of shards, or a URL that fsspec knows.

    Raises:
        CheckpointError: it cannot be read, or is of no known format.
        MissingExtraError: a URL was given and fsspec is missing.
    """
    if is_folder(where):
        return _open_folder(where)
    if str(where).endswith(safetensors.INDEX):
        return safetensors.read_index(where)
    index = f"{where}{safetensors.INDEX}"
    if not exists(where) and exists(index):  # written in shards under this name
        return safetensors.read_index(index)
    source = open_source(where)
    try:
        return safetensors.read_file(source)
    except BaseException:
        source.close()
        raise


def _open_folder(folder: Where) -> Weights:
    for name in _INDEXES:
        if exists(inside(folder, name)):
            return safetensors.read_index(inside(folder, name))
    for name in _SINGLE:
        if exists(inside(folder, name)):
            return open_weights(inside(folder, name))
    raise CheckpointError(f"{folder} holds none of {', '.join((*_INDEXES, *_SINGLE))}.")
