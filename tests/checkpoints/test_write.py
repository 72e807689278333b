"""Writing: durable, all or nothing, and beside others who write the same file."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyak._files import locks, shards, write
from polyak._files.layout import Spec
from polyak._files.shards import write_sharded
from polyak._files.write import atomic, write_arrays
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError
from tests.checkpoints.crash_worker import NAME, files, found, save

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="as POSIX systems do it")
both = pytest.mark.parametrize("sharded", [False, True])


def in_process(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


# Durable -------------------------------------------------------------------------------------------


@both
def test_all_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """Every file is forced to disk complete, then named, then its folder is; the index comes last."""
    log: list[tuple[str, Any]] = []
    forced: dict[int, bytes] = {}
    replace = Path.replace

    def fsync(descriptor: int) -> None:
        kind = os.fstat(descriptor)
        if stat.S_ISDIR(kind.st_mode):
            log.append(("folder", kind.st_ino))
        else:
            forced[kind.st_ino] = os.pread(descriptor, kind.st_size, 0)
            log.append(("file", kind.st_ino))

    def rename(self: Path, target: Path) -> Path:
        log.append(("name", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    save(tmp_path, 5, sharded)
    assert found(tmp_path) == 5
    for file in tmp_path.iterdir():
        inode = file.stat().st_ino
        assert forced[inode] == file.read_bytes(), file.name
        assert log.index(("file", inode)) < log.index(("name", inode))
    assert log[-1] == ("folder", tmp_path.stat().st_ino)
    if sharded:
        index = (tmp_path / f"{NAME}.index.json").stat().st_ino
        shards = [place for place, (what, inode) in enumerate(log) if what == "name" and inode != index]
        assert len(shards) == 2
        # Were the index's name on the disk before theirs, a power cut could leave it pointing at nothing.
        folders = [place for place, (what, _) in enumerate(log) if what == "folder"]
        assert max(shards) < folders[0] < log.index(("name", index)) < folders[1]


def test_large_files_are_forced_to_disk_as_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(write, "_SYNC_EVERY", 1000)
    monkeypatch.setattr(write, "_sync_data", lambda handle: sizes.append(os.fstat(handle).st_size))
    write_arrays(tmp_path / "a", {f"x{i}": np.ones(400, np.uint8) for i in range(20)}, {})
    assert len(sizes) == 6
    assert sizes == sorted(sizes)


def test_a_disk_that_fails_in_the_background_fails_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def broken_once(handle: int) -> None:
        """A system tells of a write that failed once only."""
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.EIO, "Input/output error")

    save(tmp_path, 1, False)
    monkeypatch.setattr(write, "_SYNC_EVERY", 1000)
    monkeypatch.setattr(write, "_sync_data", broken_once)
    for count in (2, 20):
        calls = 0
        with pytest.raises(CheckpointError, match="Input/output error"):
            write_arrays(tmp_path / NAME, {f"x{i}": np.ones(600, np.uint8) for i in range(count)}, {})
    assert (found(tmp_path), files(tmp_path)) == (1, [NAME])


# All or nothing ------------------------------------------------------------------------------------


@both
def test_an_error_of_the_caller_leaves_the_old_file_and_passes(tmp_path: Path, sharded: bool) -> None:
    def pieces(name: str) -> list[np.ndarray]:
        return [np.ones(100 // (name != "b"), np.uint8)]

    save(tmp_path, 1, sharded)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    specs = {name: Spec(np.dtype(np.uint8), (100,)) for name in "abc"}
    for size in (None, 100):
        with pytest.raises(ZeroDivisionError):
            write_sharded(tmp_path / NAME, specs, {}, pieces, size)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.checkpoints.crash_worker import save
from polyak.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
for sharded in (False, True):
    try:
        save(Path(sys.argv[2]), 2, sharded)
    except CheckpointError as error:
        print(error)
    else:
        print("written")
"""


@posix
@both
@pytest.mark.parametrize("limit", [0, 100, 60_000, 119_000])
@pytest.mark.slow
def test_a_file_larger_than_may_be_leaves_the_old_one(tmp_path: Path, sharded: bool, limit: int) -> None:
    save(tmp_path, 1, sharded)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(limit), tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert f"{NAME} cannot be written: [Errno 27] File too large. Nothing was changed." in line
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    assert found(tmp_path) == 1


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k"]
    try:
        made = subprocess.run(
            ["mount", *options, "none", folder], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(
            ["umount", "--lazy", folder], check=True
        )  # even if the code under test left a file open


@posix
@both
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, sharded: bool) -> None:
    with small_disk(tmp_path / "disk", 360) as disk:  # one save takes 205 kB
        save(disk, 1, sharded)
        before = files(disk)
        for again in (False, True):
            with pytest.raises(CheckpointError, match=r"No space left on device.*Nothing was changed"):
                save(disk, 2, again)
        assert found(disk) == 1
        assert files(disk) == before
        for name in before:
            (disk / name).unlink()
        save(disk, 3, sharded)  # the space of the failed ones is free again
        assert found(disk) == 3


READ_ONLY = """
import os, sys
from pathlib import Path
from tests.checkpoints.crash_worker import found, save  # before the rights are gone
from polyak.errors import CheckpointError
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
folder = Path(".")  # the folders above may be closed to this user
assert not os.access(folder, os.W_OK), "the test itself is wrong"
assert found(folder) == 1
for sharded in (False, True):
    try:
        save(folder, 2, sharded)
    except CheckpointError as error:
        print(error)
assert found(folder) == 1
"""


@posix
@both
def test_a_read_only_folder_keeps_its_file(tmp_path: Path, sharded: bool) -> None:
    """As a user without rights to it, since root has all."""
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder, 1, sharded)
    before = files(folder)
    folder.chmod(0o555)
    done = in_process(READ_ONLY.replace("sys.argv[1]", repr(str(folder))))
    folder.chmod(0o755)
    if "Permission denied" not in done.stdout and "PermissionError" in done.stderr:
        pytest.skip("another user cannot read the sources here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Permission denied") == 2
    assert done.stdout.count("Nothing was changed") == 2
    assert (files(folder), found(folder)) == (before, 1)


@posix
def test_a_read_only_disk_keeps_its_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2000) as disk:
        save(disk, 1, False)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for sharded in (False, True):
            with pytest.raises(CheckpointError, match=r"Read-only file system.*Nothing was changed"):
                save(disk, 2, sharded)
        assert (files(disk), found(disk)) == ([NAME], 1)


NOT_FILES: dict[str, Any] = {
    "No such file or directory": lambda folder: folder / "nowhere" / "a",
    "is a folder: name a file in it": lambda folder: folder,
    "Not a directory": lambda folder: folder / "file" / "a",
    "File name too long": lambda folder: folder / ("n" * 300),
    "is not a valid file name": lambda folder: folder / "a\0b",
    "on this machine only": lambda folder: "s3://bucket/a.safetensors",
}


@posix
@pytest.mark.parametrize("says", NOT_FILES)
@both
def test_a_place_where_no_file_can_be_is_named(tmp_path: Path, says: str, sharded: bool) -> None:
    (tmp_path / "file").write_text("old")
    path = NOT_FILES[says](tmp_path)
    specs = {name: Spec(np.dtype(np.uint8), (100,)) for name in "ab"}
    with pytest.raises(CheckpointError) as refused:
        write_sharded(path, specs, {}, lambda name: [np.ones(100, np.uint8)], 100 if sharded else None)
    assert says in str(refused.value)
    assert files(tmp_path) == ["file"]


# Beside others -------------------------------------------------------------------------------------


@posix
@both
def test_litter_of_the_dead_is_swept_and_that_of_the_living_is_not(tmp_path: Path, sharded: bool) -> None:
    dead = [f".{NAME}.0123456789ab.part", f".{NAME}.index.json.0123456789ab.part"]
    for name in dead:
        (tmp_path / name).write_text("half")
    others = [".other.safetensors.0123456789ab.part", f".{NAME}.part2", f"{NAME}.x.part"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    with atomic(tmp_path / NAME) as living:
        living.write_text("in the making")
        save(tmp_path, 1, sharded)
        assert living.read_text() == "in the making"
        left = [name for name in files(tmp_path) if name.endswith((".part", ".part2"))]
        assert left == sorted([living.name, *others])


@posix
def test_litter_of_one_dead_file_is_swept_by_whatever_writes_it(tmp_path: Path) -> None:
    (tmp_path / ".a.0123456789ab.part").write_text("half")
    write_arrays(tmp_path / "a", {"x": np.ones(3)}, {})
    assert files(tmp_path) == ["a"]


@posix
def test_where_there_are_no_locks_one_can_still_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    litter = tmp_path / f".{NAME}.0123456789ab.part"
    litter.write_text("whose it is cannot be known")
    for i, sharded in enumerate([False, True, True, False]):
        save(tmp_path, i, sharded)
        assert found(tmp_path) == i
    assert files(tmp_path) == sorted([litter.name, NAME])


def test_where_no_open_file_can_be_renamed_one_can_still_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: no handle of polyak's is open when a file gets its name."""
    replace = Path.replace

    def rename(self: Path, target: Path) -> Path:
        for handle in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else []:
            assert not (handle.is_symlink() and os.path.realpath(handle) == str(self)), "open while renamed"
        return replace(self, target)

    monkeypatch.setattr(sys, "platform", "win32")
    msvcrt = SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)
    monkeypatch.setattr(locks, "msvcrt", msvcrt, raising=False)
    monkeypatch.setattr(Path, "replace", rename)
    for i, sharded in enumerate([False, True, True, False]):
        save(tmp_path, i, sharded)
        assert found(tmp_path) == i
    assert files(tmp_path) == [NAME]


def test_what_another_writer_swept_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweeper can lock a temporary file, and remove it, between its making and its own lock."""
    if sys.platform == "win32":
        pytest.skip("no locks")
    flock, times = locks.fcntl.flock, 0

    def too_late(handle: int, how: int) -> None:
        nonlocal times
        times += 1
        if times == 1:  # the sweeper has it, and has not removed it yet
            raise BlockingIOError
        if times == 2:  # the sweeper has removed it
            [part] = [f for f in tmp_path.iterdir() if os.path.samestat(f.stat(), os.fstat(handle))]
            part.unlink()
        flock(handle, how)

    monkeypatch.setattr(locks.fcntl, "flock", too_late)
    with atomic(tmp_path / "a") as temporary:
        held = os.stat(temporary).st_ino
        temporary.write_text("x")
        assert os.stat(temporary).st_ino == held
    assert times == 3
    assert (tmp_path / "a").read_text() == "x"


@posix
@pytest.mark.parametrize("kinds", [(False, False), (True, True), (False, True)])
@pytest.mark.slow
def test_two_processes_that_write_one_file_both_succeed(tmp_path: Path, kinds: tuple[bool, bool]) -> None:
    """The result is at each moment one of the two, whole, and nothing else is left at the end."""
    script = """
import sys
from pathlib import Path
from tests.checkpoints.crash_worker import save
first, sharded, folder = int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])
(folder.parent / f"ready{first}").touch()
while not (folder.parent / f"ready{1 - first}").exists():
    pass
for i in range(60):
    save(folder, first + 2 * i, sharded)
"""
    folder = tmp_path / "folder"
    folder.mkdir()
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(first), str(sharded), folder], cwd=ROOT)
        for first, sharded in enumerate(kinds)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    last = found(folder)
    assert last in (118, 119)
    assert len(files(folder)) == (3 if kinds[last % 2] else 1), files(folder)


@pytest.mark.parametrize("kinds", [(False,) * 4, (True,) * 4, (False, True, False, True)])
def test_threads_that_write_one_file_all_succeed(tmp_path: Path, kinds: tuple[bool, ...]) -> None:
    ready = threading.Barrier(len(kinds))

    def saving(writer: int) -> None:
        ready.wait()
        for i in range(25):
            save(tmp_path, 4 * i + writer, kinds[writer])

    mask = os.umask(0o022)
    try:
        with ThreadPoolExecutor(len(kinds)) as pool:
            list(pool.map(saving, range(len(kinds))))
        assert os.umask(0o022) == 0o022  # nobody set it for all
    finally:
        os.umask(mask)
    last = found(tmp_path)
    assert last >= 96
    assert len(files(tmp_path)) == (3 if kinds[last % 4] else 1), files(tmp_path)


@posix
@pytest.mark.parametrize("kinds", [(True, True), (False, True)])
def test_only_one_at_a_time_gives_files_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[bool, ...]
) -> None:
    """Between choosing names and removing what they replace, nobody else may do either."""
    inside, most = 0, 0

    def watched(put: Callable[..., None]) -> Callable[..., None]:
        def slowly(*arguments: Any) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            put(*arguments)
            inside -= 1

        return slowly

    for name in ("_put_file", "_put_set"):
        monkeypatch.setattr(shards, name, watched(getattr(shards, name)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: save(tmp_path, i, kinds[i]), range(2)))
    assert most == 1


def test_who_reads_meanwhile_reads_one_whole_file(tmp_path: Path) -> None:
    save(tmp_path, 0, False)

    def saving() -> None:
        for i in range(1, 60):
            save(tmp_path, i, False)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(saving)
        seen = [found(tmp_path)]
        while not writer.done():
            seen.append(found(tmp_path))
        writer.result()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


@posix
def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save(tmp_path, 1, True)
    finally:
        os.umask(mask)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files(tmp_path)} == {0o640}


def test_an_open_file_is_closed_whatever_happens(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no list of open files")

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    save(tmp_path, 0, True)
    before = count()
    for i in range(5):
        save(tmp_path, i, i % 2 == 0)
        found(tmp_path)
        with pytest.raises(ZeroDivisionError), atomic(tmp_path / NAME):
            raise ZeroDivisionError
        with pytest.raises(CheckpointError):
            open_weights(tmp_path / f"{NAME}.missing")
        (tmp_path / "bad").write_bytes(b"\0" * 100)
        with pytest.raises(CheckpointError):
            open_weights(tmp_path / "bad")
    assert count() == before
