"""Files of torch: what torch.load reads from them is what polyak reads, to the bit."""

from __future__ import annotations

import io
import random
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
from polyak.checkpoints.formats import open_weights
from polyak.checkpoints.formats.pickles import Record
from polyak.torch.files import as_array

BASE = torch.arange(60.0).reshape(10, 6) / 7
TENSORS = {
    "plain": BASE,
    "transposed": BASE.t(),
    "window": BASE[2:5, 1:4],
    "step": BASE[::3, ::2],
    "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.ones(3, 1).expand(3, 4),
    "number": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "one of one": torch.ones(1, 1)[:, 0:1],
    "parameter": nn.Parameter(torch.randn(2, 2)),
    "buffer": nn.Buffer(torch.ones(2)),
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
}
NEWER = {  # the stream format cannot hold these: torch itself fails to load them from it
    "float8_e4m3fn": torch.randn(4).to(torch.float8_e4m3fn),
    "float8_e5m2": torch.randn(4).to(torch.float8_e5m2),
    "uint16": torch.arange(3).to(torch.uint16),
    "uint64": torch.arange(3).to(torch.uint64),
}


def bits(tensor: torch.Tensor) -> bytes:
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
        assert list(weights.slots) == list(expected)
        for name, tensor in expected.items():
            slot = weights.slots[name]
            assert slot.shape == tuple(tensor.shape), name
            assert str(slot.dtype) == str(tensor.dtype).removeprefix("torch."), name
            assert slot.read().tobytes() == bits(tensor), name
            part = np.empty(slot.size // 2, slot.dtype)
            slot.read_into(slot.size - len(part), part)  # pieces are parts of the whole
            assert part.tobytes() == slot.read().reshape(-1)[slot.size - len(part) :].tobytes(), name


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
            weights.slots
        )
        assert weights.others["epoch"] == 3
        assert weights.others["best"] == 0.5
        assert weights.others["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
        assert weights.slots["model.0.weight"].read().tobytes() == bits(model[0].weight)
        assert weights.slots["numbers"].read().tolist() == [0, 1, 2, 3]


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
        assert weights.slots == {}


def test_tensors_that_share_memory_are_each_read_whole(tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    torch.save({"a": tied, "b": tied, "c": tied[1:]}, tmp_path / "a.pt")
    with open_weights(tmp_path / "a.pt") as weights:
        assert weights.slots["b"].read().tobytes() == bits(tied)
        assert weights.slots["c"].read().tobytes() == bits(tied[1:])


def test_a_sharded_folder_of_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin", '
        '"b": "pytorch_model-00002-of-00002.bin"}}'
    )
    with open_weights(tmp_path) as weights:
        assert weights.format == "pytorch"
        assert {name: slot.read().tolist() for name, slot in weights.slots.items()} == {
            "a": [1, 1],
            "b": [0, 0, 0],
        }


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    big = torch.zeros(1 << 28, dtype=torch.uint8)
    torch.save({"big": big, "small": torch.ones(3)}, tmp_path / "big.pt")
    del big
    tracemalloc.start()
    with open_weights(tmp_path / "big.pt") as weights:
        assert weights.slots["small"].read().tolist() == [1, 1, 1]
        assert weights.slots["big"].nbytes == 1 << 28
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
        (lambda e: e.pop("a/data.pkl"), "none of torch.save"),
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


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_mutated_files_never_crash(tmp_path: Path, zipped: bool) -> None:
    """Bits flipped, bytes replaced, cut: an error of ours, or tensors of a bounded size."""
    buffer = io.BytesIO()
    saved = {"model": {"w": BASE, "t": BASE.t(), "b": torch.ones(3).bfloat16()}, "n": np.arange(3), "e": 7}
    torch.save(saved, buffer, _use_new_zipfile_serialization=zipped)
    whole, chance, path = buffer.getvalue(), random.Random(0), tmp_path / "mutated.pt"
    refused = 0
    tracemalloc.start()
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at] = chance.choice([data[at] ^ 1 << chance.randrange(8), chance.randrange(256), 0xFF, 0])
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            with open_weights(path) as weights:
                for slot in weights.slots.values():
                    assert slot.nbytes <= 8 * len(data)
                    slot.read()
        except CheckpointError:
            refused += 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert refused > 200


def test_bfloat16_is_that_of_ml_dtypes(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.5]).bfloat16()}, tmp_path / "a.pt")
    with open_weights(tmp_path / "a.pt") as weights:
        assert weights.slots["w"].read().dtype == ml_dtypes.bfloat16
