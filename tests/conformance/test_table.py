"""One table: every member does, step by step, what ``polyak.reference`` says."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import polyak
from polyak import reference
from polyak.schedules.kinds import KINDS
from tests.conformance.members import MEMBERS, Arrays, Row

DECAYS: dict[str, float | polyak.Decay] = {
    "float": 0.9,
    "Constant": polyak.Constant(0.97),
    "HalfLife": polyak.HalfLife(steps=6),
    "HalfLife as a share": polyak.HalfLife(share=0.1),
    "Debiased": polyak.Debiased(0.9),
    "Warmup": polyak.Warmup(0.9),
    "Ramp": polyak.Ramp(0.95, tau=10),
    "Capped": polyak.Capped(0.9),
    "Uniform": polyak.Uniform(),
    "Power": polyak.Power(sigma_rel=0.1),
    "Anneal": polyak.Anneal(30),
    "Scaled": polyak.scale_decay(polyak.Warmup(0.99), 2),
    "Cosine": polyak.Cosine(0.5, 1.0, total=30),
    "Piecewise": polyak.Piecewise([(10, 0.5), (None, polyak.Debiased(0.9))]),
}
STEPS = 25


def trajectory(row: Row, *, bad_at: int | None = None) -> Iterator[Arrays]:
    """θ₀, θ₁, … as the member sees them: floats in its own dtype, a counter, a mask."""
    rng = np.random.default_rng(7)
    for step in range(STEPS + 1):
        arrays = {"w": rng.normal(size=(5, 3)), "b": rng.normal(size=3), "scalar": rng.normal(size=())}
        if step == bad_at:
            arrays["w"][1, 2], arrays["b"][0] = np.nan, np.inf
        arrays = {k: row.rounded(v) for k, v in arrays.items()}
        yield {**arrays, "n": np.array(step), "mask": rng.random(4) > 0.5}


def agree(row: Row, average: Arrays, state: reference.State) -> None:
    for name, expected in state.average.items():
        if expected.dtype.kind in "fc":
            np.testing.assert_allclose(average[name], expected, rtol=0, atol=4 * row.tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(average[name], expected, err_msg=name)


@pytest.fixture(params=MEMBERS)
def row(request: pytest.FixtureRequest) -> Row:
    return MEMBERS[request.param]


def test_every_decay_is_in_the_table() -> None:
    kinds = {type(polyak.schedules.as_decay(decay)).__name__ for decay in DECAYS.values()}
    own = {kind.__name__ for kind in KINDS}
    assert kinds == own


def step_by_step(row: Row, decay: str, every: int, start: int) -> None:
    points = trajectory(row)
    first = next(points)
    member = row.make(first, decay=DECAYS[decay], every=every, start=start)
    state = reference.init(first, DECAYS[decay], every=every, start=start)
    for theta in points:
        member.step(theta)
        state = reference.update(state, theta)
        agree(row, member.average(), state)


# A row is sent one decay an update, whichever rule it comes from: one that stays, one that is 0 at first and
# grows, one composed of several steps after a late start. What decay and cadence make together is then
# compared on one row of each engine, the one with the least rounding.
@pytest.mark.parametrize(
    ("decay", "every", "start"), [("float", 1, 0), ("Debiased", 1, 0), ("Piecewise", 4, 6)]
)
def test_every_row_step_by_step(row: Row, decay: str, every: int, start: int) -> None:
    step_by_step(row, decay, every, start)


@pytest.mark.parametrize("name", [name for name in MEMBERS if name.endswith(", float64")])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("every", "start"), [(1, 0), (3, 0), (1, 7), (4, 6)])
def test_every_decay_and_cadence_step_by_step(name: str, decay: str, every: int, start: int) -> None:
    step_by_step(MEMBERS[name], decay, every, start)


def test_several_tracks_are_as_if_each_were_alone(row: Row) -> None:
    points = trajectory(row)
    first = next(points)
    named = {k: DECAYS[k] for k in ("Constant", "Uniform", "Warmup")}
    member = row.make(first, decay=named)
    states = {k: reference.init(first, d) for k, d in named.items()}
    for theta in points:
        member.step(theta)
        states = {k: reference.update(s, theta) for k, s in states.items()}
    for track, state in states.items():
        agree(row, member.average(track), state)


BY_NAME = polyak.ByName({"w": polyak.Warmup(0.99), "s*": 0.5, "*": polyak.HalfLife(steps=6)})


@pytest.mark.parametrize(("every", "start"), [(1, 0), (4, 6)])
def test_each_tensor_has_the_decay_of_its_name(row: Row, every: int, start: int) -> None:
    points = trajectory(row)
    first = next(points)
    named: dict[str, Any] = {"parts": BY_NAME, "all": 0.9, "other": polyak.ByName({"[wb]": 0.8, "*": 0.95})}
    member = row.make(first, decay=named, every=every, start=start)
    states = {k: reference.init(first, d, every=every, start=start) for k, d in named.items()}
    for theta in points:
        member.step(theta)
        states = {k: reference.update(s, theta) for k, s in states.items()}
    for track, state in states.items():
        agree(row, member.average(track), state)
    raw = member.live()
    with member.ema.average_parameters("parts"):
        np.testing.assert_array_equal(member.live()["w"], row.rounded(member.average("parts")["w"]))
    np.testing.assert_array_equal(member.live()["w"], raw["w"])


@pytest.mark.parametrize("at", [1, 6, 11])
def test_by_name_a_resumed_run_is_the_whole_one_bit_for_bit(row: Row, at: int) -> None:
    points = list(trajectory(row, bad_at=3))
    named: dict[str, Any] = {"parts": BY_NAME, "all": 0.9}
    whole, first = (row.make(points[0], decay=named, every=2, start=3) for _ in range(2))
    for theta in points[1:]:
        whole.step(theta)
    for theta in points[1 : at + 1]:
        first.step(theta)
    second = row.make(points[at], decay=named, every=2, start=3)
    assert not second.ema.load_state_dict(first.ema.state_dict())
    for theta in points[at + 1 :]:
        second.step(theta)
    for track in named:
        assert second.ema.tracks[track].profiles == whole.ema.tracks[track].profiles
        for name, value in second.average(track).items():
            np.testing.assert_array_equal(value, whole.average(track)[name], err_msg=name)
    assert second.ema.metrics()["skipped"] == whole.ema.metrics()["skipped"] == 1


def test_by_name_every_weight_of_a_profile_is_the_one_applied(row: Row) -> None:
    points = list(trajectory(row))
    member = row.make(points[0], decay=BY_NAME, every=2)
    for theta in points[1:]:
        member.step(theta)
    average, track = member.average(), member.ema.tracks["average"]
    for name in ("w", "b", "scalar"):
        weights = track.profile_of(name).weights()
        expected = sum(weight * point[name] for weight, point in zip(weights, points, strict=False))
        np.testing.assert_allclose(average[name], expected, rtol=0, atol=8 * row.tolerance, err_msg=name)


def test_several_steps_at_once_keep_the_half_life(row: Row) -> None:
    points = list(trajectory(row))
    member = row.make(points[0], decay=polyak.Ramp(0.9, tau=5))
    state = reference.init(points[0], polyak.Ramp(0.9, tau=5))
    for steps, theta in zip([1, 4, 2, 7, 1], points[1:], strict=False):
        member.step(theta, steps=steps)
        state = reference.update(state, theta, steps=steps)
        agree(row, member.average(), state)


def test_time_in_samples(row: Row) -> None:
    points = list(trajectory(row))
    member = row.make(points[0], decay=polyak.HalfLife(samples=100), every=2)
    state = reference.init(points[0], polyak.HalfLife(samples=100), every=2)
    for samples, theta in zip([32, 32, 7, 64, 1, 90], points[1:], strict=False):
        member.step(theta, samples=samples)
        state = reference.update(state, theta, units=samples)
        agree(row, member.average(), state)


def test_elements_that_are_not_finite_to_begin_with_begin_when_they_are(row: Row) -> None:
    first, *later = trajectory(row, bad_at=0)
    floats = {name for name, value in first.items() if value.dtype.kind == "f"}
    begun = {k: np.where(np.isfinite(v), v, later[0][k]) if k in floats else v for k, v in first.items()}
    member, state = row.make(first, decay=0.9), reference.init(begun, 0.9)
    for theta in later:
        member.step(theta)
        state = reference.update(state, theta)
        agree(row, member.average(), state)
    assert member.ema.metrics()["skipped"] == 0


def test_raise_does_not_begin_with_them(row: Row) -> None:
    with pytest.raises(polyak.NonFiniteError, match=r"(w|b) is not finite, .* its average would begin"):
        row.make(next(trajectory(row, bad_at=0)), decay=0.9, on_nonfinite="raise")


def test_elements_that_are_not_finite_keep_their_average(row: Row) -> None:
    points = trajectory(row, bad_at=9)
    first = next(points)
    member, state = row.make(first, decay=0.9), reference.init(first, 0.9)
    for theta in points:
        member.step(theta)
        state = reference.update(state, theta)
        agree(row, member.average(), state)
    metrics = member.ema.metrics()
    assert (metrics["skipped"], metrics["skipped_tensors"]) == (1, {"b": 1, "w": 1})


def test_raise_changes_nothing(row: Row) -> None:
    points = list(trajectory(row, bad_at=3))
    member = row.make(points[0], decay=0.9, on_nonfinite="raise")
    for theta in points[1:3]:
        member.step(theta)
    before, step = member.average(), member.ema.step
    with pytest.raises(polyak.NonFiniteError, match=r"w|b"):
        member.step(points[3])
    assert member.ema.step == step
    for name, value in member.average().items():
        np.testing.assert_array_equal(value, before[name])


def test_swapping_shows_the_average_and_gives_the_weights_back(row: Row) -> None:
    points = list(trajectory(row))
    member = row.make(points[0], decay=0.9)
    for theta in points[1:]:
        member.step(theta)
    raw = member.live()
    with member.ema.average_parameters():
        assert member.ema.live == "average"
        np.testing.assert_array_equal(member.live()["w"], row.rounded(member.average()["w"]))
        assert not np.array_equal(member.live()["w"], raw["w"])
    assert member.ema.live == "raw"
    for name, value in member.live().items():
        np.testing.assert_array_equal(value, raw[name])


def test_resuming_is_going_on(row: Row) -> None:
    points = list(trajectory(row))
    options = {"decay": {"a": polyak.Warmup(0.9), "b": polyak.Uniform()}, "every": 4, "start": 2}
    whole, first = row.make(points[0], **options), row.make(points[0], **options)
    for theta in points[1:]:
        whole.step(theta)
    for theta in points[1:11]:
        first.step(theta)
    second = row.make(points[10], **options)
    second.ema.load_state_dict(first.ema.state_dict())
    for theta in points[11:]:
        second.step(theta)
    for track in ("a", "b"):
        assert second.ema.tracks[track].profile == whole.ema.tracks[track].profile
        for name, value in second.average(track).items():
            np.testing.assert_array_equal(value, whole.average(track)[name], err_msg=f"{track} {name}")


def test_the_profile_says_what_the_average_is(row: Row) -> None:
    points = list(trajectory(row))
    member = row.make(points[0], decay=polyak.Warmup(0.9), every=3, start=2)
    for theta in points[1:]:
        member.step(theta)
    weights = member.ema.tracks["average"].profile.weights()
    said = sum(w * theta["w"] for w, theta in zip(weights, points, strict=False))
    np.testing.assert_allclose(member.average()["w"], said, rtol=0, atol=4 * row.tolerance)
