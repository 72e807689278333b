"""Distributed checkpoints, really written by one process and by two."""

from __future__ import annotations

import dataclasses
import os
import pickle
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from polyak import CheckpointError
from polyak._foreign.open_any import open_weights
from polyak.torch.tensors import as_array

from .dcp_worker import TENSORS

WORKER = Path(__file__).with_name("dcp_worker.py")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks."""
    folder = tmp_path_factory.mktemp("dcp") / "checkpoint"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(WORKER), str(folder)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(port)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    return folder


@pytest.mark.slow
def test_shards_are_put_together(sharded: Path) -> None:
    assert len(list(sharded.glob("*.distcp"))) == 2
    with open_weights(sharded) as weights:
        assert weights.format == "dcp"
        assert set(weights.tensors) == {f"model.{name}" for name in TENSORS}
        for name, tensor in TENSORS.items():
            lazy = weights.tensors[f"model.{name}"]
            assert lazy.shape == tuple(tensor.shape)
            read = lazy.read()
            assert read.dtype == as_array(tensor).dtype
            assert read.tobytes() == as_array(tensor).tobytes(), name
            part = np.empty(lazy.size // 2, lazy.dtype)
            lazy.read_into(lazy.size - len(part), part)
            assert part.tobytes() == read.reshape(-1)[lazy.size - len(part) :].tobytes()


def test_one_process(tmp_path: Path) -> None:
    state = {"w": torch.randn(4, 3), "n": {"b": torch.arange(5)}, "epoch": 3}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=str(tmp_path / "a"))
    with open_weights(tmp_path / "a") as weights:
        assert set(weights.tensors) == {"w", "n.b"}
        np.testing.assert_array_equal(weights.tensors["w"].read(), state["w"].numpy())
        np.testing.assert_array_equal(weights.tensors["n.b"].read(), np.arange(5))
        assert "epoch" in weights.others


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_missing_or_cut_file_is_said(sharded: Path, tmp_path: Path) -> None:
    missing = copied(sharded, tmp_path / "missing")
    (missing / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp"):
        open_weights(missing)
    cut = copied(sharded, tmp_path / "cut")
    whole = (cut / "__0_0.distcp").read_bytes()
    (cut / "__0_0.distcp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is truncated"):
        open_weights(cut)


def test_metadata_that_leaves_the_folder_is_not_followed(sharded: Path, tmp_path: Path) -> None:
    folder = copied(sharded, tmp_path / "a")
    metadata = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"../../secret"))
    with pytest.raises(CheckpointError, match="lies outside"):
        open_weights(folder)


def test_chunks_that_do_not_fill_the_tensor_are_refused(sharded: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.metadata import Metadata

    folder = copied(sharded, tmp_path / "a")
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    entry = metadata.state_dict_metadata["model.rows"]
    for shape, words in ((torch.Size([8, 5]), "without gap"), (torch.Size([6, 5]), "beyond")):
        entry.size = shape
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError, match=words):
            open_weights(folder)
    entry.size = torch.Size([7, 5])
    entry.chunks.append(entry.chunks[0])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="or overlap"):
        open_weights(folder)


def a_place(metadata: Any) -> Any:
    return next(iter(metadata.storage_data.values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.state_dict_metadata["model.rows"], "size", (2**70, 0)),
        lambda m: setattr(m.state_dict_metadata["model.rows"], "size", ("7", 5)),
        lambda m: setattr(m.state_dict_metadata["model.rows"].chunks[0], "offsets", (-1, 0)),
        lambda m: setattr(m.state_dict_metadata["model.rows"].chunks[0], "sizes", (-4, 5)),
        lambda m: setattr(next(iter(m.storage_data.values())), "relative_path", 3),
        lambda m: setattr(next(iter(m.storage_data.values())), "offset", "x"),
        lambda m: setattr(next(iter(m.storage_data.values())), "offset", float("inf")),
        lambda m: m.storage_data.update({MetadataIndex("unused", (1,) * 100): a_place(m)}),
        lambda m: m.storage_data.update({MetadataIndex(3, (1, 1)): a_place(m)}),
        lambda m: m.storage_data.clear(),
        lambda m: m.state_dict_metadata.update({3: m.state_dict_metadata["model.rows"]}),
    ],
)
def test_metadata_that_makes_no_sense(sharded: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    folder = copied(sharded, tmp_path / "a")
    metadata: Any = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"shape|not a known distributed checkpoint|whole numbers"):
        open_weights(folder)


def test_what_describes_many_chunks_is_not_copied_for_each(sharded: Path, tmp_path: Path) -> None:
    folder = copied(sharded, tmp_path / "a")
    metadata: Any = pickle.loads((folder / ".metadata").read_bytes())
    place = a_place(metadata)
    vars(place).update({f"attribute {i}": i for i in range(5000)})
    metadata.storage_data.update({MetadataIndex("unused", (i,)): place for i in range(1000)})
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    tracemalloc.start()
    with open_weights(folder):
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_chunks_that_overlap_are_refused_at_the_first(sharded: Path, tmp_path: Path) -> None:
    """Counting how often each of four million cells is covered takes minutes for 50,000 chunks."""
    folder = copied(sharded, tmp_path / "a")
    metadata: Any = pickle.loads((folder / ".metadata").read_bytes())
    entry = metadata.state_dict_metadata["model.rows"]
    index, info = next((i, v) for i, v in metadata.storage_data.items() if i.fqn == "model.rows")
    entry.size = torch.Size((2000, 2000))
    entry.chunks = [
        ChunkStorageMetadata(torch.Size((i, i)), torch.Size((2000 - i, 2000 - i))) for i in range(2000)
    ] + [ChunkStorageMetadata(torch.Size((0, 0)), entry.size)] * 50_000
    for i in range(2000):
        metadata.storage_data[dataclasses.replace(index, offset=torch.Size((i, i)))] = info
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="without gap or overlap"):
        open_weights(folder)


def test_a_malicious_metadata_runs_nothing(sharded: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'witness'}",)

    folder = copied(sharded, tmp_path / "a")
    (folder / ".metadata").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError, match="not a known distributed checkpoint"):
        open_weights(folder)
    (folder / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": 3}))
    with pytest.raises(CheckpointError, match="not a known distributed checkpoint"):
        open_weights(folder)
    assert not (tmp_path / "witness").exists()
