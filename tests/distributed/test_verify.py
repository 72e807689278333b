"""One call compares the averages of all ranks, and says which rank is not like the others."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from polyak._core.agreement import Held, Report, disagreement
from polyak.errors import PolyakError
from tests.distributed import models
from tests.distributed.ranks import Ranks

DECAYS = {"short": 0.7, "long": 0.9}


def verified(ema: polyak.EMA) -> str:
    try:
        ema.verify()
    except PolyakError as error:
        return f"{type(error).__name__}: {error}".partition(" Every rank has to call update()")[0]
    return "fine"


def replicas(rank: int) -> list[str]:
    """What each comparison of three replicas says."""
    net = models.seeded()
    ema = polyak.EMA(net, DECAYS)
    net.running_mean.fill_(rank)
    for _ in range(3):
        ema.update()
    found = [verified(ema)]  # statistics may differ
    if rank != 1:
        ema.update()
    found.append(verified(ema))
    if rank == 1:
        ema.update()
    found.append(verified(ema))
    if rank == 2:
        ema.tracks["long"].tensors["head.bias"].add_(1)
    found.append(verified(ema))
    ema.reset()
    with ema.average_parameters() if rank == 2 else nullcontext():
        found.append(verified(ema))
    found.append(verified(polyak.EMA(net, 0.9 if rank else 0.99)))
    found.append(verified(polyak.EMA(net, 0.9, exclude="head*" if rank == 1 else None)))
    found.append(verified(polyak.EMA(net, 0.9, dtype=torch.float64 if rank == 1 else None)))
    return found


def test_replicas(four: Ranks) -> None:
    for rank, found in enumerate(four.run(3, replicas)):
        same, steps, again, values, live, decays, names, dtypes = found
        assert (same, again) == ("fine", "fine")
        assert steps == "PlanError: rank 1 has seen 3 steps, the others 4."
        assert values == "PlanError: head.bias of 'long' differs between rank 0 and rank 2."
        assert live.startswith(f"SwapError: {'' if rank == 2 else 'rank 2: '}verify: the model holds")
        assert decays.startswith("PlanError: rank 0 averages 'average' by Constant(beta=0.99), ")
        assert ", the others by Constant(beta=0.9), " in decays
        assert names == "PlanError: rank 1 does not hold head.weight, rank 0 does."
        assert dtypes == (
            "PlanError: rank 1 holds inner.weight as float64 (10, 6), the others as float32 (10, 6)."
        )


def pieces(rank: int, mode: str, differs: int) -> list[str]:
    sharded = models.MODES[mode]()
    ema = polyak.EMA(sharded.model, 0.9, **sharded.ema)
    optimizer = torch.optim.SGD(sharded.model.parameters(), 0.1)
    for step in range(3):
        models.train(sharded, optimizer, step, rank)
        ema.update()
    found = [verified(ema)]
    if rank == differs:
        ema.tracks["average"].tensors["inner.weight"][0] += 1
    found.append(verified(ema))
    if rank == 1:
        ema.update()
    return [*found, verified(ema), ema.run]


@pytest.mark.parametrize(("mode", "world"), [("fully_shard", 3), ("shard=", 3), ("hybrid", 4)])
def test_pieces(mode: str, world: int, four: Ranks) -> None:
    """Under hybrid sharding ranks 0 and 2 hold the same rows; elsewhere no rank holds another's."""
    runs: set[str] = set()
    for same, values, steps, run in four.run(world, pieces, mode, 2):
        assert same == "fine"
        twice = "PlanError: inner.weight differs between rank 0 and rank 2."
        assert values == (twice if mode == "hybrid" else "fine")
        assert steps == "PlanError: rank 1 has seen 4 steps, the others 3."
        runs.add(run)
    assert len(runs) == 1  # agreed on when the averages were made


def rounded(rank: int, seed: int) -> list[str]:
    net = nn.Linear(40, 40)
    ema = polyak.EMA(net, 0.99, dtype=torch.bfloat16, seed=seed * rank)
    with torch.no_grad():
        net.weight.mul_(1.1)
    ema.update()
    if seed == 0 and rank == 1:
        ema.tracks["average"].tensors["weight"].mul_(2)
    return [verified(ema), str(ema.tracks["average"].tensors["weight"].float().sum())]


def test_replicas_that_round_by_bits_of_their_own_are_not_compared(four: Ranks) -> None:
    (one, first), (_, other) = four.run(2, rounded, 1)
    assert one == "fine"
    assert first != other
    assert four.run(2, rounded, 0)[0][0] == "PlanError: weight differs between rank 0 and rank 1."


def alone(rank: int) -> tuple[str, float]:
    ema = polyak.EMA(models.seeded(), 0.9)
    begun = time.monotonic()
    if rank == 1:
        time.sleep(5)
        return "", 0.0
    return verified(ema), time.monotonic() - begun


def test_a_rank_that_does_not_call_it_is_named_after_the_groups_timeout(four: Ranks) -> None:
    (text, waited), _ = four.run(2, alone, timeout=2)
    assert text.startswith("PlanError: rank 1 was lost: ")
    assert waited < 5


def test_one_process_has_nothing_to_compare() -> None:
    polyak.EMA(nn.Linear(2, 1), 0.9).verify()


def reports(*held: dict[str, Any]) -> dict[int, Report]:
    return {
        rank: Report(1, 0, {}, {name: Held(*of) for name, of in each.items()})
        for rank, each in enumerate(held)
    }


def test_pieces_that_leave_a_gap_are_named() -> None:
    form = "float32", (4, 3)
    found = disagreement(reports({"w": (*form, (0, 0), (2, 3))}, {"w": (*form, (3, 0), (1, 3))}))
    assert found == "the pieces of w on all ranks have 9 elements together, the tensor 12"
    assert disagreement(reports({"w": (*form, (0, 0), (2, 3))}, {"w": (*form, (2, 0), (2, 3))})) is None


def test_several_odd_ranks_are_counted() -> None:
    steps = {
        rank: Report(step, 0, {}, {}) for rank, step in enumerate([5, 5, 5, 5, 5, 5, 5, 1, 2, 3, 4, 5, 6])
    }
    assert disagreement(steps) == (
        "rank 7 has seen 1 steps, rank 8 2, rank 9 3, rank 10 4, 1 more otherwise, the others 5"
    )
