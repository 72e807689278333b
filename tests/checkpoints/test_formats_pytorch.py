"""Files of torch: what torch.load reads from them is what polyak reads, to the bit."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from polyak import CheckpointError
from polyak._foreign.open_any import open_weights
from polyak._foreign.pickle_objects import Record
from polyak.torch.tensors import as_array

BASE = torch.arange(60.0).reshape(10, 6) / 7
TENSORS = {
    "plain": BASE,
    "transposed": BASE.t(),
    "window": BASE[2:5, 1:4],
    "step": BASE[::3, ::2],
    "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.ones(3, 1).expand(3, 4),
    "expanded far": torch.ones(1).expand(1000),
    "number": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "one of one": torch.ones(1, 1)[:, 0:1],
    "parameter": nn.Parameter(torch.randn(2, 2)),
    **({"buffer": nn.Buffer(torch.ones(2))} if torch.__version__ >= (2, 5) else {}),
    "float64": torch.randn(3, dtype=torch.float64),
    "bfloat16": torch.randn(5).bfloat16(),
    "float16": torch.randn(5).half(),
    "complex64": torch.randn(2, 2, dtype=torch.complex64),
    "complex128": torch.randn(2, dtype=torch.complex128),
    "bool": torch.tensor([True, False, True]),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "int8": torch.arange(-2, 3, dtype=torch.int8),
    "int16": torch.arange(-2, 3, dtype=torch.int16),
    "int32": torch.arange(-2, 3, dtype=torch.int32),
    "int64": torch.tensor([2**62, -1]),
    "conjugated": torch.tensor([1 + 2j, -3j]).conj(),
    "turned and conjugated": torch.arange(6).reshape(2, 3).to(torch.complex64).mul(1j).mH,
    "negated": torch.tensor([1 + 2j, -3j]).conj().imag,
}
NEWER = {  # the stream format cannot hold these: torch itself fails to load them from it
    "float8_e4m3fn": torch.randn(4).to(torch.float8_e4m3fn),
    "float8_e5m2": torch.randn(4).to(torch.float8_e5m2),
}
if torch.__version__ >= (2, 6):  # older ones write these and cannot read them
    NEWER |= {kind: torch.arange(3).to(getattr(torch, kind)) for kind in ("uint16", "uint64")}


def bits(tensor: torch.Tensor) -> bytes:
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype == torch.complex128:
        return tensor.detach().contiguous().numpy().tobytes()
    return as_array(tensor).tobytes()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_every_tensor_is_the_one_that_torch_reads(tmp_path: Path, zipped: bool) -> None:
    path, tensors = tmp_path / "a.pt", TENSORS | (NEWER if zipped else {})
    torch.save(OrderedDict(tensors), path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    with open_weights(path) as weights:
        assert weights.format == "pytorch"
        assert list(weights.tensors) == list(expected)
        for name, tensor in expected.items():
            lazy = weights.tensors[name]
            assert lazy.shape == tuple(tensor.shape), name
            assert str(lazy.dtype) == str(tensor.dtype).removeprefix("torch."), name
            assert lazy.read().tobytes() == bits(tensor), name
            part = np.empty(lazy.size // 2, lazy.dtype)
            lazy.read_into(lazy.size - len(part), part)  # pieces are parts of the whole
            assert part.tobytes() == lazy.read().reshape(-1)[lazy.size - len(part) :].tobytes(), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_nested_files_have_dotted_names_and_keep_the_rest(tmp_path: Path, zipped: bool) -> None:
    path, model = tmp_path / "a.ckpt", nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    saved: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    saved |= {
        "rng": np.random.default_rng(0).bit_generator.state,
        "numbers": np.arange(4.0),
        "best": np.float64(0.5),
    }
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with open_weights(path) as weights:
        assert {"model.0.weight", "model.1.running_var", "optimizer.state.0.exp_avg", "numbers"} <= set(
            weights.tensors
        )
        assert weights.others["epoch"] == 3
        assert weights.others["best"] == 0.5
        assert weights.others["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
        assert weights.tensors["model.0.weight"].read().tobytes() == bits(model[0].weight)
        assert weights.tensors["numbers"].read().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_is_looked_into_without_its_class(tmp_path: Path, zipped: bool) -> None:
    path, model = tmp_path / "whole.pt", nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    torch.save({"ema": model, "updates": 7}, path, _use_new_zipfile_serialization=zipped)
    with open_weights(path) as weights:
        record = weights.others["ema"]
        assert isinstance(record, Record)
        assert (record.module, record.name) == ("torch.nn.modules.container", "Sequential")
        linear = record.state["_modules"]["0"]
        assert linear.state["_parameters"]["weight"].read().tobytes() == bits(model[0].weight)
        assert weights.tensors == {}


def test_tensors_that_share_memory_are_each_read_whole(tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    torch.save({"a": tied, "b": tied, "c": tied[1:]}, tmp_path / "a.pt")
    with open_weights(tmp_path / "a.pt") as weights:
        assert weights.tensors["b"].read().tobytes() == bits(tied)
        assert weights.tensors["c"].read().tobytes() == bits(tied[1:])


def test_a_sharded_folder_of_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin", '
        '"b": "pytorch_model-00002-of-00002.bin"}}'
    )
    with open_weights(tmp_path) as weights:
        assert weights.format == "pytorch"
        assert {name: lazy.read().tolist() for name, lazy in weights.tensors.items()} == {
            "a": [1, 1],
            "b": [0, 0, 0],
        }


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    big = torch.zeros(1 << 28, dtype=torch.uint8)
    torch.save({"big": big, "small": torch.ones(3)}, tmp_path / "big.pt")
    del big
    tracemalloc.start()
    with open_weights(tmp_path / "big.pt") as weights:
        assert weights.tensors["small"].read().tolist() == [1, 1, 1]
        assert weights.tensors["big"].nbytes == 1 << 28
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def damaged(path: Path, change: Any) -> None:
    """The zip file written again with entries changed."""
    with zipfile.ZipFile(path) as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.pop("a/data/0"), "entry a/data/0 is missing"),
        (lambda e: e.update({"a/data/0": b"12"}), "storage 0 should have 240 bytes and has 2"),
        (lambda e: e.update({"a/byteorder": b"big"}), "big-endian"),
        (lambda e: e.pop("a/data.pkl"), "not one of torch.save"),
        (lambda e: e.update({"a/data.pkl": e["a/data.pkl"][:50]}), "cannot be understood as a pickle"),
        (lambda e: e.update({"a/data.pkl": b"\x80\x02" + b"(" * 60_000 + b"."}), "cannot be understood"),
        (
            lambda e: e.update({"a/data.pkl": e["a/data.pkl"].replace(b"K\x0aK\x06\x86", b"K\xffK\xff\x86")}),
            "reaches beyond",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Any, words: str) -> None:
    torch.save({"plain": BASE}, tmp_path / "a.pt")
    damaged(tmp_path / "a.pt", change)
    with pytest.raises(CheckpointError, match=words):
        open_weights(tmp_path / "a.pt")


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    torch.save({"plain": BASE}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(CheckpointError, match="is compressed"):
        open_weights(tmp_path / "b.pt")


def test_bfloat16_is_that_of_ml_dtypes(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.5]).bfloat16()}, tmp_path / "a.pt")
    with open_weights(tmp_path / "a.pt") as weights:
        assert weights.tensors["w"].read().dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.empty(3, device="meta"), "without values"),
        pytest.param(
            lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
            r"torch\.float4_e2m1fn_x2",
            marks=pytest.mark.skipif(torch.__version__ < (2, 8), reason="torch has no such dtype"),
            id="4 bits",
        ),
        (lambda: torch.zeros(2, dtype=torch.complex32), r"torch\.complex32"),
    ],
    ids=["sparse", "csr", "quantised", "meta", None, "complex32"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_array_keeps_its_name_and_is_not_read(
    tmp_path: Path, tensor: Any, what: str, zipped: bool
) -> None:
    saved = {"odd": tensor(), "even": torch.ones(2)}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with open_weights(tmp_path / "a.pt") as weights:
        assert weights.tensors["even"].read().tolist() == [1, 1]
        with pytest.raises(CheckpointError, match=f"a tensor is .*{what}"):
            weights.tensors["odd"].read()


def test_an_id_that_is_no_storages(tmp_path: Path) -> None:
    """Ids are not measured when they are used, and one can be used again and again."""
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x3c"
    doubled = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"0"
    bad_class = b"(X\x07\x00\x00\x00storageh\x3cX\x01\x00\x00\x000NK\x3ctQ"
    for program, words in (
        (pid + b"NNNtQ", "torch does not write"),
        (b"K\x01Q", "torch does not write"),
        (doubled + bad_class, r"a tensor lies in a torch\.\?"),
    ):
        torch.save({"plain": BASE}, tmp_path / "a.pt")
        new = b"\x80\x02" + program + b"."
        damaged(tmp_path / "a.pt", lambda entries, new=new: entries.update({"a/data.pkl": new}))
        with pytest.raises(CheckpointError, match=words):
            open_weights(tmp_path / "a.pt")


def rebuilt(shape: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    """The pickle of one tensor over a storage of 60 floats."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x3ctQ"
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


HUGE = b"\x8a\x0a" + (2**70).to_bytes(10, "little")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (rebuilt(b"K\x00" + HUGE + b"\x86", b"K\x01K\x01\x86"), "no array can have"),
        (rebuilt(b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"), "at most .* whole numbers"),
        (rebuilt(b"(" + HUGE * 1000 + b"t", b"(" + b"K\x00" * 1000 + b"t"), "at most .* whole numbers"),
        (rebuilt(b"J\x00\x00\x00\x7f\x85", b"K\x00\x85"), "spread over 1 elements only"),
        (rebuilt(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "whole numbers from 0 on"),
        (rebuilt(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "needs a stride for each axis"),
        (rebuilt(b"K\x02\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"), "needs a stride for each axis"),
        (rebuilt(b"K\x02\x85", b"K\x01\x85", b"K\x3b"), "reaches beyond its 240 bytes"),
        (rebuilt(b"K\x02\x85", b"G\x00\x00\x00\x00\x00\x00\x00\x00\x85"), "needs a stride for each axis"),
    ],
)
def test_shapes_that_no_tensor_has(tmp_path: Path, program: bytes, words: str) -> None:
    torch.save({"plain": BASE}, tmp_path / "a.pt")
    damaged(tmp_path / "a.pt", lambda entries: entries.update({"a/data.pkl": program}))
    with pytest.raises(CheckpointError, match=words):
        open_weights(tmp_path / "a.pt")


def test_the_shape_of_the_program_above_is_right(tmp_path: Path) -> None:
    """Or what is refused there would be refused for something else; a long axis of one has any stride."""
    torch.save({"plain": BASE}, tmp_path / "a.pt")
    shape, stride = b"K\x02K\x01K\x1e\x87", b"K\x01" + HUGE + b"K\x02\x87"
    damaged(tmp_path / "a.pt", lambda entries: entries.update({"a/data.pkl": rebuilt(shape, stride)}))
    with open_weights(tmp_path / "a.pt") as weights:
        expected = BASE.flatten().numpy()
        read = weights.tensors["w"].read()
        np.testing.assert_array_equal(read, np.stack([expected[:60:2], expected[1::2]])[:, None])


@pytest.mark.slow
def test_a_bomb_in_the_byte_order_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"plain": BASE}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for info in old.infolist():
            bomb = info.filename.endswith("byteorder")
            data = b"little" + bytes(100_000_000) if bomb else old.read(info)
            new.writestr(info.filename, data, zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="byteorder is compressed"):
        open_weights(tmp_path / "b.pt")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_directory_larger_than_any_models_is_not_read(tmp_path: Path) -> None:
    size = 70_000_000
    end = b"PK\5\6" + bytes(8) + size.to_bytes(4, "little") + bytes(6)
    with (tmp_path / "a.pt").open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(size)
        file.write(end)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="its directory takes"):
        open_weights(tmp_path / "a.pt")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def pickles(*values: Any) -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in values)


@pytest.mark.parametrize(
    ("info", "keys", "words"),
    [
        (3, [], "big-endian"),
        ({"little_endian": False}, [], "big-endian"),
        ({"little_endian": True}, 3, "lists other storages"),
        ({"little_endian": True}, [[1]], "lists other storages"),
        ({"little_endian": True}, ["1"], "lists other storages"),
    ],
)
def test_streams_that_torch_did_not_write(tmp_path: Path, info: Any, keys: Any, words: str) -> None:
    (tmp_path / "a.pt").write_bytes(pickles(0x1950A86A20F9469CFC6C, 1001, info, {}, keys))
    with pytest.raises(CheckpointError, match=words):
        open_weights(tmp_path / "a.pt")


def test_a_storage_of_a_stream_has_the_length_it_is_said_to_have(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(5)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    assert data[-28:-20] == (5).to_bytes(8, "little")
    data[-28] = 4
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not have 20 bytes"):
        open_weights(tmp_path / "a.pt")
