"""A ledger and its shards in this process: what they count, in every schedule and order.

Ray, which only carries their calls, is left out here; `test_server.py` has what goes through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak._dtypes import Array
from polyak.schedules import Decay
from polyak.server import ledger
from polyak.server.layout import Layout, wire
from polyak.server.ledger import Ledger, Push, Rules
from polyak.server.shard import Message, Shard
from polyak.server.versions import Record, Versions
from tests.schedules.strategies import SCHEDULES


class Counting:
    """A server of one average without its processes."""

    def __init__(
        self, calls: dict[str, Shard], folder: Path, first: Mapping[str, Array], decay: Decay, shards: int
    ) -> None:
        folder.mkdir()
        self._layout = Layout.of(first)
        Versions(folder).write(Record(0, shards, self._layout, decay.to_config(), 0), first)
        self._ids = dict[str, int]()
        self._shards = [Shard(str(folder), i) for i in range(shards)]
        calls.update({f"here/{i}": shard for i, shard in enumerate(self._shards)})
        self._ledger = Ledger(str(folder), "here", Rules(decay, 10_000, 10_000, 10, 1.0))

    def push(self, worker: str, values: Mapping[str, Array], step: int, samples: float = 1.0) -> None:
        """As a client does: stage it at each shard, then have it counted."""
        before = self._ids.get(worker, 0)
        flat = self._layout.flat(values)
        for shard, pieces in zip(self._shards, self._layout.divided(len(self._shards)), strict=True):
            sent = [wire(flat[piece.field.name][piece.begin : piece.end]) for piece in pieces]
            message = Message(self._layout.digest, [name for name, _ in sent], [raw for _, raw in sent])
            shard.stage(worker, before + 1, message)
        self._ids[worker] = before + 1
        push = Push(worker, 1, before + 1, before, step, samples, "", 0, False)
        assert self._ledger.count(push).outcome == "counted"

    def newest(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The tensors on disk, and what the ledger says about them."""
        self._ledger.flush("")
        about, kept = self._ledger.about(None), dict[str, list[Array]]()
        for shard, pieces in zip(self._shards, self._layout.divided(len(self._shards)), strict=True):
            for piece, array in zip(pieces, shard.read(about["version"]), strict=True):
                kept.setdefault(piece.field.name, []).append(array)
        return self._layout.assembled(kept), about


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Shard]:
    """Shards by their actors' names, which the ledger calls directly."""
    found = dict[str, Shard]()

    def ask_all(calls: Iterable[tuple[Shard, Sequence[Any]]], method: str, *, timeout: float) -> list[Any]:
        return [getattr(shard, method)(*arguments) for shard, arguments in calls]

    monkeypatch.setattr(ledger, "find", found.__getitem__)
    monkeypatch.setattr(ledger, "ask_all", ask_all)
    return found


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_gives_its_own_profile(kind: str, calls: dict[str, Shard], tmp_path: Path) -> None:
    """One shard, one worker, late and in time; a schedule that comes from a function too."""
    decay, steps = SCHEDULES[kind], [1, 2, 3, 5, 4, 6, 7, 3]
    server = Counting(calls, tmp_path / "average", {"w": np.zeros(8)}, decay, shards=1)
    for place, step in enumerate(steps):
        server.push("worker", {"w": np.eye(8)[place]}, step)
    tensors, about = server.newest()
    own = polyak.Profile.from_decay(decay, 7).weights()[steps]
    np.testing.assert_allclose(tensors["w"], own / own.sum(), atol=1e-12)
    expected = np.bincount(steps, own / own.sum())
    np.testing.assert_allclose(about["profile"].weights(), expected, atol=1e-9)


def test_three_workers_in_six_orders_agree(calls: dict[str, Shard], tmp_path: Path) -> None:
    """Each pushes twelve steps; their turns differ."""
    first = {"a": np.zeros(5, np.float32), "b": np.zeros((2, 3), np.float32)}
    found: list[float] = []
    for i, order in enumerate(permutations(range(3))):
        server = Counting(calls, tmp_path / str(i), first, polyak.HalfLife(steps=4), shards=2)
        for begin in range(1, 13, 4):
            for worker in order:
                for step in range(begin, begin + 4):
                    values = {key: np.full_like(array, step * (worker + 1)) for key, array in first.items()}
                    server.push(f"worker-{worker}", values, step, worker + 1)
        tensors, about = server.newest()
        assert about["version"] == 36
        found.append(float(tensors["a"][0]))
        np.testing.assert_array_equal(tensors["b"], np.full((2, 3), tensors["a"][0]))
    weights = [(w + 1) * 2 ** (-(12 - s) / 4) for w in range(3) for s in range(1, 13)]
    values = [s * (w + 1) for w in range(3) for s in range(1, 13)]
    assert found == pytest.approx([np.average(values, weights=weights)] * 6, rel=1e-5)
