"""A ``.keras`` file: Keras's zip archive.

Its weights are HDF5, which Keras reads; the description by polyak's callback is in the same file.
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

MARK = "polyak.json"  # an asset of the model that the callback writes
_LIMIT = 1 << 24  # bytes of it
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ALWAYS = {"metadata.json", "config.json"}


def read_zip(source: Source) -> Checkpoint | None:
    """The description of a Keras file's weights, without tensors; None if the zip is not one of Keras."""
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
    """The mark of a file, which describes its weights and the averages in it."""
    return json.dumps([json.loads(one.to_metadata()[KEY]) for one in (weights, *averages)])


def marked(weights: Checkpoint) -> list[Header]:
    """The headers in a mark, that of the weights first; none for a file without a mark."""
    if MARK not in weights.metadata:
        return []
    try:
        listed = [json.dumps(one) for one in list(json.loads(weights.metadata[MARK]))]
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{weights.where}: its {MARK} cannot be read: {error!r}.") from error
    return [Header.from_metadata({KEY: one}, f"{weights.where}/{MARK}") for one in listed]
