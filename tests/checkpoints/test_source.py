"""Where bytes come from: nothing blocks, nothing ends early unseen, every failure has a name."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import polyak
from polyak._files.source import Source, beside, exists, inside, is_folder, open_source
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError, MissingExtraError

posix = pytest.mark.skipif(os.name != "posix", reason="as POSIX systems have them")


def refusal(where: Any) -> str:
    with pytest.raises(CheckpointError) as refused:
        polyak.load(where)
    return str(refused.value)


def test_a_file_gives_any_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)))
    with open_source(tmp_path / "a") as source:
        assert (source.size, source.name) == (256, str(tmp_path / "a"))
        assert source.read(0, 256) == bytes(range(256))
        assert source.read(255, 1) == b"\xff"
        assert source.read(256, 0) == b""
        for offset, count in [(256, 1), (0, 257), (-1, 1), (10**20, 1), (0, 10**20)]:
            with pytest.raises(CheckpointError, match=r"truncated: .* are needed, 256 are there"):
                source.read(offset, count)


def test_more_files_than_are_held_open_are_read_at_any_time(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / str(i)).write_bytes(bytes([i]))
    opened = [open_source(tmp_path / str(i)) for i in range(200)]
    assert [source.read(0, 1)[0] for source in opened] == list(range(200))
    assert [source.read(0, 1)[0] for source in reversed(opened)] == list(range(199, -1, -1))
    for source in opened:
        source.close()
    with pytest.raises(ValueError, match="was closed"):
        opened[0].read(0, 1)


def test_a_file_in_place_of_the_one_that_was_opened_is_not_read(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / str(i)).write_bytes(b"old")
    opened = [open_source(tmp_path / str(i)) for i in range(100)]
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").replace(tmp_path / "0")
    (tmp_path / "99").unlink()
    with pytest.raises(CheckpointError, match="0 was replaced or changed while it was read"):
        opened[0].read(0, 3)
    assert opened[99].read(0, 3) == b"old"  # it is still open
    for source in opened:
        source.close()


@posix
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening one waits for a writer
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert "/dev/zero is not a regular file" in refusal("/dev/zero")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "a")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "No such file" in refusal(tmp_path / "dangling")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket must be short
        listener.bind("socket")
        os.chdir(here)
        assert "is not a regular file" in refusal(tmp_path / "socket")
    assert "model.safetensors" in refusal(tmp_path)  # what was looked for in the folder
    (tmp_path / "empty").touch()
    assert "is empty: its writer was stopped" in refusal(tmp_path / "empty")
    assert "cannot be opened" in refusal(tmp_path / "empty" / "below")
    assert "File name too long" in refusal(tmp_path / ("n" * 300))
    assert "embedded null " in refusal("a\0b")
    assert refusal("")


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    polyak_file = tmp_path / "a.safetensors"
    write_arrays(polyak_file, {"x": np.arange(3)}, {})
    (tmp_path / "link").symlink_to(polyak_file)
    with open_weights(tmp_path / "link") as weights:
        assert weights.tensors["x"].read().tolist() == [0, 1, 2]


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", {"x": np.arange(1000)}, {})
    with open_weights(tmp_path / "a") as weights:
        os.truncate(tmp_path / "a", 4000)
        with pytest.raises(CheckpointError, match="became shorter while it was read"):
            weights.tensors["x"].read()


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", {"x": np.arange(1000)}, {})
    with open_weights(tmp_path / "a") as weights:
        write_arrays(tmp_path / "a", {"x": np.zeros(1000)}, {})
        assert weights.tensors["x"].read().tolist() == list(range(1000))


class InPieces(Source):
    """A disk that gives at most 7 bytes at once, and fails when told to."""

    name, size = "piecewise", 100

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if self.error:
            raise self.error
        some = bytes(range(offset, min(offset + 7, 100)))[: len(buffer)]
        buffer[: len(some)] = some
        return len(some)

    def close(self) -> None:
        pass


def test_a_short_read_is_continued() -> None:
    assert InPieces().read(3, 90) == bytes(range(3, 93))


def test_a_failing_disk_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"piecewise cannot be read: .*Input/output error"):
        InPieces(OSError(errno.EIO, "Input/output error")).read(0, 5)


@pytest.mark.parametrize("name", ["../a", "a/../b", "..", "/a", "C:a", "a\\b", "", "file://a", "s3://b/a"])
def test_a_name_that_leads_out_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, "memory://folder"):
        with pytest.raises(CheckpointError, match="lies outside"):
            inside(folder, name)
    with pytest.raises(CheckpointError, match="lies outside"):
        beside(tmp_path / "index", name)


def test_names_stay_beside_what_names_them(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b..c") == tmp_path / "a" / "b..c"
    assert inside("memory://folder/", "a") == "memory://folder/a"
    assert beside("memory://folder/index.json", "a") == "memory://folder/a"


# URLs ------------------------------------------------------------------------------------------------

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")


class Faulty(memory.MemoryFileSystem):
    """Drivers raise errors of their own kind, at any call."""

    protocol = "faulty"
    fails: str = ""

    class Refused(Exception):
        pass

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def _maybe(self, call: str) -> None:
        if call == self.fails:
            raise self.Refused(f"403 from {call}")

    def isdir(self, path: str) -> bool:
        self._maybe("isdir")
        return super().isdir(path)

    def exists(self, path: str, **options: Any) -> bool:
        self._maybe("exists")
        return super().exists(path, **options)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._maybe("open")
        file = super().open(path, mode, **options)
        if mode == "rb" and self.fails == "size":
            return SimpleNamespace(size=None, close=file.close)
        if mode == "rb" and self.fails == "readinto":
            file.readinto = lambda buffer: self._maybe("readinto")
        return file


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[type[Faulty]]:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    write_arrays(tmp_path / "a", {"x": np.arange(3)}, {})
    Faulty.fails = ""
    files = Faulty()
    files.pipe("/folder/model.safetensors", (tmp_path / "a").read_bytes())
    yield Faulty
    Faulty.fails = ""
    files.rm("/folder", recursive=True)


@pytest.mark.parametrize("where", ["faulty://folder", "faulty://folder/model.safetensors"])
def test_a_url_is_read_like_a_file(faulty: type[Faulty], where: str) -> None:
    with open_weights(where) as weights:
        assert weights.tensors["x"].read().tolist() == [0, 1, 2]
    assert is_folder("faulty://folder")
    assert not is_folder("faulty://folder/model.safetensors")
    assert exists("faulty://folder/model.safetensors")
    assert not exists("faulty://folder/other")


@pytest.mark.parametrize("fails", ["isdir", "exists", "open", "readinto"])
def test_whatever_a_driver_raises_is_said_with_the_url(faulty: type[Faulty], fails: str) -> None:
    faulty.fails = fails
    with pytest.raises(CheckpointError, match=rf"faulty://folder.*403 from {fails}"):
        open_weights("faulty://folder/model.safetensors")


def test_a_server_that_does_not_say_how_long_a_file_is(faulty: type[Faulty]) -> None:
    faulty.fails = "size"
    with pytest.raises(CheckpointError, match="does not report its length"):
        open_weights("faulty://folder/model.safetensors")


def test_an_unknown_kind_of_url_is_named() -> None:
    assert "nosuch" in refusal("nosuch://a/b")


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"s3.*pip install \"polyak\[remote\]\""):
        polyak.load("s3://bucket/a")
