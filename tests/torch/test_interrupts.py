"""Ctrl-C at any line: no mixture stays in the model, and what an average says of itself stays true."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from polyak.torch import EMA
from tests.interrupts import every_line


def mixed() -> nn.Module:
    """Tensors that are exchanged, cast, and fixed in one memory."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).bfloat16())
    flat = torch.randn(10)
    model.a, model.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "float32": lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
    "bfloat16": lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).bfloat16(),
    "mixed": mixed,
}


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)


def state(model: nn.Module) -> list[tuple[int, Tensor]]:
    return [(tensor.data_ptr(), tensor.clone()) for tensor in model.state_dict().values()]


def same(one: list[tuple[int, Tensor]], other: list[tuple[int, Tensor]]) -> bool:
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(one, other, strict=True))


Ran = tuple[Callable[[], object], EMA]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["first", "again", "nested", "decorated"])
def test_around_a_block_the_raw_weights_come_back(kind: str, way: str) -> None:
    def made() -> Ran:
        model = MODELS[kind]()
        ema = EMA(model, 0.5)
        moved(model)
        ema.update()
        raw.append(state(model)), averages.append(state(ema.module))

        @ema.average_parameters()
        def decorated() -> None:
            pass

        def block() -> None:
            with ema.average_parameters():
                if way == "nested":
                    with ema.average_parameters():
                        pass

        if way != "first":
            block()
        return decorated if way == "decorated" else block, ema

    raw: list[list[tuple[int, Tensor]]] = []
    averages: list[list[tuple[int, Tensor]]] = []
    for line, ema in every_line(made):
        assert same(state(ema.model), raw[-1]), line  # before any verb had a chance to mend it
        assert ema.live == "raw", line
        assert same(state(ema.module), averages[-1]), line
        ema.update()
        with ema.average_parameters():
            assert ema.live == "average"
        assert same(state(ema.model), raw[-1])
