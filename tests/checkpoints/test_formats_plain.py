"""Pickles that torch.save did not write, and files whose first bytes could be another format's."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("size", [3, 5000])  # bytes within the pickle, and left in the file
@pytest.mark.parametrize("protocol", [2, 4])  # protocol 2 spells bytes as text
def test_tensors_in_a_plain_pickle(dtype: torch.dtype, size: int, protocol: int, tmp_path: Path) -> None:
    tensor = (torch.arange(size * 2) % 2).to(dtype)
    tree = {"a": tensor, "rows": tensor.view(2, size)[1], "turned": tensor.view(2, size).t()}
    path = tmp_path / "tree.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    with open_weights(path) as weights:
        assert weights.format == "pytorch"
        assert list(weights.tensors) == list(tree)
        for name, lazy in weights.tensors.items():
            expected = tree[name].contiguous().view(-1).view(torch.uint8).numpy()
            assert lazy.shape == tuple(tree[name].shape)
            assert lazy.read().reshape(-1).view(np.uint8).tobytes() == expected.tobytes()


class Caller:
    """Asks the reader of its pickle to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_call_in_a_plain_pickle_is_not_made(tmp_path: Path) -> None:
    tree = {"a": torch.ones(2), "b": Caller(tmp_path / "made")}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(tree))
    with open_weights(tmp_path / "bad.pkl") as weights:
        assert weights.tensors["a"].read().tolist() == [1, 1]
        assert weights.others["b"].name == "mkdir"
    assert not (tmp_path / "made").exists()


class Nested:
    """A storage whose bytes are a file that holds something else."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        torch.save(self.inner, buffer, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (buffer.getvalue(),)


@pytest.mark.parametrize("inner", ["text", {"a": 1}, torch.ones(3)])
def test_a_storage_must_be_one(inner: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"a": Nested(inner)}))
    with pytest.raises(CheckpointError, match="holds something else than one storage"):
        open_weights(tmp_path / "bad.pkl")


def test_what_describes_a_storage_is_short(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"a": Nested(["text"] * 1000)}))
    with pytest.raises(CheckpointError, match="its structure takes more than 1,024 bytes"):
        open_weights(tmp_path / "bad.pkl")


@pytest.mark.parametrize(("size", "times"), [(3, 70_000), (500_000, 100)], ids=["small", "as text"])
def test_one_storage_is_not_opened_again_and_again(size: int, times: int, tmp_path: Path) -> None:
    """Its bytes stand in the file once, but each call of the loader would open or copy them anew."""
    inner = io.BytesIO()
    torch.save(torch.zeros(size).untyped_storage(), inner, _use_new_zipfile_serialization=False)
    spelled = inner.getvalue().decode("latin1").encode()
    start = b"c_codecs\nencode\nX" + len(spelled).to_bytes(4, "little") + spelled
    start += b"X\x06\x00\x00\x00latin1\x86R\x85q\x000ctorch.storage\n_load_from_bytes\nq\x010"
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x02" + start + b"](" + b"h\x01h\x00R" * times + b"e.")
    with pytest.raises(CheckpointError, match=r"(structure|reading it) takes more than"):
        open_weights(tmp_path / "bad.pkl")


def test_a_call_inside_a_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"a": Nested(Caller(tmp_path / "made"))}))
    with pytest.raises(CheckpointError, match="something else than one storage"):
        open_weights(tmp_path / "bad.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x0480, 0x8A0280 & 0xFFF8, 0x100])
def test_a_safetensors_header_of_any_length_is_none_of_a_pickle(length: int, tmp_path: Path) -> None:
    path, values = tmp_path / "a.safetensors", {"x": np.arange(3, dtype=np.float32)}
    write_arrays(path, values, {"pad": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    write_arrays(path, values, {"pad": "x" * ((length - short) % 0x10000)})
    assert (int.from_bytes(path.read_bytes()[:8], "little") - length) % 0x10000 == 0
    with open_weights(path) as weights:
        assert weights.format == "safetensors"
        assert np.array_equal(weights.tensors["x"].read(), values["x"])
