"""Pictures to find garments in: several of Fashion-MNIST on a grey ground, each with its box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyak.demo.data import SIDE, Split, load

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]


def prepared(folder: Path, train: int, test: int, side: int, seed: int = 0) -> Path:
    """Ultralytics' description of the data in ``folder``; drawn if it is not there.

    Args:
        folder: where pictures, labels and ``data.yaml`` are, or will be.
        train: how many pictures to train on, drawn from Fashion-MNIST's training images.
        test: how many to test on, from its test images.
        side: of a picture, in pixels.
        seed: of sizes and places.
    """
    about = folder / "data.yaml"
    if about.exists():  # written last
        return about
    images = load("fashion-mnist", None)
    rng = np.random.default_rng(seed)
    for part, count, split in (("train", train, images.train), ("val", test, images.test)):
        pictures, labels = folder / "images" / part, folder / "labels" / part
        pictures.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels, lines = drawn(split, side, rng)
            Image.fromarray(pixels).convert("RGB").save(pictures / f"{number:05}.png")
            (labels / f"{number:05}.txt").write_text("\n".join(lines) + "\n")
    paths = f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\n"
    about.write_text(f"{paths}names: [{', '.join(NAMES)}]\n")
    return about


def drawn(split: Split, side: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[str]]:
    """A picture of one to three garments, and for each its class, centre, width and height in shares."""
    ground = rng.integers(0, 60) + rng.normal(0, 12, (side, side))
    lines = []
    for _ in range(rng.integers(1, 4)):
        number = rng.integers(len(split.labels))
        edge = int(side * rng.uniform(0.35, 0.65))
        garment = Image.fromarray(split.pixels[number, 0]).resize((edge, edge), Image.Resampling.BILINEAR)
        ink = np.asarray(garment, np.float64)
        left, top = rng.integers(0, side - edge, 2)
        place = ground[top : top + edge, left : left + edge]
        np.copyto(place, np.where(ink > SIDE, ink, place))
        rows, columns = (np.flatnonzero((ink > SIDE).any(axis)) for axis in (1, 0))
        (low, high), (first, last) = (rows[[0, -1]], columns[[0, -1]])
        box = [left + (first + last + 1) / 2, top + (low + high + 1) / 2, last - first + 1, high - low + 1]
        lines.append(" ".join([str(split.labels[number]), *(f"{value / side:.5f}" for value in box)]))
    return np.clip(ground, 0, 255).astype(np.uint8), lines
