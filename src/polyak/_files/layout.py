"""The safetensors file, byte by byte: 8 bytes of header length, a JSON header, the tensors.

polyak reads and writes the format itself because it must read tensors piece by piece, in dtypes the
NumPy side of the safetensors package does not know, and write files larger than memory. The tests compare
both with that package.

A file of polyak's has ``polyak_sums`` in its metadata: the CRC-32 of the header (with these digits as zeros)
and of each tensor, in file order. They do not depend on the order of writing and have a fixed width, so they
are filled in at the end.

Source: the format description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from reprlib import Repr
from typing import Any, NoReturn

import numpy as np

from polyak._dtypes import BY_NAME, NAMES, DType
from polyak._files.checkpoint import FileTensor
from polyak._files.source import Source
from polyak._type_guards import is_dict, is_list
from polyak.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # bytes; the reference implementation has the same limit
METADATA = "__metadata__"
SUMS = "polyak_sums"
_DIGITS = 8  # hexadecimal, of one CRC-32
AXES = 32 if np.__version__.startswith("1.") else 64  # of a NumPy array, at most

_DOUBTFUL = re.compile(rb"-|[0-9]{20}")  # may be in a number that is no length; or in a name
_REPR = Repr()  # a header can be 100 MB long: messages show the beginning of a wrong value
_REPR.maxstring = 200
_brief = _REPR.repr


@dataclass(frozen=True)
class Spec:
    """Dtype and shape of a tensor to be written."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """A header to be written: its bytes, the tensors in file order, the offset of the checksums."""

    header: bytes
    names: tuple[str, ...]
    digits: int

    def with_sums(self, tensors: Sequence[int]) -> bytes:
        """The header with the checksums of the tensors, in file order, and its own."""
        sums = "".join(f"{crc:08x}" for crc in tensors).encode()
        start = self.digits + _DIGITS
        header = self.header[:start] + sums + self.header[start + len(sums) :]
        return header[: self.digits] + f"{zlib.crc32(header):08x}".encode() + header[start:]


def arrange(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> Layout:
    """The header of a file with these tensors: widest dtypes first, so that all are aligned."""
    for name, spec in specs.items():
        _check_writable(name, spec)
    specs = in_file_order(specs)
    zeros = "0" * _DIGITS * (len(specs) + 1)
    # The checksums come first, where readers expect them; those of a source file are dropped.
    fields: dict[str, object] = {METADATA: {SUMS: zeros} | {k: v for k, v in metadata.items() if k != SUMS}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.nbytes
        fields[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise CheckpointError(
            f"the header takes {len(text):,} bytes: at most {HEADER_LIMIT:,} are allowed. "
            "Write in shards, with fewer tensors each."
        )
    header = len(text).to_bytes(8, "little") + text
    return Layout(header, tuple(specs), header.index(zeros.encode()))


def in_file_order(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The same tensors in file order."""
    return dict(sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def _check_writable(name: str, spec: Spec) -> None:
    if spec.dtype not in NAMES:
        raise CheckpointError(
            f"{name} is {spec.dtype}, for which the safetensors format has no name. Nothing was written."
        )
    if len(spec.shape) > AXES:
        raise CheckpointError(f"{name} has {len(spec.shape)} axes: at most {AXES} can be read again.")
    if name == METADATA or not _is_text(name):
        raise CheckpointError(
            f"a tensor cannot be named {name!r} in a safetensors file: rename it. Nothing was written."
        )


def parse(source: Source) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, after checking the whole header."""

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(f"{source.name} is not a valid safetensors file: {why}.")

    if source.size < 8:
        raise refuse(f"it has {source.size} bytes, fewer than the 8 of its header's length")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(HEADER_LIMIT, source.size - 8):
        raise refuse(f"its header should take {length:,} bytes; the file has {source.size:,}")
    text = source.read(8, length)
    try:
        fields = parse_json(text)
        metadata = _strings(fields.pop(METADATA, None))
        tensors = {name: _tensor(source, 8 + length, name, value) for name, value in fields.items()}
    except (ValueError, RecursionError) as error:
        raise refuse(f"its header cannot be understood ({error})") from error
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            how = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise refuse(f"tensor {_brief(name)} {how}")
        end += tensor.nbytes
    if end != source.size:
        why = "it was cut" if end > source.size else "something was added"
        raise refuse(f"its tensors end at byte {end:,}, the file at {source.size:,}: {why}")
    return _with_sums(source, text, tensors, metadata), metadata


def parse_json(text: bytes, fractions: bool = False) -> dict[str, Any]:
    """Parse a JSON object with unique keys, in which all whole numbers are lengths or counts.

    Raises:
        ValueError: it is malformed.
        RecursionError: it is nested too deep.
    """
    if text[:1] != b"{":
        raise ValueError("it does not begin with '{'")
    return json.loads(
        text.decode(),
        object_pairs_hook=_unique,
        parse_int=_length if _DOUBTFUL.search(text) else int,  # which takes a third of the time
        parse_float=float if fractions else _no_number,
        parse_constant=_no_number,
    )


def _length(digits: str) -> int:
    if len(digits) > 19 or digits.startswith("-"):  # reading millions of digits takes minutes before 3.11
        raise ValueError(f"{digits[:40]} is no whole number from 0 to 2⁶³")
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no whole number")


def _tensor(source: Source, data: int, name: str, field: object) -> FileTensor:
    what = f"tensor {_brief(name)}"
    if not is_dict(field) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} is {_brief(field)}: needs dtype, shape and data_offsets")
    dtype, shape, offsets = (
        field["dtype"],
        _counts(what, field["shape"]),
        _counts(what, field["data_offsets"]),
    )
    if not isinstance(dtype, str) or dtype not in BY_NAME:
        raise ValueError(f"{what} has dtype {_brief(dtype)}, none of {', '.join(BY_NAME)}")
    # prod of millions of factors would take hours, and NumPy has no such arrays, even of no elements.
    if len(shape) > AXES or prod(max(n, 1) for n in shape) * BY_NAME[dtype].itemsize > sys.maxsize:
        raise ValueError(f"{what} has the shape {_brief(list(shape))}, which an array cannot have")
    needed = prod(shape) * BY_NAME[dtype].itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != needed:
        raise ValueError(
            f"{what}, {dtype} of shape {_brief(list(shape))}, takes {needed:,} bytes, "
            f"its data_offsets are {_brief(list(offsets))}"
        )
    return FileTensor(source, data + offsets[0], BY_NAME[dtype], shape)


def _counts(what: str, value: object) -> tuple[int, ...]:
    numbers: list[Any] = value if is_list(value) else [None]
    if any(type(n) is not int for n in numbers):
        raise ValueError(f"{what} has {_brief(value)} where whole numbers belong")
    return tuple(numbers)


def _with_sums(
    source: Source, text: bytes, tensors: dict[str, FileTensor], metadata: Mapping[str, str]
) -> dict[str, FileTensor]:
    if SUMS not in metadata:
        return tensors
    sums, found = metadata[SUMS], text.find(metadata[SUMS].encode())
    blank = text[:found] + b"0" * _DIGITS + text[found + _DIGITS :]
    header = len(text).to_bytes(8, "little") + blank
    try:
        if f"{zlib.crc32(header):08x}" != sums[:_DIGITS]:
            raise CheckpointError(f"{source.name} is damaged: its header is not the one that was written.")
        crcs = [int(sums[i : i + _DIGITS], 16) for i in range(_DIGITS, len(sums), _DIGITS)]
        ordered = sorted(tensors, key=lambda n: (tensors[n].offset, -tensors[n].dtype.itemsize, n))
        return {name: replace(tensors[name], crc=crc) for name, crc in zip(ordered, crcs, strict=True)}
    except ValueError as error:
        raise CheckpointError(f"{source.name}: its checksums {sums[:40]!r} are malformed.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{_brief(name)} is a duplicate key")
    if not all(map(_is_text, fields)):
        raise ValueError("a name is half of a surrogate pair, which is no Unicode")
    return fields


def _strings(metadata: object) -> dict[str, str]:
    if metadata is None:  # some programs write null for no metadata
        return {}
    strings = {str(k): v for k, v in metadata.items() if isinstance(v, str)} if is_dict(metadata) else {}
    if not is_dict(metadata) or len(strings) != len(metadata) or not all(map(_is_text, strings.values())):
        raise ValueError(f"{METADATA} must map strings to strings")
    return strings


def _is_text(string: str) -> bool:
    """Whether UTF-8 can encode it: JSON's escapes allow unpaired surrogates, which cannot be printed."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def crc_of_both(first: int, second: int, length: int) -> int:
    """``zlib.crc32(a + b)`` from ``zlib.crc32(a)``, ``zlib.crc32(b)`` and ``len(b)``.

    A CRC is the remainder of the bytes read as a polynomial over GF(2); appending n bytes multiplies what
    came before by x⁸ⁿ. Bits are reflected, as zlib has them: the highest bit of a number is x⁰.

    Examples:
        >>> crc_of_both(zlib.crc32(b"left "), zlib.crc32(b"right"), 5) == zlib.crc32(b"left right")
        True

    Source: the function crc32_combine of zlib.
    """
    return _product(_shift(length), first) ^ second


_POLYNOMIAL = 0xEDB88320
_ONE, _BYTE = 1 << 31, 1 << 23  # x⁰ and x⁸


def _product(a: int, b: int) -> int:
    """A·b modulo the polynomial."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """``x^(8·length)`` modulo the polynomial, by repeated squaring."""
    power, square = _ONE, _BYTE
    while length:
        if length & 1:
            power = _product(power, square)
        square = _product(square, square)
        length >>= 1
    return power
