"""Every decay: its properties, its published numbers, and what it says to bad arguments."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import (
    Capped,
    ConfigError,
    Constant,
    Cosine,
    Debiased,
    Decay,
    HalfLife,
    Piecewise,
    Power,
    Profile,
    Ramp,
    Uniform,
    Warmup,
    compose,
    schedules,
)
from polyak.schedules import as_decay
from polyak.schedules.kinds import KINDS
from polyak.schedules.power import gamma_to_sigma_rel, sigma_rel_to_gamma

from .strategies import ONE_OF_EACH, betas, decays

times = st.one_of(st.integers(0, 300), st.integers(0, 10**9))


@given(decays, times)
def test_a_decay_lies_between_zero_and_one(decay: Decay, t: int) -> None:
    assert 0 <= decay(t + 1) <= 1


@given(decays, times, st.integers(0, 40))
def test_composing_equals_stepping(decay: Decay, t: int, k: int) -> None:
    stepped = math.prod(decay(t + i) for i in range(1, k + 1))
    assert compose(decay, t, k) == pytest.approx(stepped, rel=1e-11, abs=1e-300)


@given(decays, times, st.integers(0, 20), st.integers(0, 20))
def test_composing_twice_is_composing_once(decay: Decay, t: int, a: int, b: int) -> None:
    apart = compose(decay, t, a) * compose(decay, t + a, b)
    assert compose(decay, t, a + b) == pytest.approx(apart, rel=1e-11, abs=1e-300)


@given(decays, times)
def test_no_steps_keep_everything(decay: Decay, t: int) -> None:
    assert compose(decay, t, 0) == 1


@pytest.mark.parametrize("decay", [Uniform(), Power(gamma=6.94), Debiased(0.999999), HalfLife(steps=1e9)])
def test_a_billion_steps_at_once_are_exact(decay: Decay) -> None:
    t, k = 10**9, 10**9
    closed = {
        "Uniform": 0.5,
        "Power": 0.5**7.94,
        "Debiased": 0.0,  # 0.999999 to the power of 1e9 is e^-1000
        "HalfLife": 0.5,
    }[type(decay).__name__]
    assert compose(decay, t, k) == pytest.approx(closed, rel=1e-12)


@given(decays)
def test_a_config_comes_back_through_json(decay: Decay) -> None:
    assert Decay.from_config(json.loads(json.dumps(decay.to_config()))) == decay


def test_every_kind_of_decay_is_drawn_here() -> None:
    """A decay added to the library must join the strategies, and with them every property above."""
    assert {type(decay) for decay in ONE_OF_EACH.values()} == {*KINDS}


def test_a_file_can_name_every_decay_whatever_was_imported() -> None:
    """The registry fills as modules are imported: in a fresh process reading must import all of them."""
    files = Path(schedules.__file__).parent.glob("*.py")
    written = {
        name for file in files for name in re.findall(r"^class (\w+)\(Decay\)", file.read_text(), re.M)
    }
    code = "from polyak.schedules.decay import Decay; Decay.from_config({'kind': 'no'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    known = done.stderr.rstrip().removesuffix(".").rpartition("known kinds: ")[2]
    assert known.split(", ") == sorted(written) == sorted(kind.__name__ for kind in KINDS)


def test_a_users_decay_keeps_its_name_before_polyaks() -> None:
    """polyak's own of that name may be imported only afterwards, to read another file."""
    code = """
from polyak.schedules.decay import Decay

class Power(Decay):
    betas = None

Decay.from_config({"kind": "Uniform"})
assert Decay._kinds["Power"] is Power
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@given(betas, st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_debiased_is_the_corrected_average_from_zero(beta: float, thetas: list[float]) -> None:
    if beta == 1:  # v stays 0 and 1 - βᵗ is 0: the limit is the mean, tested with Uniform
        return
    decay, average, v = Debiased(beta), 7.0, 0.0
    for t, theta in enumerate(thetas, 1):
        average = decay(t) * average + (1 - decay(t)) * theta
        v = beta * v + (1 - beta) * theta
        # 1 - βᵗ written so that it is exact for β near 1; v itself is exact to a few ulp of 1 - β.
        corrected = v / -math.expm1(t * math.log(beta)) if beta > 0 else theta
        assert average == pytest.approx(corrected, abs=1e-9)


@pytest.mark.parametrize("decay", [Uniform(), Debiased(1.0), Power(gamma=0)])
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=80))
def test_uniform_is_the_mean_and_so_are_its_limits(decay: Decay, thetas: list[float]) -> None:
    average = 7.0
    for t, theta in enumerate(thetas, 1):
        average = decay(t) * average + (1 - decay(t)) * theta
    assert average == pytest.approx(float(np.mean(thetas)), abs=1e-13)


@given(st.floats(0.5, 1e6))
def test_a_half_life_halves(h: float) -> None:
    assert compose(HalfLife(steps=h), 0, 1) == pytest.approx(0.5 ** (1 / h), rel=1e-12)
    assert HalfLife(samples=h).unit == "samples"
    assert HalfLife(tokens=h).unit == "tokens"


@given(st.integers(2, 20_000), st.data(), st.integers(0, 1000))
def test_a_share_is_the_half_life_of_its_profile_at_every_length(
    steps: int, data: st.DataObject, start: int
) -> None:
    young = data.draw(st.integers(1, steps // 2))
    profile = Profile.from_decay(HalfLife(share=young / steps), steps + start, start=start)
    assert profile.weights()[-young:].sum() == pytest.approx(0.5, rel=1e-9)
    assert profile.half_life == pytest.approx(young, rel=1e-9)
    assert profile.initial_weight == 0


def test_half_of_the_run_is_the_uniform_mean() -> None:
    assert [HalfLife(share=0.5)(t) for t in range(1, 50)] == [Uniform()(t) for t in range(1, 50)]


def test_a_half_life_in_samples_does_not_know_the_batch_size() -> None:
    h = HalfLife(samples=6400)
    small, large = math.prod(compose(h, 64 * i, 64) for i in range(100)), compose(h, 0, 6400)
    assert small == pytest.approx(large) == pytest.approx(0.5)


def test_a_float_is_a_constant() -> None:
    assert as_decay(0.9) == Constant(0.9)
    assert as_decay(Uniform()) == Uniform()


def test_decays_are_values() -> None:
    assert {Warmup(0.9998), Warmup(0.9998)} == {Warmup(0.9998)}
    with pytest.raises(AttributeError):
        Constant(0.9).beta = 0.5  # type: ignore[misc]


# Published formulas, evaluated apart from this code in 40 digits.
GOLDEN: list[tuple[Decay, dict[int, float]]] = [
    (
        Warmup(0.9998),  # timm's defaults: γ = 1, p = 2/3
        {1: 0.0, 2: 0.37003947505256342, 10: 0.78455653099681163, 1000: 0.99, 31_000: 0.99898665140245439}
        | {215_000: 0.9997213615620979, 1_000_000: 0.9998},
    ),
    (
        Warmup(0.9999, power=0.75),
        {2: 0.40539644249863947, 1000: 0.99437658674809651, 215_000: 0.99989984534136231, 1_000_000: 0.9999},
    ),
    (
        Warmup(0.999, gamma=5, power=0.75, min_decay=0.5, after=100),
        {101: 0.0, 102: 0.5, 150: 0.83214581125795733, 1000: 0.97971844823082118, 100_000: 0.999},
    ),
    (
        Ramp(0.9999, tau=2000),  # Ultralytics
        {1: 0.00049982503332864635, 100: 0.048765698441736062, 2000: 0.63205734677267482}
        | {10_000: 0.99316272679561444, 100_000: 0.9999},
    ),
    (Capped(0.999), {1: 2 / 11, 8: 0.5, 90: 0.91, 8990: 0.999, 8992: 0.999}),  # TensorFlow
    (
        Cosine(0.996, 1.0, total=1000),  # BYOL
        {1: 0.99600000986959628, 250: 0.9965857864376269, 500: 0.998, 750: 0.9994142135623731}
        | {1000: 1.0, 2000: 1.0},
    ),
    (Debiased(0.9), {1: 0.0, 2: 0.9 / 1.9, 3: (0.9 - 0.729) / (1 - 0.729)}),
    (Power(gamma=1), {1: 0.0, 2: 0.25, 10: 0.81}),
]


@pytest.mark.parametrize(("decay", "values"), GOLDEN, ids=lambda v: str(v) if isinstance(v, Decay) else "")
def test_published_schedules(decay: Decay, values: dict[int, float]) -> None:
    assert {t: decay(t) for t in values} == {t: pytest.approx(v, rel=4e-15, abs=0) for t, v in values.items()}


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [
        (0.05, 16.97219860230345),
        (0.1, 6.9372039376018075),
        (0.15, 3.5578687748994662),
        (0.25, 0.71982395800070995),
        (math.sqrt(1 / 12), 0.0),
    ],
)
def test_power_profiles_have_the_published_exponents(sigma_rel: float, gamma: float) -> None:
    """The paper prints γ = 16.97 for σ_rel = 0.05 and 6.94 for 0.10."""
    assert sigma_rel_to_gamma(sigma_rel) == pytest.approx(gamma, rel=1e-11, abs=1e-7)
    assert gamma_to_sigma_rel(gamma) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_sigma_rel_is_the_relative_width_of_the_weights(sigma_rel: float) -> None:
    steps = 20_000
    w = Profile.from_decay(Power(sigma_rel=sigma_rel), steps).weights()
    t = np.arange(steps + 1) / steps
    mean = w @ t
    assert math.sqrt(w @ (t - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-3)


REFUSED: list[tuple[Callable[[], Any], list[str]]] = [
    (lambda: Constant(1.1), ["beta=1.1", "[0, 1]"]),
    (lambda: Constant(-0.1), ["beta=-0.1", "[0, 1]"]),
    (lambda: Constant(math.nan), ["beta=nan", "[0, 1]"]),
    (lambda: Debiased(2), ["beta=2", "[0, 1]"]),
    (lambda: Ramp(1.5), ["beta=1.5", "[0, 1]"]),
    (lambda: Ramp(0.9, tau=0), ["tau=0", "positive"]),
    (lambda: Ramp(0.9, tau=math.inf), ["tau=inf", "finite"]),
    (lambda: Capped(-1), ["beta=-1", "[0, 1]"]),
    (lambda: Warmup(7), ["beta=7", "[0, 1]"]),
    (lambda: Warmup(0.9, gamma=0), ["gamma=0", "positive"]),
    (lambda: Warmup(0.9, power=-1), ["power=-1", "positive"]),
    (lambda: Warmup(0.9, min_decay=0.95), ["min_decay=0.95", "[0, beta=0.9]"]),
    (lambda: Warmup(0.9, after=-1), ["after=-1", "negative"]),
    (lambda: HalfLife(steps=0), ["steps=0", "positive"]),
    (lambda: HalfLife(samples=-5), ["samples=-5", "positive"]),
    (lambda: HalfLife(tokens=math.nan), ["tokens=nan", "positive"]),
    (lambda: HalfLife(share=0), ["share=0", "(0, 0.5]"]),
    (lambda: HalfLife(share=5), ["share=5", "0.05 for 5 %"]),
    (lambda: HalfLife(share=math.nan), ["share=nan", "(0, 0.5]"]),
    (lambda: HalfLife(), ["exactly one", "steps=, samples=, tokens= or share="]),
    (lambda: HalfLife(steps=9, share=0.1), ["exactly one", "'share': 0.1"]),
    (lambda: HalfLife(steps=1, tokens=2), ["exactly one", "'steps': 1", "'tokens': 2"]),
    (lambda: Power(), ["exactly one", "sigma_rel=None"]),
    (lambda: Power(sigma_rel=0.1, gamma=1), ["exactly one", "gamma=1"]),
    (lambda: Power(sigma_rel=0.29), ["sigma_rel=0.29", "√(1/12) ≈ 0.2887"]),
    (lambda: Power(sigma_rel=0.0), ["sigma_rel=0.0", "[1e-9, "]),
    (lambda: Power(gamma=-0.5), ["gamma=-0.5", "at least 0"]),
    (lambda: Cosine(1.5, 1, total=10), ["start=1.5", "[0, 1]"]),
    (lambda: Cosine(0.9, 2, total=10), ["end=2", "[0, 1]"]),
    (lambda: Cosine(0.9, 1, total=0), ["total=0", "at least one step"]),
    (lambda: Piecewise([]), ["[]", "last must be None"]),
    (lambda: Piecewise([(10, 0.9)]), ["[10]", "last must be None"]),
    (lambda: Piecewise([(None, 0.9), (None, 0.9)]), ["[None, None]", "rise"]),
    (lambda: Piecewise([(10, 0.9), (5, 0.9), (None, 0.9)]), ["[10, 5, None]", "rise"]),
    (lambda: Piecewise([(0, 0.9), (None, 0.9)]), ["[0, None]", "positive"]),
    (lambda: Piecewise([(5, HalfLife(tokens=9)), (None, 0.9)]), ["tokens", "count steps"]),
    (lambda: Piecewise([(5, 1.2), (None, 0.9)]), ["beta=1.2", "[0, 1]"]),
    (lambda: Constant(0.9)(0), ["t=0", "t = 1, 2"]),
    (lambda: compose(0.9, -1, 1), ["t=-1", "negative"]),
    (lambda: compose(0.9, 0, -1), ["k=-1", "negative"]),
    (lambda: Decay.from_config({"kind": "Exotic"}), ["'Exotic'", "Constant, "]),
    (lambda: Decay.from_config({}), ["{}", "known kinds"]),
    (lambda: Decay.from_config({"kind": ["Constant"]}), ["['Constant']", "known kinds"]),
    (lambda: Decay.from_config({"kind": "Constant"}), ["Constant", "beta"]),
    (lambda: Decay.from_config({"kind": "Constant", "gamma": 1}), ["Constant", "gamma"]),
    (lambda: Decay.from_config({"kind": "Constant", "beta": "0.9"}), ["Constant", "'0.9'"]),
    (lambda: Decay.from_config({"kind": "Piecewise"}), ["Piecewise", "pieces"]),
    (lambda: Decay.from_config({"kind": "Piecewise", "pieces": [[None]]}), ["Piecewise", "[[None]]"]),
    (lambda: Decay.from_config({"kind": "Piecewise", "pieces": [[None, 0.9]]}), ["Piecewise", "0.9"]),
    (lambda: Decay.from_config([1, 2]), ["[1, 2]"]),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_a_bad_argument_is_refused_with_its_value_and_the_rule(
    make: Callable[[], Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert [word for word in words if word not in str(refused.value)] == []


@given(st.floats().filter(lambda beta: not 0 <= beta <= 1))
def test_no_decay_outside_zero_to_one_is_accepted(beta: float) -> None:
    makers = [Constant, Debiased, Ramp, Capped, Warmup, lambda b: Cosine(b, 1, 5), lambda b: Cosine(0, b, 5)]
    for make in makers:
        with pytest.raises(ConfigError, match=r"\[0, 1\]"):
            make(beta)


def test_a_decay_cannot_be_made_without_a_formula() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Decay()  # type: ignore[abstract]
