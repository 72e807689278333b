"""Models with the tensor shapes of well-known networks: an update's cost depends on nothing else."""

from __future__ import annotations

import torch
from torch import nn


class Shaped(nn.Module):
    """Parameters of given shapes and no computation."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(s, generator=generator)) for s in shapes)


def resnet50() -> list[tuple[int, ...]]:
    """161 tensors, 25.6 M parameters (He et al. 2015, arXiv 1512.03385, table 1)."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for o, i, k in ((width, width_in, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(o, i, k, k), (o,), (o,)]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def vit_b() -> list[tuple[int, ...]]:
    """152 tensors, 86.6 M parameters (Dosovitskiy et al. 2020, arXiv 2010.11929, table 1, patch 16)."""
    d, hidden = 768, 3072
    block = [
        (d,),
        (d,),
        (3 * d, d),
        (3 * d,),
        (d, d),
        (d,),
        (d,),
        (d,),
        (hidden, d),
        (hidden,),
        (d, hidden),
        (d,),
    ]
    head = [(d,), (d,), (1000, d), (1000,)]
    return [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,), *(12 * block), *head]


def many_small() -> list[tuple[int, ...]]:
    """750 tensors of 6,667: 5 M parameters in small pieces, where calls cost more than bytes."""
    return [(6667,)] * 750


def lenet() -> list[tuple[int, ...]]:
    """10 tensors, 62,006 parameters: the demo's network."""
    return [(6, 3, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,)]


SHAPES = {"LeNet": lenet, "750 small": many_small, "ResNet-50": resnet50, "ViT-B": vit_b}
