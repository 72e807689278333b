"""Folders in memory, where there is such a disk: for tests that write small files by the thousand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def in_memory(memory: Path) -> Path:
    """A new one for each test."""
    return Path(tempfile.mkdtemp(dir=memory))
