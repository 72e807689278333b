"""Tensors larger than plain torch takes at once."""

from __future__ import annotations

import pytest
import torch

from polyak.torch._engines import blocked, chunks
from polyak.torch._engines.base import Pair, storage_dtype
from polyak.torch._engines.blocked import Blocked
from polyak.torch._engines.chunks import CHUNK
from polyak.torch._engines.foreach import Foreach
from polyak.torch._engines.rounding import join
from tests.torch.engines.cases import LIVE, NAN, SEED, STEP, STORES, pair

ENGINES = {"blocked": Blocked, "foreach": Foreach}
SHAPES = ("flat", "in rows", "in columns")
WEIGHTS = (0.25, 0.75)


def large(live: str, store: str, shape: str, chunk: int = CHUNK) -> Pair:
    random = torch.Generator().manual_seed(1)
    size = {"flat": [2 * chunk + 17], "in rows": [3, chunk - 5], "in columns": [chunk - 5, 3]}[shape]
    theta = torch.randn(size, generator=random).to(LIVE[live])
    return pair("large", theta.T if shape == "in columns" else theta, store, 2, random)


def held(one: Pair, track: int) -> torch.Tensor:
    """An average with all its digits, in float64."""
    average = one.averages[track].to(torch.float64, copy=True)
    if not one.residuals:
        return average
    if storage_dtype(one) == torch.bfloat16:
        return join(one.averages[track], one.residuals[track]).double()
    return average + one.residuals[track].double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("live", ["f32", "bf16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_element_is_averaged_once(
    engine: str, live: str, store: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (chunks, blocked):
        monkeypatch.setattr(module, "CHUNK", 4096)
    one = large(live, store, shape, 4096)
    theta = one.live.double()
    before = [held(one, track) for track in (0, 1)]
    ENGINES[engine]([one], SEED).update(WEIGHTS, STEP, True)
    step = {"bf16": 2**-7, "f16": 2**-10, "split": 2**-14}.get(store, 2**-21)
    for track, (old, weight) in enumerate(zip(before, WEIGHTS, strict=True)):
        size = torch.maximum(old.abs(), theta.abs()) + 2**-13
        assert (held(one, track) - old.lerp(theta, weight)).abs().div_(size).max() <= step


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_stored_in_the_last_of_them_keeps_its_average(engine: str, store: str) -> None:
    one = large("f32", store, "flat")
    before = [held(one, track) for track in (0, 1)]
    one.live[-3] = NAN
    marks = ENGINES[engine]([one], SEED).update(WEIGHTS, STEP, True)
    assert marks is not None
    assert marks.tolist() == [True]
    for track in (0, 1):
        kept = held(one, track) == before[track]
        assert kept[-3]
        assert not kept[-17:].all()
        assert not kept[:CHUNK].all()
        assert held(one, track).isfinite().all()


@pytest.mark.parametrize("store", ["bf16", "f16", "split"])
@pytest.mark.parametrize("engine", ENGINES)
def test_each_has_random_bits_of_its_own(engine: str, store: str) -> None:
    one = pair("large", torch.full([2 * CHUNK], 1 + 2**-20), store, 1, torch.Generator())
    for tensor, value in ((one.averages[0], 1), *((low, 0) for low in one.residuals)):
        tensor.fill_(value)
    ENGINES[engine]([one], SEED).update((0.5,), STEP, True)
    first, second = (held(one, 0) > 1).view(2, CHUNK)
    assert first.any()
    assert second.any()
    assert not torch.equal(first, second)
