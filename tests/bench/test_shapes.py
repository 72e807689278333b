"""The shapes are those of the networks they are named after."""

from __future__ import annotations

import pytest

from polyak.bench.shapes import MODELS


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("resnet50", 161, 25_557_032),
        ("vit_b", 152, 86_567_656),
        ("many_small", 750, 5_000_250),
        ("lenet", 10, 62_006),
    ],
)
def test_tensors_and_parameters(name: str, tensors: int, parameters: int) -> None:
    found = list(MODELS[name]().model.parameters())
    assert (len(found), sum(p.numel() for p in found)) == (tensors, parameters)


def test_a_step_of_lenet_trains_it() -> None:
    model, step = MODELS["lenet"]()
    before = [p.detach().clone() for p in model.parameters()]
    assert step is not None
    step()
    assert all(not p.equal(b) for p, b in zip(model.parameters(), before, strict=True))
