"""A ``.keras`` file: a zip of Keras's own.

Its weights are HDF5, which Keras reads; what polyak's callback says of them is beside them in the same file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY, Header
from polyak._files.source import Source
from polyak._foreign.sections import DAMAGED, Raw
from polyak.errors import CheckpointError

MARK = "polyak.json"  # what the callback writes as an asset of the model
_LIMIT = 1 << 24  # bytes of it
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ALWAYS = {"metadata.json", "config.json"}


def read_zip(source: Source) -> Checkpoint | None:
    """What a model file of Keras says of its weights, without tensors; None if the zip is not of Keras."""
    try:
        with zipfile.ZipFile(Raw(source)) as archive:
            if not set(archive.namelist()) >= _ALWAYS:
                return None
            mark = next((one for one in archive.infolist() if one.filename.endswith(f"/{MARK}")), None)
            if mark is None:
                return Checkpoint(source.name, "keras", {}, sources=(source,))
            if mark.compress_type not in _COMPRESSIONS:  # of the others, one asks for memory as it likes
                raise CheckpointError(
                    f"{source.name}: its {MARK} is compressed in a way that Keras never writes. "
                    "Copy the file again from its origin."
                )
            with archive.open(mark) as file:
                text = file.read(_LIMIT + 1).decode()
    except DAMAGED as error:
        raise CheckpointError(f"{source.name} is a damaged zip file: {error}") from error
    if len(text) > _LIMIT:
        raise CheckpointError(f"{source.name}: its {MARK} is longer than {_LIMIT:,} bytes.")
    return Checkpoint(source.name, "keras", {}, {MARK: text}, sources=(source,))


def mark(weights: Header, averages: Sequence[Header]) -> str:
    """The mark of a file: what its weights are, and the averages that it holds besides."""
    return json.dumps([json.loads(one.to_metadata()[KEY]) for one in (weights, *averages)])


def marked(weights: Checkpoint) -> list[Header]:
    """What ``mark`` said: the weights' header first; nothing for a file without one."""
    if MARK not in weights.metadata:
        return []
    try:
        listed = [json.dumps(one) for one in list(json.loads(weights.metadata[MARK]))]
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{weights.where}: its {MARK} cannot be read: {error!r}.") from error
    return [Header.from_metadata({KEY: one}, f"{weights.where}/{MARK}") for one in listed]
