"""One small training run, on which an original and its drop-in stand side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    """Convolution, BatchNorm (averages, a counter) and LayerNorm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), nn.LayerNorm(4)
    )


def train(model: nn.Module, steps: int, after: Callable[[int], object]) -> None:
    """``after(step)`` follows each of them, counted from 1."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        after(step)


def close(a: Tensor, b: Tensor, name: str = "") -> None:
    """Equal to float32 rounding."""
    assert a.dtype == b.dtype, name
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m: f"{name}: {m}")


def agree(a: nn.Module, b: nn.Module, but: str = "\n") -> None:
    """Two modules hold the same under the same names, except names that contain ``but``."""
    assert list(a.state_dict()) == list(b.state_dict())
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        if but not in name:
            close(x, y, name)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


class Averaging(NamedTuple):
    """An average of a model by one library: what follows the model, and what holds the averages."""

    update: Callable[[], object]
    holder: nn.Module | Mapping[str, Tensor] | Sequence[Tensor]

    def tensors(self) -> list[Tensor]:
        holder = self.holder.state_dict() if isinstance(self.holder, nn.Module) else self.holder
        return [*holder.values()] if isinstance(holder, Mapping) else [*holder]


# The original's average of a model and ours, with a decay; both have begun at the model's weights.
Begun = Callable[[nn.Module, float], Sequence[Averaging]]


def check_spectral_vectors(begun: Begun) -> None:
    """A mean of unit vectors is shorter than one."""
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8, bias=False))
    both = begun(model, 0.5)
    for seed in range(4):
        torch.manual_seed(seed)
        model.parametrizations.weight[0]._u.copy_(nn.functional.normalize(torch.randn(8), dim=0))
        for average in both:
            average.update()
    theirs, ours = (float(u.norm()) for _, u, _ in (average.tensors() for average in both))
    assert theirs < 0.8
    assert ours == pytest.approx(1.0, abs=1e-6)


def check_complex_numbers(begun: Begun, original: float) -> None:
    """``original``: what the original makes of 0 and then 1."""
    model = nn.ParameterList([torch.zeros(3, dtype=torch.complex64), torch.zeros(2)])
    both = begun(model, 0.5)
    for value in (0.0, 1.0):
        nn.init.constant_(model[0], value)
        for average in both:
            average.update()
    assert [float(average.tensors()[0][0].real) for average in both] == pytest.approx([original, 0.5])


def check_nan(begun: Begun) -> None:
    """Of one element, and of all."""
    for some in (slice(1), slice(None)):
        model = nn.Linear(2, 1)
        both = begun(model, 0.9)
        kept = model.weight.detach().clone()
        bad = kept.clone()
        bad[0, some] = float("nan")
        for value in (bad, kept):
            model.weight.data.copy_(value)
            for average in both:
                average.update()
        theirs, ours = (average.tensors()[0].detach() for average in both)
        assert torch.equal(theirs.isnan(), bad.isnan())
        close(ours, kept)


def check_sixteen_bits(begun: Begun, original_stops: bool = True) -> None:
    """A thousand steps from 1 towards 2; the original's bfloat16 may stay where it was."""
    for dtype in (torch.bfloat16, torch.float16):
        model = nn.Linear(64, 64, bias=False).to(dtype)
        nn.init.ones_(model.weight)
        both = begun(model, 0.999)
        nn.init.constant_(model.weight, 2.0)
        for _ in range(1000):
            for average in both:
                average.update()
        theirs, ours = (average.tensors()[0].double().mean().item() for average in both)
        assert ours == pytest.approx(2 - 0.999**1000, rel=1e-2)
        if dtype == torch.bfloat16:
            assert (theirs == 1.0) == original_stops
