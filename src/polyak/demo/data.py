"""Real images for the demo: found on this machine, or downloaded if requested by name.

Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), CIFAR-10 (Krizhevsky 2009, the binary version,
so that no pickle is read) and scikit-learn's copy of the UCI digits. Shapes: n images, c channels (1 or 3),
h rows, w columns.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from polyak.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 32  # the network's input is 32×32
CLASSES = 10


class Split(NamedTuple):
    """Images and their classes: `pixels` uint8 [n, c, 32, 32], `labels` int64 [n] in 0 … 9."""

    pixels: Pixels
    labels: Labels


@dataclass(frozen=True)
class Images:
    """A data set in memory, with its name and where it came from."""

    name: str
    origin: str
    train: Split
    test: Split


@dataclass(frozen=True)
class Source:
    """A published data set: its files by name with their published hash, and how to read a folder of them."""

    name: str
    url: str
    files: Mapping[str, str]
    read: Callable[[Path], Images]
    installed: tuple[Path, ...] = ()


def load(data: str, root: Path | None) -> Images:
    """The images named `data`, downloaded only if they are named and absent.

    Args:
        data: "auto", "fashion-mnist", "cifar10" or "digits".
        root: the folder to look in first, and to download into.

    Raises:
        ConfigError: the files cannot be downloaded, do not have the published hash, or cannot be read.
    """
    if data in SOURCES:
        source = SOURCES[data]
        return source.read(find(source, root) or download(source, root or cache(source)))
    folder = find(FASHION_MNIST, root) if data == "auto" else None
    return FASHION_MNIST.read(folder) if folder else read_digits()


def find(source: Source, root: Path | None) -> Path | None:
    """The first folder that holds every file: `root`, that of a system package, the cache."""
    places = [*([root] if root else []), *source.installed, cache(source)]
    return next((place for place in places if all((place / name).is_file() for name in source.files)), None)


def cache(source: Source) -> Path:
    """The folder of downloads: in the user's cache, as pooch names it on each system."""
    return Path(_pooch().os_cache("polyak")) / source.name


def _pooch() -> Any:
    import pooch

    return pooch


def download(source: Source, folder: Path) -> Path:
    """Download the missing files into `folder`. A file appears there only after its hash has been checked."""
    existed = folder.is_dir()
    for name, known_hash in source.files.items():
        try:
            _pooch().retrieve(f"{source.url}/{name}", known_hash=known_hash, fname=name, path=folder)
        except (ValueError, OSError) as error:
            if not existed:
                with suppress(OSError):  # it stays when an earlier file of the set is in it
                    folder.rmdir()
            raise ConfigError(
                f"data={source.name!r}: {name} could not be downloaded from {source.url}: {error}. "
                "Fetch it by other means and point --root at its folder, or use --data auto"
            ) from error
    return folder


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Report whatever is wrong with a file as one kind of error."""
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, zlib.error, tarfile.TarError) as error:
        raise ConfigError(
            f"{path} cannot be read as image data: {error}. Remove it to have it fetched again"
        ) from error


def read_fashion_mnist(folder: Path) -> Images:
    """The four files of Fashion-MNIST: 60,000 training and 10,000 test images, 28×28, one channel."""

    def split(stem: str) -> Split:
        images = folder / f"{stem}-images-idx3-ubyte.gz"
        pixels, labels = read_idx(images, 3), read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", 1)
        with reading(images):
            return make_split(pixels[:, None], labels)

    return Images("Fashion-MNIST", str(folder), split("train"), split("t10k"))


def read_idx(path: Path, ndim: int) -> Pixels:
    """One gzipped IDX file of bytes: 0, 0, 8, ndim, then ndim big-endian uint32 sizes, then the values."""
    with reading(path):
        raw = gzip.decompress(path.read_bytes())
        if raw[:4] != bytes((0, 0, 8, ndim)):
            raise ValueError(f"an IDX file of bytes in {ndim} dimensions starts with 0 0 8 {ndim}")
        shape = tuple(np.frombuffer(raw, ">u4", ndim, offset=4).tolist())
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim)
        if len(values) != math.prod(shape):
            raise ValueError(f"its header says {shape}, its length is {len(values):,} bytes")
        return values.reshape(shape)


CIFAR_FILE = "cifar-10-binary.tar.gz"
CIFAR_RECORD = 1 + 3 * SIDE * SIDE  # a label, then 32×32 bytes of red, of green, of blue


def read_cifar10(folder: Path) -> Images:
    """CIFAR-10 out of the tar file itself: 50,000 training and 10,000 test images, 32×32, three channels."""

    def split(archive: tarfile.TarFile, *stems: str) -> Split:
        members = (archive.extractfile(f"cifar-10-batches-bin/{stem}.bin") for stem in stems)
        raw = b"".join(member.read() for member in members if member)
        if not raw or len(raw) % CIFAR_RECORD:
            raise ValueError(f"{', '.join(stems)} holds {len(raw):,} bytes, not records of {CIFAR_RECORD:,}")
        rows = np.frombuffer(raw, np.uint8).reshape(-1, CIFAR_RECORD)
        return make_split(rows[:, 1:].reshape(-1, 3, SIDE, SIDE), rows[:, 0])

    with reading(folder / CIFAR_FILE), tarfile.open(folder / CIFAR_FILE, "r:gz") as archive:
        train = split(archive, *(f"data_batch_{i}" for i in range(1, 6)))
        return Images("CIFAR-10", str(folder), train, split(archive, "test_batch"))


def read_digits() -> Images:
    """The 1,797 handwritten digits that ship with scikit-learn: 8×8, 0 … 16. Every fifth is a test image."""
    from sklearn import datasets

    digits = cast(Any, datasets).load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    is_test = np.arange(len(pixels)) % 5 == 0
    train, test = (make_split(pixels[part], digits.target[part]) for part in (~is_test, is_test))
    return Images("scikit-learn digits", str(Path(datasets.__file__).parent), train, test)


def make_split(pixels: Pixels, labels: npt.NDArray[np.integer[Any]]) -> Split:
    """Pair images of any size up to 32×32 with their labels.

    Raises:
        ValueError: they do not belong together.
    """
    if len(pixels) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(pixels):,} images and {len(labels):,} labels")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"its labels reach from {labels.min()} to {labels.max()}, not 0 to {CLASSES - 1}")
    return Split(to_side(pixels), labels.astype(np.int64))


def to_side(pixels: Pixels) -> Pixels:
    """[n, c, h, w] to [n, c, 32, 32]: each pixel repeated a whole number of times, then a black border.

    28×28 gets a border of 2, as LeNet-5 gave to MNIST; 8×8 is four times as large; 32×32 stays as it is.
    """
    times = SIDE // max(pixels.shape[2:])
    large = pixels.repeat(times, axis=2).repeat(times, axis=3)
    missing = [SIDE - size for size in large.shape[2:]]
    return np.pad(large, [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)])


FASHION_MNIST = Source(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    {
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    read_fashion_mnist,
    installed=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian: apt-get install dataset-fashion-mnist
)
CIFAR10 = Source(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz",
    {CIFAR_FILE: "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    read_cifar10,
)
SOURCES = {source.name: source for source in (FASHION_MNIST, CIFAR10)}
