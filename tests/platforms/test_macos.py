"""On macOS a file is on disk only after F_FULLFSYNC. What is called is noted; Linux has no such call."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from polyak._files import write


@pytest.mark.parametrize("knows", [True, False])
def test_a_save_empties_the_cache_of_the_disk(
    knows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def control(handle: int, what: int) -> None:
        calls.append(f"{os.readlink(f'/proc/self/fd/{handle}').rpartition('.')[2]} {what}")
        if not knows:
            raise OSError("a disk on the network")

    def fsync(handle: int) -> None:
        calls.append("fsync")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(write, "fcntl", SimpleNamespace(fcntl=control, F_FULLFSYNC=51), raising=False)
    monkeypatch.setattr(os, "fsync", fsync)
    with write.atomic(tmp_path / "file") as temporary:
        temporary.write_text("new")
    file, folder = calls[0], calls[1 if knows else 2]
    assert file == "part 51", "the bytes, before the rename"
    assert folder == f"{tmp_path} 51", "and the name, after it"
    assert calls.count("fsync") == (0 if knows else 2), "instead, where the disk does not know it"
    assert (tmp_path / "file").read_text() == "new"
