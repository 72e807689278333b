"""One file, or above a size several with an index, in the layout Hugging Face libraries read.

The index is what makes a set of shards: it is written last and replaces the old one at once. Shards
never take the names of those an index still points at, so a process killed half-way leaves the old set
whole; what the new index does not name is removed after it is in place.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from polyak.checkpoints.formats.safetensors import INDEX
from polyak.checkpoints.layout import Spec
from polyak.checkpoints.source import Where
from polyak.checkpoints.write import Pieces, atomic, write_safetensors
from polyak.errors import CheckpointError, ConfigError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_sharded(
    path: Where,
    specs: Mapping[str, Spec],
    metadata: Mapping[str, str],
    pieces: Pieces,
    max_shard_size: int | str | None = None,
) -> None:
    """Write tensors to ``path``, or to shards and ``path + ".index.json"`` when they are larger.

    Args:
        path: the file, ``name.safetensors``.
        specs: dtype and shape of each tensor.
        metadata: strings for the header; every shard carries them.
        pieces: called with each name; yields its values in row-major order.
        max_shard_size: bytes, or text like "5GB"; None for one file whatever its size. A tensor larger
            than this has a shard of its own.

    Raises:
        ConfigError: ``max_shard_size`` is no size.
        CheckpointError: the system refuses. What was there before is intact.
    """
    target = Path(path)
    index = target.with_name(target.name + INDEX)
    groups = _grouped(specs, _bytes(max_shard_size))
    old = _named_by(index)
    if len(groups) == 1:
        write_safetensors(target, specs, metadata, pieces)
        _remove([index, *old])
        return
    names = _fresh_names(target, len(groups))
    try:
        for name, group in zip(names, groups, strict=True):
            write_safetensors(name, {tensor: specs[tensor] for tensor in group}, metadata, pieces)
        places = {tensor: name.name for name, group in zip(names, groups, strict=True) for tensor in group}
        total = sum(spec.nbytes for spec in specs.values())
        with atomic(index) as temporary:
            temporary.write_text(
                json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
            )
    except BaseException:
        _remove(names)
        raise
    _remove([target, *old])


def _grouped(specs: Mapping[str, Spec], limit: int | None) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if limit is not None and groups[-1] and filled + spec.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += spec.nbytes
    return groups


def _bytes(size: int | str | None) -> int | None:
    if size is None:
        return None
    try:
        count = size if isinstance(size, int) else int(float(size[:-2]) * _UNITS[size[-2:].upper()])
    except (KeyError, ValueError):
        count = 0
    if count < 1:
        raise ConfigError(f"max_shard_size={size!r}: must be a number of bytes or a text like '5GB'.")
    return count


def _fresh_names(target: Path, count: int) -> list[Path]:
    """``name-00001-of-00003.safetensors`` …, told apart by a few letters where those exist already."""
    for mark in ("", f"-{secrets.token_hex(3)}"):
        names = [
            target.with_name(f"{target.stem}{mark}-{i:05}-of-{count:05}{target.suffix}")
            for i in range(1, count + 1)
        ]
        if not any(name.exists() for name in names):
            break
    return names


def _named_by(index: Path) -> list[Path]:
    """The shards of the set that is there now."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    # Only what write_sharded itself could have named: an index must not have other files removed.
    stem = index.name.removesuffix(INDEX).rpartition(".")[0]
    return [index.with_name(n) for n in names if Path(n).name == n and n.startswith(f"{stem}-")]


def _remove(files: Iterable[Path]) -> None:
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"the files written before cannot be removed: {error}") from error
