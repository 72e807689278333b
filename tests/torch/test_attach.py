"""Following optimizers: those that step together, in each other, in two phases, or not where it is looked."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyak import EMA, ConfigError, PlanError, Warmup, reference
from polyak.torch._engines.updater import Updater

X = torch.linspace(-1, 1, 6).view(2, 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))


def sgd(module: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1, **options)


def backward(model: nn.Module) -> None:
    model(X).square().mean().backward()


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


# --- several optimizers that make one training step ---------------------------------------------------


def followed(scheduled: Callable[[int], list[int]], steps: int) -> tuple[EMA, reference.State]:
    """Two optimizers of which those in ``scheduled(step)`` step, and what should be averaged."""
    model = network()
    optimizers = [sgd(model[0]), torch.optim.AdamW(model[1].parameters(), lr=0.1)]
    ema, expected = EMA(model, Warmup(0.9)), reference.init(arrays(model), Warmup(0.9))
    ema.attach(optimizers)
    for step in range(steps):
        for which in scheduled(step):
            backward(model)
            optimizers[which].step()
            optimizers[which].zero_grad()
        expected = reference.update(expected, arrays(model))
    return ema, expected


def agree(ema: EMA, expected: reference.State) -> None:
    for name, average in expected.average.items():
        np.testing.assert_allclose(ema.tracks["average"].tensors[name].numpy(), average, atol=1e-6)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_two_optimizers_are_one_training_step(order: list[int]) -> None:
    ema, expected = followed(lambda step: order, 5)
    assert ema.step == 5
    agree(ema, expected)


@pytest.mark.parametrize("k", [2, 3])
def test_where_one_stands_by_the_step_ends_with_the_next(k: int) -> None:
    ema, expected = followed(lambda step: [0, 1] if step % k == 0 else [0], 2 * k + 1)
    assert ema.step == 2 * k + 1  # the last was a step of both
    agree(ema, expected)


def test_an_unfinished_step_is_not_counted_yet() -> None:
    ema, _ = followed(lambda step: [0], 3)
    assert ema.step == 2


def test_a_step_of_several_is_followed_until_the_handle_is_removed() -> None:
    model = network()
    a, b = sgd(model[0]), sgd(model[1])
    ema = EMA(model, 0.9)
    handle = ema.attach((a, b))
    for _ in range(2):
        backward(model)
        a.step()
        b.step()
        handle.remove()
    assert ema.step == 1
    ema.update()
    ema.attach(a)
    a.step()
    assert ema.step == 3


@pytest.mark.parametrize("none", [[], ()])
def test_no_optimizer_is_none(none: Any) -> None:
    with pytest.raises(ConfigError, match="give an optimizer, or several different ones"):
        EMA(network(), 0.9).attach(none)


def test_one_optimizer_twice_is_refused() -> None:
    model = network()
    optimizer = sgd(model)
    with pytest.raises(ConfigError, match="several different ones"):
        EMA(model, 0.9).attach([optimizer, optimizer])


# --- what cannot be followed --------------------------------------------------------------------------


class Wrapper(torch.optim.Optimizer):
    """Of a common kind: it takes the place of another, and was never initialised."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> None:
        self.inner.step()


class Duck:
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.step = inner, inner.param_groups, inner.step


@pytest.mark.parametrize(
    ("wrap", "says"), [(Wrapper, "calls no hooks"), (Duck, "not a torch.optim.Optimizer")]
)
@pytest.mark.parametrize("several", [False, True])
def test_a_wrapper_whose_steps_call_no_hooks_is_refused(wrap: Any, says: str, several: bool) -> None:
    model = network()
    wrapped: Any = wrap(sgd(model[0]))
    ema = EMA(model, 0.9)
    with pytest.raises(
        ConfigError, match=rf"{wrap.__name__}.*{says}.*ema\.update\(\) after each of its steps"
    ):
        ema.attach([sgd(model[1]), wrapped] if several else wrapped)
    ema.update()  # nothing is half attached
    handle = ema.attach(wrapped.inner)
    backward(model)
    wrapped.step()
    assert ema.step == 2
    handle.remove()


@pytest.mark.parametrize("several", [False, True])
def test_the_optimizer_of_another_model_is_refused(several: bool) -> None:
    model, twin = network(), network()
    own, other = sgd(model), torch.optim.Adam(copy.deepcopy(model).parameters())
    ema = EMA(model, 0.9)
    with pytest.raises(PlanError, match="attach: Adam holds none of the averaged parameters"):
        ema.attach([own, other] if several else other)
    for left_out in ({"include": "1.*"}, {"exclude": "0.*"}):
        with pytest.raises(PlanError, match="SGD holds none"):
            EMA(twin, 0.9, **left_out).attach(sgd(twin[0]))
    backward(model)
    own.step()
    assert ema.step == 0
    ema.attach(own)


def test_a_layer_unfrozen_since_counts() -> None:
    model = network()
    model[1].requires_grad_(False)
    ema = EMA(model, 0.9)
    with pytest.raises(PlanError, match="or frozen"):
        ema.attach(sgd(model[1]))
    model[1].requires_grad_(True)
    ema.attach(sgd(model[1]))


# --- counted once -------------------------------------------------------------------------------------


def test_an_update_by_hand_is_refused_while_attached() -> None:
    model = network()
    optimizer, ema = sgd(model), EMA(model, 0.9)
    handle = ema.attach(optimizer)
    backward(model)
    optimizer.step()
    with pytest.raises(ConfigError, match=r"attached to SGD and updates itself.*remove\(\)"):
        ema.update()
    assert ema.step == 1
    handle.remove()
    ema.update()
    assert ema.step == 2


def test_a_second_attachment_is_refused_until_the_first_is_over() -> None:
    model = network()
    optimizer, ema = sgd(model), EMA(model, 0.9)
    ema.attach(optimizer)
    for again in (optimizer, torch.optim.Adam(model.parameters())):
        with pytest.raises(ConfigError, match=r"attached to SGD already.*attach\(\[a, b\]\)"):
            ema.attach(again)
    backward(model)
    optimizer.step()
    assert ema.step == 1
    del optimizer  # made anew by the training script, which kept no handle
    ema.attach(torch.optim.Adam(model.parameters()))
    ema.update()
    assert ema.step == 2


class Proximal(torch.optim.SGD):
    """Its step does more than its parent's."""

    fails = False

    def step(self, closure: Any = None) -> None:
        super().step()
        if self.fails:
            raise ZeroDivisionError
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.5)


def test_a_step_that_calls_its_parents_is_one_step_and_taken_whole() -> None:
    model = network()
    sgd(model)  # from now on torch calls hooks in the parent's step too
    optimizer, ema = Proximal(model.parameters(), lr=0.1), EMA(model, Warmup(0.9))
    expected = reference.init(arrays(model), Warmup(0.9))
    ema.attach(optimizer)
    for step in range(6):
        optimizer.zero_grad()
        backward(model)
        optimizer.fails = step in (1, 2)
        if optimizer.fails:
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
        else:
            optimizer.step()
            expected = reference.update(expected, arrays(model))
    assert ema.step == 4
    agree(ema, expected)


class TwoPhases(torch.optim.Optimizer):
    """As SAM is: up, gradient there, down again and a step of the base optimizer."""

    def __init__(self, params: Iterator[Tensor]) -> None:
        super().__init__(params, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@pytest.mark.parametrize("phases", [False, True])
def test_an_optimizer_in_two_phases_is_followed_through_its_base(phases: bool) -> None:
    model = network()
    optimizer, ema = TwoPhases(model.parameters()), EMA(model, Warmup(0.9))
    expected = reference.init(arrays(model), Warmup(0.9))
    ema.attach(optimizer.base_optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        if phases:
            optimizer.first_step()
            backward(model)
            optimizer.second_step()
        else:
            optimizer.step(lambda: backward(model))
        expected = reference.update(expected, arrays(model))
    assert ema.step == 3
    agree(ema, expected)


# --- steps that nobody sees ---------------------------------------------------------------------------


def in_two_phases(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    optimizer = TwoPhases(model.parameters())

    def step() -> None:
        optimizer.first_step()
        optimizer.second_step()

    return optimizer, step


def by_another(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    return sgd(model), sgd(model).step


def in_place_of_one_that_is_gone(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    return None, sgd(model).step


def by_a_fused_one(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    return sgd(model), torch.optim.AdamW(model.parameters(), fused=True).step


def by_hand(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    @torch.no_grad()
    def step() -> None:
        for p in model.parameters():
            p.data -= 0.1 * p.grad

    return sgd(model), step


LOOKS: dict[str, Callable[[EMA, Path], Any]] = {
    "average_parameters": lambda ema, path: ema.average_parameters().__enter__(),
    "save": lambda ema, path: ema.save(path / "a.safetensors"),
    "resumable": lambda ema, path: ema.save(path / "a.safetensors", resumable=True),
    "state_dict": lambda ema, path: ema.state_dict(),
    "metrics": lambda ema, path: ema.metrics(),
}
UNSEEN = [in_two_phases, by_another, in_place_of_one_that_is_gone, by_a_fused_one, by_hand]


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("training", UNSEEN)
def test_training_whose_steps_are_not_seen_is_noticed(training: Any, look: Any, tmp_path: Path) -> None:
    model = network()
    attached, step = training(model)
    ema = EMA(model, 0.9)
    ema.attach(attached or sgd(model))
    for _ in range(3):
        model.zero_grad()
        backward(model)
        step()
    with pytest.warns(UserWarning, match=r"attach saw no step of .*step 0\..*base_optimizer"):
        look(ema, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema.metrics()  # said once


def test_an_optimizer_made_anew_in_mid_run_is_noticed_where_gradients_are_thrown_away_too() -> None:
    model = network()
    old, new = sgd(model), torch.optim.AdamW(model.parameters())
    ema = EMA(model, 0.9)
    ema.attach(old)

    def epoch(optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()

    epoch(old)
    ema.metrics()
    epoch(new)
    ema.metrics()  # from here on it is compared
    epoch(new)
    with pytest.warns(UserWarning, match="still that of step 4"):
        ema.metrics()
    epoch(old)
    ema.metrics()
    assert ema.step == 8


def load(model: nn.Module) -> None:
    model.load_state_dict({name: t + 1 for name, t in model.state_dict().items()})


def accumulate(model: nn.Module) -> None:
    for _ in range(5):
        backward(model)


def infer(model: nn.Module) -> None:
    for _ in range(5):
        model(X)


def swap(model: nn.Module) -> None:
    ema = EMA(model, 0.9, dtype=torch.bfloat16)
    for _ in range(5):
        with ema.average_parameters():
            model(X)


@pytest.mark.parametrize("harmless", [load, accumulate, infer, swap])
def test_what_is_no_training_is_not_taken_for_it(harmless: Callable[[nn.Module], None]) -> None:
    model = network()
    optimizer, ema = sgd(model), EMA(model, 0.9)
    ema.attach(optimizer)
    for _ in range(3):
        harmless(model)
        ema.metrics()
        ema.state_dict()
        with ema.average_parameters():
            pass
    model.zero_grad()
    for _ in range(5):
        backward(model)
        optimizer.step()
    harmless(model)
    ema.metrics()


def test_steps_that_a_scaler_skips_are_seen() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ema = EMA(model, 0.9)
    ema.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(model(X).sum() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        ema.metrics()
    assert ema.step == 0


def test_a_fused_optimizer_under_a_scaler_that_had_no_gradients_to_look_at() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ema = EMA(model, 0.9)
    ema.attach(optimizer)
    optimizer.grad_scale, optimizer.found_inf = None, 0  # what the scaler sets then: a number, no tensor
    optimizer.step()
    optimizer.found_inf = 1
    optimizer.step()
    assert ema.step == 1


def test_the_verdict_of_a_scaler_is_not_read_while_a_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ema = EMA(model, 0.9)
    ema.attach(optimizer)
    monkeypatch.setattr(Updater, "capturing", lambda self: True)
    optimizer.grad_scale, optimizer.found_inf = None, torch.zeros(())
    with pytest.raises(ConfigError, match=r"in a CUDA graph it cannot be read .* AdamW step"):
        optimizer.step()


# --- copies -------------------------------------------------------------------------------------------


def test_a_copy_of_an_attachment_follows_nobody() -> None:
    model = network()
    handle = EMA(model, 0.9).attach(sgd(model))
    assert copy.deepcopy(handle) is None
    assert pickle.loads(pickle.dumps(handle)) is None
