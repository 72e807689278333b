"""The harness of the experiments: pairing, intervals, the verdict, and reports that are continued."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.harness import Data, Experiment, Row, continued, difference, machine, table, verdict
from experiments.intervals import jump, moment, second_half, wobble

finite = st.floats(-1e3, 1e3)


@dataclass(frozen=True)
class Size:
    steps: int


class Counted:
    """An experiment of which it is known how often it ran."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def run(self, seed: int, size: Size) -> dict[str, Any]:
        self.seeds.append(seed)
        return {"raw": 80.0 + seed, "average": 81.0 + 1.1 * seed, "curve": [0.5] * size.steps}


def experiment(run: Any, steps: int = 3) -> Experiment:
    row = Row("accuracy", "points", "higher", ("raw", "raw weights"), ("average", "EMA"), headline=True)
    return Experiment(
        name="trial",
        claim="An average is better.",
        published="somebody: +2 points",
        gain=2.0,
        data=Data("none", "none"),
        rows=(row,),
        run=run,
        quick=Size(steps),
        full=Size(10 * steps),
    )


def test_a_second_call_computes_nothing_and_more_seeds_are_added(tmp_path: Path) -> None:
    counted = Counted()
    first = continued(experiment(counted.run), "quick", 2, tmp_path, lambda _: None)
    assert counted.seeds == [0, 1]
    again = continued(experiment(counted.run), "quick", 2, tmp_path, lambda _: None)
    assert counted.seeds == [0, 1]
    assert again == first
    more = continued(experiment(counted.run), "quick", 4, tmp_path, lambda _: None)
    assert counted.seeds == [0, 1, 2, 3]
    assert more["seeds"] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "trial-quick.json").read_text()) == more


def test_a_run_that_was_stopped_keeps_the_seeds_it_finished(tmp_path: Path) -> None:
    counted = Counted()

    def stopped(seed: int, size: Size) -> dict[str, Any]:
        if seed == 2:
            raise KeyboardInterrupt
        return counted.run(seed, size)

    with pytest.raises(KeyboardInterrupt):
        continued(experiment(stopped), "full", 5, tmp_path, lambda _: None)
    continued(experiment(counted.run), "full", 5, tmp_path, lambda _: None)
    assert counted.seeds == [0, 1, 2, 3, 4]


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    counted = Counted()
    continued(experiment(counted.run), "quick", 2, tmp_path, lambda _: None)
    found = continued(experiment(counted.run, steps=4), "quick", 1, tmp_path, lambda _: None)
    assert counted.seeds == [0, 1, 0]
    assert found["seeds"] == [0]
    assert found["settings"] == {"steps": 4}


def test_seeds_computed_apart_are_gathered_by_a_call_for_all(tmp_path: Path) -> None:
    whole = continued(experiment(Counted().run), "quick", 12, tmp_path / "whole", lambda _: None)
    counted = Counted()
    for seed in (11, 2, 2, *range(10)):  # one of them twice, as a pod that is started again
        alone = continued(experiment(counted.run), "quick", 2, tmp_path, lambda _: None, only=seed)
        assert alone["seeds"] == [seed]
    assert sorted(counted.seeds) == [*range(10), 11]
    assert not (tmp_path / "trial-quick.json").exists()
    continued(experiment(counted.run, steps=4), "quick", 1, tmp_path, lambda _: None, only=10)
    gathered = continued(experiment(counted.run), "quick", 2, tmp_path, lambda _: None)
    assert gathered["seeds"] == [*range(10), 11], "seed 10 has other settings"
    assert json.loads((tmp_path / "trial-quick.json").read_text()) == gathered
    more = continued(experiment(counted.run), "quick", 12, tmp_path, lambda _: None)
    assert counted.seeds[-2:] == [10, 10], "what was missing"
    assert more["rows"] == whole["rows"]
    assert more["machine"] == whole["machine"]


def test_a_report_of_seeds_from_several_machines_names_each(tmp_path: Path) -> None:
    counted = Counted()
    for seed, name in enumerate(("one", "two", "one")):
        alone = continued(experiment(counted.run), "full", 1, tmp_path, lambda _: None, only=seed)
        (tmp_path / f"trial.seed-{seed}.json").write_text(json.dumps(alone | {"machine": name}))
    assert continued(experiment(counted.run), "full", 3, tmp_path, lambda _: None)["machine"] == "one; two"
    again = continued(experiment(counted.run), "full", 3, tmp_path, lambda _: None)
    assert again["machine"] == "one; two"
    assert again["seeds"] == counted.seeds == [0, 1, 2]
    more = continued(experiment(counted.run), "full", 4, tmp_path, lambda _: None)
    assert more["machine"] == f"one; two; {machine()}"


def test_the_report_holds_both_sides_and_their_paired_difference(tmp_path: Path) -> None:
    found = continued(experiment(Counted().run), "full", 5, tmp_path, lambda _: None)
    (row,) = found["rows"]
    assert row["without"] == {"what": "raw weights", "values": [80.0, 81.0, 82.0, 83.0, 84.0]}
    assert row["difference"]["mean"] == pytest.approx(1.2)
    # t(0.975, 4) = 2.776; the differences' deviation is 0.1·√2.5.
    assert row["difference"]["high"] - row["difference"]["mean"] == pytest.approx(
        2.7764 * 0.1 * 2.5**0.5 / 5**0.5, rel=1e-4
    )
    assert found["verdict"] == "holds, smaller"
    assert len(found["runs"]["0"]["curve"]) == 30
    assert "Verdict: holds, smaller (5 seeds" in table(found)


@given(mean=finite, half=st.floats(0.0, 1e3), gain=st.floats(0.1, 100.0))
def test_the_verdict_follows_from_the_interval_and_mirrors_with_the_direction(
    mean: float, half: float, gain: float
) -> None:
    found = {"mean": mean, "low": mean - half, "high": mean + half}
    mirrored = {"mean": -mean, "low": -(mean + half), "high": -(mean - half)}
    said = verdict(found, "higher", gain)
    assert said == verdict(mirrored, "lower", gain)
    if found["low"] <= 0 <= found["high"]:
        assert said == "no difference seen"
    elif found["high"] < 0:
        assert said == "does not hold"
    else:
        assert said == ("holds" if found["high"] >= gain else "holds, smaller")
        assert verdict(found, "higher", None) == "holds"


@given(mean=finite, half=st.floats(0.0, 1e3), margin=st.floats(0.1, 100.0))
def test_equality_holds_only_where_the_whole_interval_is_within_the_margin(
    mean: float, half: float, margin: float
) -> None:
    found = {"mean": mean, "low": mean - half, "high": mean + half}
    said = verdict(found, "equal", margin)
    if max(abs(found["low"]), abs(found["high"])) <= margin:
        assert said == "holds"
    elif found["low"] <= 0 <= found["high"]:
        assert said == "no difference seen", "too wide an interval proves nothing"
    else:
        assert said == "does not hold"


def test_one_seed_says_nothing() -> None:
    assert verdict(difference([1.0], [9.0]), "higher", None) == "no difference seen"


@given(start=finite, slope=finite, count=st.integers(3, 20))
def test_a_straight_line_jumps_by_its_slope_without_wobble(start: float, slope: float, count: int) -> None:
    line = [start + slope * i for i in range(count)]
    assert jump(line) == pytest.approx(abs(slope), abs=1e-9)
    assert wobble(line) == pytest.approx(0, abs=1e-9)


def test_the_second_half_begins_in_the_middle() -> None:
    assert second_half([1, 2, 3, 4, 5]) == [3, 4, 5]
    assert second_half([1, 2, 3, 4]) == [2, 3, 4]


def test_the_moment_is_on_the_line_between_evaluations() -> None:
    assert moment([1, 2, 4], 3) == 2.5
    assert moment([1, 2, 4], 3, at=[100, 200, 400]) == 300
    assert moment([5, 2, 4], 3) == 1, "from the beginning"
    assert moment([1, 2, 1], 3, at=[10, 20, 30]) == 30, "never"


@given(curve=st.lists(finite, min_size=2, max_size=20), share=st.floats(0.0, 1.0))
def test_the_moment_is_the_first(curve: list[float], share: float) -> None:
    level = curve[0] + share * (max(curve) - curve[0])
    found = moment(curve, level)
    assert 1 <= found <= len(curve)
    assert all(value < level for value in curve[: int(found) - 1])
