"""What the stopwatch and the memory meter say of things whose cost is known."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

import pytest
import torch
from torch import nn

import polyak
from polyak.bench import measure as measuring
from polyak.bench.contender import Contender, decays, ours
from polyak.bench.measure import Figures, measure, peak

CPU = torch.device("cpu")


def averaged(net: nn.Module, more: float = 0.0, swap: float = 0.0) -> Figures:
    """Figures of a contender that sleeps so many seconds besides."""
    inner = ours(net, decays(1), "float32")

    def update() -> None:
        inner.update()
        time.sleep(more)

    @contextlib.contextmanager
    def slowly() -> Generator[None]:
        time.sleep(swap)
        yield
        time.sleep(2 * swap)

    made = Contender(update, inner.averages, slowly)
    return measure(net, {"x": made}, decays(1), "float32", 3, lambda: time.sleep(0.03)).figures["x"]


def test_seconds_are_of_what_was_timed() -> None:
    found = averaged(nn.Linear(4, 4), more=0.02, swap=0.01)
    assert 0.02 <= found.update < 0.2
    assert found.ratio > 100
    assert found.enter is not None
    assert found.leave is not None
    assert 0.01 <= found.enter < found.leave
    assert found.share == pytest.approx(0.4, abs=0.25)


def test_the_share_of_a_step_is_measured_in_training() -> None:
    """Called again and again an update finds all it needs in the caches."""
    net, trained = nn.Linear(4, 4), [False]
    inner = ours(net, decays(1), "float32")

    def step() -> None:
        trained[0] = True
        time.sleep(0.01)

    def update() -> None:
        inner.update()
        time.sleep(0.03 * trained[0])
        trained[0] = False

    found = measure(net, {"x": Contender(update, inner.averages)}, decays(1), "float32", 3, step)
    one = found.figures["x"]
    assert one.after_step is not None
    assert one.share is not None
    assert found.limit_share is not None
    assert one.update < 0.02 <= one.after_step
    assert found.limit_share < 0.3 < one.share


@pytest.mark.skipif(peak(lambda: None, CPU) is None, reason="this system does not tell")
def test_memory_is_what_was_held_at_once_also_the_second_time() -> None:
    kept: list[torch.Tensor] = []

    def hold() -> None:
        several: list[torch.Tensor] = []
        for _ in range(10):
            several.append(torch.ones(1_000_000))
            kept.append(
                torch.ones(10_000)
            )  # between them, so that the allocator gives nothing back by itself

    for _ in range(3):
        assert peak(hold, CPU) == pytest.approx(40e6, rel=0.1)
    assert (peak(lambda: None, CPU) or 0) < 4e6


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str) -> int:
        raise FileNotFoundError(key)

    monkeypatch.setattr(measuring, "_resident", refuse)
    ran: list[int] = []
    assert peak(lambda: ran.append(1), CPU) is None
    assert ran == [1]


def test_a_step_that_fails_is_refused_with_what_it_said() -> None:
    def step() -> None:
        raise RuntimeError("no data")

    net = nn.Linear(2, 2)
    made = {"polyak": ours(net, decays(1), "float32")}
    with pytest.raises(polyak.ConfigError, match="training step raised RuntimeError: no data"):
        measure(net, made, decays(1), "float32", 1, step)


def test_rounds_are_counted_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    net = nn.Linear(2, 2)
    made = {"polyak": ours(net, decays(1), "float32")}
    measure(net, made, decays(1), "float32", 3, tick=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 5) for i in range(1, 6)]
