"""``polyak.paddle.ExponentialMovingAverage`` beside the static-graph class whose name it bears."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn, static
from paddle.base.layer_helper import LayerHelper
from paddle.pir_utils import OldIrGuard

from polyak import CheckpointError, ConfigError, PlanError, SwapError, load
from polyak.cli.describe import describe
from polyak.paddle import ExponentialMovingAverage
from tests.states import opened

from .conftest import array, assert_restored, fill, network, snapshot

POINTS = [np.random.default_rng(t).normal(size=(2, 3)).astype("float32") for t in range(31)]


# --- against the static graph -------------------------------------------------------------------------


@pytest.fixture
def static_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A static graph of the kind the class was written for, which Paddle 3.3 has broken in two places."""

    def logical_not(x: Any) -> Any:  # the function gives the other kind of graph
        helper = LayerHelper("logical_not")
        out = helper.create_variable_for_type_inference("bool")
        helper.append_op(type="logical_not", inputs={"X": x}, outputs={"Out": out})
        return out

    cond = static.nn.cond  # takes no NumPy array, which the class gives it
    monkeypatch.setattr(paddle, "logical_not", logical_not)
    monkeypatch.setattr(
        static.nn, "cond", lambda p, true, false: cond(p, true, lambda: paddle.assign(false()))
    )
    paddle.enable_static()
    with OldIrGuard():
        yield
    paddle.disable_static()


def in_static_graph(decay: float, thres_steps: bool) -> tuple[str, list[np.ndarray], list[np.ndarray]]:
    """The parameter's name, and after each point the average as it is kept and as it is applied."""
    kept: list[np.ndarray] = []
    applied: list[np.ndarray] = []
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup):
        x, t = static.data("x", [2, 3], "float32"), static.data("t", [1], "float32")
        w = static.create_parameter([2, 3], "float32")
        paddle.assign(x, output=w)
        average = static.ExponentialMovingAverage(decay, t if thres_steps else None)
        average.update()
    executor = static.Executor(paddle.CPUPlace())
    executor.run(startup)
    for step, point in enumerate(POINTS[1:], 1):
        feed = {"x": point, "t": np.array([step], "float32")}
        kept += executor.run(main, feed=feed, fetch_list=[average._ema_vars[w.name]])
        with average.apply(executor):
            applied.append(np.array(static.global_scope().find_var(w.name).get_tensor()))
    return w.name, kept, applied


def parameter() -> Tensor:
    with paddle.no_grad():
        made = paddle.create_parameter([2, 3], "float32")
        made.set_value(POINTS[0])
    return made


def in_dynamic_graph(decay: float, **schedule: bool) -> list[np.ndarray]:
    w = parameter()
    average = ExponentialMovingAverage([w], decay, **schedule)
    seen: list[np.ndarray] = []
    for point in POINTS[1:]:
        fill(w, 0)
        w.set_value(point)
        average.step()
        with average.apply():
            seen.append(array(w))
    return seen


@pytest.mark.parametrize(("decay", "rounding"), [(0.0, 1e-7), (0.9, 1e-6), (0.999, 2e-4)])
def test_bias_correction_gives_what_the_static_class_applies(
    static_graph: None, decay: float, rounding: float
) -> None:
    """To that class's own rounding, which for a decay near 1 loses digits in 1-decayᵗ."""
    theirs = in_static_graph(decay, thres_steps=False)[2]
    paddle.disable_static()
    ours = in_dynamic_graph(decay, bias_correction=True)
    exact = np.zeros((2, 3))
    for t, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        exact = decay * exact + (1 - decay) * POINTS[t]
        np.testing.assert_allclose(one, other, rtol=0, atol=rounding * 4)
        np.testing.assert_allclose(one, exact / (1 - decay**t), rtol=0, atol=1e-6)


def test_without_correction_it_starts_from_the_parameters_and_the_static_class_from_zero(
    static_graph: None,
) -> None:
    theirs = in_static_graph(0.9, thres_steps=False)[1]
    paddle.disable_static()
    for t, (one, other) in enumerate(zip(in_dynamic_graph(0.9), theirs, strict=True), 1):
        np.testing.assert_allclose(one, other + 0.9**t * POINTS[0], rtol=0, atol=1e-6)


def test_thres_steps_decays_as_the_static_class_does_but_keeps_the_weights_sum(static_graph: None) -> None:
    _, kept, applied = in_static_graph(0.7, thres_steps=True)
    paddle.disable_static()
    ours, rest = in_dynamic_graph(0.7, thres_steps=True), 1.0
    for t, (one, other, shown) in enumerate(zip(ours, kept, applied, strict=True), 1):
        beta = min(0.7, (1 + t) / (10 + t))
        rest *= beta
        np.testing.assert_allclose(one, other + rest * POINTS[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(shown, other / (1 - beta**t), rtol=0, atol=3e-6)
    assert rest < 1e-6


def test_names_are_those_that_paddle_gave_the_parameters() -> None:
    layer = nn.Linear(2, 2)
    average = ExponentialMovingAverage(layer.parameters())
    names = {layer.weight.name, layer.bias.name}
    assert set(average.state_dict()["tracks"]["average"]["tensors"]) == names
    assert all("." in name for name in names)


def test_a_layer_brings_its_names_and_its_statistics() -> None:
    layer = network()
    average = ExponentialMovingAverage(layer)
    assert set(average.state_dict()["tracks"]["average"]["tensors"]) == set(layer.state_dict())


# --- its methods --------------------------------------------------------------------------------------


def stepped(layer: nn.Layer | None = None, **options: Any) -> tuple[nn.Layer, ExponentialMovingAverage]:
    layer = layer or nn.Linear(2, 2)
    average = ExponentialMovingAverage(layer.parameters(), 0.9, **options)
    for value in (1, 2):
        fill(layer.weight, value)
        average.step()
    return layer, average


def test_update_is_step() -> None:
    _, average = stepped()
    average.update()
    assert average.ema.step == 3


@pytest.mark.parametrize("verb", ["apply_to", "apply"])
def test_a_block_restores_whatever_happens(verb: str) -> None:
    layer, average = stepped()
    before = snapshot(layer)
    with getattr(average, verb)() as given:
        assert given is average
        assert float(layer.weight.mean()) < 1.9
    assert_restored(layer, before)
    with pytest.raises(ZeroDivisionError), getattr(average, verb)():
        raise ZeroDivisionError
    assert_restored(layer, before)


def test_without_a_block_restore_is_called_by_hand() -> None:
    layer, average = stepped()
    before = snapshot(layer)
    average.restore()
    assert_restored(layer, before)
    average.apply_to()
    assert average.ema.live == "average"
    average.restore()
    assert_restored(layer, before)


def test_need_restore_false_leaves_the_average_in() -> None:
    layer, average = stepped()
    before = snapshot(layer)
    with average.apply(need_restore=False):
        pass
    assert float(layer.weight.mean()) < 1.9
    with pytest.raises(SwapError, match=r"^step: the parameters hold the average .* Call restore\(\)"):
        average.step()
    average.restore()
    assert_restored(layer, before)
    average.step()


VERBS: dict[str, Any] = {
    "step": lambda average, path: average.step(),
    "update": lambda average, path: average.update(),
    "state_dict": lambda average, path: average.state_dict(),
    "set_state_dict": lambda average, path: average.set_state_dict({}),
    "save": lambda average, path: average.save(path),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_restore_that_was_forgotten_is_named(verb: str, tmp_path: Path) -> None:
    _, average = stepped()
    average.apply_to()
    with pytest.raises(
        SwapError, match=r"hold the average since apply_to\(\)\. Call restore\(\) after evaluating"
    ):
        VERBS[verb](average, tmp_path / "average.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert average.ema.live == "average"
    average.restore()
    average.step()
    assert average.ema.step == 3


def test_arguments_of_the_static_class_that_mean_nothing_here_are_taken() -> None:
    layer, average = stepped(thres_steps=None, name="ema")
    before, executor = snapshot(layer), static.Executor(paddle.CPUPlace())
    with average.apply(executor, need_restore=True):
        assert float(layer.weight.mean()) < 1.9
    assert_restored(layer, before)
    with average.apply(executor, False):
        pass
    average.restore(executor)
    assert_restored(layer, before)


REFUSED: dict[str, tuple[Any, str]] = {
    "the decay first": (
        lambda p: ExponentialMovingAverage(0.99),
        r"parameters=0\.99: .*\(layer, decay=0\.99\)",
    ),
    "a step as a tensor": (
        lambda p: ExponentialMovingAverage(p, 0.9, thres_steps=paddle.ones([1])),
        r"thres_steps is a Tensor: must be True or False",
    ),
    "need_restore in place of the executor": (
        lambda p: ExponentialMovingAverage(p).apply(False),
        r"apply\(False\): the first argument is the static graph.s executor.*need_restore=False",
    ),
    "restore of something": (lambda p: ExponentialMovingAverage(p).restore("cpu"), r"restore\('cpu'\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_arguments_of_the_static_class_that_mean_something_else_are_refused(what: str) -> None:
    call, says = REFUSED[what]
    with pytest.raises(ConfigError, match=says):
        call(nn.Linear(2, 2).parameters())


def test_a_file_made_of_a_list_says_that_its_names_fit_no_layer(tmp_path: Path) -> None:
    layer, average = stepped()
    with pytest.warns(UserWarning, match=r"uses Paddle.s numbered parameter names.*'linear_\d+\.\w_0'"):
        average.save(tmp_path / "list.safetensors")
    [note] = [n for n in describe(tmp_path / "list.safetensors").notes if "fit no layer" in n]
    assert "use_structured_name=False" in note
    missing, unexpected = layer.set_state_dict(
        load(tmp_path / "list.safetensors").tensors, use_structured_name=False
    )
    assert (missing, unexpected) == ([], [])
    with average.apply_to():
        applied = array(layer.weight)
    np.testing.assert_array_equal(load(tmp_path / "list.safetensors").tensors[layer.weight.name], applied)
    whole = ExponentialMovingAverage(layer, 0.9)
    whole.save(tmp_path / "layer.safetensors")
    assert not any("fit no layer" in n for n in describe(tmp_path / "layer.safetensors").notes)
    assert set(load(tmp_path / "layer.safetensors").tensors) == set(layer.state_dict())


def test_applying_twice_is_refused_and_restores_nothing() -> None:
    layer, average = stepped()
    before = snapshot(layer)
    with average.apply_to():
        for again in (average.apply_to, average.apply):
            with pytest.raises(SwapError, match=r"^apply_to: .* already\. Call restore\(\) first"):
                again()
        assert average.ema.live == "average"
    assert_restored(layer, before)


def test_options_are_those_of_the_ema() -> None:
    layer, average = stepped(dtype="float64", every=2, exclude="*.b_*")
    kept = average.ema.tracks["average"].tensors
    assert set(kept) == {layer.weight.name}
    assert kept[layer.weight.name].dtype == paddle.float64
    assert average.ema.every == 2


def test_plain_tensors_that_are_trained_are_averaged_too() -> None:
    tensor = paddle.ones([3])
    tensor.stop_gradient = False
    average = ExponentialMovingAverage([tensor], 0.5)
    fill(tensor, 3)
    average.step()
    with average.apply_to():
        assert tensor.tolist() == [2, 2, 2]
    assert tensor.tolist() == [3, 3, 3]


# --- refusals -----------------------------------------------------------------------------------------


def test_two_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bias_correction=True and thres_steps=True.*choose one"):
        ExponentialMovingAverage(nn.Linear(2, 2), bias_correction=True, thres_steps=True)


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.5"):
        ExponentialMovingAverage(nn.Linear(2, 2), 1.5)


def test_what_is_no_parameter_is_refused() -> None:
    groups = [{"params": nn.Linear(2, 2).parameters()}]
    with pytest.raises(ConfigError, match=r"parameters holds a dict: give layer\.parameters\(\)"):
        ExponentialMovingAverage(groups)  # type: ignore[arg-type]


def test_two_parameters_of_one_name_are_refused_and_one_twice_is_not() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight.name = layer.weight.name
    with pytest.raises(ConfigError, match=f"two tensors named '{layer.weight.name}': give the layer"):
        ExponentialMovingAverage([*layer.parameters(), *other.parameters()])
    twice = ExponentialMovingAverage([*layer.parameters(), *layer.parameters()])
    assert len(twice.ema.tracks["average"].tensors) == 2


def test_no_parameters_are_refused() -> None:
    with pytest.raises(PlanError, match="Parameters has nothing to average"):
        ExponentialMovingAverage([])


# --- its state ----------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16", "seed": 3},
    "float16": {"dtype": "float16"},
    "split": {"dtype": "split"},
    "compensated": {"compensated": True},
    "bias_correction": {"bias_correction": True},
    "thres_steps": {"thres_steps": True, "every": 3},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_paddle_save_and_load_bring_everything_back(form: dict[str, Any], tmp_path: Path) -> None:
    layer, average = stepped(**form)
    average.update()
    paddle.save(average.state_dict(), str(tmp_path / "ema.pdparams"))
    again = ExponentialMovingAverage(layer.parameters(), 0.9, **form)
    assert not again.set_state_dict(paddle.load(str(tmp_path / "ema.pdparams")))
    for _ in range(3):  # and goes on alike, random bits included
        for one in (average, again):
            one.step()
    one, other = opened(average.state_dict()), opened(again.state_dict())
    assert one["step"] == other["step"] == 6
    for part in ("tensors", "lows"):
        mine, theirs = (state["tracks"]["average"][part] for state in (one, other))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            np.testing.assert_array_equal(array(tensor), array(theirs[name]))


def test_a_state_of_other_parameters_is_refused_and_changes_nothing() -> None:
    _, average = stepped()
    other = ExponentialMovingAverage(nn.Linear(2, 2).parameters(), 0.9)
    before = {name: array(t) for name, t in other.ema.tracks["average"].tensors.items()}
    with pytest.raises(CheckpointError, match=r"linear_\d+\.w_0"):
        other.set_state_dict(average.state_dict())
    for name, tensor in other.ema.tracks["average"].tensors.items():
        np.testing.assert_array_equal(array(tensor), before[name])
    assert other.ema.step == 0
