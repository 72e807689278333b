"""What is replaced: its mode and owner, links, long names, and who stands in the way."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyak._files import shards
from polyak._files.locks import Lock
from polyak._files.write import atomic, sweep_all
from polyak.errors import CheckpointError
from tests.checkpoints.crash_worker import NAME, files, found, save

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes, links and locks of POSIX systems")
ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from polyak._files.locks import Lock
with Lock(Path(sys.argv[1]), "", "") as lock:
    lock.take(0)
    print("held", flush=True)
    time.sleep(300)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o664, 0o444])
@pytest.mark.parametrize("kinds", [(False, False), (True, True), (False, True), (True, False)])
def test_the_mode_of_what_is_replaced_is_kept(tmp_path: Path, kept: int, kinds: tuple[bool, bool]) -> None:
    save(tmp_path, 0, kinds[0])
    for name in files(tmp_path):
        (tmp_path / name).chmod(kept)
    save(tmp_path, 1, kinds[1])
    assert found(tmp_path) == 1
    assert {mode(tmp_path / name) for name in files(tmp_path)} == {kept}


def test_new_content_is_never_readable_by_more_than_the_old(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with atomic(target) as temporary:
        assert mode(temporary) == 0o666 & ~_umask()
        temporary.write_text("old")
    target.chmod(0o604)
    with atomic(target) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("new")
    assert (mode(target), target.read_text()) == (0o604, "new")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_the_owner_of_what_is_replaced_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 0, False)
    os.chown(tmp_path / NAME, 12345, 23456)
    (tmp_path / NAME).chmod(0o640)
    save(tmp_path, 1, False)
    now = (tmp_path / NAME).stat()
    assert (now.st_uid, now.st_gid, mode(tmp_path / NAME)) == (12345, 23456, 0o640)


AS_ANOTHER = """
import os, sys
from pathlib import Path
from polyak._files.write import atomic
os.chdir(sys.argv[1])
os.setgroups([]), os.setgid(65534), os.setuid(65534)
with atomic("a") as temporary:
    temporary.write_text("new")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed")
@pytest.mark.slow
def test_a_group_that_cannot_be_kept_gives_no_other_group_its_rights(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "a").write_text("old")
    (folder / "a").chmod(0o664)
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, folder], cwd=ROOT, capture_output=True, text=True
    )
    if "ModuleNotFoundError" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("another user cannot read the sources here")
    assert done.returncode == 0, done.stderr
    assert (folder / "a").read_text() == "new"
    assert ((folder / "a").stat().st_gid, mode(folder / "a")) == (65534, 0o644)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path, there: bool, absolute: bool) -> None:
    real, named = tmp_path / "disk", tmp_path / "run"
    real.mkdir()
    named.mkdir()
    if there:
        save(real, 1, False)
    (named / NAME).symlink_to(real / NAME if absolute else Path("..") / "disk" / NAME)
    (tmp_path / "twice").symlink_to(named / NAME)
    save(named, 2, False)
    assert (named / NAME).is_symlink()
    assert (found(real), found(named), files(real), files(named)) == (2, 2, [NAME], [NAME])
    with atomic(tmp_path / "twice") as temporary:
        assert temporary.parent == real
        temporary.write_text("through two links")
    assert (real / NAME).read_text() == "through two links"


def test_shards_and_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, False)
    (tmp_path / NAME).rename(tmp_path / "first")
    (tmp_path / NAME).symlink_to("first")
    with pytest.raises(CheckpointError, match=r"is a link to .*first, and shards are found by the name"):
        save(tmp_path, 2, True)
    assert files(tmp_path) == [NAME, "first"]
    assert found(tmp_path) == 1
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(CheckpointError, match="circle cannot be written"), atomic(tmp_path / "circle"):
        pass
    (tmp_path / "lost").symlink_to("nowhere/a")
    with pytest.raises(CheckpointError, match="No such file or directory"), atomic(tmp_path / "lost"):
        pass


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    for path in (tmp_path / NAME, Path("/dev/null")):
        with pytest.raises(CheckpointError, match="is not a regular file"), atomic(path):
            pass
    with pytest.raises(CheckpointError, match="is not a regular file"):
        save(tmp_path, 1, False)
    assert stat.S_ISFIFO((tmp_path / NAME).stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["n" * 243 + ".safetensors", "模" * 85, "n" * 101])
def test_the_longest_names_can_be_written_and_their_litter_is_found(tmp_path: Path, name: str) -> None:
    other = name[:-1] + "x"
    for content in ("first", "second"):
        with atomic(tmp_path / name) as temporary, atomic(tmp_path / other) as beside:
            assert len(os.fsencode(temporary.name)) < 143  # of encrypted folders
            assert temporary.name.split("~")[1][:16] != beside.name.split("~")[1][:16]
            temporary.write_text(content)
            beside.write_text("beside")
            (tmp_path / f"{temporary.name[:-17]}0123456789ab.part").write_text("left by the dead")
    with atomic(tmp_path / name) as temporary:
        temporary.write_text("third")
    assert files(tmp_path) == sorted([name, other])
    assert (tmp_path / name).read_text() == "third"


def test_a_name_of_255_bytes_is_saved_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "n" * 243 + ".safetensors"
    monkeypatch.setattr("tests.checkpoints.crash_worker.NAME", name)
    save(tmp_path, 1, False)
    save(tmp_path, 2, False)
    assert (found(tmp_path), files(tmp_path)) == (2, [name])
    with pytest.raises(CheckpointError, match=r"File name too long.*Nothing was changed"):
        save(tmp_path, 3, True)
    assert (found(tmp_path), files(tmp_path)) == (2, [name])


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no memory disk")
def test_a_memory_disk_is_written(tmp_path: Path) -> None:
    folder = Path("/dev/shm") / f"polyak-{os.getpid()}"
    folder.mkdir()
    try:
        for i, sharded in enumerate([False, True, False]):
            save(folder, i, sharded)
            assert found(folder) == i
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_nobody_who_locks_the_folder_stands_in_the_way(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for i, sharded in enumerate([False, True]):
            save(tmp_path, i, sharded)
            assert found(tmp_path) == i
    finally:
        os.close(handle)


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of NAME."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / f".{NAME}.lock")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_who_stops_with_the_lock_is_named_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(shards, "_PATIENCE", 0.1)
    host = os.uname().nodename
    with pytest.raises(
        CheckpointError, match=f"{NAME} is being written by process {holder.pid} on {host}, since"
    ):
        save(tmp_path, 1, False)
    assert files(tmp_path) == [f".{NAME}.lock"]
    holder.kill()
    holder.wait()
    save(tmp_path, 2, False)  # what the killed one left is taken over, and removed
    assert (files(tmp_path), found(tmp_path)) == ([NAME], 2)


def test_a_lock_without_a_name_in_it_is_waited_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f".{NAME}.lock"
    monkeypatch.setattr(shards, "_PATIENCE", 0.1)
    for content in ("", '{"pid": 3', '["pid"]', "\x1b[2J"):
        path.write_text(content)
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(CheckpointError, match="by an unidentified process: wait for it"):
                save(tmp_path, 1, False)


def test_a_lock_is_no_way_to_overwrite_another_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".{NAME}.lock").symlink_to("victim")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path, 1, False)
    assert (tmp_path / "victim").read_text() == "precious"


def _sleep() -> None:
    time.sleep(60)


def test_a_forked_child_holds_no_lock_and_takes_none_from_its_parent(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", "it is done", "wait")
    lock.take(0)
    with atomic(tmp_path / "a") as temporary:
        temporary.write_text("x")
        child = multiprocessing.get_context("fork").Process(target=_sleep)
        child.start()
        again = multiprocessing.get_context("fork").Process(target=lock.release)
        again.start()
        again.join()
        assert temporary.exists()
    try:
        assert (tmp_path / "lock").exists()
        with pytest.raises(CheckpointError, match=f"it is done by process {os.getpid()} on"):
            Lock(tmp_path / "lock", "it is done", "wait").take(0)
        lock.release()
        Lock(tmp_path / "lock", "it is done", "wait").take(0)  # though the child lives
    finally:
        child.kill()
        child.join()


def test_a_lock_that_is_forgotten_is_free(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", "it is done", "wait")
    lock.take(0)
    del lock
    assert files(tmp_path) == []
    Lock(tmp_path / "lock", "it is done", "wait").take(0)


def test_a_folder_is_swept_of_all_that_the_dead_left(tmp_path: Path) -> None:
    for name in (".a.0123456789ab.part", ".000000010-x~y.safetensors.0123456789ab.part"):
        (tmp_path / name).write_text("half")
    others = [".a.part", ".a.0123456789AB.part", "a.0123456789ab.part"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    with atomic(tmp_path / "b") as living:
        sweep_all(tmp_path)
        assert files(tmp_path) == sorted([*others, living.name])
