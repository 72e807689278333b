"""Averaging checkpoints of any format into one file, in memory independent of their sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from polyak._dtypes import BY_NAME, DType, is_float
from polyak._files.checkpoint import Checkpoint, NoArray
from polyak._files.header import KEY, Header
from polyak._files.layout import SUMS, in_file_order
from polyak._files.shards import write_sharded
from polyak._files.source import Where, is_url
from polyak._files.weighted_sum import Input, TensorSum, counted, shares, summed
from polyak.errors import CheckpointError, ConfigError
from polyak.merge.inputs import MergeInput, is_real, open_inputs
from polyak.merge.weighting import Contribution, Weighting, contributions, header_of, newest

RealType: TypeAlias = Literal["float64", "float32", "float16", "bfloat16"]
Accumulate: TypeAlias = Literal["float32", "float64"]

_DTYPES = dict(zip(get_args(RealType), (BY_NAME[n] for n in ("F64", "F32", "F16", "BF16")), strict=True))


@dataclass(frozen=True)
class Averaged:
    """The result of ``average_checkpoints``.

    Args:
        averaged: names of the averaged tensors.
        copied: names of integer and boolean tensors, copied from the newest checkpoint.
        weights: of the checkpoints, in the order given.
        header: of the file written.
        files: each checkpoint with its role, its step, the source of the step, and its weight.
        newest: the checkpoint of the latest step, or the last if not all steps are known.
    """

    averaged: tuple[str, ...] = field(repr=False)
    copied: tuple[str, ...] = field(repr=False)
    weights: tuple[float, ...]
    header: Header = field(repr=False)
    files: tuple[Contribution, ...] = field(repr=False)
    newest: str = field(repr=False)


def average_checkpoints(
    paths: Sequence[Where],
    out: str | os.PathLike[str],
    weights: Weighting = "uniform",
    dtype: RealType | None = None,
    accumulate: Accumulate = "float32",
    max_shard_size: int | str | None = None,
    part: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Averaged:
    """Average checkpoints of any format into one ``.safetensors`` file, piece by piece.

    ``Σ wᵢ·xᵢ`` for every float tensor, taken in float32 or wider whatever the storage and rounded once.
    Integer and boolean tensors are copied from the newest checkpoint, bit for bit.

    Args:
        paths: files, folders of shards or URLs, with the same tensors.
        out: the file to write, ``name.safetensors``; it may be one of the inputs. It is written completely
            or not at all.
        weights: "uniform"; a number for each checkpoint, divided by their sum; ``Recency(steps)``, which
            halves with age; "linear", "cosine" or "1-sqrt", which approximate a learning rate that decays
            from the first checkpoint to the last; or the target profile over checkpoints of one run (a decay
            means its profile up to the newest), for which ``polyak.schedules.solve`` computes the numbers,
            for raw checkpoints by linear interpolation between neighbours. Unidentified weights then count
            as raw. All but the first two need increasing steps, from the files or from names in which one
            number is called a step.
        dtype: of the averages of real numbers; by default that of the first checkpoint.
        accumulate: "float32" or "float64"; float64 tensors are always accumulated in float64.
        max_shard_size: above this, write several files and an index; bytes, or text like "5GB".
        part: the set of weights to use from files with several: "raw", "average", or its name.
        progress: called with the bytes read so far and in total.

    Returns:
        The averaged and copied tensors, the weights used, and the header written: with the profile of the
        result if those of the inputs are known, otherwise the weights of the files.

    Raises:
        ConfigError: an argument is invalid.
        CheckpointError: a checkpoint cannot be read, is damaged, holds no tensors, holds NaN, or infinity
            where others do not, or they do not hold the same tensors (all differences are listed); or
            required steps are unknown or do not increase. Nothing is written then.
        MissingExtraError: a URL was given and fsspec is missing.

    Examples:
        >>> import tempfile, numpy as np
        >>> from polyak._foreign.open_any import open_weights
        >>> from polyak._files.write import write_arrays
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (10, 20):
        ...     write_arrays(folder / f"{step}.safetensors", {"w": np.full(3, step, np.float32)}, {})
        >>> files = sorted(folder.iterdir())
        >>> average_checkpoints(files, folder / "average.safetensors", weights=[0.75, 0.25]).averaged
        ('w',)
        >>> with open_weights(folder / "average.safetensors") as made:
        ...     made.tensors["w"].read()
        array([12.5, 12.5, 12.5], dtype=float32)
    """
    _check(paths, out, dtype, accumulate)
    with ExitStack() as files:
        inputs = open_inputs(paths, files, part)
        rows = contributions(weights, inputs, [os.fspath(path) for path in paths])
        used = tuple(one.weight for one in rows)
        header, latest = header_of(weights, inputs, rows), newest(inputs)
        metadata = _common_metadata(inputs) | header.to_metadata()
        opened, order, wide = [one.weights for one in inputs], shares(used), np.dtype(accumulate)
        made = _DTYPES.get(dtype or "")
        sums = {name: _sum(name, opened, order, latest, made, wide) for name in opened[0].tensors}
        specs = in_file_order({name: one.spec for name, one in sums.items()})
        report = counted(progress, sum(one.read for one in sums.values()), lambda piece: piece.read)
        with summed((sums[name] for name in specs), report) as pieces:
            write_sharded(out, specs, metadata, pieces, max_shard_size)
    averaged = tuple(sorted(name for name, one in sums.items() if one.wide is not None))
    copied = tuple(sorted(name for name, one in sums.items() if one.wide is None))
    return Averaged(averaged, copied, used, header, rows, rows[latest].file)


def _check(paths: Sequence[Where], out: Where, dtype: str | None, accumulate: str) -> None:
    if isinstance(paths, (str, os.PathLike)) or not len(paths):
        raise ConfigError(f"paths={paths!r}: must be a list of at least one file, folder or URL.")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r}: must be None or one of {', '.join(_DTYPES)}.")
    if accumulate not in get_args(Accumulate):
        raise ConfigError(f'accumulate={accumulate!r}: must be "float32" or "float64".')
    if is_url(out) or Path(out).suffix != ".safetensors" or Path(out).is_dir():
        raise ConfigError(f"out={str(out)!r}: must be a local file whose name ends in .safetensors.")


def _common_metadata(inputs: Sequence[MergeInput]) -> dict[str, str]:
    """Metadata that all files share, such as the "format" that Hugging Face libraries require."""
    first, *others = (one.weights.metadata for one in inputs)
    alike = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    return {key: value for key, value in alike.items() if key not in (KEY, SUMS)}


def _sum(
    name: str,
    inputs: Sequence[Checkpoint],
    order: Sequence[tuple[int, float]],
    latest: int,
    dtype: DType | None,
    wide: DType,
) -> TensorSum:
    tensors = [one.tensors[name] for one in inputs]
    files = [one.where for one in inputs]
    for tensor, file in zip(tensors, files, strict=True):
        if isinstance(tensor, NoArray):
            raise CheckpointError(
                f"{file}: {name} is {tensor.what}, which is not averaged. Make it a plain tensor "
                "(to_dense(), dequantize(), full_tensor(), …) and save it again. Nothing was written."
            )
    if not is_float(tensors[0].dtype):
        return TensorSum(name, [Input(tensors[latest], 1.0, files[latest])], tensors[latest].dtype, None)
    made = dtype if dtype is not None and is_real(tensors[0]) else tensors[0].dtype
    widest = max(_width(d) for d in (made, *(tensor.dtype for tensor in tensors)))
    chosen = [Input(tensors[i], share, files[i]) for i, share in order]
    return TensorSum(name, chosen, made, np.dtype(np.float64) if widest > 4 else wide)


def _width(dtype: DType) -> int:
    """Bytes of one real number."""
    return dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
