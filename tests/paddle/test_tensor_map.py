"""Which tensors of a Paddle layer are averaged, and under which names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from polyak import ConfigError, Constant, PlanError
from polyak.paddle import EMA
from tests.states import opened

from .conftest import Beside, array, averages, fill, network, trained


def copied(ema: EMA) -> dict[str, Tensor]:
    return opened(ema.state_dict())["copies"]


# --- what each layer's tensors are --------------------------------------------------------------------

STATISTICS: dict[str, Callable[[], nn.Layer]] = {
    "BatchNorm1D": lambda: nn.BatchNorm1D(3),
    "BatchNorm2D": lambda: nn.BatchNorm2D(3),
    "BatchNorm3D": lambda: nn.BatchNorm3D(3),
    "BatchNorm": lambda: nn.BatchNorm(3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
}


@pytest.mark.parametrize("make", STATISTICS.values(), ids=STATISTICS)
def test_running_statistics_are_averaged_though_they_are_not_trained(make: Callable[[], nn.Layer]) -> None:
    side = Beside(nn.Sequential(nn.Linear(2, 3), make())).run()
    assert {"1._mean", "1._variance"} < set(averages(side.ema))
    side.check()


@pytest.mark.parametrize("policy", ["copy", "ignore"])
def test_running_statistics_are_buffers_to_the_policy(policy: str) -> None:
    layer = network()
    ema = trained(layer, buffers=policy)
    assert set(averages(ema)) == {f"{i}.{key}" for i in (0, 1, 2) for key in ("weight", "bias")}
    fill(layer[1]._mean, 5)
    assert (ema.module[1]._mean.tolist() == [5, 5, 5]) == (policy == "ignore")
    ema.update()
    assert ema.module[1]._mean.tolist() == [5, 5, 5]


class Router(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1D(2)
        for name in ("expert_bias", "codebook"):
            self.register_buffer(name, paddle.zeros([2]))


def test_buffers_have_policies_by_name() -> None:
    layer = Router()
    ema = EMA(layer, 0.5, buffers={"*_bias": "average", "norm._mean": "copy"})
    for buffer in (layer.expert_bias, layer.codebook, layer.norm._mean, layer.norm._variance):
        fill(buffer, 3)
    ema.update()
    made = ema.module
    found = [made.expert_bias, made.codebook, made.norm._mean, made.norm._variance]
    assert [b.tolist() for b in found] == [[1.5, 1.5], [3, 3], [3, 3], [2, 2]]
    with pytest.raises(ConfigError, match=r"buffers='codebok' matches no buffer.*codebook, norm\._mean"):
        EMA(layer, buffers={"codebok": "average"})


def test_a_name_with_brackets_is_itself() -> None:
    layer = nn.LayerDict({"a[0]": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    assert set(averages(EMA(layer, exclude="a[0].weight"))) == {"a[0].bias", "b.weight", "b.bias"}
    with pytest.raises(ConfigError, match=r"write 'a\[\[\]0\]\.\*'"):
        EMA(layer, exclude="a[0].*")


@pytest.mark.parametrize("policy", ["auto", "copy", "average"])
def test_spectral_norms_vectors_are_copied(policy: str) -> None:
    """They are directions: a mean of two of them is none."""
    functional, module = nn.utils.spectral_norm(nn.Linear(2, 3)), nn.SpectralNorm([2, 3])
    layer = nn.LayerDict({"f": functional, "m": module})
    ema = EMA(layer, 0.9, buffers=policy)
    functional(paddle.ones([1, 2]))
    module(paddle.rand([2, 3]))
    ema.update()
    assert set(averages(ema)) == {"f.weight_orig", "f.bias"}
    assert set(copied(ema)) == {"f.weight_u", "f.weight_v", "m.weight_u", "m.weight_v"}
    for name, tensor in copied(ema).items():
        np.testing.assert_array_equal(array(tensor), array(layer.state_dict()[name]), err_msg=name)


def test_buffers_of_other_kinds_are_copied_bit_by_bit() -> None:
    layer = nn.Linear(2, 2)
    kinds = ("int64", "int32", "int16", "int8", "uint8", "bool", "float32", "bfloat16", "complex64")
    for kind in kinds:
        layer.register_buffer(f"a_{kind}", paddle.arange(5).astype(kind))
    layer.register_buffer("large", paddle.to_tensor([2**62 + 1, -(2**53) - 1]))
    layer.register_buffer("empty", paddle.zeros([0, 3]))
    ema = EMA(layer, 0.9)
    for kind in kinds:
        layer._buffers[f"a_{kind}"].set_value(paddle.to_tensor([1, 0, 1, 1, 0]).astype(kind))
    layer.large.set_value(paddle.to_tensor([2**62 + 3, 7]))
    ema.update()
    held = ema.module.state_dict()
    for name, live in layer.named_buffers():
        assert held[name].dtype == live.dtype
        assert held[name].shape == live.shape
        np.testing.assert_array_equal(array(held[name]), array(live), err_msg=name)
    layer.large.set_value(paddle.to_tensor([0, 0]))
    assert ema.module.large.tolist() == [2**62 + 3, 7], "its own copy until the next update"


def test_buffers_that_are_not_persistable_are_the_layers_own() -> None:
    layer = nn.Linear(2, 2)
    layer.register_buffer("table", paddle.ones([3]), persistable=False)
    ema = EMA(layer, 0.9, buffers="average")
    assert ema.module.table.data_ptr() != layer.table.data_ptr(), "in memory of its own"
    layer.table.fill_(5.0)
    assert ema.module.table.tolist() == [5.0] * 3
    assert set(averages(ema)) == {"weight", "bias"}
    assert not copied(ema)


def test_a_parameter_that_was_a_computed_buffer_is_averaged() -> None:
    """Paddle goes on listing its name among the buffers that are not persistable."""
    layer = nn.utils.weight_norm(nn.Linear(2, 3))
    ema = EMA(layer, 0.9)
    assert set(averages(ema)) == {"bias", "weight_g", "weight_v"}
    nn.utils.remove_weight_norm(layer)
    ema.update()
    assert set(averages(ema)) == {"bias", "weight"}
    layer.scale = paddle.ones([2])
    layer.scale = paddle.create_parameter([2], "float32")
    ema.update()
    assert set(averages(ema)) == {"bias", "weight", "scale"}


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_computed_in_each_forward_needs_no_new_plan(norm: Callable[[nn.Layer], nn.Layer]) -> None:
    layer = nn.Sequential(norm(nn.Linear(2, 3)))
    ema = EMA(layer, 0.9)
    module, plan = ema.module, ema._averages.plan
    for _ in range(3):
        layer(paddle.ones([1, 2])).sum().backward()
        ema.update()
    assert ema._averages.plan is plan
    assert ema.module is module


def test_frozen_parameters_are_the_layers_own_and_join_when_unfrozen() -> None:
    layer = network()
    layer[0].weight.stop_gradient = True
    ema = EMA(layer, 0.9)
    ema.update()
    assert "0.weight" not in averages(ema)
    assert ema.module[0].weight.data_ptr() != layer[0].weight.data_ptr(), "in memory of its own"
    assert bool((ema.module[0].weight == layer[0].weight).all())
    fill(layer[0].weight, 3)
    layer[0].weight.stop_gradient = False
    ema.update()
    assert bool((averages(ema)["0.weight"] == 3).all())
    assert ema.tracks["average"].joined == {"0.weight": 2}


def test_a_parameter_frozen_later_goes_on_being_averaged() -> None:
    side = Beside(network()).run(2)
    for parameter in side.layer[0].parameters():
        parameter.trainable = False
    side.run(3).check()


def test_a_frozen_parameter_goes_on_being_averaged_under_another_name_and_as_another_object() -> None:
    layer = nn.LayerDict({"old": nn.Linear(2, 2)})
    ema = trained(layer)
    for parameter in layer.parameters():
        parameter.stop_gradient = True
    layer["new"] = layer.pop("old")
    ema.update()
    assert set(averages(ema)) == {"new.weight", "new.bias"}
    replaced = paddle.create_parameter([2, 2], "float32")
    replaced.stop_gradient = True
    layer["new"].weight = replaced
    ema.update()
    assert set(averages(ema)) == {"new.weight", "new.bias"}
    assert ema.tracks["average"].joined == {}


class Tied(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(7, 4, bias_attr=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return paddle.matmul(self.embed(tokens), self.head.weight, transpose_y=True)


def test_tied_weights_are_averaged_once_and_tied_in_the_module_too() -> None:
    side = Beside(Tied()).run()
    assert set(averages(side.ema)) == {"embed.weight"}
    module = side.ema.module
    assert module.head.weight is module.embed.weight
    side.check()
    with side.ema.average_parameters():
        assert side.layer.head.weight is side.layer.embed.weight
        tokens = paddle.to_tensor([[1, 2]])
        np.testing.assert_array_equal(side.layer(tokens).numpy(), side.ema(tokens).numpy())


def test_two_parameters_on_one_memory_are_averaged_once() -> None:
    layer = Tied()
    layer.head.weight = paddle.create_parameter([7, 4], "float32")
    layer.head.weight.data = layer.embed.weight.detach()
    ema = trained(layer)
    assert set(averages(ema)) == {"embed.weight"}
    module = ema.module
    assert module.head.weight.data_ptr() == module.embed.weight.data_ptr()
    average, raw = averages(ema)["embed.weight"].data_ptr(), layer.embed.weight.data_ptr()
    with ema.average_parameters():
        assert layer.head.weight.data_ptr() == layer.embed.weight.data_ptr() == average
    assert layer.head.weight.data_ptr() == layer.embed.weight.data_ptr() == raw


SHAPES: dict[str, tuple[Callable[[], nn.Layer], Callable[[], list[Tensor]]]] = {
    "LSTM": (lambda: nn.LSTM(4, 3, num_layers=2), lambda: [paddle.rand([2, 5, 4])]),
    "GRU": (lambda: nn.GRU(4, 3, direction="bidirect"), lambda: [paddle.rand([2, 5, 4])]),
    "RNN": (lambda: nn.SimpleRNN(4, 3), lambda: [paddle.rand([2, 5, 4])]),
    "attention": (lambda: nn.MultiHeadAttention(4, 2), lambda: [paddle.rand([2, 5, 4])]),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2),
        lambda: [paddle.rand([2, 5, 4])],
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2D(4, 3, 1), nn.BatchNorm2D(3), nn.PReLU(), nn.Conv2DTranspose(3, 2, 2)),
        lambda: [paddle.rand([2, 4, 3, 3])],
    ),
    "weight_norm": (lambda: nn.utils.weight_norm(nn.Conv1D(4, 3, 1)), lambda: [paddle.rand([2, 4, 5])]),
    "spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), lambda: [paddle.rand([2, 4])]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_of_every_kind(name: str) -> None:
    """The right numbers; the module and the swapped layer compute the same; the file loads strictly."""
    make, inputs = SHAPES[name]
    layer, x = make(), inputs()
    side = Beside(layer)
    for _ in range(3):
        side.train()
        layer.train()
        _first(layer(*x)).sum().backward()
        side.update()
    side.check()
    layer.eval()
    raw = _first(layer(*x)).numpy()
    with side.ema.average_parameters():
        inside = _first(layer(*x)).numpy()
    np.testing.assert_array_equal(inside, _first(side.ema(*x)).numpy())
    np.testing.assert_array_equal(_first(layer(*x)).numpy(), raw)
    assert not np.allclose(inside, raw)
    assert set(averages(side.ema)) | set(copied(side.ema)) <= set(layer.state_dict())


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# --- globs and names ----------------------------------------------------------------------------------


def test_globs_choose_and_hold_for_what_comes_later() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = EMA(layer, 0.9, include="*.weight", exclude="0.*")
    layer.append(nn.Linear(2, 2))
    ema.update()
    assert set(averages(ema)) == {"1.weight", "2.weight"}
    assert ema.module[0].weight.data_ptr() != layer[0].weight.data_ptr(), "in memory of its own"
    assert bool((ema.module[0].weight == layer[0].weight).all())


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_an_error_that_shows_the_names(argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"{argument}='head\.\*' matches no tensor.*are 0\.weight"):
        EMA(network(), 0.9, **{argument: "head.*"})


# --- what cannot be averaged --------------------------------------------------------------------------


def lazy() -> nn.Layer:
    with paddle.LazyGuard():
        return nn.Sequential(nn.Linear(2, 2))


def test_what_is_not_initialised_is_refused_and_the_error_says_what_to_call() -> None:
    layer = lazy()
    with pytest.raises(PlanError, match=r"0\.weight is not initialised yet: call its initialize\(\)"):
        EMA(layer, 0.9)
    for parameter in layer.parameters():
        parameter.initialize()
    EMA(layer, 0.9).update()


def test_a_sublayer_that_is_not_initialised_yet_is_refused_and_changes_nothing() -> None:
    layer = nn.LayerList([nn.Linear(2, 2)])
    ema = EMA(layer, 0.9)
    layer.append(lazy())
    with pytest.raises(PlanError, match=r"1\.0\.weight is not initialised"):
        ema.update()
    assert ema.step == 0


def test_a_sparse_buffer_is_refused_unless_it_is_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.register_buffer("graph", paddle.sparse.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], [2, 2]))
    with pytest.raises(PlanError, match=r'graph is sparse.*exclude="graph"'):
        EMA(layer, 0.9)
    for left_out in ({"exclude": "graph"}, {"buffers": "ignore"}):
        ema = EMA(layer, 0.9, **left_out)
        ema.update()
        assert ema.module.graph.to_dense().tolist() == [[0, 1], [2, 0]]


def test_a_sharded_parameter_is_refused_also_when_it_comes_later() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    ema = EMA(layer, 0.9)
    mesh = paddle.distributed.ProcessMesh([0])
    layer[0].weight = paddle.distributed.shard_tensor(layer[0].weight, mesh, [paddle.distributed.Shard(0)])
    for verb in (ema.update, lambda: EMA(layer, 0.9)):
        with pytest.raises(PlanError, match=r'0\.weight is sharded.*exclude="0\.weight"'):
            verb()
    assert ema.step == 0


def test_sparse_gradients_are_no_concern_of_the_average() -> None:
    layer = nn.Embedding(5, 2, sparse=True)
    optimizer = paddle.optimizer.SGD(0.5, parameters=layer.parameters())
    ema = EMA(layer, 0.5)
    before = array(layer.weight)
    layer(paddle.to_tensor([1, 3])).sum().backward()
    optimizer.step()
    ema.update()
    np.testing.assert_allclose(array(averages(ema)["weight"]), (before + array(layer.weight)) / 2, rtol=1e-6)


def test_nothing_to_average_is_refused() -> None:
    layer = nn.Linear(2, 2)
    for parameter in layer.parameters():
        parameter.stop_gradient = True
    for empty in (layer, nn.ReLU()):
        with pytest.raises(PlanError, match=rf"{type(empty).__name__} has nothing to average"):
            EMA(empty, 0.9)


def test_no_layer_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"layer is a list.*ExponentialMovingAverage takes a list"):
        EMA(nn.Linear(2, 2).parameters(), 0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["native", "ops"])
def test_parameters_of_every_form(engine: str) -> None:
    """Scalars, empty ones, float64, slices of one memory, and strides that the kernel does not take."""
    layer = nn.Layer()
    memory = paddle.rand([10])
    forms = {
        "scalar": paddle.rand([]),
        "empty": paddle.zeros([0, 3]),
        "wide": paddle.rand([3], "float64"),
        "slice": memory[2:6],
        "rest": memory[6:],
        "transposed": paddle.as_strided(paddle.rand([12]), [4, 3], [1, 4]),
        "gaps": paddle.as_strided(paddle.rand([24]), [4, 3], [6, 2]),
    }
    for name, value in forms.items():
        parameter = paddle.create_parameter([1], value.dtype)
        parameter.data = value
        layer.add_parameter(name, parameter)
    side = Beside(layer, engine=engine).run()
    side.check()
    said = side.ema.metrics()["engine"]
    assert ("native" in said) == (engine == "native")
    assert "ops" in said
    module = side.ema.module.state_dict()
    with side.ema.average_parameters():
        for name, tensor in layer.state_dict().items():
            np.testing.assert_array_equal(array(tensor), array(module[name]), err_msg=name)
    with paddle.no_grad():
        memory.fill_(8)
    assert layer.slice.tolist() == [8] * 4, "the swap gave the slice its place in the memory back"


# --- vocabulary ---------------------------------------------------------------------------------------


def test_a_plain_small_decay_warns_and_a_decay_is_not_assigned() -> None:
    with pytest.warns(UserWarning, match=r"did you mean 0\.995\?"):
        ema = EMA(nn.Linear(2, 2), 0.005)
    with pytest.raises(ConfigError, match=r"ema\.decay = 0\.9"):
        ema.decay = 0.9
    with pytest.raises(ConfigError, match=r"ema\.tracks\['average'\]\.decay = 0\.9"):
        ema.tracks["average"].decay = 0.9
    assert ema.tracks["average"].decay == Constant(0.005)
    EMA(nn.Linear(2, 2), Constant(0.005))
