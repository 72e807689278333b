"""Mutated files of every format: each is read within bounds, or refused by an error of ours."""

from __future__ import annotations

import io
import os
import pickle
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.distributed.checkpoint as dcp

from polyak._foreign.open_any import open_weights
from polyak.cli.describe import describe
from polyak.errors import CheckpointError
from tests.checkpoints.mutations import ANY_BYTES, Mutation
from tests.checkpoints.test_fuzz import written
from tests.checkpoints.test_shards import write as write_shards

pytestmark = [  # what a save without a process group is told, and how Keras asks NumPy for a copy
    pytest.mark.filterwarnings("ignore:torch.distributed"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]
COUNT = int(os.environ.get("POLYAK_MUTATED", "1000"))  # files per format
SECONDS, BYTES = 2, 2e6  # that one file may take, when all of them are of some kilobytes
BASE = torch.arange(60.0).reshape(10, 6) / 7
TREE = {"model": {"w": BASE, "t": BASE.t(), "b": torch.ones(3).bfloat16()}, "n": np.arange(3), "e": 7}
GOLDEN = Path(__file__).parents[1] / "golden_files/paddle"


def torch_zip(path: Path) -> None:
    torch.save(TREE, path)


def torch_stream(path: Path) -> None:
    torch.save(TREE, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(TREE))


def paddle_pickle(path: Path) -> None:
    path.write_bytes((GOLDEN / "nested.pdparams").read_bytes())


def paddle_optimizer(path: Path) -> None:
    path.write_bytes((GOLDEN / "model.pdopt").read_bytes())


def plain_safetensors(path: Path) -> None:
    path.write_bytes(safetensors.numpy.save({"w": BASE.numpy(), "n": np.arange(3)}))


def average(path: Path) -> None:
    written(path.parent).rename(path)


def shards(path: Path) -> None:
    arrays = {f"t{i}": np.full(10, i, np.uint8) for i in range(3)}
    write_shards(path, arrays, 20)


def distributed(path: Path) -> None:
    dcp.save(dict(TREE), checkpoint_id=path, no_dist=True)


def keras_zip(path: Path) -> None:
    keras = pytest.importorskip("keras")
    from polyak.trainers.keras import WeightAveraging

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=[WeightAveraging(0.9)], verbose=0)
    model.save(kept := path.with_suffix(".keras"))
    kept.rename(path)


def deflated(path: Path) -> None:
    """A model of Keras whose entries somebody compressed."""
    compressed(path, zipfile.ZIP_DEFLATED)


def compressed(path: Path, how: int) -> None:
    keras_zip(path)
    path.write_bytes(rewritten(path.read_bytes(), lambda _, data: data, how))


def rewritten(whole: bytes, change: Callable[[str, bytes], bytes], how: int) -> bytes:
    """The zip with other contents, and sums that are theirs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", how) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def within(mutate: Mutation, entry: str) -> Mutation:
    """The mutation in an entry of a zip, which its sum then does not tell."""

    def inside(whole: bytes, rng: random.Random) -> bytes:
        return rewritten(
            whole, lambda name, data: mutate(data, rng) if name.endswith(entry) else data, zipfile.ZIP_STORED
        )

    return inside


FORMATS: dict[str, tuple[Callable[[Path], None], str]] = {  # and the entry of a zip to mutate, if any
    "torch zip": (torch_zip, ""),
    "pickle in a torch zip": (torch_zip, "data.pkl"),
    "torch stream": (torch_stream, ""),
    "plain pickle": (plain_pickle, ""),
    "paddle parameters": (paddle_pickle, ""),
    "paddle optimizer": (paddle_optimizer, ""),
    "safetensors": (plain_safetensors, ""),
    "average": (average, ""),
    "shards": (shards, ""),
    "distributed": (distributed, ""),
    "keras": (keras_zip, ""),
    "keras, compressed": (deflated, ""),
    "mark in a keras zip": (keras_zip, "polyak.json"),
}


def read(where: Path, most: int) -> None:
    """All that can be asked of a file, whose tensors have at most so many bytes."""
    describe(where)
    with open_weights(where) as weights:
        for tensor in weights.tensors.values():
            assert tensor.nbytes <= most
            tensor.read()


def mutated(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = rng.choice(ANY_BYTES)(data, rng) if data else data
    return data


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.filterwarnings(
    "ignore:torch.distributed"
)  # of torch, about a process group that a save without one has not
def test_mutated_files_are_read_within_bounds_or_refused(in_memory: Path, format: str) -> None:
    write, entry = FORMATS[format]
    write(in_memory / "a")
    files = sorted(path for path in in_memory.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    most = sum(map(len, whole.values())) * (8 if "torch" in format else 2)  # torch expands tensors
    read(in_memory / "a", most)
    rng, refused, slowest, largest = random.Random(0), 0, 0.0, 0
    tracemalloc.start()
    try:
        for _ in range(COUNT):
            path = rng.choice(files)
            path.write_bytes((within(mutated, entry) if entry else mutated)(whole[path], rng))
            tracemalloc.reset_peak()
            held, began = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                read(in_memory / "a", most)
            except CheckpointError:
                refused += 1
            slowest = max(slowest, time.process_time() - began)
            largest = max(largest, tracemalloc.get_traced_memory()[1] - held)
            path.write_bytes(whole[path])
    finally:
        tracemalloc.stop()
    print(f"{format}: {COUNT} files, {refused} refused, at most {slowest:.3f} s, {largest / 1e6:.2f} MB")
    assert slowest < SECONDS
    assert largest < BYTES
    assert COUNT / 20 < refused < COUNT


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_a_mark_compressed_as_keras_never_does_is_refused(tmp_path: Path, how: int) -> None:
    compressed(tmp_path / "a", how)
    with pytest.raises(CheckpointError, match=r"polyak\.json is compressed in a way that Keras never writes"):
        describe(tmp_path / "a")
