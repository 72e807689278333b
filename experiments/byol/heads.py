"""What BYOL and DINO share: heads, and a probe of what the features are good for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from experiments.small_images import score
from polyak.demo.data import CLASSES


def head(inputs: int, hidden: int, outputs: int, norm: bool) -> nn.Sequential:
    """Two linear layers, with BatchNorm between them or without."""
    between = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(inputs, hidden), *between, nn.ReLU(), nn.Linear(hidden, outputs))


def probe(features: Tensor, labels: Tensor, known: int) -> float:
    """Accuracy in percent of ridge regression on the first ``known`` features, on the others."""
    x = normalize(features - features[:known].mean(0)).double()
    a, b = x[:known], one_hot(labels[:known], CLASSES).double()
    weights = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    return score(x[known:] @ weights, labels[known:]).accuracy
