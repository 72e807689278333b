"""What a file of polyak's says of itself."""

from __future__ import annotations

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import Header
from polyak._files.layout import SUMS
from polyak._files.safetensors import SET
from polyak.errors import CheckpointError


def header_of(weights: Checkpoint) -> Header:
    """What a file of polyak's says of itself.

    Raises:
        CheckpointError: it is not one, or another program wrote it anew without its checksums.
    """
    header = Header.from_metadata(weights.metadata, weights.where)
    if SUMS not in weights.metadata:
        raise CheckpointError(
            f"{weights.where} says it is polyak's but has no checksums: another program wrote it anew. "
            "Read it as plain weights, or use the original."
        )
    if SET in weights.metadata:
        raise CheckpointError(
            f"{weights.where} is one of several shards, a part of the tensors: open their index instead."
        )
    return header
