"""Converting other libraries' checkpoints to safetensors files with a description."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from polyak._dtypes import Array
from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY
from polyak._files.layout import NAMES, SUMS, Spec
from polyak._files.shards import write_sharded
from polyak._files.source import Where, is_url
from polyak._foreign.open_any import open_weights
from polyak._foreign.own import is_own
from polyak._foreign.parts import Part, Recognised
from polyak._foreign.recognize import recognise
from polyak.convert.rename_rules import NameMap, Renamed
from polyak.errors import CheckpointError, ConfigError

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Written:
    """A file written by ``convert``."""

    path: Path  # the file
    part: str  # the set of weights in it, by its name in the source
    role: str  # "average", "raw", or "unknown" for plain weights, which have no header of polyak's
    tensors: int  # how many
    # names that no rule of the map matched; empty without a map
    unmatched: tuple[str, ...] = field(default=(), repr=False)
    dropped: tuple[str, ...] = field(default=(), repr=False)  # names that a rule of the map dropped


def convert(
    source: Where,
    out: str | os.PathLike[str],
    part: str | None = None,
    names: NameMap | None = None,
    max_shard_size: int | str | None = None,
) -> tuple[Written, ...]:
    """Write the weights of any checkpoint as safetensors, the average and the raw model in separate files.

    Every tensor keeps its dtype and its values; one at a time is in memory. A file of an unknown library
    becomes plain weights, without a header about averaging.

    Args:
        source: a file, a folder or a URL of any format that polyak reads.
        out: ``NAME.safetensors``. With several sets of weights they are ``NAME-average.safetensors``,
            ``NAME-raw.safetensors``.
        part: convert only this set: "average", "raw" or a name given by ``recognise``.
        names: rules for other names and layouts.
        max_shard_size: as for ``ema.save``.

    Returns:
        What was written.

    Examples:
        >>> import os, tempfile, torch, polyak
        >>> folder = tempfile.mkdtemp()
        >>> averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1))
        >>> torch.save(averaged.state_dict(), os.path.join(folder, "swa.pt"))
        >>> [made] = convert(os.path.join(folder, "swa.pt"), os.path.join(folder, "swa.safetensors"))
        >>> polyak.load(made.path).header.role, made.tensors
        ('average', 2)
    """
    target = target_of(out)
    with open_weights(source) as weights:
        found = recognise(weights)
        chosen = chosen_parts(found, part, str(source))
        several = [target.with_name(f"{target.stem}-{one.name}{SUFFIX}") for one in chosen]
        paths = [target] if len(chosen) == 1 else several
        plans = [Plan.of(one, names, str(source)) for one in chosen]
        headers = [_metadata(weights, found, plan) for plan in plans]
        for path, plan, metadata in zip(paths, plans, headers, strict=True):
            write_sharded(path, plan.specs, metadata, plan.pieces, max_shard_size)
    return tuple(
        Written(path, one.name, one.role, len(plan.specs), plan.renamed.unmatched, plan.renamed.dropped)
        for path, one, plan in zip(paths, chosen, plans, strict=True)
    )


def target_of(out: str | os.PathLike[str]) -> Path:
    """The file to write."""
    target = Path(out)
    if is_url(str(out)) or target.suffix != SUFFIX or target.is_dir():
        raise ConfigError(
            f"out={str(out)!r}: must be a local file whose name ends in {SUFFIX}; to write another "
            "library's format, name it with --to."
        )
    return target


def chosen_parts(found: Recognised, part: str | None, where: str) -> Sequence[Part]:
    """The sets of weights to convert: all, or those of a name."""
    models = [one for one in found.models if one.tensors]
    if not models:
        raise CheckpointError(f"{where} holds no weights of a model, so there is nothing to convert.")
    chosen = [one for one in models if part is None or one.is_called(part)]
    if not chosen:
        raise ConfigError(
            f"part={part!r}: {where} holds {', '.join(f'{one.name} ({one.role})' for one in models)}."
        )
    return chosen


def _metadata(weights: Checkpoint, found: Recognised, plan: Plan) -> dict[str, str]:
    header = found.header_of(plan.part)
    described: dict[str, str] = {}
    if header is not None:
        places = plan.renamed.places.items()
        joined = {new: header.joined[old] for new, (old, _) in places if old in header.joined}
        new_names = {old: new for new, (old, _) in places}
        rules = [
            rule._replace(tensors=tuple([new_names[old] for old in rule.tensors if old in new_names]))
            for rule in header.rules
        ]
        described = replace(header, joined=joined, rules=rules).to_metadata()
    if is_own(weights):
        return described
    others = {key: value for key, value in weights.metadata.items() if key not in (KEY, SUMS)}
    if weights.format in ("pytorch", "dcp"):
        others["format"] = "pt"  # Hugging Face libraries ask for it
    return others | described


@dataclass(frozen=True)
class Plan:
    """A set of weights with names and layouts from a map."""

    part: Part
    renamed: Renamed
    specs: Mapping[str, Spec]

    @classmethod
    def of(cls, part: Part, names: NameMap | None, where: str) -> Plan:
        same = Renamed({name: (name, False) for name in part.tensors}, (), ())
        renamed = same if names is None else names.apply(part.tensors)
        specs: dict[str, Spec] = {}
        for new, (old, transposed) in renamed.places.items():
            tensor = part.tensors[old]
            if tensor.dtype not in NAMES:
                raise CheckpointError(
                    f"{old} of {where} is {tensor.kind}, for which the safetensors format has no name. "
                    "Nothing was written."
                )
            specs[new] = Spec(tensor.dtype, tensor.shape[::-1] if transposed else tensor.shape)
        return cls(part, renamed, specs)

    def read(self, name: str) -> Array:
        """One tensor by its new name, contiguous."""
        old, transposed = self.renamed.places[name]
        array = self.part.tensors[old].read()
        return np.ascontiguousarray(np.transpose(array)) if transposed else array

    def pieces(self, name: str) -> list[Array]:
        return [self.read(name)]
