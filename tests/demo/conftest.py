from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyak.demo import data

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def fashion_mnist() -> Path:
    """The folder of the real images. With POLYAK_REQUIRE_IMAGES set, as in CI, they must be there."""
    if not DEBIAN.is_dir() and not os.environ.get("POLYAK_REQUIRE_IMAGES"):
        pytest.skip("apt-get install dataset-fashion-mnist")
    return DEBIAN


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the Debian package and with an empty cache; returns the cache folder."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(data, "cache", lambda source: cache / source.name)
    bare = replace(data.FASHION_MNIST, installed=())
    monkeypatch.setattr(data, "FASHION_MNIST", bare)
    monkeypatch.setattr(data, "SOURCES", {"fashion-mnist": bare, "cifar10": data.CIFAR10})
    return cache


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def write_fashion(folder: Path, n_train: int = 20, n_test: int = 10) -> Path:
    """The four files in the official format, with random pixels."""
    rng = np.random.default_rng(0)
    for stem, n in (("train", n_train), ("t10k", n_test)):
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(rng.integers(0, 256, (n, 28, 28))))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(n) % 10))
    return folder


def cifar_tar(rows_per_file: int = 4, leave_out: str = "") -> bytes:
    """The tar file in the official layout; a row's label is its number, its pixels are label, label + 1, …"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for stem in (
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
            "test_batch",
        ):
            if stem == leave_out:
                continue
            rows = [bytes([i]) + bytes((i + p) % 256 for p in range(3072)) for i in range(rows_per_file)]
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{stem}.bin")
            info.size = sum(map(len, rows))
            archive.addfile(info, io.BytesIO(b"".join(rows)))
    return buffer.getvalue()
