"""The average inside a live Paddle layer: what is exchanged, what survives, and what is refused meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from polyak import SwapError
from polyak.paddle import EMA, swap, update_batchnorm

from .conftest import array, assert_restored, averages, fill, network, peak_bytes, snapshot, trained

X = paddle.linspace(-1, 1, 6).reshape([3, 2])


# --- storage exchange ---------------------------------------------------------------------------------


def test_the_live_layer_points_at_the_averages_own_memory() -> None:
    layer = network()
    ema = trained(layer)
    before = snapshot(layer)
    with ema.average_parameters() as live:
        assert live is layer
        for name, tensor in layer.state_dict().items():
            assert tensor.data_ptr() == averages(ema)[name].data_ptr()
    assert_restored(layer, before)


def wide() -> nn.Layer:
    return nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)])


def test_the_meter_sees_a_copy_of_one_parameter() -> None:
    """The proof that the next tests can fail."""
    layer = wide()
    assert peak_bytes(lambda: layer[0].weight.clone()) == 256 * 256 * 4


@pytest.mark.parametrize("engine", ["native", "ops"])
def test_swapping_allocates_nothing(engine: str) -> None:
    layer = wide()
    ema = trained(layer, engine=engine)

    def swap_and_back() -> None:
        with ema.average_parameters():
            pass

    swap_and_back()
    assert peak_bytes(swap_and_back) == 0


def test_updating_allocates_nothing() -> None:
    ema = EMA(wide(), 0.9)
    ema.update()
    assert peak_bytes(ema.update) == 0


def test_what_needs_a_cast_costs_one_cast_layer_and_no_backup() -> None:
    layer = wide().to(dtype="bfloat16")
    ema = trained(layer)

    def swap_and_back() -> None:
        with ema.average_parameters():
            pass

    assert peak_bytes(swap_and_back) <= 2 * sum(t.size for t in averages(ema).values()) + 1024


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_layer_of_another_dtype_holds_the_rounded_average(dtype: str) -> None:
    layer = nn.Linear(3, 2).to(dtype=dtype)
    ema = trained(layer, dtype="float32")
    before = snapshot(layer)
    with ema.average_parameters():
        for name, tensor in layer.state_dict().items():
            assert str(tensor.dtype) == f"paddle.{dtype}"
            np.testing.assert_array_equal(array(tensor), array(averages(ema)[name].astype(dtype)))
    assert_restored(layer, before)


@pytest.mark.parametrize("form", [{"dtype": "bfloat16"}, {"dtype": "split"}, {"compensated": True}], ids=str)
def test_averages_in_other_forms_are_shown_with_all_their_digits(form: dict[str, Any]) -> None:
    layer = nn.Linear(3, 2)
    ema = trained(layer, **form)
    track = ema.tracks["average"]
    with ema.average_parameters():
        for name, tensor in layer.state_dict().items():
            assert tensor.dtype == paddle.float32
            np.testing.assert_array_equal(array(tensor), array(track.value(name).astype("float32")))


# --- the way back -------------------------------------------------------------------------------------


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, Stop])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exception_in_evaluation_restores_the_raw_weights(error: type[BaseException], dtype: str) -> None:
    layer = nn.Linear(3, 2).to(dtype=dtype)
    ema = trained(layer)
    before = snapshot(layer)
    with pytest.raises(error), ema.average_parameters():
        raise error
    assert_restored(layer, before)
    assert ema.live == "raw"
    ema.update()


def test_an_exception_half_way_into_the_exchange_restores_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = network()
    ema = trained(layer)
    before, point, calls = snapshot(layer), swap._point, 0

    def refuse_the_fourth(live: Tensor, memory: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        point(live, memory)

    monkeypatch.setattr(swap, "_point", refuse_the_fourth)
    with pytest.raises(MemoryError):
        ema.average_parameters().__enter__()
    monkeypatch.undo()
    assert calls > 4, "the way back used it too"
    assert_restored(layer, before)
    assert ema.live == "raw"
    ema.update()


def test_blocks_nest_and_only_the_outermost_restores() -> None:
    layer = network()
    ema = trained(layer)
    before = snapshot(layer)
    with ema.average_parameters():
        with ema.average_parameters():
            pass
        assert ema.live == "average"
        assert layer[0].weight.data_ptr() == averages(ema)["0.weight"].data_ptr()
    assert_restored(layer, before)


def test_a_generator_that_is_closed_restores() -> None:
    layer = network()
    ema = trained(layer)
    before = snapshot(layer)

    def evaluate() -> Iterator[Tensor]:
        with ema.average_parameters():
            yield layer.eval()(X)

    generator = evaluate()
    next(generator)
    generator.close()
    assert_restored(layer, before)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_cast_inside_the_block_is_undone_and_leaves_the_average_alone(dtype: str) -> None:
    layer = network()
    ema = trained(layer)
    before = snapshot(layer)
    held = {name: (t.data_ptr(), t.dtype, array(t)) for name, t in averages(ema).items()}
    with pytest.warns(RuntimeWarning, match="got other memory"), ema.average_parameters():
        layer.to(dtype=dtype)
    assert_restored(layer, before)
    for name, (address, kind, values) in held.items():
        average = averages(ema)[name]
        assert (average.data_ptr(), average.dtype) == (address, kind)
        np.testing.assert_array_equal(array(average), values)
    ema.update()


def test_gradients_names_hooks_and_flags_survive() -> None:
    layer = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    layer[0].bias.stop_gradient = True
    ema = trained(layer)
    seen: list[int] = []
    layer[1].weight.register_hook(lambda gradient: seen.append(1))
    layer(X).sum().backward()
    parameters = layer.parameters()
    told = [(id(p), p.name, p.stop_gradient, p.is_leaf, p.persistable) for p in parameters]
    gradients = [None if p.grad is None else array(p.grad) for p in parameters]
    pending = layer(X).square().sum()  # a graph that is walked back only after the block
    with ema.average_parameters():
        assert [(id(p), p.name, p.stop_gradient, p.is_leaf, p.persistable) for p in parameters] == told
        with paddle.no_grad():
            layer(X)
    assert [(id(p), p.name, p.stop_gradient, p.is_leaf, p.persistable) for p in parameters] == told
    for p, gradient in zip(parameters, gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        if gradient is not None:
            np.testing.assert_array_equal(array(p.grad), gradient)
    layer.clear_gradients()
    pending.backward()
    inside = array(layer[1].weight.grad)
    layer.clear_gradients()
    layer(X).square().sum().backward()
    np.testing.assert_array_equal(inside, array(layer[1].weight.grad))
    assert len(seen) == 3


@pytest.mark.parametrize("dtype", ["float32", "float64"], ids=["exchanged", "cast"])
def test_training_with_evaluations_equals_training_without(dtype: str) -> None:
    """Step by step, bit by bit, the optimizer's own state included."""

    def run(evaluate: bool) -> list[np.ndarray]:
        paddle.seed(3)
        layer = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2)).to(dtype=dtype)
        optimizer = paddle.optimizer.AdamW(0.1, parameters=layer.parameters())
        ema = EMA(layer, 0.9, dtype="float32")
        data = np.random.default_rng(0).normal(size=(6, 4, 2))
        for batch in data:
            loss = layer(paddle.to_tensor(batch).astype(dtype)).square().sum()
            if evaluate:
                with ema.average_parameters(), paddle.no_grad():
                    layer(X.astype(dtype))
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            ema.update()
        moments = [value for value in optimizer.state_dict().values() if isinstance(value, Tensor)]
        assert len(moments) > 4
        kept = (*layer.state_dict().values(), *ema.module.state_dict().values(), *moments)
        return [array(tensor) for tensor in kept]

    for one, other in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(one, other)


# --- layers in other dress ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Tensor do not have 'place' interface")  # Paddle, of its own code
@pytest.mark.parametrize("full_graph", [True, False], ids=["whole graph", "SOT"])
@pytest.mark.parametrize("whole", [True, False], ids=["layer", "sublayer"])
def test_a_layer_made_static_sees_the_weights_that_are_live(full_graph: bool, whole: bool) -> None:
    layer = nn.Sequential(network(), nn.Linear(2, 1))
    plain = copy.deepcopy(layer)
    paddle.jit.to_static(layer if whole else layer[0], full_graph=full_graph)
    layer.train()
    layer(X).sum().backward()  # compiled before the EMA, in training
    layer.eval()
    plain.eval()
    layer(X)
    ema = trained(layer)
    raw = layer(X).numpy()
    for _ in range(2):
        with ema.average_parameters(), paddle.no_grad():
            plain.set_state_dict({name: t.clone() for name, t in layer.state_dict().items()})
            inside = layer(X).numpy()
        np.testing.assert_allclose(inside, plain(X).numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ema(X).numpy(), inside, rtol=1e-6, atol=1e-6)
        assert not np.allclose(inside, raw)
        np.testing.assert_array_equal(layer(X).numpy(), raw)
    fill(layer[1].bias, 100)
    ema.update()
    assert float(ema(X).mean()) > float(inside.mean()) + 5, "the module follows updates"


def test_frozen_and_excluded_tensors_are_not_touched() -> None:
    layer = network()
    for parameter in layer[0].parameters():
        parameter.stop_gradient = True
    ema = trained(layer, exclude="2.bias")
    addresses = {name: t.data_ptr() for name, t in layer.state_dict().items()}
    with ema.average_parameters():
        now = {name: t.data_ptr() for name, t in layer.state_dict().items()}
    assert {name for name in now if now[name] == addresses[name]} == {"0.weight", "0.bias", "2.bias"}


def test_measuring_batch_norm_inside_the_block_changes_the_average_and_not_the_layer() -> None:
    layer = network()
    ema = trained(layer)
    before = snapshot(layer)
    with ema.average_parameters():
        update_batchnorm(layer, [paddle.rand([8, 2])])
        measured = array(layer[1]._mean)
    assert_restored(layer, before)
    np.testing.assert_array_equal(array(averages(ema)["1._mean"]), measured)


# --- refusals -----------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[EMA, Path], object]] = {
    "update": lambda ema, path: ema.update(),
    "save": lambda ema, path: ema.save(path),
    "state_dict": lambda ema, path: ema.state_dict(),
    "load_state_dict": lambda ema, path: ema.load_state_dict({}),
    "copy_to": lambda ema, path: ema.copy_to(),
    "reset": lambda ema, path: ema.reset("0.weight"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_would_mix_up_raw_and_average_is_refused_while_swapped(verb: str, tmp_path: Path) -> None:
    ema = trained(network())
    path = tmp_path / "a.safetensors"
    with ema.average_parameters():
        with pytest.raises(SwapError, match=rf"^{verb}: the model holds the average 'average' now.*Leave"):
            VERBS[verb](ema, path)
        assert ema.live == "average"
    assert not path.exists()
    assert ema.step == 4


def test_an_attached_optimizer_cannot_step_the_average() -> None:
    layer = nn.Linear(2, 1)
    ema = EMA(layer, 0.9)
    optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
    ema.attach(optimizer)
    layer(X).sum().backward()
    with pytest.raises(SwapError, match="update"), ema.average_parameters():
        optimizer.step()


def test_a_second_ema_over_the_same_layer_or_a_part_of_it_is_refused_meanwhile() -> None:
    layer = network()
    first, second, part = trained(layer), EMA(layer, 0.5), EMA(layer[2], 0.5)
    before = snapshot(layer)
    kept = {name: array(t) for name, t in averages(second).items()}
    with first.average_parameters():
        for other, name in ((second, "0.weight"), (part, "weight")):
            with pytest.raises(SwapError, match=rf"^{name} already holds another average"):
                other.average_parameters().__enter__()
            with pytest.raises(SwapError, match="holds the average of another EMA now"):
                other.update()
    assert_restored(layer, before)
    for name, tensor in averages(second).items():
        np.testing.assert_array_equal(array(tensor), kept[name])
    second.update()
    with part.average_parameters(), pytest.raises(SwapError, match=r"2\.weight already holds"):
        first.average_parameters().__enter__()


def test_two_tracks_go_in_one_after_the_other_but_not_into_each_other() -> None:
    layer = network()
    ema = EMA(layer, {"short": 0.5, "long": 0.99})
    fill(layer[0].weight, 0)
    ema.update()
    before = snapshot(layer)
    for name, other in (("short", "long"), ("long", "short")):
        with ema.average_parameters(name):
            assert layer[0].weight.data_ptr() == averages(ema, name)["0.weight"].data_ptr()
            with pytest.raises(SwapError, match=f"track '{name}' is live; leave its block"):
                ema.average_parameters(other).__enter__()
        assert_restored(layer, before)


def test_what_others_write_in_a_block_is_named() -> None:
    layer = network()
    ema = trained(layer)
    before = snapshot(layer)
    with (
        pytest.raises(SwapError, match=r"something wrote to 0\.weight"),
        ema.average_parameters(),
        paddle.no_grad(),
    ):
        layer[0].weight.scale_(2.0)
    assert_restored(layer, before)
    with pytest.warns(RuntimeWarning, match=r"wrote to 1\._mean.*model\.eval"), ema.average_parameters():
        layer(X)
    assert_restored(layer, before)
