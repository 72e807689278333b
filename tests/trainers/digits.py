"""A small network, and scikit-learn's digits in batches by step."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

digits = load_digits()
X = torch.tensor(digits.data[:256] / 16, dtype=torch.float32)
Y = torch.tensor(digits.target[:256])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def loss(model: nn.Module, step: int) -> Tensor:
    rows = torch.arange(16 * step, 16 * step + 16) % len(X)
    return nn.functional.cross_entropy(model(X[rows]), Y[rows])
