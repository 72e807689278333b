"""A layer whose weights lie in memory in another order of axes, from the start or later."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from polyak._foreign.load import load
from polyak.paddle import EMA

from .conftest import Beside, array, assert_restored, averages, snapshot

FORMS: dict[str, dict[str, Any]] = {"native": {}, "ops": {"engine": "ops"}, "split": {"dtype": "split"}}
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def turned(tensor: Tensor) -> Tensor:
    """The same values with the channels side by side in memory."""
    with paddle.no_grad():
        return tensor.detach().transpose(LAST).contiguous().transpose(FIRST)


def network(last: bool = False) -> nn.Layer:
    layer = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Conv2D(4, 1, 1))
    layer.register_buffer("table", paddle.rand([2, 3, 4, 5]))
    return turn(layer) if last else layer


def turn(layer: nn.Layer) -> nn.Layer:
    for tensor in layer.state_dict().values():
        if tensor.ndim == 4:
            tensor.data = turned(tensor)
    return layer


def strides(layer: nn.Layer) -> dict[str, list[int]]:
    return {name: tensor.strides for name, tensor in layer.state_dict().items()}


@pytest.mark.parametrize("last", [False, True], ids=["later", "from the start"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_averages_take_the_layers_layout(form: dict[str, Any], last: bool) -> None:
    side = Beside(network(last), 0.9, **form).run(2)
    turn(side.layer)
    side.run(3)
    ours = strides(side.layer)
    assert ours["0.weight"] == [27, 1, 9, 3]
    assert side.ema.metrics()["engine"].startswith("ops" if form.get("engine") else "native")
    assert strides(side.ema.module) == ours
    before = snapshot(side.layer)
    with side.ema.average_parameters():
        assert strides(side.layer) == ours
    assert_restored(side.layer, before)
    side.run(2)
    whole = {name: side.ema.tracks["average"].value(name) for name in averages(side.ema)}
    for name, average in whole.items():
        np.testing.assert_allclose(
            array(average), side.state.average[name], atol=2e-4 if "dtype" in form else 3e-6
        )


def test_writing_a_file_leaves_tensors_where_they_are(tmp_path: Any) -> None:
    """Paddle's ``contiguous()`` moves the tensor it is called on."""
    layer = network(last=True)
    ema = EMA(layer, 0.9)
    before, average = snapshot(layer), averages(ema)["0.weight"]
    address = average.data_ptr()
    for track in ("average", "raw"):
        ema.save(tmp_path / f"{track}.safetensors", track=track)
        np.testing.assert_array_equal(
            load(tmp_path / f"{track}.safetensors").tensors["0.weight"], array(average)
        )
    assert_restored(layer, before)
    assert (average.data_ptr(), average.strides) == (address, [27, 1, 9, 3])
