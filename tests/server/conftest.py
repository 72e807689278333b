"""One Ray cluster for each test process. Hypothesis has no deadline: a shared machine may pause."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from polyak.server import cluster

settings.register_profile("polyak", deadline=None, print_blob=True)
settings.load_profile("polyak")

RAY = ["test_server.py", "test_chaos.py", "test_recipes.py", "test_paddle.py"]
collect_ignore = [] if find_spec("ray") else RAY
if not find_spec("torch"):  # of the four only the last does without
    collect_ignore = [*collect_ignore, *RAY[:3]]


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.name in RAY:
        item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def token() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="session")
def address(token: str) -> Iterator[str]:
    """A cluster with a token and a small object store; this process is connected to it."""
    yield cluster.begin(token, 300 << 20)
    cluster.end()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An average of each test's own."""
    return request.node.name.partition("[")[0] + secrets.token_hex(2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "average"
