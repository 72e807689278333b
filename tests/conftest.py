"""What tests of several folders need."""

import os
from collections.abc import Iterator

import pytest

from tests.warm import warm

# Ray reads its mode when it is imported, which Ultralytics does; the server's tests want it with a token.
os.environ.setdefault("RAY_AUTH_MODE", "token")


@pytest.fixture(scope="session")
def warm_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH on which `python` and `polyak` begin with PyTorch imported: the same, sooner."""
    with warm(tmp_path_factory.mktemp("warm")) as path:
        yield path
