"""A Paddle layer that changes while it is averaged: moved, replaced, added, removed, resized."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import nn

from polyak import PlanError

from .conftest import Beside, array, averages, fill, network, trained

# --- memory moved, same structure: the average goes on ------------------------------------------------

MOVES: dict[str, Callable[[nn.Sequential], object]] = {
    "to float64": lambda m: m.to(dtype="float64"),
    "to bfloat16": lambda m: m.to(dtype="bfloat16"),
    "to float16 and back": lambda m: m.to(dtype="float16").to(dtype="float32"),
    "set_state_dict": lambda m: m.set_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "data replaced": lambda m: [setattr(p, "data", p.detach().clone()) for p in m.parameters()],
    "parameter reassigned": lambda m: setattr(m[0], "weight", paddle.create_parameter([2, 3], "float32")),
    "sublayer replaced": lambda m: m.__setitem__(0, nn.Linear(2, 3)),
    "frozen": lambda m: [setattr(p, "stop_gradient", True) for p in m.parameters()],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_after_every_move_the_average_follows_the_living_tensors(
    move: Callable[[nn.Sequential], object],
) -> None:
    side = Beside(network()).run(2)
    move(side.layer)
    side.run(3).check()
    for name, tensor in side.ema.module.state_dict().items():
        assert tensor.data_ptr() == averages(side.ema)[name].data_ptr()
        assert tensor.dtype == paddle.float32


def test_an_added_sublayer_joins_and_a_removed_one_leaves() -> None:
    layer = network()
    ema = trained(layer)
    layer.add_sublayer("head", nn.Linear(2, 1))
    start = array(layer.head.weight)
    ema.update()
    np.testing.assert_array_equal(array(averages(ema)["head.weight"]), start)
    fill(layer.head.weight, 0)
    ema.update()
    np.testing.assert_allclose(array(averages(ema)["head.weight"]), 0.9 * start, rtol=1e-6)
    assert ema.tracks["average"].joined == {"head.weight": 5, "head.bias": 5}
    del layer["head"]
    ema.update()
    assert not any(name.startswith("head") for name in averages(ema))
    assert not any(name.startswith("head") for name in ema.module.state_dict())


def test_a_renamed_sublayer_brings_its_average_along() -> None:
    layer = nn.LayerDict({"old": nn.Linear(2, 2)})
    ema = trained(layer)
    expected = array(averages(ema)["old.weight"])
    layer["new"] = layer.pop("old")
    fill(layer["new"].weight, 0)
    ema.update()
    np.testing.assert_allclose(array(averages(ema)["new.weight"]), 0.9 * expected, rtol=1e-6)


RESIZES: dict[str, Callable[[nn.Sequential], object]] = {
    "parameter": lambda m: setattr(m[2], "weight", paddle.create_parameter([1, 3], "float32")),
    "data": lambda m: setattr(m[2].weight, "data", paddle.zeros([5, 3])),
    "sublayer": lambda m: m.__setitem__(2, nn.Linear(3, 1)),
}


@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
def test_a_resized_parameter_is_refused_by_name_at_every_call(
    resize: Callable[[nn.Sequential], object],
) -> None:
    layer = network()
    ema = trained(layer)
    kept = {name: array(t) for name, t in averages(ema).items()}
    resize(layer)

    def enter() -> None:
        with ema.average_parameters():
            pass

    for verb in (ema.update, enter, lambda: ema.module, ema.update, ema.copy_to):
        with pytest.raises(PlanError, match=r"2\.weight is now .* but its average is \(3, 2\).*ema\.reset"):
            verb()
    for name, tensor in averages(ema).items():
        np.testing.assert_array_equal(array(tensor), kept[name])
    ema.reset(["2.weight", "2.bias"])
    ema.update()
    assert averages(ema)["2.weight"].shape == layer[2].weight.shape
