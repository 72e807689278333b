"""Detection: the pictures that are drawn, and a real training that its averages only watch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import polyak
from experiments.detection.garments import drawn, prepared
from polyak.demo.data import FASHION_MNIST, Split, find
from tests.shims import torchvision_with_nms

needs_images = pytest.mark.skipif(find(FASHION_MNIST, None) is None, reason="Fashion-MNIST is not here")
NONE = polyak.Constant(0.0)  # an average that is the raw weights


@pytest.mark.slow
@needs_images
def test_a_seed_repeats_and_a_track_differs_from_the_raw_weights_by_its_decay_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_with_nms()
    pytest.importorskip("ultralytics")
    from experiments.detection import run

    monkeypatch.setattr(run, "PICTURES", tmp_path)
    torch.set_num_threads(1)
    size = replace(run.QUICK, train=16, test=8, epochs=4, every=2, batch=8, side=32)
    assert size.steps == 8
    found = run.curves(0, size, {"none": NONE, "half": polyak.Constant(0.5)})
    assert {len(points) for points in found.values()} == {2}
    assert found["none_loss"] == found["raw_loss"]
    assert found["half_loss"] != found["raw_loss"]
    assert found == run.curves(0, size, {"none": NONE, "half": polyak.Constant(0.5)})
    alone = run.curves(0, size, {"other": polyak.Constant(0.9)})
    assert alone["raw_loss"] == found["raw_loss"], "what is averaged changes no training"
    assert run.curves(1, size, {"other": NONE})["raw_loss"] != found["raw_loss"]
    constant = run.curves(0, replace(size, last_rate=1.0), {"other": NONE})
    assert constant["raw_loss"] != found["raw_loss"]


def test_boxes_fit_their_garments() -> None:
    rng = np.random.default_rng(0)
    tall = np.zeros((1, 1, 32, 32), np.uint8)
    tall[..., 2:30, 10:18] = 255
    for _ in range(20):
        pixels, lines = drawn(Split(tall, np.array([7])), 96, rng)
        assert 1 <= len(lines) <= 3
        covered = np.zeros((96, 96), bool)
        for line in lines:
            kind, *box = line.split()
            x, y, width, height = (float(value) * 96 for value in box)
            assert kind == "7"
            assert 2.5 < height / width < 4, "28 to 8, and a border where its edges are blurred"
            left, top = round(x - width / 2), round(y - height / 2)
            covered[top : top + round(height), left : left + round(width)] = True
        assert (pixels[~covered] < 150).all(), "ground"
        assert (pixels[covered] > 150).mean() > 0.7


@needs_images
def test_pictures_are_drawn_once(tmp_path: Path) -> None:
    about = prepared(tmp_path / "a", 3, 2, 32)
    again = prepared(tmp_path / "b", 3, 2, 32)
    pictures = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*g"))
    assert len(pictures) == 5
    for path in pictures:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    about.write_text("kept")
    assert prepared(tmp_path / "a", 3, 2, 32).read_text() == "kept"
    assert "ankle-boot" in again.read_text()
