"""A small SVTR: convolutions embed patches, blocks mix them, the height is pooled, CTC reads the columns.

Source: Du et al. 2022, "SVTR: Scene Text Recognition with a Single Visual Model", arXiv 2205.00159.
Legend: B images; h by w tokens, n = h·w of them; d their width.
"""

from __future__ import annotations

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.nn import functional as F

from experiments.ocr.configs import Lines, Net

WINDOW = (7, 11)  # tokens down and across that a local mixer sees, as in the paper


class Mixer(nn.Layer):
    """Attention over the n tokens, or with a window over those near each, then an MLP."""

    def __init__(self, d: int, head: int, grid: tuple[int, int], local: bool) -> None:
        super().__init__()
        self.heads, self.head = d // head, head
        self.before, self.between = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(approximate=True), nn.Linear(2 * d, d))
        self.near = paddle.to_tensor(window(*grid)) if local else None

    def forward(self, x: Tensor) -> Tensor:  # [B, n, d] -> [B, n, d]
        batch, n, d = x.shape
        q, k, v = [
            part.reshape([batch, n, self.heads, self.head]).transpose([0, 2, 1, 3])
            for part in self.qkv(self.before(x)).split(3, axis=-1)
        ]
        alike = paddle.matmul(q * self.head**-0.5, k, transpose_y=True)  # [B, heads, n, n]
        if self.near is not None:
            alike = alike + self.near
        seen = paddle.matmul(F.softmax(alike), v).transpose([0, 2, 1, 3]).reshape([batch, n, d])
        x = x + self.out(seen)
        return x + self.mlp(self.between(x))


def window(h: int, w: int) -> NDArray[np.float32]:
    """What a local mixer adds to the scores, [n, n]: 0 within the window, else so low that nothing passes."""
    y, x = np.divmod(np.arange(h * w), w)
    far_down = np.abs(y[:, None] - y) > WINDOW[0] // 2
    far_across = np.abs(x[:, None] - x) > WINDOW[1] // 2
    return np.where(far_down | far_across, np.float32(-1e4), np.float32(0))


class Merge(nn.Layer):
    """Half the height: a convolution with stride 2 down and 1 across."""

    def __init__(self, before: int, d: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.convolution, self.norm = nn.Conv2D(before, d, 3, (2, 1), 1), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:  # [B, h·w, before] -> [B, h/2·w, d]
        batch, _, before = x.shape
        image = x.transpose([0, 2, 1]).reshape([batch, before, *self.grid])
        return self.norm(self.convolution(image).flatten(2).transpose([0, 2, 1]))


class Recogniser(nn.Layer):
    """Images [B, 1, height, width] of unit contrast -> logits [B, width/4, characters + 1]; blank is 0."""

    def __init__(self, net: Net, lines: Lines) -> None:
        super().__init__()
        h, w, d = lines.height, lines.width, net.stages[0][0]
        widths = [1, *(max(16, d >> later) for later in reversed(range(len(net.strides))))]
        patches: list[nn.Layer] = []
        for before, after, (down, across) in zip(widths, widths[1:], net.strides, strict=False):
            bias = False  # the norm takes it out again
            patches += [nn.Conv2D(before, after, 3, (down, across), 1, bias_attr=bias), nn.BatchNorm2D(after)]
            patches += [nn.GELU(approximate=True)]
            h, w = h // down, w // across
        self.patches = nn.Sequential(*patches)
        self.places = self.create_parameter(
            [h * w, d], default_initializer=nn.initializer.TruncatedNormal(std=0.02)
        )
        blocks: list[nn.Layer] = []
        for stage, (width, mixers) in enumerate(net.stages):
            if stage:
                blocks.append(Merge(d, width, (h, w)))
                h //= 2
            d = width
            blocks += [Mixer(d, net.head, (h, w), local=mixer == "L") for mixer in mixers]
        self.blocks = nn.Sequential(*blocks)
        self.grid = h, w
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, lines.characters + 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patches(images).flatten(2).transpose([0, 2, 1]) + self.places)
        columns = x.reshape([x.shape[0], *self.grid, x.shape[2]]).mean(axis=1)
        return self.head(self.norm(columns))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """CTC's loss. labels: [B, longest], zeros after each line's end."""
    batch, columns, _ = logits.shape
    lengths = (labels > 0).astype("int64").sum(axis=1)
    every = paddle.full([batch], columns, dtype="int64")
    return F.ctc_loss(logits.transpose([1, 0, 2]), labels, every, lengths)


def read(logits: Tensor) -> list[list[int]]:
    """The likeliest class of each column, repetitions once, blanks away."""
    best = logits.argmax(axis=-1).numpy()
    kept = (best > 0) & (best != np.pad(best, ((0, 0), (1, 0)))[:, :-1])
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]
