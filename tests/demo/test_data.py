"""Readers of image files, and where the demo looks for them."""

from __future__ import annotations

import gzip
from dataclasses import replace
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
    source = replace(data.FASHION_MNIST, installed=(installed,))
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


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(28), st.just(28))))
def test_what_is_written_as_fashion_mnist_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray
) -> None:
    folder = write_fashion(tmp_path_factory.mktemp("written"))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(values))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(len(values))))
    pixels, labels = data.load("fashion-mnist", folder).train
    np.testing.assert_array_equal(pixels[:, 0, 2:30, 2:30], values)
    assert pixels.astype(np.int64).sum() == values.astype(np.int64).sum(), "the border is black"
    assert labels.tolist() == list(range(len(values)))


@given(st.binary(max_size=64) | st.binary(max_size=64).map(gzip.compress))
def test_any_bytes_are_images_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = write_fashion(tmp_path_factory.mktemp("any"))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(raw)
    try:
        labels = data.load("fashion-mnist", folder).train.labels
    except ConfigError as error:
        assert str(folder) in str(error)  # noqa: PT017
    else:
        assert len(labels) == 20


@given(st.data())
def test_a_cut_idx_file_is_refused(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    folder = write_fashion(tmp_path_factory.mktemp("cut"), n_train=2)
    whole = (folder / "train-images-idx3-ubyte.gz").read_bytes()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(whole[: draw.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ConfigError, match="cannot be read as Fashion-MNIST"):
        data.load("fashion-mnist", folder)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((20, 28, 27))))
    with pytest.raises(ConfigError, match="cannot reshape array of size 15120"):
        data.load("fashion-mnist", tmp_path)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(idx(np.zeros(19)))
    with pytest.raises(ConfigError, match="20 images and 19 labels"):
        data.load("fashion-mnist", tmp_path)
    labels.write_bytes(idx(np.full(20, 10)))
    with pytest.raises(ConfigError, match="a label is 10, not 0 to 9"):
        data.load("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty file"),
        (b"not a tar", "not a gzip file"),
        (cifar_tar()[:-200], "end"),
        (cifar_tar(leave_out="data_batch_3"), "data_batch_3"),
        (cifar_tar(rows_per_file=0), "zero-size"),
    ],
)
def test_a_broken_cifar10_file_is_refused(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / data.CIFAR_FILE).write_bytes(raw)
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be read as CIFAR-10: .*{why}"):
        data.load("cifar10", tmp_path)
