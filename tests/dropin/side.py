"""One small training run, on which an original and its drop-in stand side by side."""

from collections.abc import Callable

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
