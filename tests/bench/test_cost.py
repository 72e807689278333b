"""The cost model, and what is advised on known figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyak.bench.cost import Facts, cadence, moved, moved_separately, recommend, seconds, share

# 10 M float32 parameters at 12 GB/s: 10 ms an update, in steps of 2 s on a machine with 1 GB free.
KNOWN = Facts(10**7, 4, 1, "float32", 0.01, 2.0, 12e9, 10**9, "cpu", "native (avx2)")


@pytest.mark.parametrize(
    ("live", "stored", "tracks", "each"),
    [(4, 4, 1, 12), (4, 4, 3, 4 + 8 * 3), (2, 4, 1, 10), (2, 2, 1, 6), (2, 3, 1, 2 + 6), (4, 8, 1, 4 + 16)],
)
def test_theta_is_read_once_and_each_average_twice(live: int, stored: int, tracks: int, each: int) -> None:
    assert moved(live, stored, tracks) == each
    assert moved_separately(live, stored, tracks) == tracks * (live + 2 * stored)


def test_seconds_are_bytes_over_bandwidth() -> None:
    assert seconds(10**7, 12, 12e9) == pytest.approx(0.01)
    assert seconds(10**7, 12, 12e9, cards=10) == pytest.approx(0.001)


@pytest.mark.parametrize("update", [1e-5, 1e-3, 0.02, 0.5, 7.0])
def test_the_cadence_is_the_least_that_keeps_to_the_share(update: float) -> None:
    k = cadence(update, 0.3, 0.01)
    assert share(update, 0.3, k) <= 0.01 + 1e-9
    assert k == 1 or share(update, 0.3, k - 1) > 0.01


def test_nothing_is_given_up_where_nothing_is_short() -> None:
    advice = recommend(KNOWN)
    assert (advice.dtype, advice.every, advice.device) == ("float32", 1, "cpu")
    assert "the fastest there is" in advice.reasons[0]
    assert advice.reasons[2] == "an update is 0.5% of a training step, within 1%"


@pytest.mark.parametrize(
    ("free", "device", "dtype", "where"),
    [
        (80_000_000, "cuda", "float32", "cuda"),
        (79_999_999, "cuda", "split", "cuda"),
        (59_999_999, "cuda", "bfloat16", "cuda"),
        (39_999_999, "cuda", "float32", "cpu"),
        (39_999_999, "cpu", "bfloat16", "cpu"),
        (None, "cuda", "float32", "cuda"),
    ],
)
def test_the_most_exact_storage_that_fits_is_advised(
    free: int | None, device: str, dtype: str, where: str
) -> None:
    advice = recommend(replace(KNOWN, free=free, device=device))
    assert (advice.dtype, advice.device) == (dtype, where)


def test_a_short_step_is_met_by_averaging_less_often() -> None:
    advice = recommend(replace(KNOWN, step=0.1))
    assert advice.every == 10
    assert "9.1% of a training step" in advice.reasons[2]


def test_without_a_step_it_says_how_to_give_one() -> None:
    advice = recommend(replace(KNOWN, step=None))
    assert advice.every == 1
    assert "factory" in advice.reasons[2]


def test_a_missing_kernel_is_said_with_its_way_out() -> None:
    engine = "blocked (the C kernel was not built: with a C compiler, pip install polyak)"
    assert engine in recommend(replace(KNOWN, engine=engine)).reasons[0]
