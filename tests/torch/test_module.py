"""``ema.module`` and ``ema(x)``: a module on the averaged tensors themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from polyak.torch import EMA, update_batchnorm

from .conftest import Beside, array, trained

Peak = Callable[[Callable[[], object]], int]
X = torch.linspace(-1, 1, 6).view(3, 2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def test_its_tensors_are_the_averages_and_not_copies_of_them() -> None:
    ema = trained(network())
    averages = ema.tracks["average"].tensors
    held = ema.module.state_dict()
    assert set(averages) < set(held)
    for name, average in averages.items():
        assert held[name].data_ptr() == average.data_ptr()
        assert held[name].stride() == average.stride()


def test_making_it_allocates_no_model(peak_bytes: Peak) -> None:
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    ema = trained(model)
    assert peak_bytes(lambda: ema.module) < 1024


def test_it_follows_every_update_without_being_asked_for_again() -> None:
    side = Beside(network())
    module = side.ema.module
    for _ in range(3):
        side.train()
        side.update()
        for name, expected in side.state.average.items():
            actual = torch.from_numpy(array(module.state_dict()[name]))
            torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
        assert side.ema.module is module


def test_calling_the_ema_is_the_reference_forward() -> None:
    side = Beside(network()).run()
    weights = {k: torch.from_numpy(v) for k, v in side.state.average.items()}
    expected = torch.func.functional_call(network().double().eval(), weights, (X.double(),))
    torch.testing.assert_close(side.ema(X).double(), expected, rtol=1e-5, atol=1e-6)


def test_two_calls_in_evaluation_agree_because_dropout_is_off() -> None:
    """One library's forward_eval leaves it on."""
    model = network().train()
    ema = trained(model)
    before = ema.tracks["average"].tensors["1.running_mean"].clone()
    assert torch.equal(ema(X), ema(X))
    assert not any(module.training for module in ema.module.modules())
    assert all(module.training for module in model.modules()), "the live model's mode is its own"
    assert torch.equal(ema.tracks["average"].tensors["1.running_mean"], before)


def test_it_builds_no_graph() -> None:
    ema = trained(network())
    assert not ema(X.clone().requires_grad_()).requires_grad
    assert not ema.module(X).requires_grad
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert not any(b.requires_grad for b in ema.module.buffers())


def test_a_call_lets_gradients_be_switched_on_again() -> None:
    ema = trained(network())
    ema(X)
    assert torch.is_grad_enabled()


def test_an_input_that_needs_gradients_gets_them_through_the_module() -> None:
    """Guidance and distillation differentiate with respect to the input of the averaged model."""
    module = trained(network()).module
    x = X.clone().requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("selection", [{"include": "3.*"}, {"exclude": "0.*"}])
def test_tensors_left_out_are_copies_of_the_models_that_need_no_gradient(selection: dict[str, str]) -> None:
    model = network()
    ema = trained(model, **selection)
    assert torch.equal(ema.module[0].weight, model[0].weight)
    assert ema.module[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert not ema.module(X).requires_grad
    ema.module.requires_grad_(False)
    assert model[0].weight.requires_grad
    model.eval()
    with ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(ema(X), model(X))


def test_frozen_tensors_are_copies_that_follow_the_model() -> None:
    model = network()
    model[0].requires_grad_(False)
    ema = trained(model)
    assert ema.module[0].weight.data_ptr() != model[0].weight.data_ptr()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(ema.module[0].weight, model[0].weight)


def test_using_it_does_not_disturb_the_model() -> None:
    model = network()
    model[0].register_forward_hook(lambda module, inputs, output: output * 1.0)
    ema = trained(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    module = ema.module
    module.train()(X)
    module.zero_grad()
    module[0].register_forward_hook(lambda *_: pytest.fail("a hook of the average ran in the model"))
    module.note = "mine"
    model(X)
    assert not hasattr(model, "note")
    for name in ("0.weight", "3.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_every_track_has_a_module_of_its_own() -> None:
    model = network()
    ema = EMA(model, {"short": 0.5, "long": 0.99})
    with torch.no_grad():
        model[0].weight.zero_()
    ema.update()
    short, long = ema.module_of("short"), ema.module_of("long")
    assert ema.module is short
    assert short is not long
    for name, module in (("short", short), ("long", long)):
        assert module[0].weight.data_ptr() == ema.tracks[name].tensors["0.weight"].data_ptr()
    assert not torch.equal(short[0].weight, long[0].weight)


def test_it_can_be_asked_for_while_the_average_is_live() -> None:
    model = network().eval()
    ema = trained(model)
    with ema.average_parameters():
        module = ema.module
        assert torch.equal(module(X), model(X))
    assert module is ema.module
    assert module[0].weight.data_ptr() != model[0].weight.data_ptr()
    before = module[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(module[0].weight, before)
    ema.update()
    assert not torch.equal(module[0].weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_precision_is_that_of_the_storage(dtype: torch.dtype) -> None:
    ema = trained(network().to(dtype))
    assert {p.dtype for p in ema.module.parameters()} == {torch.float32}
    assert ema(X).dtype == torch.float32
    narrow = trained(network(), dtype=dtype)
    assert {p.dtype for p in narrow.module.parameters()} == {dtype}


def test_batch_norm_statistics_can_be_measured_on_it() -> None:
    model = network()
    ema = trained(model)
    live = model[1].running_mean.clone()
    data = torch.randn(64, 2)
    update_batchnorm(ema.module, [data])
    averages = ema.tracks["average"].tensors
    hidden = data @ averages["0.weight"].t() + averages["0.bias"]
    torch.testing.assert_close(averages["1.running_mean"], hidden.mean(0))
    assert torch.equal(model[1].running_mean, live)


def test_loading_a_state_fills_the_module_that_is_in_use() -> None:
    ema = trained(network())
    other = EMA(network(), 0.9)
    module = other.module
    other.load_state_dict(ema.state_dict())
    assert other.module is module
    torch.testing.assert_close(module(X), ema(X), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.append(nn.Linear(2, 2)),
        lambda m: m.__setitem__(3, nn.Linear(3, 2)),
        lambda m: m[0].register_buffer("table", torch.ones(1)),
        lambda m: m.__delitem__(2),
    ],
    ids=["a layer more", "a layer replaced", "a buffer more", "a layer less"],
)
def test_it_is_rebuilt_when_the_structure_changes(change: Callable[[nn.Module], object]) -> None:
    model = network()
    ema = trained(model)
    old = ema.module
    change(model)
    assert ema.module is not old
    assert ema.module.state_dict().keys() == model.state_dict().keys()
    ema.update()
    model.eval()
    with ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(ema(X), model(X))


def test_a_module_in_use_follows_a_model_whose_memory_moved() -> None:
    model = network()
    ema = trained(model)
    module = ema.module
    model.double().float()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(1)
        model[1].num_batches_tracked += 5
    ema.update()
    assert torch.equal(module[0].weight, ema.tracks["average"].tensors["0.weight"])
    assert torch.equal(module[1].num_batches_tracked, model[1].num_batches_tracked)


def test_plain_tensor_attributes_come_along() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.scale = torch.tensor(3.0)  # neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    side = Beside(Scaled()).run()
    with side.ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(side.ema(X), side.model(X))
    side.model.scale.add_(1)
    side.run()
    assert torch.equal(side.ema.module.scale, side.model.scale)
    assert side.ema.module.scale.data_ptr() != side.model.scale.data_ptr()
