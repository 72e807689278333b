"""``ema.module`` and ``ema(x)`` in Paddle: a layer on the averaged tensors themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from polyak.paddle import EMA, update_batchnorm

from .conftest import Beside, array, averages, fill, network, peak_bytes, trained

X = paddle.linspace(-1, 1, 6).reshape([3, 2])


def test_its_tensors_are_the_averages_and_not_copies_of_them() -> None:
    ema = trained(network())
    held = ema.module.state_dict()
    assert held.keys() == averages(ema).keys()
    for name, average in averages(ema).items():
        assert held[name].data_ptr() == average.data_ptr()


def test_making_it_allocates_no_layer() -> None:
    ema = trained(nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)]))
    assert peak_bytes(lambda: ema.module) == 0


@pytest.mark.parametrize("engine", ["native", "ops"])
def test_it_follows_every_update_without_being_asked_for_again(engine: str) -> None:
    side = Beside(network(), engine=engine)
    module = side.ema.module
    for _ in range(3):
        side.train()
        side.update()
        for name, tensor in module.state_dict().items():
            expected = side.state.average[name]
            np.testing.assert_allclose(array(tensor), expected, rtol=1e-5, atol=1e-6)
        assert side.ema.module is module


@pytest.mark.parametrize("engine", ["native", "ops"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_casting_it_leaves_the_averages_and_the_live_layer_alone(dtype: str, engine: str) -> None:
    """Paddle casts a tensor for everybody who holds it; the kernel would write to memory that was freed."""
    layer = network()
    layer[2].weight.stop_gradient = True
    side = Beside(layer, engine=engine).run(1)
    side.ema.module.to(dtype=dtype)
    assert layer[2].weight.dtype == paddle.float32
    side.run(3).check()
    assert {t.dtype for t in averages(side.ema).values()} == {paddle.float32}


def test_its_flags_and_mode_are_its_own_and_calls_build_no_graph() -> None:
    layer = network()
    layer.insert(2, nn.Dropout(0.5))
    layer.train()
    ema = trained(layer)
    before = array(averages(ema)["1._mean"])
    np.testing.assert_array_equal(ema(X).numpy(), ema(X).numpy())
    assert not any(one.training for one in ema.module.sublayers(include_self=True))
    assert all(one.training for one in layer.sublayers(include_self=True))
    np.testing.assert_array_equal(array(averages(ema)["1._mean"]), before)
    assert all(p.stop_gradient for p in ema.module.parameters())
    assert not layer[0].weight.stop_gradient
    assert len(ema.module.parameters()) == len(layer.parameters()), "they are parameters there too"
    assert ema(X).stop_gradient
    x = X.clone()
    x.stop_gradient = False
    ema.module(x).sum().backward()
    assert x.grad is not None
    assert paddle.is_grad_enabled()


def test_using_it_does_not_disturb_the_layer() -> None:
    layer = network()
    layer[0].register_forward_post_hook(lambda one, inputs, output: output * 2)
    ema = trained(layer)
    layer.eval()
    with ema.average_parameters():
        np.testing.assert_array_equal(ema(X).numpy(), layer(X).numpy())
    module = ema.module
    module[0].register_forward_pre_hook(lambda *_: pytest.fail("a hook of the average ran in the layer"))
    module.note = "mine"
    module.train()
    layer(X)
    assert not hasattr(layer, "note")
    assert not layer.training


class Locked(nn.Linear):
    """Has what cannot be copied, beside and inside what can, and tensors in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.lock = threading.Lock()
        self.nested = {"lock": self.lock, "self": self}
        self.last = self(X)  # with a graph behind it
        self.scales = [paddle.to_tensor(2.0), self.weight]

    def forward(self, x: Tensor) -> Tensor:
        with getattr(self, "lock", threading.Lock()):
            return super().forward(x)


def test_attributes_that_refuse_to_be_copied_are_shared() -> None:
    layer = Locked()
    ema = trained(layer)
    module = ema.module
    assert module.lock is layer.lock
    assert module.nested["lock"] is layer.lock
    assert module.nested["self"] is module
    assert module.scales[1] is module.weight, "and those that do not are the average's"
    assert module.weight.data_ptr() == averages(ema)["weight"].data_ptr()
    with ema.average_parameters():
        np.testing.assert_array_equal(ema(X).numpy(), layer(X).numpy())


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_computed_in_each_forward_is_computed_from_the_average(norm: object) -> None:
    layer = norm(nn.Linear(2, 3))
    for _ in range(2):
        layer(X).sum().backward()
    side = Beside(layer)
    module = side.ema.module
    side.run(3)
    layer.eval()
    with side.ema.average_parameters():
        inside = layer(X).numpy()
    np.testing.assert_array_equal(module(X).numpy(), inside)
    assert not np.allclose(layer(X).numpy(), inside)


def test_a_wrapped_layer_is_copied_without_its_wrapper() -> None:
    with pytest.warns(UserWarning, match="return to single-card operation"):
        inner = paddle.DataParallel(nn.Linear(2, 2))
    layer = nn.Sequential(inner, nn.Linear(2, 1))
    ema = trained(layer)
    assert set(averages(ema)) == {f"{i}.{key}" for i in (0, 1) for key in ("weight", "bias")}
    assert set(ema.module.state_dict()) == set(averages(ema))
    assert isinstance(ema.module[0], nn.Linear)
    with ema.average_parameters():
        np.testing.assert_array_equal(ema(X).numpy(), layer(X).numpy())


def test_every_track_has_a_module_of_its_own() -> None:
    layer = network()
    ema = EMA(layer, {"short": 0.5, "long": 0.99})
    fill(layer[0].weight, 0)
    ema.update()
    short, long = ema.module_of("short"), ema.module_of("long")
    assert ema.module is short
    assert not np.array_equal(short[0].weight.numpy(), long[0].weight.numpy())


def test_it_can_be_made_while_the_average_is_live() -> None:
    layer = network()
    layer.eval()
    ema = trained(layer, exclude="2.*")
    with ema.average_parameters():
        module = ema.module
        np.testing.assert_array_equal(module(X).numpy(), layer(X).numpy())
    before = module[0].weight.numpy()
    fill(layer[0].weight, 9)
    np.testing.assert_array_equal(module[0].weight.numpy(), before)
    fill(layer[2].weight, 9)
    assert module[2].weight.tolist() != layer[2].weight.tolist()
    assert ema.module[2].weight.tolist() == layer[2].weight.tolist(), "brought up to date when asked for"
    ema.update()
    assert not np.array_equal(module[0].weight.numpy(), before)


def test_it_is_rebuilt_when_the_structure_changes() -> None:
    layer = network()
    ema = trained(layer)
    old = ema.module
    layer.append(nn.Linear(2, 2))
    assert ema.module is not old
    assert ema.module.state_dict().keys() == layer.state_dict().keys()


def test_its_precision_is_that_of_the_storage() -> None:
    ema = trained(network().to(dtype="bfloat16"))
    assert {p.dtype for p in ema.module.parameters()} == {paddle.float32}
    assert ema(X).dtype == paddle.float32
    narrow = trained(network(), dtype="bfloat16")
    assert {p.dtype for p in narrow.module.parameters()} == {paddle.bfloat16}


def test_batch_norm_statistics_can_be_measured_on_it() -> None:
    layer = network()
    ema = trained(layer)
    live, data = array(layer[1]._mean), paddle.rand([64, 2])
    update_batchnorm(ema.module, [data])
    hidden = data.matmul(averages(ema)["0.weight"]) + averages(ema)["0.bias"]
    np.testing.assert_allclose(averages(ema)["1._mean"].numpy(), hidden.mean(0).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(array(layer[1]._mean), live)


def test_loading_a_state_fills_the_module_that_is_in_use() -> None:
    ema = trained(network())
    other = EMA(network(), 0.9)
    module = other.module
    other.load_state_dict(ema.state_dict())
    assert other.module is module
    np.testing.assert_array_equal(module(X).numpy(), ema(X).numpy())


@pytest.mark.parametrize("make", [network, lambda: nn.GRU(2, 3)], ids=["network", "GRU"])
def test_the_average_can_be_exported(make: Callable[[], nn.Layer], tmp_path: Path) -> None:
    """``paddle.jit.save`` goes by the parameters' names, which must tell the average's apart."""
    layer = make()
    ema = trained(layer)
    x = X if isinstance(layer, nn.Sequential) else X.reshape([1, 3, 2])
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32")]
    paddle.jit.save(ema.module, str(tmp_path / "module"), spec)
    layer.eval()
    with ema.average_parameters():
        paddle.jit.save(layer, str(tmp_path / "live"), spec)
    for name in ("module", "live"):
        exported = paddle.jit.load(str(tmp_path / name))
        exported.eval()
        outputs = exported(x), ema(x)
        one, other = (out[0] if isinstance(out, list | tuple) else out for out in outputs)
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-6)
