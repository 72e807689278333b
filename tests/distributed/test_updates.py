"""The average of a sharded model is the recursion over its whole parameters, whatever the layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polyak
from tests.distributed import models
from tests.distributed.ranks import Ranks

STEPS = 21


def follow(rank: int, mode: str, decay: Any, every: int) -> float:
    """Train, and compare averages with the float64 recursion; the largest error relative to the tensor."""
    sharded = models.MODES[mode]()
    model = sharded.model
    ema = polyak.EMA(model, decay, every=every, buffers="copy", **sharded.ema)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    decays = decay if isinstance(decay, dict) else {"average": decay}
    expected = {name: models.theta(model) for name in decays}
    for step in range(1, STEPS + 1):
        models.train(sharded, optimizer, step, rank)
        ema.update()
        if step % every == 0:
            now = models.theta(model)
            for name, beta in decays.items():
                for key, value in expected[name].items():
                    value.lerp_(now[key], 1 - beta**every)
    worst = 0.0
    for name in decays:
        found = models.average(ema, name)
        assert found.keys() == {key for key in expected[name] if key != "frozen"}
        for key, tensor in found.items():
            want = expected[name][key]
            worst = max(worst, float((tensor.double() - want).norm() / want.norm()))
    return worst


WORLDS = {"hybrid": (4,), "fully_shard and tensor parallel": (4,), "tensor parallel": (2,)}


@pytest.mark.parametrize("mode", models.MODES)
def test_the_average_is_the_recursion_over_whole_parameters(mode: str, four: Ranks) -> None:
    for world in WORLDS.get(mode, (2, 3)):
        decay, every = (0.9, 1) if world == 2 else ({"a": 0.8, "b": 0.95}, 3)
        assert max(four.run(world, follow, mode, decay, every)) < 4e-6, (mode, world)
