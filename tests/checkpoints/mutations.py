"""Files as damage, other programs and attackers would make them of a good one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy

from polyak._dtypes import BY_NAME

Mutation = Callable[[bytes, random.Random], bytes]

_JSON_TOKENS = (
    b"null true false -1 -0 1e999 NaN -Infinity 1.0 0 1 2 18446744073709551616 9223372036854775808 "
    b'[] {} "" "F32" "F64" "BF16" "U8" "BOOL" "F4" "x" [[]] [0,0] "\\ud800" "\\u0000" \xff \x00'
).split(b" ")


def plain(rng: random.Random) -> bytes:
    """A file of another program, without checksums: a few small tensors."""
    arrays: dict[str, np.ndarray] = {}
    for i in range(rng.randint(0, 5)):
        shape = tuple(rng.randint(0, 3) for _ in range(rng.randint(0, 3)))
        dtype = np.dtype(rng.choice(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"]))
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[f"{'abc'[i % 3]}{i}"] = np.frombuffer(
            bytes(rng.randint(0, 1) for _ in range(size)), dtype
        ).reshape(shape)
    return safetensors.numpy.save(arrays, {"format": "pt"} if rng.random() < 0.5 else None)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header and tensors."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def joined(header: bytes, tensors: bytes) -> bytes:
    """A file whose first eight bytes tell the truth."""
    return len(header).to_bytes(8, "little") + header + tensors


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def set_bytes(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    place = rng.randrange(len(damaged))
    for i in range(place, min(place + rng.choice([1, 2, 8, 64]), len(damaged))):
        damaged[i] = rng.choice([0, 255, 32, 34, rng.randrange(256)])
    return bytes(damaged)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 100]))


def insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]


def delete(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randint(1, 9) :]


def duplicate_block(data: bytes, rng: random.Random) -> bytes:
    """A block in the place of another, as a disk or a copy over a network can make it."""
    size = rng.choice([1, 4, 16, 64])
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    block = data[source : source + size]
    return data[:target] + block + data[target + len(block) :]


def zero_block(data: bytes, rng: random.Random) -> bytes:
    """What a power cut leaves of pages that were not yet written."""
    place = rng.randrange(len(data))
    count = min(rng.choice([8, 64, 512]), len(data) - place)
    return data[:place] + b"\0" * count + data[place + count :]


def set_length(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    others = [0, 1, length - 1, length + 1, length + 8, len(data) - 8, len(data), 2**31, 2**63, 2**64 - 1]
    return (rng.choice(others) % 2**64).to_bytes(8, "little") + data[8:]


def edit_header_text(data: bytes, rng: random.Random) -> bytes:
    """Put a word of JSON somewhere, the length kept right."""
    header, tensors = split(data)
    place = rng.randrange(len(header) + 1)
    end = place + rng.choice([0, 0, 1, 2, 5])
    return joined(header[:place] + rng.choice(_JSON_TOKENS) + header[end:], tensors)


def edit_header_fields(data: bytes, rng: random.Random) -> bytes:
    """Change what the header says of one tensor, the text valid JSON and the length right."""
    header, tensors = split(data)
    fields: dict[str, Any] = json.loads(header)
    names = [name for name in fields if name != "__metadata__"]
    if not names:
        return joined(json.dumps({"x": {}}).encode(), tensors)
    name = rng.choice(names)
    field = fields[name]
    change = rng.randrange(9)
    if change == 0:
        field["dtype"] = rng.choice([*BY_NAME, "F4", "f32", "", None, 3, ["F32"]])
    elif change == 1 and field["shape"]:
        axis = rng.randrange(len(field["shape"]))
        field["shape"][axis] = rng.choice([0, 1, -1, 2**31, 2**63, 2**64, 1.0, "1", None, True])
    elif change == 2:
        field["shape"] = rng.choice([[], [0], [0] * 70, [1] * 70, [2**32, 2**32], None, {}, "", [[]]])
    elif change == 3:
        place = rng.randrange(2)
        field["data_offsets"][place] += rng.choice([-1, 1, -8, 8, 2**31, 2**63, 2**64, -(2**63)])
    elif change == 4:
        other = fields[rng.choice(names)]
        field["data_offsets"], other["data_offsets"] = other["data_offsets"], field["data_offsets"]
    elif change == 5:
        fields[rng.choice([*names, "new", "", "__metadata__"])] = dict(field)
    elif change == 6:
        del field[rng.choice(list(field))]
    elif change == 7:
        del fields[name]
    else:
        fields = dict(reversed(fields.items()))
    return joined(json.dumps(fields).encode(), tensors)


def repeat_name(data: bytes, rng: random.Random) -> bytes:
    header, tensors = split(data)
    inside = header.strip()[1:-1]
    return joined(b"{" + inside + b"," + inside + b"}" if inside else b"{,}", tensors)


def swap_tensors(data: bytes, rng: random.Random) -> bytes:
    """The bytes of two tensors exchanged, the header untouched."""
    header, tensors = split(data)
    fields = json.loads(header)
    places = sorted(f["data_offsets"] for name, f in fields.items() if name != "__metadata__")
    if len(places) < 2:
        return data
    (a, b), (c, d) = sorted(rng.sample(places, 2))
    return joined(header, tensors[:a] + tensors[c:d] + tensors[b:c] + tensors[a:b] + tensors[d:])


def swap_names(data: bytes, rng: random.Random) -> bytes:
    """Two tensors under each other's names."""
    header, tensors = split(data)
    fields = json.loads(header)
    names = [name for name in fields if name != "__metadata__"]
    if len(names) < 2:
        return data
    a, b = rng.sample(names, 2)
    fields[a], fields[b] = fields[b], fields[a]
    return joined(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(), tensors)


def pad_header(data: bytes, rng: random.Random) -> bytes:
    header, tensors = split(data)
    space = rng.choice([b" ", b"\n", b"\t", b"\0", b"        "])
    return joined(header + space if rng.random() < 0.5 else space + header, tensors)


# Those that ask nothing of what they change.
ANY_BYTES: tuple[Mutation, ...] = (
    flip_bits,
    set_bytes,
    truncate,
    extend,
    insert,
    delete,
    duplicate_block,
    zero_block,
)
MUTATIONS: tuple[Mutation, ...] = (
    *ANY_BYTES,
    set_length,
    edit_header_text,
    edit_header_fields,
    repeat_name,
    swap_tensors,
    swap_names,
    pad_header,
)
