"""Downloading, against a server on this machine: the hash decides what stays."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from polyak.demo import data
from polyak.errors import ConfigError
from tests.demo.conftest import cifar_tar, write_fashion


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An address on this machine and the folder behind it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def fashion_at(url: str, folder: Path) -> data.Source:
    write_fashion(folder)
    hashes = {path.name: "md5:" + hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    return replace(data.FASHION_MNIST, url=url, files=hashes, installed=())


@pytest.mark.parametrize("with_root", [False, True])
def test_a_named_data_set_is_fetched_once(
    served: tuple[str, Path],
    nothing_installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_root: bool,
) -> None:
    url, folder = served
    source = fashion_at(url, folder)
    monkeypatch.setattr(data, "SOURCES", {source.name: source})
    root = tmp_path / "root" if with_root else None
    if root:
        root.mkdir()
    images = data.load("fashion-mnist", root)
    assert images.origin == str(root or nothing_installed / "fashion-mnist")
    assert sorted(path.name for path in Path(images.origin).iterdir()) == sorted(source.files)
    for path in folder.iterdir():
        path.unlink()
    assert data.load("fashion-mnist", root).origin == images.origin, "the second time needs no server"


def test_a_wrong_hash_is_refused_and_nothing_stays(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    (folder / data.CIFAR_FILE).write_bytes(cifar_tar())
    source = replace(data.CIFAR10, url=url)
    into = tmp_path / "into"
    with pytest.raises(ConfigError, match=f"{data.CIFAR_FILE} could not be downloaded from {url}: .*hash"):
        data.download(source, into)
    assert not into.exists()


def test_a_wrong_second_file_leaves_only_the_checked_first(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    source = fashion_at(url, folder)
    first, second = list(source.files)[:2]
    (folder / second).write_bytes(b"something else")
    into = tmp_path / "into"
    with pytest.raises(ConfigError, match=second):
        data.download(source, into)
    assert [path.name for path in into.iterdir()] == [first]


@pytest.mark.parametrize("gone", ["file", "server"])
def test_an_absent_file_or_server_is_a_clear_error(
    served: tuple[str, Path], tmp_path: Path, gone: str
) -> None:
    url = served[0] if gone == "file" else "http://127.0.0.1:9"
    source = replace(data.CIFAR10, url=url)
    with pytest.raises(ConfigError, match="point --root at its folder, or use --data auto"):
        data.download(source, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_an_existing_empty_root_stays(served: tuple[str, Path], tmp_path: Path) -> None:
    source = replace(data.CIFAR10, url=served[0])
    (tmp_path / "root").mkdir()
    with pytest.raises(ConfigError):
        data.download(source, tmp_path / "root")
    assert (tmp_path / "root").is_dir()


def test_the_official_addresses_and_hashes() -> None:
    """As the authors publish them; a change here is a change of what is trusted."""
    assert list(data.FASHION_MNIST.files.values()) == [
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "md5:25c81989df183df01b3e8a0aad5dffbe",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
    ]
    assert data.CIFAR10.url == "https://www.cs.toronto.edu/~kriz"
