"""Describing a file, a folder or an archive as values, for the screen and JSON."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal, TypeAlias

from polyak._files.checkpoint import Checkpoint, FileTensor, LazyTensor
from polyak._files.header import FileShare, Header, Origin, Rule
from polyak._files.open import INDEX, header_of
from polyak._files.source import Where, is_url
from polyak._foreign.open_any import is_checkpoint_folder, open_weights
from polyak._foreign.own import is_own
from polyak._foreign.parts import Part
from polyak._foreign.recognize import recognise
from polyak._type_guards import is_mapping, is_sequence
from polyak.archive.archive import Archive
from polyak.archive.snapshots import holds_snapshots
from polyak.archive.synthesis import Reach, synthesizable
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import Decay, Profile
from polyak.schedules.drawing import EFFORT

Integrity: TypeAlias = Literal["verified", "no checksums", "not checked"]

_PIECE = 1 << 24  # bytes summed together
_NAMED = 6  # files of a merge that are named
_ENDINGS = (
    *(".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"),
    *(".pdparams", ".pdema", ".pdopt", ".keras", ".weights.h5"),
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")  # a shard, which has an index


@dataclass(frozen=True)
class Tensors:
    """The size of a set of tensors; ``dtypes`` counts the tensors of each."""

    count: int
    elements: int
    nbytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class Figures:
    """The numbers of a profile, in training steps where they are times."""

    mean_age: float
    half_life: float
    effective_samples: float
    initial_weight: float


@dataclass(frozen=True)
class Weighting:
    """One set of weights in a file: a part of a foreign file, a track of polyak's.

    role: "average", "raw", "optimizer" or "unknown".  path: where in the file; "" for all of it.
    rules: of an average by name, the tensors of each pattern.
    """

    name: str
    role: str
    path: str
    tensors: Tensors
    decay: Decay | None = None
    profile: Profile | None = field(default=None, repr=False)
    figures: Figures | None = None
    notes: tuple[str, ...] = ()
    rules: tuple[Weighting, ...] = ()


@dataclass(frozen=True)
class CheckpointSummary:
    """A file, a set of shards or a folder of one checkpoint.

    format: "safetensors", "pytorch", "paddle" or "dcp".  library: that wrote it; "" when nothing says.
    role: "average", "raw" or "resumable" for a file of polyak's; None for others.
    updates: of the average, if the file counts them.
    counters: of a resumable state: skipped updates, settings, time in each unit.
    """

    where: str
    format: str
    library: str
    role: str | None
    run: str
    step: int | None
    updates: int | None
    counters: Mapping[str, Any]
    parts: tuple[Weighting, ...]
    integrity: Integrity
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Snapshots:
    """A folder that ``polyak.Archive`` keeps; ``reach`` is empty before the first snapshot."""

    where: str
    run: str
    steps: tuple[int, ...]
    tracks: tuple[str, ...]
    files: int
    nbytes: int
    reach: tuple[Reach, ...]


def describe(where: Where, verify: bool = True) -> CheckpointSummary | Snapshots:
    """Describe a file, a folder of shards, a URL or an archive.

    Args:
        where: any checkpoint that polyak reads, or an archive's folder.
        verify: read all of a file that has checksums and compare.

    Returns:
        A record; for an archive ``Snapshots``.

    Raises:
        CheckpointError: it cannot be read, or is damaged: the message names the tensor.

    Examples:
        >>> import os, tempfile, torch, polyak
        >>> path = os.path.join(tempfile.mkdtemp(), "average.safetensors")
        >>> polyak.EMA(torch.nn.Linear(2, 1), decay=0.999).save(path)
        >>> found = describe(path)
        >>> found.role, found.integrity, found.parts[0].tensors.elements
        ('average', 'verified', 3)
    """
    if not is_url(where) and holds_snapshots(Path(where)):
        return _archive(Path(where))
    with open_weights(where) as weights:
        integrity = _verify(weights) if verify else "not checked"
        own = header_of(weights) if is_own(weights) else None
        found = recognise(weights)
        return CheckpointSummary(
            where=str(where),
            format=weights.format,
            library=found.library,
            role=None if own is None else own.role,
            run=next((one.header.run for one in found.parts if one.header is not None), ""),
            step=found.step,
            updates=found.updates,
            counters={} if own is None or own.role != "resumable" else _counters(own.state),
            parts=tuple(_weighting(one, found.decay) for one in found.parts),
            integrity=integrity,
            notes=found.notes if own is None else (*_origin(own), *_numbered(weights)),
        )


def expanded(path: str) -> list[str]:
    """The files of a glob, the checkpoints in a folder that is not one itself, or just the path.

    Raises:
        ConfigError: the glob matches nothing.
    """
    if is_url(path):
        return [path]
    if has_magic(path) and not os.path.exists(path):
        if not (matches := sorted(glob(path, recursive=True))):
            raise ConfigError(f"{path}: no file has such a name.")
        return [one for match in matches for one in expanded(match)]
    if not os.path.isdir(path) or _is_checkpoint(Path(path)):
        return [path]
    return [str(one) for one in sorted(Path(path).iterdir()) if _is_checkpoint(one)] or [path]


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return holds_snapshots(path) or is_checkpoint_folder(path)
    return path.name.endswith((*_ENDINGS, INDEX)) and not _SHARD.search(path.name)


def to_json(found: CheckpointSummary | Snapshots) -> dict[str, Any]:
    """A description as JSON values; decays and profiles as in their files."""
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, Decay | Profile):
        return value.to_config()
    if isinstance(value, Reach):
        return value._asdict()
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if is_mapping(value):
        return {str(key): _plain(one) for key, one in value.items()}
    if is_sequence(value):
        return [_plain(one) for one in value]
    return value


def figures_of(profile: Profile) -> Figures | None:
    """The numbers of a profile; None if they are unknown or computing them would take seconds."""
    if not profile.known or profile.effort > EFFORT:
        return None
    return Figures(profile.mean_age, profile.half_life, profile.effective_samples, profile.initial_weight)


def size_of(tensors: Iterable[LazyTensor]) -> Tensors:
    """The size of tensors."""
    listed = list(tensors)
    dtypes = Counter(lazy.kind for lazy in listed)
    elements, nbytes = sum(lazy.size for lazy in listed), sum(lazy.nbytes for lazy in listed)
    return Tensors(len(listed), elements, nbytes, dict(sorted(dtypes.items())))


def _archive(folder: Path) -> Snapshots:
    archive = Archive(folder)
    snapshots = archive.snapshots
    taken = [snapshot for snapshot in snapshots if snapshot.number]
    return Snapshots(
        where=str(folder),
        run=snapshots[0].header.run,
        steps=tuple(sorted({snapshot.step for snapshot in snapshots})),
        tracks=tuple(sorted({snapshot.header.track for snapshot in taken})),
        files=len(snapshots),
        nbytes=sum(snapshot.path.stat().st_size for snapshot in snapshots),
        reach=tuple(synthesizable(archive)) if taken else (),
    )


def _weighting(part: Part, decay: Decay | None) -> Weighting:
    """A set of weights with its header; raw weights are one point, and have no schedule."""
    header, tensors = part.header, size_of(part.tensors.values())
    if part.role == "raw" or header is None:
        known = decay if part.role == "average" else None
        return Weighting(part.name, part.role, part.path, tensors, known, notes=part.notes)
    figures = None if header.profile is None else figures_of(header.profile)
    notes = (*part.notes, *_shorter(header), *_exactness(header.profile))
    about = header.decay, header.profile, figures, notes, tuple([_rule(part, one) for one in header.rules])
    return Weighting(part.name, part.role, part.path, tensors, *about)


def _rule(part: Part, rule: Rule) -> Weighting:
    tensors = size_of([part.tensors[name] for name in rule.tensors if name in part.tensors])
    about = rule.decay, rule.profile, figures_of(rule.profile), _exactness(rule.profile)
    return Weighting(f"{part.name}, {rule.pattern}", part.role, part.path, tensors, *about)


def _counters(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in ("tracks", "format", "run", "step")}


def _shorter(header: Header) -> tuple[str, ...]:
    if not header.joined:
        return ()
    return (
        f"{len(header.joined)} tensors joined the average later than the rest; their profiles are shorter",
    )


_NUMBERED = re.compile(r"\w+_\d+\.[wb]_\d+")


def _numbered(weights: Checkpoint) -> tuple[str, ...]:
    """Paddle numbers parameters in the order of their creation: linear_0.w_0."""
    if not weights.tensors or not all(_NUMBERED.fullmatch(name) for name in weights.tensors):
        return ()
    return (
        "its names are those Paddle numbers parameters by, which fit no layer's state_dict: "
        "set_state_dict(…, use_structured_name=False) takes them where the numbers are the same",
    )


def _exactness(profile: Profile | None) -> tuple[str, ...]:
    if profile is None or not profile.within:
        return ()
    return (f"its history was merged: the weight up to any step is exact within {profile.within:.2g}",)


def _origin(header: Header) -> tuple[str, ...]:
    if header.role != "average":
        return ()
    origin, notes = Origin.from_state(header.state), list[str]()
    if origin.library is not None:
        notes.append(f"converted from {origin.library or 'a file of an unknown library'}")
    if origin.files is not None:
        notes.append(f"weights of files, not of training steps: {_largest(origin.files)}")
    if origin.taken_as_raw:
        notes.append("its profile is right if the merged files were raw weights, which they do not state")
    return tuple(notes)


def _largest(files: Sequence[FileShare]) -> str:
    rows = sorted(((one.weight, one.name) for one in files), reverse=True)
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(f"{weight:.4g} of {name}" for weight, name in rows[:_NAMED]) + more


def _verify(weights: Checkpoint) -> Integrity:
    """Compare every tensor with the checksum written with it.

    Raises:
        CheckpointError: one differs.
    """
    summed = {
        name: lazy
        for name, lazy in weights.tensors.items()
        if isinstance(lazy, FileTensor) and lazy.crc is not None
    }
    if not summed:
        return "no checksums"
    buffer = memoryview(bytearray(min(_PIECE, max(tensor.nbytes for tensor in summed.values()))))
    for name, tensor in summed.items():
        if _crc(tensor, buffer) != tensor.crc:
            raise CheckpointError(
                f"{weights.where} is damaged: tensor {name} is not the one that was written. "
                "Copy the file again from its origin."
            )
    return "verified"


def _crc(tensor: FileTensor, buffer: memoryview) -> int:
    crc = 0
    for start in range(0, tensor.nbytes, _PIECE):
        piece = buffer[: min(_PIECE, tensor.nbytes - start)]
        tensor.source.read_into(tensor.offset + start, piece)
        crc = zlib.crc32(piece, crc)
    return crc
