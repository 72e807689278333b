"""The search for the best half-life: where it looks, how near it comes, and in how many evaluations."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import ConfigError
from polyak.schedules.golden_section import best_of, grid, refined
from polyak.schedules.metric import Mode, check_min_gain, check_mode, gain
from polyak.select.gate import lower_bound

MODES = st.sampled_from(["max", "min"])


def searched(
    peak: float, left: float, right: float, mode: Mode, points: int, refine: int
) -> dict[float, float]:
    """Half-lives looked at from 1 to 1000 for a metric with one peak, of different slopes beside it."""

    def metric(half_life: float) -> float:
        distance = math.log(half_life / peak)
        height = -(left if distance < 0 else right) * abs(distance) ** 1.5
        return height if mode == "max" else -height

    metrics = {h: metric(h) for h in grid(1, 1000, points)}
    for _ in range(refine):
        half_life = refined(metrics, mode)
        if half_life is None:  # the neighbours are within 0.01 %
            break
        assert half_life not in metrics
        metrics[half_life] = metric(half_life)
    return metrics


SLOPE = st.floats(0.1, 10)


@given(st.floats(0, math.log(1000)), SLOPE, SLOPE, MODES, st.integers(3, 12), st.integers(2, 14))
def test_one_peak_is_found_as_nearly_as_promised_in_as_many_evaluations(
    x: float, left: float, right: float, mode: Mode, points: int, refine: int
) -> None:
    metrics = searched(math.exp(x), left, right, mode, points, refine)
    best = best_of(metrics, mode)
    assert best is not None
    ordered = sorted(metrics)
    i = ordered.index(best)
    around = [math.log(h) for h in ordered[max(0, i - 1) : i + 2]]
    promised = math.log(1000) / (points - 1) * ((math.sqrt(5) - 1) / 2) ** (refine - 2)
    assert around[0] - 1e-9 <= x <= around[-1] + 1e-9
    assert around[-1] - around[0] <= promised * (1 + 1e-9) + 1e-9
    assert len(metrics) == points + refine or around[-1] - around[0] <= 2e-4


def test_the_promise_is_kept_by_no_slower_search() -> None:
    """The bound of the test above is tight: some search needs all of it."""
    widths = []
    for i in range(200):
        metrics = searched(math.exp(math.log(1000) * (i + 0.5) / 200), 1, 1, "max", 7, 6)
        best = best_of(metrics, "max")
        assert best is not None
        j = sorted(metrics).index(best)
        ordered = sorted(metrics)
        widths.append(math.log(ordered[min(j + 1, 12)] / ordered[max(j - 1, 0)]))
    promised = math.log(1000) / 6 * ((math.sqrt(5) - 1) / 2) ** 4
    assert 0.9 * promised < max(widths) <= promised * (1 + 1e-9)


@given(st.floats(0.5, 1e6), st.floats(1, 1e4), st.integers(2, 40))
def test_a_grid_is_even_on_a_logarithmic_scale(low: float, factor: float, points: int) -> None:
    half_lives = grid(low, low * factor, points)
    assert half_lives[0] == pytest.approx(low, rel=1e-6)
    assert half_lives[-1] == pytest.approx(low * factor, rel=1e-6)
    ratios = {round(math.log(b / a), 9) for a, b in itertools.pairwise(half_lives)}
    assert len(half_lives) == 1 or (len(half_lives) == points and max(ratios) - min(ratios) < 1e-8)


def test_one_point_lies_in_the_middle() -> None:
    assert grid(10, 1000, 1) == [pytest.approx(100)]
    assert grid(7, 7, 5) == [7]


@pytest.mark.parametrize("arguments", [(0, 10, 3), (10, 9, 3), (1, math.inf, 3), (math.nan, 3, 3), (1, 2, 0)])
def test_an_impossible_grid_is_refused(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(ConfigError, match="needs 0 < low"):
        grid(*arguments)


def test_a_failed_evaluation_is_never_best_and_never_looked_at_again() -> None:
    metrics = {1.0: 0.1, 10.0: 0.5, 100.0: None, 1000.0: 0.4}
    looked: list[float] = []
    for _ in range(8):
        half_life = refined(metrics, "max")
        assert half_life is not None
        assert half_life not in metrics
        looked.append(half_life)
        metrics[half_life] = None
    assert best_of(metrics, "max") == 10.0
    assert max(looked) < 100


def test_without_neighbours_or_metrics_there_is_nothing_to_refine() -> None:
    assert refined({}, "max") is None
    assert refined({10.0: None, 20.0: None}, "min") is None
    assert refined({10.0: 1.0}, "max") is None
    assert refined({10.0: 1.0, 10.0 * (1 + 1e-8): 0.0}, "max") is None


def test_of_equals_the_shortest_is_best() -> None:
    assert best_of({30.0: 1.0, 10.0: 1.0, 20.0: 0.0}, "max") == 10
    assert best_of({30.0: 1.0, 10.0: 1.0, 20.0: 0.0}, "min") == 20
    assert best_of({}, "min") is None


@given(st.decimals(-100, 100, places=4), st.decimals(-100, 100, places=4))
def test_a_gain_is_that_of_the_decimals(new: float, best: float) -> None:
    assert gain(float(new), float(best), "max") == float(new - best)
    assert gain(float(new), float(best), "min") == float(best - new)


def test_what_is_no_mode_or_no_gain_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode='most'"):
        check_mode("most")
    for value in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="min_gain="):
            check_min_gain(value)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=31))
def test_the_lower_bound_of_a_gain_is_that_of_a_paired_t_test(gains: list[float]) -> None:
    scipy = pytest.importorskip("scipy.stats")
    n, mean = len(gains), sum(gains) / len(gains)
    spread = math.sqrt(sum((one - mean) ** 2 for one in gains) / (n - 1))
    expected = mean - scipy.t.ppf(0.95, n - 1) * spread / math.sqrt(n)
    assert lower_bound(gains) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_of_many_repeats_the_bound_is_on_the_safe_side() -> None:
    gains = [0.9, 1.1] * 50
    assert 1 - 1.6973 * 0.1006 / 10 < lower_bound(gains) < 1 - 1.6449 * 0.1 / 10
