"""Ctrl-C at any line: no mixture stays in the model, and what an average says of itself stays true."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyak
from polyak import ConfigError, PlanError
from polyak.torch import EMA
from polyak.torch._engines.select import EngineName
from tests.interrupts import STRIDE, every_line, torn_at_random_moments
from tests.states import opened


@pytest.fixture(autouse=True)
def _grad_mode() -> Iterator[None]:
    """An interrupt between the end of a ``with torch.no_grad()`` and what it calls leaves torch without."""
    yield
    torch.set_grad_enabled(True)


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


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).bfloat16())


Says = dict[str, object]


def says(ema: EMA) -> Says:
    """All that an average holds and says of itself, tensors copied."""
    return copy.deepcopy(opened(ema.state_dict())) | {"run": None}


def equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, cast(Tensor, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


def averaging(engine: EngineName = "auto", **options: Any) -> EMA:
    torch.manual_seed(0)
    ema = EMA(network(), {"short": 0.5, "long": polyak.Warmup(0.9)}, engine=engine, **options)
    for _ in range(2):
        moved(ema.model)
        ema.update()
    moved(ema.model)
    return ema


def unfreeze(ema: EMA) -> EMA:
    ema.model[0].register_parameter("more", nn.Parameter(torch.ones(3)))
    return ema


def loaded(ema: EMA) -> object:
    torch.manual_seed(1)
    other = EMA(network(), {"short": 0.5, "long": polyak.Warmup(0.9)})
    other.update()
    state = says(other) | {"run": "x"}
    return lambda: ema.load_state_dict(state)


VERBS: dict[str, tuple[Callable[[], EMA], Callable[[EMA], Any]]] = {
    "update": (averaging, lambda ema: ema.update),
    "update, copying": (lambda: averaging(start=5), lambda ema: ema.update),
    "update, waiting": (lambda: averaging(every=2), lambda ema: ema.update),
    "update, with a newcomer": (lambda: unfreeze(averaging()), lambda ema: ema.update),
    "reset": (averaging, lambda ema: ema.reset),
    "reset of one": (averaging, lambda ema: partial(ema.reset, "0.weight")),
    "load_state_dict": (averaging, loaded),
}


@pytest.mark.parametrize("verb", VERBS)
def test_averages_counters_and_histories_change_together_or_not_at_all(verb: str) -> None:
    start, which = VERBS[verb]
    before, done = says(start()), start()
    which(done)()
    after = says(done)
    seen = {"before": 0, "after": 0}
    stride = STRIDE if verb in ("update", "update, copying", "update, waiting") else 6 * STRIDE - 5

    def make() -> Ran:
        ema = start()
        return which(ema), ema

    for line, ema in every_line(make, stride):
        now = says(ema)
        seen["after" if equal(now, after) else "before"] += 1
        if not equal(now, after):  # a newcomer may be there already, without a step that counts
            assert equal(now, before) or "newcomer" in verb, line
            which(ema)()
            assert equal(says(ema), after), line
    # Waiting counts in its last line; a newcomer is mostly planning, and few lines follow the count.
    assert min(seen.values()) > 0 or verb in ("update, waiting", "update, with a newcomer"), seen


def test_after_an_interrupted_call_of_another_size_those_of_the_old_size_count() -> None:
    """In every track, also where some of the schedules were already prepared for the other size."""

    def make() -> Ran:
        ema = averaging()
        for _ in range(3):  # the next ones are prepared
            ema.update()
        return lambda: ema.update(steps=3), ema

    def going_on(ema: EMA) -> Says:
        for _ in range(2):
            ema.update()
        return says(ema)

    without, (larger, done) = going_on(make()[1]), make()
    larger()
    following = going_on(done)
    for line, ema in every_line(make, min(STRIDE, 3)):
        now = going_on(ema)
        assert equal(now, without) or equal(now, following), line


@pytest.mark.parametrize("engine", ["foreach", "blocked"])
def test_an_engine_of_several_operations_says_that_an_update_is_torn(engine: EngineName) -> None:
    before, done = says(averaging(engine)), averaging(engine)
    done.update()
    after, torn = says(done), 0

    def make() -> Ran:
        ema = averaging(engine)
        return ema.update, ema

    for line, ema in every_line(make):
        try:
            now = says(ema)
        except PlanError:
            torn += 1
            for verb in (ema.update, lambda ema=ema: ema.save("never.safetensors")):
                with pytest.raises(
                    PlanError, match="the update at step 3 was interrupted after some averages were"
                ):
                    verb()
            ema.reset()
            ema.update()
        else:
            assert equal(now, before) or equal(now, after), line
    assert torn > 1


def test_copy_to_is_finished() -> None:
    ema = averaging()
    ema.copy_to(whole := network())
    before, after = state(network()), state(whole)
    assert not same(before, after)

    def make() -> tuple[Callable[[], object], nn.Module]:
        torch.manual_seed(0)
        model = network()
        starts.append(state(model))
        return partial(ema.copy_to, model), model

    starts: list[list[tuple[int, Tensor]]] = []
    for line, model in every_line(make):
        values = [t for _, t in state(model)]
        whole_or_none = [
            all(torch.equal(a, b) for a, (_, b) in zip(values, of, strict=True)) for of in (after, starts[-1])
        ]
        assert any(whole_or_none), line


def test_attach_follows_once_or_not_at_all() -> None:
    def make() -> tuple[Callable[[], object], tuple[EMA, torch.optim.Optimizer]]:
        ema = EMA(nn.Linear(2, 2), 0.5)
        optimizer = torch.optim.SGD(ema.model.parameters(), lr=0.1)
        return partial(ema.attach, optimizer), (ema, optimizer)

    for line, (ema, optimizer) in every_line(make):
        optimizer.step()
        if followed := ema.step:  # the interrupt came when all was done
            with pytest.raises(ConfigError, match="attached to SGD already"):
                ema.attach(optimizer)
        else:
            ema.attach(optimizer)
        optimizer.step()
        assert ema.step == followed + 1, line


def filled(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a timer that sends signals")
@pytest.mark.parametrize("engine", ["auto", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_random_moments_nothing_is_mixed_or_stuck_or_unnoticed(
    dtype: torch.dtype, engine: EngineName
) -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]).to(dtype)
    filled(model, 0)
    ema = EMA(model, {"short": 0.5, "long": 0.9}, engine=engine)

    def values(tensor: Tensor) -> np.ndarray:
        return tensor.detach().float().numpy()

    torn = torn_at_random_moments(
        ema, lambda: map(values, model.parameters()), partial(filled, model), values, torch.set_grad_enabled
    )
    assert (torn > 0) == (not ema.metrics()["engine"].startswith("native"))
