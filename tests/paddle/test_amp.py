"""Following an optimizer's steps, those too that a GradScaler skips, and layers in 16 bits.

On a CPU Paddle's AMP switches itself off; where a test says so, it is made to believe in a device it knows,
and everything after that look is Paddle's own.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn
from paddle.base import framework

from polyak import ConfigError, HalfLife
from polyak.paddle import EMA

from .conftest import array, averages, fill

X = paddle.linspace(-1, 1, 6).reshape([3, 2])

OPTIMIZERS: dict[str, Callable[[list[Tensor]], Any]] = {
    "SGD": lambda p: paddle.optimizer.SGD(0.1, parameters=p),
    "Momentum": lambda p: paddle.optimizer.Momentum(0.1, parameters=p),
    "Adam": lambda p: paddle.optimizer.Adam(0.1, parameters=p),
    "AdamW": lambda p: paddle.optimizer.AdamW(0.1, parameters=p),
    "Adam, many tensors at once": lambda p: paddle.optimizer.Adam(0.1, parameters=p, use_multi_tensor=True),
    "AdamW, groups": lambda p: paddle.optimizer.AdamW(0.1, parameters=[{"params": p}]),
    "Lamb": lambda p: paddle.optimizer.Lamb(0.1, parameters=p),
    "RMSProp": lambda p: paddle.optimizer.RMSProp(0.1, parameters=p),
}


def ways(*verbs: str) -> list[tuple[str, str]]:
    """Each optimizer in each way of stepping; Paddle's minimize takes no groups."""
    return [
        (name, verb) for name in OPTIMIZERS for verb in verbs if "groups" not in name or verb != "minimize"
    ]


# --- attach -------------------------------------------------------------------------------------------


def step_by(verb: str, layer: nn.Layer, optimizer: Any) -> None:
    loss = layer(X).square().sum()
    loss.backward()
    optimizer.step() if verb == "step" else optimizer.minimize(loss)
    optimizer.clear_grad()


@pytest.mark.parametrize(("name", "verb"), ways("step", "minimize"))
def test_an_attached_average_is_updated_once_after_each_step(name: str, verb: str) -> None:
    layer = nn.Linear(2, 1)
    optimizer = OPTIMIZERS[name](layer.parameters())
    attached, by_hand = EMA(layer, 0.9), EMA(layer, 0.9)
    attached.attach(optimizer)
    for _ in range(3):
        step_by(verb, layer, optimizer)
        by_hand.update()
    assert attached.step == 3
    for key, average in averages(attached).items():
        np.testing.assert_array_equal(array(average), array(averages(by_hand)[key]))


def test_a_step_that_fails_is_not_counted() -> None:
    layer = nn.Linear(2, 1)
    optimizer = paddle.optimizer.LBFGS(parameters=layer.parameters())
    ema = EMA(layer, 0.9)
    ema.attach(optimizer)

    def fail() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(fail)
    assert ema.step == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_averages_follow_one_optimizer_and_leave_in_any_order(order: tuple[int, int]) -> None:
    layer = nn.Linear(2, 1)
    optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
    emas = EMA(layer, 0.9), EMA(layer, 0.5)
    handles = [ema.attach(optimizer) for ema in emas]
    step_by("step", layer, optimizer)
    handles[order[0]].remove()
    step_by("step", layer, optimizer)
    assert emas[order[0]].step == 1
    assert emas[order[1]].step == 2
    for handle in (*handles, *handles):
        handle.remove()
    step_by("minimize", layer, optimizer)
    assert (emas[order[0]].step, emas[order[1]].step) == (1, 2)
    emas[0].attach(optimizer)
    step_by("step", layer, optimizer)
    assert emas[0].step in (2, 3)


def test_a_decay_in_samples_cannot_be_attached() -> None:
    layer = nn.Linear(2, 1)
    optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
    with pytest.raises(ConfigError, match=r"'average' counts samples.*ema\.update\(samples=…\) yourself"):
        EMA(layer, HalfLife(samples=100)).attach(optimizer)


# --- GradScaler ---------------------------------------------------------------------------------------


class Elsewhere:
    """Paddle's tracer, but for where it says that tensors go by default: a place that AMP supports."""

    _expected_place = SimpleNamespace(
        is_gpu_place=lambda: False, is_xpu_place=lambda: False, is_custom_place=lambda: True
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(framework._dygraph_tracer(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(framework._dygraph_tracer(), name, value)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler, cast = map(importlib.import_module, ("paddle.amp.grad_scaler", "paddle.amp.auto_cast"))
    for module in (scaler, cast):
        monkeypatch.setattr(module, "_dygraph_tracer", Elsewhere)
    monkeypatch.setattr(cast, "_is_custom_device_bfloat16_supported", lambda: True)


class Scale(nn.Layer):
    """Of operators that AMP leaves in float32, as the CPU has no others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = self.create_parameter([2]), self.create_parameter([2], is_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")  # Paddle's
@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize(("name", "by"), ways("step", "unscale_ and step", "minimize"))
def test_steps_that_a_scaler_skips_are_not_counted(name: str, by: str) -> None:
    layer = Scale()
    optimizer = OPTIMIZERS[name](layer.parameters())
    ema = EMA(layer, 0.9)
    ema.attach(optimizer)
    scaler = paddle.amp.GradScaler(init_loss_scaling=1024, decr_every_n_nan_or_inf=1)
    assert scaler.is_enable()
    expected, taken = {k: array(v) for k, v in averages(ema).items()}, 0
    for inputs in (X, X * np.inf, X * np.nan, X, X, X * np.inf, X):
        before = array(layer.weight)
        with paddle.amp.auto_cast(dtype="float16"):
            scaled = scaler.scale(layer(inputs).sum())
        scaled.backward()
        if by == "minimize":
            scaler.minimize(optimizer, scaled)
        else:
            if by != "step":
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        optimizer.clear_grad()
        moved = not np.array_equal(before, array(layer.weight))
        assert moved == bool(inputs.isfinite().all())
        if moved:
            taken += 1
            for key, live in layer.state_dict().items():
                expected[key] = 0.9 * expected[key] + 0.1 * array(live)
        assert ema.step == taken
    assert taken == 4
    for key, average in averages(ema).items():
        np.testing.assert_allclose(array(average), expected[key], rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:AmpScaler can only be enabled on CUDAPlace")
def test_a_scaler_that_is_switched_off_changes_nothing() -> None:
    layer = nn.Linear(2, 1)
    optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
    ema = EMA(layer, 0.9)
    ema.attach(optimizer)
    scaler = paddle.amp.GradScaler()
    scaler.scale(layer(X).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert ema.step == 1


# --- 16 bits ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("decorated", ["before", "after", "never"])
@pytest.mark.parametrize("engine", ["native", "ops"])
def test_the_float32_average_of_16_bit_weights_is_right_to_its_last_digits(
    dtype: str, decorated: str, engine: str
) -> None:
    """O2 casts the layer where it stands; the average neither loses digits nor follows dead memory."""
    layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1D(3))
    optimizer = paddle.optimizer.AdamW(parameters=layer.parameters())

    def decorate() -> None:
        paddle.amp.decorate(layer, optimizer, level="O2", dtype=dtype, master_weight=True)
        assert str(layer[0].weight.dtype) == f"paddle.{dtype}"
        assert layer[1].weight.dtype == paddle.float32

    if decorated == "before":
        decorate()
    ema = EMA(layer, 0.9, engine=engine)
    expected = {key: array(t) for key, t in layer.state_dict().items()}
    random = np.random.default_rng(0)
    for step in range(40):
        if step == 10 and decorated == "after":
            decorate()
        for key, tensor in layer.state_dict().items():
            noise = paddle.to_tensor(random.normal(size=tensor.shape).astype("float32"))
            with paddle.no_grad():
                tensor.set_value(noise.astype(tensor.dtype))
            expected[key] = 0.9 * expected[key] + 0.1 * array(tensor)
        ema.update()
    assert {t.dtype for t in averages(ema).values()} == {paddle.float32}
    for key, average in averages(ema).items():
        np.testing.assert_allclose(array(average), expected[key], rtol=1e-6, atol=1e-6, err_msg=key)
    raw = copy.deepcopy(layer.state_dict())
    with ema.average_parameters():
        for key, tensor in layer.state_dict().items():
            assert tensor.dtype == raw[key].dtype
            np.testing.assert_array_equal(array(tensor), array(averages(ema)[key].astype(tensor.dtype)))
    for key, tensor in layer.state_dict().items():
        np.testing.assert_array_equal(array(tensor), array(raw[key]))


@pytest.mark.usefixtures("accelerated")
def test_auto_cast_leaves_averaging_alone() -> None:
    """Under O1 and O2 Paddle's operators cast their inputs; an update inside must not round the average."""
    layer = Scale()
    for level in ("O1", "O2"):
        for engine in ("native", "ops"):
            ema = EMA(layer, 0.9, engine=engine)
            start = array(layer.weight)
            with paddle.amp.auto_cast(level=level, dtype="bfloat16"):
                fill(layer.weight, 1 / 3)
                ema.update()
                module = ema.module
            np.testing.assert_allclose(
                array(averages(ema)["weight"]), 0.9 * start + 0.1 * array(layer.weight), rtol=1e-6
            )
            assert module.weight.dtype == paddle.float32
