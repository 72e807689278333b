"""One file, or above a size several with an index, in the layout Hugging Face libraries read.

The index is what makes a set of shards: it is written last and replaces the old one at once. Shards
never reuse names that an index still refers to, so a process killed half-way leaves the old set complete.
Afterwards the last writer removes the shards that the index does not name: those of the previous set, and
those of processes that were killed before writing their index.

All shards and the index of one set have the same mark, ``polyak_set``: the name of the file, random letters,
and the number of shards. It distinguishes the shards of different sets, a complete set from one with a
shortened index, and polyak's own shards, which may be removed, from those of others.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from polyak._files.layout import Spec, arrange, parse
from polyak._files.locks import Lock
from polyak._files.open import INDEX, SET
from polyak._files.source import Where, is_url, open_source
from polyak._files.write import (
    Pieces,
    Rights,
    claimed,
    hidden,
    place,
    real,
    refusals,
    rights_of,
    sweep,
    sync_folder,
    write_body,
)
from polyak.errors import CheckpointError, ConfigError

_PATIENCE = 30.0  # seconds to wait for another process that renames its files
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_sharded(
    path: Where,
    specs: Mapping[str, Spec],
    metadata: Mapping[str, str],
    pieces: Pieces,
    max_shard_size: int | str | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write tensors to ``path``, or to shards and ``path + ".index.json"`` when they are larger.

    Args:
        path: the file, ``name.safetensors``.
        specs: dtype and shape of each tensor.
        metadata: strings for the header; every shard carries them.
        pieces: called with each name; yields its values in row-major order.
        max_shard_size: bytes, or text like "5GB"; None for one file whatever its size. A tensor larger
            than this has a shard of its own.
        check: called before old files are replaced, which an exception prevents.

    Raises:
        ConfigError: ``max_shard_size`` is not a size.
        CheckpointError: an error of the operating system. Old files are intact.
    """
    groups = _grouped(specs, _bytes(max_shard_size))
    if is_url(path):
        raise CheckpointError(f"{path}: files are written on this machine only. Write it here, then copy it.")
    with ExitStack() as parts, refusals(Path(path)):
        target = real(path)
        if len(groups) > 1:
            if Path(path).is_symlink():
                raise CheckpointError(
                    f"{path} is a link to {target}, and shards are found by the name of their index, which a "
                    "link does not give them. Save to the file itself, or in one piece. Nothing was changed."
                )
            mark = json.dumps([target.name, secrets.token_hex(8), len(groups)])
            metadata = {**metadata, SET: mark}
        _check_ours(target)
        sweep(target)
        rights = rights_of(target, _index(target))
        written: list[Path] = []
        for group in groups:
            chosen = {name: specs[name] for name in group}
            layout = arrange(chosen, metadata)
            written.append(parts.enter_context(claimed(target, rights)))
            with written[-1].open("wb", buffering=0) as file:
                write_body(file, layout, chosen, pieces)
        check()
        # Everything is on disk under temporary names. Renaming takes milliseconds, one process at a time.
        about = f"{target} is being written"
        lock = Lock(hidden(target, "lock"), about, "wait for it, or save under another name")
        lock.take(_PATIENCE)
        parts.enter_context(lock)
        _check_ours(target)
        if len(groups) == 1:
            _put_file(target, rights, written[0])
        else:
            _put_set(target, rights, written, groups, specs, metadata[SET])


def _put_file(target: Path, rights: Rights | None, part: Path) -> None:
    place(part, target, rights)
    sync_folder(target.parent)
    if os.path.lexists(_index(target)):  # Path.exists raises where the name would be too long
        _remove(target, [_index(target)])
    _remove(target, _orphans(target))


def _put_set(
    target: Path,
    rights: Rights | None,
    parts: list[Path],
    groups: list[list[str]],
    specs: Mapping[str, Spec],
    mark: str,
) -> None:
    shards = _fresh_names(target, len(parts))
    places = {tensor: shard.name for shard, group in zip(shards, groups, strict=True) for tensor in group}
    total = sum(spec.nbytes for spec in specs.values())
    index = {"metadata": {"total_size": total, SET: mark}, "weight_map": places}
    try:
        for part, shard in zip(parts, shards, strict=True):
            place(part, shard, rights)
        sync_folder(target.parent)
        with claimed(_index(target), rights) as temporary:
            temporary.write_text(json.dumps(index, indent=2), encoding="utf-8")
            place(temporary, _index(target), rights)
            sync_folder(target.parent)
    except BaseException:
        # Even if interrupted after the index was renamed: its shards are kept.
        with suppress(OSError, CheckpointError):
            _remove(target, _orphans(target))
        raise
    _remove(target, [target, *_orphans(target)])


def _index(target: Path) -> Path:
    return target.with_name(target.name + INDEX)


def _check_ours(target: Path) -> None:
    """Refuse to replace, or hide by the new file, a model that polyak did not write."""
    if _read_index(_index(target))[0] is None:
        raise CheckpointError(
            f"{_index(target)} belongs to weights that polyak did not write. Save under another name, or "
            "move it and its shards away first. Nothing was changed."
        )


def _read_index(index: Path) -> tuple[str | None, set[str]]:
    """The mark and the shards of the existing set; "" for no set, None for one that is not polyak's."""
    try:
        text = index.read_bytes()  # not after a look whether it is there: a writer beside may remove it
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):  # the latter: there can be no index
            raise
        return "", set()
    try:
        read = json.loads(text)
        return str(read["metadata"][SET]), set(map(str, read["weight_map"].values()))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None, set()


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
    except (KeyError, ValueError, TypeError, OverflowError):
        count = 0
    if count < 1:
        raise ConfigError(f"max_shard_size={size!r}: must be a number of bytes or a text like '5GB'.")
    return count


def _fresh_names(target: Path, count: int) -> list[Path]:
    """``name-00001-of-00003.safetensors`` …, with a few extra letters if those exist already."""
    for mark in ("", f"-{secrets.token_hex(3)}"):
        names = [
            target.with_name(f"{target.stem}{mark}-{i:05}-of-{count:05}{target.suffix}")
            for i in range(1, count + 1)
        ]
        if not any(name.exists() for name in names):
            break
    return names


def _orphans(target: Path) -> list[Path]:
    """Shards of this file by polyak that no index names, not any more or not yet."""
    _, named = _read_index(_index(target))
    shape = re.compile(
        re.escape(target.stem) + r"(-[0-9a-f]{6})?-[0-9]{5,}-of-[0-9]{5,}" + re.escape(target.suffix)
    )
    return [
        file
        for file in target.parent.iterdir()
        if shape.fullmatch(file.name) and file.name not in named and _is_shard_of(target, file)
    ]


def _is_shard_of(target: Path, file: Path) -> bool:
    try:
        with open_source(file) as source:
            mark = parse(source)[1].get(SET, "[null]")
        return json.loads(mark)[0] == target.name
    except (CheckpointError, ValueError, TypeError, LookupError):
        return False


def _remove(target: Path, files: Iterable[Path]) -> None:
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{target} was written, but the files it replaces cannot be removed: {error}"
        ) from error
