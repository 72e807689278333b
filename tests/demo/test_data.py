"""Readers of image files, and where the demo looks for them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyak.demo import data
from polyak.errors import ConfigError
from tests.demo.conftest import cifar_tar, idx, write_fashion


def test_fashion_mnist_as_debian_ships_it(fashion_mnist: Path) -> None:
    images = data.load("fashion-mnist", None)
    assert images.origin == str(fashion_mnist)
    assert images.train.pixels.shape == (60_000, 1, 32, 32)
    assert images.test.pixels.shape == (10_000, 1, 32, 32)
    assert images.train.pixels.dtype == np.uint8
    assert images.train.labels.dtype == np.int64
    # Published facts: ten balanced classes, the first image is an ankle boot, mean brightness 0.2860.
    assert np.bincount(images.train.labels).tolist() == [6000] * 10
    assert images.train.labels[0] == 9
    centre = images.train.pixels[:, :, 2:30, 2:30]
    assert centre.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert centre.sum() == images.train.pixels.sum()


def test_digits_ship_with_scikit_learn() -> None:
    images = data.load("digits", None)
    assert images.train.pixels.shape == (1437, 1, 32, 32)
    assert images.test.pixels.shape == (360, 1, 32, 32)
    assert images.train.pixels.max() == 255
    assert (images.train.pixels[:, :, ::4, ::4].repeat(4, 2).repeat(4, 3) == images.train.pixels).all()
    assert set(images.test.labels) == set(range(10))


def test_cifar10_binary(tmp_path: Path) -> None:
    (tmp_path / data.CIFAR_FILE).write_bytes(cifar_tar())
    images = data.load("cifar10", tmp_path)
    assert images.train.pixels.shape == (20, 3, 32, 32)
    assert images.test.labels.tolist() == [0, 1, 2, 3]
    # Row i holds red, green and blue one after the other, each row by row, counting up from i.
    flat = images.test.pixels[3].reshape(-1)
    assert (flat == (3 + np.arange(3072)) % 256).all()


def test_auto_looks_at_root_then_the_package_then_the_cache_then_takes_digits(
    nothing_installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "download", lambda *_: pytest.fail("auto must not download"))
    assert data.load("auto", None).name == "scikit-learn digits"
    assert data.load("auto", tmp_path).name == "scikit-learn digits"

    cached = nothing_installed / "fashion-mnist"
    cached.mkdir(parents=True)
    write_fashion(cached)
    assert data.load("auto", None).origin == str(cached)

    installed = tmp_path / "installed"
    installed.mkdir()
    source = data.Source("fashion-mnist", "", data.FASHION_MNIST.files, data.read_fashion_mnist, (installed,))
    monkeypatch.setattr(data, "FASHION_MNIST", source)
    assert data.load("auto", None).origin == str(cached), "an empty folder holds nothing"
    write_fashion(installed)
    assert data.load("auto", None).origin == str(installed)

    root = tmp_path / "root"
    root.mkdir()
    assert data.load("auto", root).origin == str(installed)
    write_fashion(root)
    assert data.load("auto", root).origin == str(root)


def test_a_folder_with_three_of_four_files_holds_nothing(nothing_installed: Path, tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert data.find(data.FASHION_MNIST, tmp_path) is None


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.cache(data.CIFAR10) == tmp_path / "polyak" / "cifar10"


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)))
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.gz"
    path.write_bytes(idx(values))
    np.testing.assert_array_equal(data.read_idx(path, values.ndim), values)


@given(st.binary(max_size=64) | st.binary(max_size=64).map(gzip.compress))
def test_any_bytes_are_an_array_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gz"
    path.write_bytes(raw)
    try:
        values = data.read_idx(path, 1)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert values.ndim == 1


@given(st.data())
def test_a_cut_idx_file_is_refused(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    whole = idx(np.arange(100).reshape(4, 5, 5))
    path = tmp_path_factory.getbasetemp() / "cut.gz"
    path.write_bytes(whole[: draw.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ConfigError, match=r"cut\.gz cannot be read as image data"):
        data.read_idx(path, 3)


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(gzip.decompress(idx(np.zeros((2, 28, 28)))) + b"\0"))
    with pytest.raises(ConfigError, match=r"its header says \(2, 28, 28\), its length is 1,569 bytes"):
        data.read_idx(path, 3)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(idx(np.zeros(19)))
    with pytest.raises(ConfigError, match="20 images and 19 labels"):
        data.read_fashion_mnist(tmp_path)
    labels.write_bytes(idx(np.full(20, 10)))
    with pytest.raises(ConfigError, match="its labels reach from 10 to 10, not 0 to 9"):
        data.read_fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty file"),
        (b"not a tar", "not a gzip file"),
        (cifar_tar()[:-200], "end"),
        (cifar_tar(leave_out="data_batch_3"), "data_batch_3"),
        (cifar_tar(rows_per_file=0), r"holds 0 bytes, not records of 3,073"),
    ],
)
def test_a_broken_cifar10_file_is_refused(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / data.CIFAR_FILE).write_bytes(raw)
    with pytest.raises(ConfigError, match=f"{data.CIFAR_FILE} cannot be read as image data: .*{why}"):
        data.read_cifar10(tmp_path)


@given(st.integers(1, 32), st.integers(1, 32), st.sampled_from([1, 3]))
def test_any_size_is_brought_to_32_by_32(height: int, width: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (2, channels, height, width), dtype=np.uint8)
    large = data.to_side(pixels)
    assert large.shape == (2, channels, 32, 32)
    times = 32 // max(height, width)
    # Every pixel was positive: what is zero is border, and the rest is each pixel `times` times each way.
    assert (large > 0).sum() == pixels.size * times**2
    assert large.astype(np.int64).sum() == pixels.astype(np.int64).sum() * times**2
    rows, columns = (large[0, 0] > 0).any(1).nonzero()[0], (large[0, 0] > 0).any(0).nonzero()[0]
    inner = large[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_array_equal(inner[:, :, ::times, ::times], pixels)
    assert abs((rows[0]) - (31 - rows[-1])) <= 1, "centred"
