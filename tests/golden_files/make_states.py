"""Writes states as ``state_dict()`` gave them until it kept one text: ``python make_states.py FILE``.

They were made with polyak of November 2026; a later one writes other states. The ending chooses the
framework: ``.pt`` is PyTorch, ``.pdparams`` PaddlePaddle.
"""

import sys
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {"decay": {"short": 0.5, "long": 0.9}, "every": 2, "dtype": "split", "seed": 3}
STEPS = 7  # amid every=2


def torch_state() -> Any:
    import torch
    from torch import nn

    import polyak

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    model[3].requires_grad_(False)
    ema = polyak.EMA(model, **SETTINGS)
    for step in range(1, STEPS + 1):
        model[2].requires_grad_(step > 2)  # joins late
        with torch.no_grad():
            for index, tensor in enumerate(model.state_dict().values()):
                tensor.copy_(torch.linspace(-1, step, tensor.numel()).view(tensor.shape) + index)
            if step == 4:
                model[0].bias[1] = torch.nan
        ema.update()
    return ema.state_dict()


def paddle_state() -> Any:
    import paddle
    from paddle import nn

    from polyak.paddle import EMA

    def freeze(layer: nn.Layer, frozen: bool) -> None:
        for parameter in layer.parameters():
            parameter.stop_gradient = frozen

    layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1D(4), nn.Linear(4, 2), nn.Linear(2, 2))
    freeze(layer[2], True)
    freeze(layer[3], True)
    ema = EMA(layer, **SETTINGS)
    for step in range(1, STEPS + 1):
        freeze(layer[2], step <= 2)
        for index, tensor in enumerate(layer.state_dict().values()):
            values = paddle.linspace(-1, step, tensor.size).reshape(tensor.shape) + index
            if step == 4 and index == 1:
                values[1] = float("nan")
            tensor.set_value(values)
        ema.update()
    return ema.state_dict()


if __name__ == "__main__":
    file = Path(sys.argv[1])
    if file.suffix == ".pt":
        import torch

        torch.save(torch_state(), file)
    else:
        import paddle

        paddle.save(paddle_state(), str(file))
