"""What lies beside weights, what is no checkpoint, and what is too much work: read past, named, refused."""

from __future__ import annotations

import enum
import functools
import gzip
import struct
import time
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyak
from polyak import CheckpointError
from polyak._foreign.open_any import open_weights
from polyak._foreign.pickle_objects import Record
from polyak.cli.describe import describe
from polyak.convert.convert import convert


class Schedule(enum.Enum):
    COSINE = "cosine"


class Owner:
    def method(self) -> None: ...


BESIDE: dict[str, Any] = {
    "enum": Schedule.COSINE,
    "partial": functools.partial(torch.optim.AdamW, lr=1e-3),
    "method": Owner().method,
    "range": range(3),
    "namespace": types.SimpleNamespace(lr=1),
    "generator": np.random.default_rng(0),
    "torch generator": torch.Generator(),
    "text": np.array(["a", "bc"]),
    "word": np.str_("abc"),
    "objects": np.array([{}, None], object),
    "time": np.datetime64("2026-01-01"),
    "a class": Owner,
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_tensors_are_read_whatever_is_beside_them(tmp_path: Path, kind: str, new: bool) -> None:
    path = tmp_path / "a.pt"
    saved = {"state_dict": {"w": torch.arange(3.0)}, "hyper_parameters": {"x": BESIDE[kind]}}
    torch.save(saved, path, _use_new_zipfile_serialization=new)
    with open_weights(path) as weights:
        assert {name: tensor.read().tolist() for name, tensor in weights.tensors.items()} == {
            "state_dict.w": [0, 1, 2]
        }


class Quantized:
    """What a function of another library makes of a tensor."""

    def __reduce__(self) -> Any:
        return functools.partial, (print, torch.ones(2))


UNREADABLE: dict[str, tuple[Any, str]] = {
    "sparse": (torch.eye(3).to_sparse(), "sparse"),
    "meta": (torch.ones(3, device="meta"), "meta device"),
    "unknown": (Quantized(), "made by functools.partial"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_tensor_that_is_no_array_is_named_as_what_it_is(tmp_path: Path, kind: str) -> None:
    value, says = UNREADABLE[kind]
    path = tmp_path / "a.pt"
    torch.save({"w": value, "b": torch.ones(2)}, path)
    for refused in (
        lambda: polyak.average_checkpoints([path, path], tmp_path / "o.safetensors"),
        lambda: convert(path, tmp_path / "o.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=says):
            refused()
    assert not (tmp_path / "o.safetensors").exists()
    found: Any = describe(path)
    assert any(says in dtype for part in found.parts for dtype in part.tensors.dtypes)


OTHERS = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
    "web page": b"\n<!DOCTYPE html><html></html>",
    "web page ": b"<HTML><body>",
    "gzip": gzip.compress(b"x" * 99),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "GGUF": b"GGUF\x03\0\0\0" + bytes(20),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "is empty": b"",
}


@pytest.mark.parametrize("says", OTHERS)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, says: str) -> None:
    (tmp_path / "a.pt").write_bytes(OTHERS[says])
    with pytest.raises(CheckpointError, match=says.strip()) as refused:
        open_weights(tmp_path / "a.pt")
    assert "header" not in str(refused.value)


def test_a_program_of_torchscript_is_called_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            made.writestr(f"a/{name}", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=r"TorchScript.*torch\.jit\.load"):
        open_weights(tmp_path / "a.pt")


def place_of(path: Path, key: str) -> int:
    """Where the bytes of a storage begin."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{path.stem}/data/{key}").header_offset
    return start + 30 + sum(struct.unpack("<HH", data[start + 26 : start + 30]))


@pytest.mark.parametrize("tensor", [torch.ones(1000), torch.ones(40, 50).T, torch.ones(1000)[10:90]])
def test_a_flipped_bit_in_a_storage_is_found(tmp_path: Path, tensor: torch.Tensor) -> None:
    """Whole, strided, or a view of a part: then the bit may lie anywhere in the storage."""
    path = tmp_path / "a.pt"
    torch.save({"w": tensor}, path)
    with open_weights(path) as weights:
        assert weights.tensors["w"].read().tolist() == tensor.tolist()
    data = bytearray(path.read_bytes())
    data[place_of(path, "0") + 3] ^= 0x40
    path.write_bytes(data)
    with open_weights(path) as weights, pytest.raises(CheckpointError, match="damaged"):
        weights.tensors["w"].read()
    with pytest.raises(CheckpointError, match="damaged"):
        polyak.average_checkpoints([path], tmp_path / "o.safetensors")


def test_a_file_without_sums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(10)}, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        sums = {zlib.crc32(archive.read(info)) for info in archive.infolist()}
    for crc in sums:
        data = data.replace(crc.to_bytes(4, "little"), bytes(4))
    path.write_bytes(data)
    with open_weights(path) as weights:
        assert weights.tensors["w"].read().tolist() == [1] * 10


def pickled(path: Path, body: bytes, storages: dict[str, bytes]) -> Path:
    """A file of torch.save with this program."""
    entries = {"data.pkl": b"\x80\x02" + body + b".", "byteorder": b"little"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | {f"data/{key}": value for key, value in storages.items()}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: str) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K\x10tQ"


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor(shape: int, stride: int) -> bytes:
    sizes = whole(shape) + b"\x85" + whole(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage("0") + b"K\0" + sizes + b"\x89NtR"


def complex_keys(count: int) -> bytes:
    """Keys with one hash, as hash(a + bi) = hash(a) + 1000003·hash(b)."""
    made = (
        b"h\0G" + struct.pack(">d", 2.0**52 - 1000003 * k) + b"G" + struct.pack(">d", k) + b"\x86RN"
        for k in range(count)
    )
    return b"cbuiltins\ncomplex\nq\0000}(" + b"".join(made) + b"u"


LONG = "k" * 60_000
WORK: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "keys of one hash": (complex_keys(40_000), {}),
    "keys of one hash, few": (complex_keys(8_000), {}),
    "persistent ids": (storage(LONG)[:-1] + b"q\0Q0" + b"h\0Q0" * 500_000 + b"N", {LONG: bytes(64)}),
    "short persistent ids": (storage("0")[:-1] + b"q\0Q0" + b"h\0Q0" * 2_000_000 + b"N", {"0": bytes(64)}),
    "opcodes": (b"N0" * 4_500_000 + b"N", {}),
    "memo": (b"N" + b"q\0" * 4_500_000, {}),
    "shared lists": (
        b"]q\0(" + b"N" * 5000 + b"e0]q\1(" + b"h\0" * 5000 + b"e0](" + b"h\1" * 5000 + b"e",
        {},
    ),
    "expanded": (
        b"}(" + b"".join(text(f"t{i}") + tensor(1 << 26, 0) for i in range(40)) + b"u",
        {"0": bytes(64)},
    ),
    "lists copied": (
        b"cbuiltins\nlist\nq\0](" + b"N" * 50_000 + b"e\x85q\x010](" + b"h\0h\1R" * 200_000 + b"e",
        {},
    ),
}


@pytest.mark.parametrize("kind", WORK)
@pytest.mark.slow
def test_much_work_in_a_small_file_is_refused_in_time(tmp_path: Path, kind: str) -> None:
    path = pickled(tmp_path / "a.pt", *WORK[kind])
    assert path.stat().st_size < 10e6
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="malformed"):
        open_weights(path)
    assert time.process_time() - begun < 10  # two on an idle machine


def test_a_call_stays_a_record_of_it(tmp_path: Path) -> None:
    torch.save({"x": BESIDE["enum"]}, tmp_path / "a.pt")
    with open_weights(tmp_path / "a.pt") as weights:
        found = weights.others["x"]
    assert isinstance(found, Record)
    assert (found.module, found.name, found.args) == (__name__, "Schedule", ("cosine",))
