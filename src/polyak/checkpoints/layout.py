"""The safetensors file, byte by byte: 8 bytes of header length, a JSON header, the tensors.

polyak reads and writes the format itself because it must read tensors piece by piece, in dtypes the
NumPy side of the safetensors package does not know, and write files larger than memory. The tests hold
both against that package.

A file of polyak's carries ``polyak_sums`` in its metadata: the CRC-32 of the header (those digits taken
as zeros) and of each tensor, in the order of the file. Neither depends on the order of writing, the
width is fixed, so the digits are filled in at the end.

Source: the format description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from polyak.checkpoints.dtypes import BY_NAME, NAMES
from polyak.checkpoints.source import Source
from polyak.checkpoints.weights import Span
from polyak.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # bytes; the reference implementation has the same limit
METADATA = "__metadata__"
SUMS = "polyak_sums"
_DIGITS = 8  # hexadecimal, of one CRC-32


@dataclass(frozen=True)
class Spec:
    """What a tensor to be written is: dtype and shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """A header to be written: its bytes, the tensors in file order, where the digits of the sums stand."""

    header: bytes
    names: tuple[str, ...]
    digits: int

    def with_sums(self, tensors: Sequence[int]) -> bytes:
        """The header with the checksums of the tensors, in file order, and its own."""
        sums = "".join(f"{crc:08x}" for crc in tensors).encode()
        start = self.digits + _DIGITS
        header = self.header[:start] + sums + self.header[start + len(sums) :]
        own = f"{zlib.crc32(header):08x}".encode()
        return header[: self.digits] + own + header[start:]


def arrange(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> Layout:
    """The header of a file with these tensors: widest dtypes first, so that all are aligned.

    Raises:
        CheckpointError: the format has no name for a dtype, or the header would pass its limit.
    """
    for name, spec in specs.items():
        if spec.dtype not in NAMES:
            raise CheckpointError(
                f"{name} is {spec.dtype}, for which the safetensors format has no name. Nothing was written."
            )
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    zeros = "0" * _DIGITS * (len(names) + 1)
    fields: dict[str, Any] = {METADATA: {SUMS: zeros, **metadata}}
    end = 0
    for name in names:
        spec, begin = specs[name], end
        end += spec.nbytes
        fields[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise CheckpointError(
            f"the header takes {len(text):,} bytes: at most {HEADER_LIMIT:,} are allowed. "
            "Write in shards, with fewer tensors each."
        )
    header = len(text).to_bytes(8, "little") + text
    return Layout(header, tuple(names), header.index(zeros.encode()))


def parse(source: Source) -> tuple[dict[str, Span], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, every statement of its header checked.

    Raises:
        CheckpointError: the header is no header, or contradicts itself or the size of the file.
    """

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(f"{source.name} is no valid safetensors file: {why}.")

    if source.size < 8:
        raise refuse(f"it has {source.size} bytes, fewer than the 8 that say how long its header is")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(HEADER_LIMIT, source.size - 8):
        raise refuse(f"its header should take {length:,} bytes; the file has {source.size:,}")
    text = source.read(8, length)
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        if not isinstance(fields, dict) or text[:1] != b"{":
            raise ValueError("not an object")
        metadata = _strings(fields.pop(METADATA, {}))  # pyright: ignore[reportUnknownArgumentType]
        spans = {str(name): _span(source, 8 + length, value) for name, value in fields.items()}  # pyright: ignore
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise refuse(f"its header cannot be understood ({error})") from error
    end = 8 + length
    for name, span in sorted(spans.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if span.offset != end:
            how = "overlaps the tensor before it" if span.offset < end else "leaves a hole before it"
            raise refuse(f"tensor {name!r} {how}")
        end += span.nbytes
    if end != source.size:
        raise refuse(f"its tensors end at byte {end:,}, the file at {source.size:,}: it was cut")
    return _with_sums(source, text, spans, metadata), metadata


def _span(source: Source, data: int, field: Any) -> Span:
    if set(field) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"a tensor has the fields {sorted(field)}")
    shape, (begin, end) = field["shape"], field["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"shape {shape} and offsets {[begin, end]} must be whole numbers, at least 0")
    if field["dtype"] not in BY_NAME:
        raise ValueError(f"dtype {field['dtype']!r} is none of {', '.join(BY_NAME)}")
    span = Span(source, data + begin, BY_NAME[field["dtype"]], tuple(shape))
    if span.nbytes != end - begin:
        raise ValueError(f"{field['dtype']} {shape} takes {span.nbytes} bytes, its place has {end - begin}")
    return span


def _with_sums(
    source: Source, text: bytes, spans: dict[str, Span], metadata: Mapping[str, str]
) -> dict[str, Span]:
    if SUMS not in metadata:
        return spans
    sums, found = metadata[SUMS], text.find(metadata[SUMS].encode())
    blank = text[:found] + b"0" * _DIGITS + text[found + _DIGITS :]
    header = len(text).to_bytes(8, "little") + blank
    try:
        if f"{zlib.crc32(header):08x}" != sums[:_DIGITS]:
            raise CheckpointError(f"{source.name} is damaged: its header is not the one that was written.")
        crcs = [int(sums[i : i + _DIGITS], 16) for i in range(_DIGITS, len(sums), _DIGITS)]
        ordered = sorted(spans, key=lambda name: (spans[name].offset, -spans[name].dtype.itemsize, name))
        return {
            name: Span(source, spans[name].offset, spans[name].dtype, spans[name].shape, crc)
            for name, crc in zip(ordered, crcs, strict=True)
        }
    except ValueError as error:
        raise CheckpointError(f"{source.name}: its checksums {sums[:40]!r} are malformed.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} stands there twice")
    return fields


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _strings(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):  # pyright: ignore
        raise ValueError(f"{METADATA} must map strings to strings")
    return metadata  # pyright: ignore[reportUnknownVariableType]
