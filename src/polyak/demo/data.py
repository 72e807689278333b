"""Real images for the demo: found on this machine, or downloaded if requested by name.

Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), CIFAR-10 (Krizhevsky 2009, the binary version,
so that no pickle is read) and scikit-learn's copy of the UCI digits. Every image becomes 32×32, the network's
input: 28×28 gets a border of 2, as LeNet-5 gave to MNIST, and 8×8 is shown four times as large.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from polyak.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 32
CLASSES = 10


class Split(NamedTuple):
    """Images and their classes: `pixels` uint8 [n, 1 or 3, 32, 32], `labels` int64 [n] in 0 … 9."""

    pixels: Pixels
    labels: Labels


class Images(NamedTuple):
    """A data set in memory, with its name and where it came from."""

    name: str
    origin: str
    train: Split
    test: Split


@dataclass(frozen=True)
class Source:
    """A published data set: its files by name with their published hash, and how to read a folder of them."""

    name: str
    title: str
    url: str
    files: Mapping[str, str]
    read: Callable[[Path], tuple[Split, Split]]
    installed: tuple[Path, ...] = ()


def load(data: str, root: Path | None) -> Images:
    """The images named `data`, downloaded only if they are named and absent.

    Args:
        data: "auto", "fashion-mnist", "cifar10" or "digits".
        root: the folder to look in first, and to download into.

    Raises:
        ConfigError: the files cannot be downloaded, do not have the published hash, or cannot be read.
    """
    source = SOURCES.get(data, FASHION_MNIST)
    folder = None if data == "digits" else find(source, root)
    if folder is None and data in SOURCES:
        folder = download(source, root or cache(source))
    if folder is None:
        return digits()
    try:
        splits = source.read(folder)
        for pixels, labels in splits:
            if len(pixels) != len(labels):
                raise ValueError(f"{len(pixels):,} images and {len(labels):,} labels")
            if labels.max() >= CLASSES:
                raise ValueError(f"a label is {labels.max()}, not 0 to {CLASSES - 1}")
    except (OSError, EOFError, KeyError, ValueError, zlib.error, tarfile.TarError) as error:
        raise ConfigError(
            f"{folder} cannot be read as {source.title}: {error}. Remove its files to have them fetched again"
        ) from error
    return Images(source.title, str(folder), *splits)


def find(source: Source, root: Path | None) -> Path | None:
    """The first folder that holds every file: `root`, that of a system package, the cache."""
    places = [*([root] if root else []), *source.installed, cache(source)]
    return next((place for place in places if all((place / name).is_file() for name in source.files)), None)


def cache(source: Source) -> Path:
    """The folder of downloads: in the user's cache, as pooch names it on each system."""
    import pooch

    return Path(cast(Any, pooch).os_cache("polyak")) / source.name


def download(source: Source, folder: Path) -> Path:
    """Download the missing files into `folder`. A file appears there only after its hash has been checked."""
    import pooch

    existed = folder.is_dir()
    for name, known_hash in source.files.items():
        try:
            cast(Any, pooch).retrieve(f"{source.url}/{name}", known_hash=known_hash, fname=name, path=folder)
        except (ValueError, OSError) as error:
            if not existed:
                with suppress(OSError):  # it stays when an earlier file of the set is in it
                    folder.rmdir()
            raise ConfigError(
                f"data={source.name!r}: {name} could not be downloaded from {source.url}: {error}. "
                "Fetch it by other means and point --root at its folder, or use --data auto"
            ) from error
    return folder


def fashion_mnist(folder: Path) -> tuple[Split, Split]:
    """60,000 training and 10,000 test images, 28×28, one channel, in gzipped IDX files of bytes."""

    def split(stem: str) -> Split:
        pixels = idx(folder / f"{stem}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
        labels = idx(folder / f"{stem}-labels-idx1-ubyte.gz", header=8)
        return Split(np.pad(pixels, [(0, 0), (0, 0), (2, 2), (2, 2)]), labels.astype(np.int64))

    return split("train"), split("t10k")


def idx(path: Path, header: int) -> Pixels:
    """The values of an IDX file, after its sizes; gzip's checksum says whether they are whole."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


CIFAR_FILE = "cifar-10-binary.tar.gz"


def cifar10(folder: Path) -> tuple[Split, Split]:
    """50,000 training and 10,000 test images: records of a label, then 32×32 bytes of red, green and blue."""

    def split(*stems: str) -> Split:
        raw = b"".join(file.read() for stem in stems if (file := tar.extractfile(f"{batches}/{stem}.bin")))
        rows = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * SIDE * SIDE)
        return Split(rows[:, 1:].reshape(-1, 3, SIDE, SIDE), rows[:, 0].astype(np.int64))

    batches = "cifar-10-batches-bin"
    with tarfile.open(folder / CIFAR_FILE, "r:gz") as tar:
        return split(*(f"data_batch_{i}" for i in range(1, 6))), split("test_batch")


def digits() -> Images:
    """The 1,797 handwritten digits that ship with scikit-learn: 8×8, 0 … 16. Every fifth is a test image."""
    from sklearn import datasets

    found = cast(Any, datasets).load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None].repeat(4, axis=2).repeat(4, axis=3)
    is_test = np.arange(len(pixels)) % 5 == 0
    train, test = (Split(pixels[part], found.target[part].astype(np.int64)) for part in (~is_test, is_test))
    return Images("scikit-learn digits", str(Path(datasets.__file__).parent), train, test)


FASHION_MNIST = Source(
    "fashion-mnist",
    "Fashion-MNIST",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    {
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    fashion_mnist,
    installed=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian: apt-get install dataset-fashion-mnist
)
CIFAR10 = Source(
    "cifar10",
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz",
    {CIFAR_FILE: "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    cifar10,
)
SOURCES = {source.name: source for source in (FASHION_MNIST, CIFAR10)}
