"""The choice among several half-lives: which tracks there are, and which one the rule follows."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polyak import Adaptive, ConfigError, Debiased
from polyak.schedules.adaptive import Choice, advantages, from_state, judged, metrics_of_each, to_state
from polyak.schedules.golden_section import grid

MODES = st.sampled_from(["max", "min"])
SMOOTHINGS = st.sampled_from([0.0, 0.25, 0.5, 0.75])
# Multiples of 1/8 below 2¹⁰, whose sums, halves and quarters are exact for a few observations.
NUMBERS = st.integers(-8000, 8000).map(lambda n: n / 8)
NAMES = ["h1", "h2", "h4", "h8"]  # four, so that the mean is exact too
OBSERVATIONS = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, NUMBERS)), min_size=1, max_size=5)


def rule(**changed: Any) -> Adaptive:
    return Adaptive(**{"low": 1, "high": 8, "points": 4, **changed})


def run(given_rule: Adaptive, observations: list[dict[str, float]]) -> list[Choice]:
    choice, choices = Choice(given_rule.middle), list[Choice]()
    for metrics in observations:
        choice = judged(given_rule, choice, metrics)
        choices.append(choice)
    return choices


def test_the_tracks_are_bias_corrected_and_named_by_their_half_lives() -> None:
    adaptive = Adaptive(low=30, high=3000, points=5)
    assert list(adaptive.decays) == ["h30", "h94.87", "h300", "h948.7", "h3000"]
    for decay, h in zip(adaptive.decays.values(), grid(30, 3000, 5), strict=True):
        assert decay == Debiased(2 ** (-1 / h))
        assert decay.beta**h == pytest.approx(0.5, rel=1e-12)
    assert adaptive.middle == "h300"
    assert Adaptive(1, 8, points=4).middle == "h2"


@given(st.floats(0.5, 1e5), st.floats(1.1, 1e4), st.integers(2, 9))
def test_half_lives_reach_from_low_to_high(low: float, ratio: float, points: int) -> None:
    decays = list(Adaptive(low, low * ratio, points).decays.values())
    half_lives = [-1 / math.log2(decay.beta) for decay in decays]
    assert len(decays) == points
    assert half_lives[0] == pytest.approx(low, rel=1e-6)
    assert half_lives[-1] == pytest.approx(low * ratio, rel=1e-4)
    assert half_lives == sorted(half_lives)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"low": 0}, "low=0: a half-life must be positive"),
        ({"low": 8}, "high=8: the longest half-life must be finite and above low=8"),
        ({"high": math.inf}, "high=inf"),
        ({"low": math.nan}, "low=nan"),
        ({"points": 1}, "points=1: must be a whole number, at least 2"),
        ({"points": 2.5}, "points=2.5"),
        ({"mode": "best"}, "mode='best'"),
        ({"smoothing": 1.0}, r"smoothing=1.0: must lie in \[0, 1\)"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"min_gain": -1.0}, "min_gain"),
        ({"min_gain": math.inf}, "min_gain"),
        ({"low": 1000, "high": 1000.9}, "points=4: half-lives this close to each other have the same name"),
    ],
    ids=str,
)
def test_an_argument_that_breaks_its_rule_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(**changed)


@given(OBSERVATIONS, SMOOTHINGS, MODES, st.sampled_from([0.0, 0.125, 3.0]))
def test_the_rule_is_its_definition_in_exact_arithmetic(
    observations: list[dict[str, float]], smoothing: float, mode: Any, min_gain: float
) -> None:
    s, sign = Fraction(smoothing), 1 if mode == "max" else -1
    scores: dict[str, Fraction] = {}
    following, switches = "h2", 0
    for metrics, choice in zip(
        observations, run(rule(smoothing=smoothing, mode=mode, min_gain=min_gain), observations), strict=True
    ):
        mean = sum(map(Fraction, metrics.values())) / len(metrics)
        for name, metric in metrics.items():
            new = sign * (Fraction(metric) - mean)
            scores[name] = s * scores[name] + (1 - s) * new if name in scores else new
        best = max(NAMES, key=lambda name: scores[name])  # of equals the shortest, whatever the order given
        if scores[best] > scores[following] + Fraction(min_gain):
            following, switches = best, switches + 1
        assert choice == Choice(following, {k: float(v) for k, v in scores.items()}, switches)


@given(OBSERVATIONS, SMOOTHINGS, MODES, NUMBERS)
def test_what_all_tracks_have_in_common_changes_nothing(
    observations: list[dict[str, float]], smoothing: float, mode: Any, common: float
) -> None:
    moved = [{k: v + common * i for k, v in one.items()} for i, one in enumerate(observations)]
    adaptive = rule(smoothing=smoothing, mode=mode)
    assert run(adaptive, moved) == run(adaptive, observations)


@given(OBSERVATIONS, SMOOTHINGS)
def test_a_smaller_metric_being_better_mirrors_the_choice(
    observations: list[dict[str, float]], smoothing: float
) -> None:
    mirrored = [{k: -v for k, v in one.items()} for one in observations]
    assert run(rule(smoothing=smoothing, mode="min"), mirrored) == run(
        rule(smoothing=smoothing), observations
    )


@given(OBSERVATIONS)
def test_without_smoothing_the_best_of_the_last_observation_is_followed(
    observations: list[dict[str, float]],
) -> None:
    last = run(rule(smoothing=0.0), observations)[-1]
    assert observations[-1][last.following] == max(observations[-1].values())


@given(OBSERVATIONS, SMOOTHINGS)
def test_a_gain_that_nothing_reaches_keeps_the_middle(
    observations: list[dict[str, float]], smoothing: float
) -> None:
    last = run(rule(smoothing=smoothing, min_gain=2000.0), observations)[-1]
    assert (last.following, last.switches) == ("h2", 0)


@given(NUMBERS, SMOOTHINGS, st.integers(1, 4))
def test_ties_keep_the_followed_track(value: float, smoothing: float, times: int) -> None:
    last = run(rule(smoothing=smoothing), [dict.fromkeys(NAMES, value)] * times)[-1]
    assert (last.following, last.switches) == ("h2", 0)


def test_a_gain_of_exactly_the_least_one_is_not_more_than_it() -> None:
    metrics = {"h1": 1.0, "h2": 0.0, "h4": 0.0, "h8": 0.0}
    assert judged(rule(min_gain=1.0), Choice("h2"), metrics).following == "h2"
    assert judged(rule(min_gain=0.9), Choice("h2"), metrics).following == "h1"


@given(st.fixed_dictionaries(dict.fromkeys(NAMES, st.floats(-1e9, 1e9))), MODES)
def test_advantages_sum_to_zero(metrics: dict[str, float], mode: Any) -> None:
    size = sum(map(abs, metrics.values())) + 1e-300  # no rounding error is below the least number
    assert abs(math.fsum(advantages(metrics, mode).values())) <= 1e-15 * size


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"h1": 1, "h2": 1, "h4": 1}, "metrics: h8 missing; observe all of h1, h2, h4, h8"),
        ({"h1": 1, "h2": 1, "h4": 1, "h8": 1, "h9": 1}, "no track is named 'h9'"),
        ({"h1": 1, "h2": math.nan, "h4": 1, "h8": 1}, r"metrics\['h2'\]=nan: must be finite"),
        ({"h1": 1, "h2": 1, "h4": -math.inf, "h8": 1}, r"metrics\['h4'\]=-inf: must be finite"),
        ({"h1": "good", "h2": 1, "h4": 1, "h8": 1}, r"metrics\['h1'\]='good': must be one number"),
    ],
    ids=str,
)
def test_metrics_that_are_not_one_number_for_each_track_are_refused(
    metrics: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics_of_each(metrics, rule().decays)


@given(OBSERVATIONS, SMOOTHINGS)
def test_a_choice_comes_back_from_a_file(observations: list[dict[str, float]], smoothing: float) -> None:
    adaptive = rule(smoothing=smoothing)
    for choice in [Choice(adaptive.middle), *run(adaptive, observations)]:
        assert from_state(json.loads(json.dumps(to_state(adaptive, choice)))) == (adaptive, choice)


@pytest.mark.parametrize(
    "changed",
    [{"following": "h9"}, {"switches": -1}, {"switches": 0.5}, {"scores": {"h1": 0.0}}, {"rule": {"low": 3}}],
    ids=str,
)
def test_a_choice_in_a_file_is_checked(changed: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, TypeError)):
        from_state(to_state(rule(), Choice("h2")) | changed)


@given(st.data())
def test_half_lives_close_enough_to_share_a_name_are_refused_not_merged(data: st.DataObject) -> None:
    low = data.draw(st.floats(1, 1e4))
    high = data.draw(st.floats(low * 1.0001, low * 1.01))
    points = data.draw(st.integers(2, 6))
    names = {f"h{h:.4g}" for h in grid(low, high, points)}
    assume(len(names) < points)
    with pytest.raises(ConfigError, match="the same name"):
        Adaptive(low, high, points)
