"""The tensor shapes of well-known networks, which determine the cost of an update."""

from __future__ import annotations

from typing import TypeAlias

Shapes: TypeAlias = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """161 tensors, 25.6 M parameters (He et al. 2015, arXiv 1512.03385, table 1)."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for o, i, k in ((width, width_in, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(o, i, k, k), (o,), (o,)]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def vit_b() -> Shapes:
    """152 tensors, 86.6 M parameters (Dosovitskiy et al. 2020, arXiv 2010.11929, table 1, patch 16)."""
    d, hidden = 768, 3072
    attention: Shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    mlp: Shapes = [(d,), (d,), (hidden, d), (hidden,), (d, hidden), (d,)]
    head: Shapes = [(d,), (d,), (1000, d), (1000,)]
    return [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,), *(12 * (attention + mlp)), *head]


def many_small() -> Shapes:
    """750 tensors of 6,667: 5 M parameters in small pieces, where calls cost more than bytes."""
    return [(6667,)] * 750
