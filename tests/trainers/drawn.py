"""Pictures for Ultralytics: circles and squares to find, scikit-learn's digits to tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits


def shapes(folder: Path, keypoints: bool = False) -> Path:
    """Sixteen pictures of one circle or square; outlines serve detection as well as segmentation."""
    places = np.random.default_rng(0).integers(4, 32, size=(16, 2)).tolist()
    for split in ("train", "val"):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index, (x, y) in enumerate(places):
            picture, kind = Image.new("RGB", (64, 64), "black"), index % 2
            brush = ImageDraw.Draw(picture)
            (brush.rectangle if kind else brush.ellipse)((x, y, x + 24, y + 24), fill="orange")
            picture.save(images / f"{index}.png")
            box = [x + 12, y + 12, 24, 24, x, y, x + 24, y + 24]  # its centre and size, and two corners
            outline = [x, y, x + 24, y, x + 24, y + 24, x, y + 24]
            numbers = [value / 64 for value in (box if keypoints else outline)]
            (labels / f"{index}.txt").write_text(" ".join(map(str, [kind, *numbers])))
    head = "kpt_shape: [2, 2]\n" if keypoints else ""
    names = "names: [circle, square]\n"
    path = folder / "data.yaml"
    path.write_text(f"{head}{names}path: {folder}\ntrain: images/train\nval: images/val\n")
    return path


def pictures(folder: Path) -> Path:
    """Sixteen digits, odd and even."""
    digits = load_digits()
    for split in ("train", "val"):
        for index in range(16):
            path = folder / split / str(digits.target[index] % 2) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[index] * 15).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").resize((32, 32)).save(path)
    return folder
