"""BatchNorm statistics measured anew for weights that never trained."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import polyak

BATCHES = [torch.randn(6, 3, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.Linear(4, 2), nn.BatchNorm1d(2)
    )


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def test_it_measures_what_torchs_own_does_where_that_is_right() -> None:
    ours, theirs = network(), network()
    theirs[2] = ours[2] = nn.Identity()  # with dropout on, torch's measures activations no evaluation sees
    ours(BATCHES[0] + 5)  # statistics from before, which must not show
    polyak.update_batchnorm(ours, BATCHES)
    torch.optim.swa_utils.update_bn(BATCHES, theirs)
    for name, value in statistics(ours).items():
        torch.testing.assert_close(value, statistics(theirs)[name])


def test_dropout_is_off_while_measuring() -> None:
    a, b = network(), network()
    b[2] = nn.Identity()
    polyak.update_batchnorm(a, BATCHES)
    polyak.update_batchnorm(b, BATCHES)
    for name, value in statistics(a).items():
        assert torch.equal(value, statistics(b)[name])


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, pixels: torch.Tensor, label: int = 0) -> torch.Tensor:
        return self.inner(pixels)


@pytest.mark.parametrize(
    ("wrap", "forward"),
    [
        (lambda x: x, None),
        (lambda x: (x, torch.zeros(6)), None),
        (lambda x: [x, "label"], None),
        (lambda x: SimpleNamespace(x=x), lambda model, batch: model(batch.x)),
        (lambda x: {"a": {"b": x}}, lambda model, batch: model(batch["a"]["b"])),
    ],
)
def test_any_batch(wrap: Any, forward: Any) -> None:
    plain, wrapped = network(), network()
    polyak.update_batchnorm(plain, BATCHES)
    polyak.update_batchnorm(wrapped, (wrap(x) for x in BATCHES), forward)
    for name, value in statistics(wrapped).items():
        assert torch.equal(value, statistics(plain)[name])


def test_a_mapping_is_passed_by_name() -> None:
    plain, model = network(), Keyword()
    polyak.update_batchnorm(plain, BATCHES)
    polyak.update_batchnorm(model, [{"pixels": x, "label": 1} for x in BATCHES])
    for name, value in statistics(plain).items():
        assert torch.equal(model.inner.get_buffer(name), value)


def test_mode_and_momentum_are_as_before() -> None:
    model = network()
    model[0].eval()
    modes = [m.training for m in model.modules()]
    polyak.update_batchnorm(model, BATCHES)
    assert [m.training for m in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)


def test_an_exception_leaves_everything_as_it_was() -> None:
    model = network()
    polyak.update_batchnorm(model, BATCHES[:2])
    before, modes = statistics(model), [m.training for m in model.modules()]
    with pytest.raises(RuntimeError):
        polyak.update_batchnorm(model, [BATCHES[0], torch.ones(2, 99)])
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name])
    assert [m.training for m in model.modules()] == modes
    assert model[1].momentum == 0.3


def test_an_empty_loader_is_refused_and_the_statistics_stay() -> None:
    model, used_up = network(), iter(BATCHES)
    polyak.update_batchnorm(model, used_up)
    before = statistics(model)
    with pytest.raises(polyak.ConfigError, match="gave no batch"):
        polyak.update_batchnorm(model, used_up)
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name])


def test_the_average_can_be_measured_without_touching_the_model() -> None:
    model = network()
    ema = polyak.EMA(model, 0.9)
    with torch.no_grad():
        model[0].weight.mul_(3)
    ema.update()
    before = statistics(model)
    polyak.update_batchnorm(ema.module, BATCHES)
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name])
    expected = torch.cat([ema.module[0](x) for x in BATCHES]).mean(0)
    torch.testing.assert_close(ema.module[1].running_mean, expected)
