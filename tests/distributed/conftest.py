"""Ranks that all files share. These tests wait for several processes each, so none of them is fast."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.distributed.ranks import Ranks, ranks


@pytest.fixture(scope="session")
def four() -> Generator[Ranks]:
    with ranks(4) as started:
        yield started


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.slow)
