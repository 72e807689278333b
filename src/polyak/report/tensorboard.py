"""The scalars in TensorBoard's event files, without TensorBoard.

A file is a list of records: length (uint64), a checksum of it, that many bytes, a checksum of these; all
little-endian. The bytes are a protocol buffer ``Event``: 2 step, 5 summary, whose field 1 is a value: 1 tag,
2 simple_value, 8 tensor (4 dtype aside: 1 dtype, 4 tensor_content, 5 float_val, 6 double_val).

Source: ``event.proto``, ``summary.proto``, ``tensor.proto`` of TensorBoard; ``record_writer`` of TensorFlow.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from polyak.report.logs import Read, Row

_FLOAT, _DOUBLE = 1, 2  # of the enum DataType
_Field: TypeAlias = tuple[int, int | bytes]


def events(path: Path, begin: int = 0) -> Read:
    """Rows of one value each, with its step, in the order they were written.

    Args:
        path: of a file named ``events.out.tfevents.…``.
        begin: the ``end`` of the call before; a last record that is incomplete is left for the next call.

    Raises:
        ValueError: a record is no event.
    """
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read()
    rows: list[Row] = []
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 12 + length + 4
        if end > len(data):
            break
        rows.extend(_rows(data[at + 12 : end - 4]))
        at = end
    return Read(rows, begin + at)


def _rows(event: bytes) -> Iterator[Row]:
    fields = list(_fields(event))
    step = next((value for number, value in fields if number == 2), 0)
    for number, summary in fields:
        for inner, value in _fields(summary) if number == 5 and isinstance(summary, bytes) else ():
            if inner == 1 and isinstance(value, bytes):
                tag, scalar = _scalar(value)
                if scalar is not None and math.isfinite(scalar) and isinstance(step, int):
                    yield {"step": step, tag: scalar}


def _scalar(value: bytes) -> tuple[str, float | None]:
    tag, found = "", None
    for number, field in _fields(value):
        if number == 1 and isinstance(field, bytes):
            tag = field.decode("utf-8", errors="replace")
        elif number == 2 and isinstance(field, bytes):
            found = struct.unpack("<f", field)[0]
        elif number == 8 and isinstance(field, bytes):
            found = _tensor(field)
    return tag, found


def _tensor(tensor: bytes) -> float | None:
    """The value of a tensor of one float; None of any other."""
    fields = dict(_fields(tensor))
    kind = fields.get(1)
    content = fields.get(4) or fields.get(5 if kind == _FLOAT else 6)
    if kind not in (_FLOAT, _DOUBLE) or not isinstance(content, bytes):
        return None
    layout = "<f" if kind == _FLOAT else "<d"
    return struct.unpack(layout, content)[0] if len(content) == struct.calcsize(layout) else None


def _fields(message: bytes) -> Iterator[_Field]:
    """Numbers and values of a protocol buffer's fields: varints as int, all others as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, at = _varint(message, at)
        if length is None or at + length > len(message):
            raise ValueError(f"field {number} of wire type {wire} is no part of an event")
        yield number, message[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number in an event has no end")
