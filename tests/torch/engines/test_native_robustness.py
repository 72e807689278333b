"""The C kernel among threads, forks, wrong arguments and models that change under it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from polyak._kernel import _native
from tests.torch.engines.cases import NAN, copied, native, pairs, parts, same, threads

ROOT = Path(__file__).parents[3]


def test_two_threads_updating_at_once_do_what_they_do_one_after_the_other() -> None:
    before = [pairs("f32", "bf16", 2, [300_000]), pairs("bf16", "f32", 2, [200_000, 150_000])]

    def averaged(which: int) -> list[torch.Tensor]:
        kernel = native(copied(before[which]))
        for step in range(400):
            kernel.update((0.1, 0.7), step, True)
        return parts(kernel.pairs)

    with threads(3):
        expected = [averaged(0), averaged(1)]
        results: dict[int, list[torch.Tensor]] = {}
        start = threading.Barrier(2)

        def work(which: int) -> None:
            start.wait()
            results[which] = averaged(which)

        workers = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert all(same(results[which], expected[which]) for which in (0, 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_of_fork_average_too_also_when_forked_amid_an_update() -> None:
    command = [sys.executable, "-m", "tests.torch.engines.fork_worker"]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0


def test_other_python_threads_run_during_an_update() -> None:
    """Python itself switches threads only every 1000 s here, so an update that kept the lock would show."""
    kernel = native(pairs("f32", "bf16", 3, [2_000_000]))
    gate, ran = threading.Lock(), threading.Event()
    gate.acquire()

    def wait_and_run() -> None:
        gate.acquire()
        ran.set()

    other, interval = threading.Thread(target=wait_and_run), sys.getswitchinterval()
    other.start()
    sys.setswitchinterval(1000)
    try:
        deadline = time.monotonic() + 20
        gate.release()
        while not ran.is_set() and time.monotonic() < deadline:
            kernel.update((0.1, 0.2, 0.3), 1, True)
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        other.join()


def test_the_number_of_threads_may_change_between_updates() -> None:
    before = pairs("f32", "split", 2, [400_000, 1025])
    steady, changing = native(copied(before)), native(copied(before))
    for step, count in enumerate((1, 4, 2, 300, 3, 1, 5)):
        steady.update((0.1, 0.7), step, True)
        with threads(count):
            changing.update((0.1, 0.7), step, True)
    assert same(parts(steady.pairs), parts(changing.pairs))


ROW = (0, 0, 0, 0, 1, (0,), (0,))
WRONG: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "no arguments": ((), TypeError, "argument"),
    "rows in a tuple": ((0, 1, (ROW,)), TypeError, "list"),
    "a row that is a number": ((0, 1, [5]), TypeError, "row 0 is no tuple"),
    "an empty row": ((0, 1, [()]), TypeError, "7 arguments"),
    "an address that is a word": ((0, 1, [("x", *ROW[1:])]), TypeError, "integer"),
    "an address too large": ((0, 1, [(1 << 70, *ROW[1:])]), OverflowError, "large"),
    "an average that is a word": ((0, 1, [(*ROW[:5], ("x",), (0,))]), TypeError, "integer"),
    "too few averages": ((0, 2, [ROW]), ValueError, "one address for each of 2 tracks"),
    "lows that are no tuple": ((0, 1, [(*ROW[:6], 0)]), ValueError, "one address for each of 1 tracks"),
    "an unknown dtype": ((0, 1, [(0, 4, *ROW[2:])]), ValueError, "dtype 4"),
    "a negative size": ((0, 1, [(0, 0, -5, *ROW[3:])]), ValueError, "size -5"),
    "an unknown store": ((6, 1, [ROW]), ValueError, "store 6"),
    "no tracks": ((0, 0, []), ValueError, "0 tracks"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_refused(case: str) -> None:
    arguments, error, said = WRONG[case]
    with pytest.raises(error, match=said):
        _native.table(*arguments)


def test_wrong_updates_are_refused() -> None:
    theta, average = torch.ones(3), torch.zeros(3)
    table = _native.table(0, 1, [(theta.data_ptr(), 0, 3, 0, 1, (average.data_ptr(),), (0,))])
    for arguments, error in [
        ((table,), TypeError),
        ((table, [1.0], 0, 0, True, 1), TypeError),
        ((table, ("x",), 0, 0, True, 1), TypeError),
        ((table, (1.0, 1.0), 0, 0, True, 1), ValueError),
        ((table, (1.0,), "x", 0, True, 1), TypeError),
        ((table, (1.0,), 0, 0, True, "x"), TypeError),
        (("x", (1.0,), 0, 0, True, 1), ValueError),
    ]:
        with pytest.raises(error):
            _native.update(*arguments)
    assert average.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="is not one of variants"):
        _native.use("x87")
    for threads_ in (-3, 0, 1, 10_000):  # what no machine has is as many as there is work for
        assert _native.update(table, (1.0,), 0, 0, True, threads_) is None
    assert average.tolist() == [1, 1, 1]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("last", [ROW, 5, (*ROW[:5], (0, 0), (0,))], ids=["good", "wrong", "half made"])
def test_tables_good_and_wrong_give_their_memory_back(last: Any) -> None:
    rows = [(0, 0, 1 << 22, 0, 1, (0,), (0,))] * 500 + [last]

    def make() -> None:
        with suppress(TypeError, ValueError):
            _native.table(0, 1, rows)

    for _ in range(20):
        make()
    before = resident()
    for _ in range(1000):
        make()
    assert resident() - before < 10 << 20


def halve(model: nn.Linear) -> None:
    model.half()


def point_elsewhere(model: nn.Linear) -> None:
    model.weight.data = model.weight.data.clone() + 1


def turn(model: nn.Linear) -> None:
    model.weight.data = model.weight.data.clone().t().contiguous().t()


def replace(model: nn.Linear) -> None:
    model.weight = nn.Parameter(torch.randn(40, 40))


def widen(model: nn.Linear) -> None:
    model.double()


MOVES: list[Callable[[nn.Linear], None]] = [halve, point_elsewhere, turn, replace, widen]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_a_parameter_that_moved_is_read_where_it_is_now(move: Callable[[nn.Linear], None]) -> None:
    model = nn.Linear(40, 40, bias=False)
    ema = polyak.EMA(model, 0.0, engine="native")
    ema.update()
    left = model.weight.data
    move(model)
    if model.weight.data_ptr() != left.data_ptr():
        left.fill_(NAN)
    ema.update()
    average = ema.tracks["average"].tensors["weight"]
    assert torch.equal(average.double(), model.weight.double())
    assert ema.metrics()["skipped"] == 0


def test_a_parameter_turned_on_its_own_memory_is_read_as_it_is_now() -> None:
    model = nn.Linear(40, 40, bias=False)
    ema = polyak.EMA(model, 0.0, engine="native")
    model.weight.data = model.weight.data.t()
    ema.update()
    assert torch.equal(ema.tracks["average"].tensors["weight"], model.weight)


def test_a_parameter_of_another_dtype_on_its_own_memory_is_read_as_it_is_now() -> None:
    model = nn.Linear(40, 40, bias=False).half()
    ema = polyak.EMA(model, 0.0, engine="native")
    model.weight.data = model.weight.data.view(torch.bfloat16)
    ema.update()
    assert torch.equal(ema.tracks["average"].tensors["weight"], model.weight.float())


def test_a_parameter_that_was_resized_is_refused_and_its_old_memory_left_alone() -> None:
    model = nn.Linear(40, 40, bias=False)
    ema = polyak.EMA(model, 0.5, engine="native")
    kept = ema.tracks["average"].tensors["weight"].clone()
    left = model.weight.data
    model.weight.data = torch.randn(20, 40)
    left.fill_(NAN)
    with pytest.raises(polyak.PlanError, match=r"weight is now \(20, 40\)"):
        ema.update()
    assert torch.equal(ema.tracks["average"].tensors["weight"], kept)


def test_averages_pointed_elsewhere_are_not_written_to_freed_memory() -> None:
    model = nn.Linear(300, 300, bias=False)
    ema = polyak.EMA(model, 0.5, engine="native")
    average = ema.tracks["average"].tensors["weight"]
    average.data = torch.zeros(300, 300)
    others = [torch.full((300, 300), 7.0) for _ in range(20)]  # would lie where the average was
    ema.update()
    assert all(bool((other == 7).all()) for other in others)
