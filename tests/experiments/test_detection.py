"""Detection: the pictures that are drawn, and a real training that its averages only watch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyak
from experiments.detection import run
from experiments.detection.garments import drawn, prepared
from polyak.demo.data import FASHION_MNIST, Split, find
from tests.shims import _nms, torchvision_with_nms

needs_images = pytest.mark.skipif(find(FASHION_MNIST, None) is None, reason="Fashion-MNIST is not here")
NONE = polyak.Constant(0.0)  # an average that is the raw weights


@pytest.mark.slow
@needs_images
def test_a_seed_repeats_and_a_track_differs_from_the_raw_weights_by_its_decay_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_with_nms()
    pytest.importorskip("ultralytics")
    monkeypatch.setattr(run, "PICTURES", tmp_path)
    torch.set_num_threads(1)
    size = replace(run.QUICK, train=16, test=8, epochs=2, every=1, batch=8, side=32)
    assert size.steps == 4
    found = run.curves(0, size, {"none": NONE, "half": polyak.Constant(0.5)})
    assert {len(points) for points in found.values()} == {2}
    assert found["none_loss"] == found["raw_loss"]
    assert found["half_loss"] != found["raw_loss"]
    again = run.curves(0, size, {"half": polyak.Constant(0.5), "other": polyak.Constant(0.9)})
    shared = again.keys() & found.keys()
    assert {"raw_loss", "half_loss"} <= shared
    assert all(again[name] == found[name] for name in shared), "what is averaged changes no training"
    assert run.curves(1, size, {"other": NONE})["raw_loss"] != found["raw_loss"]
    constant = run.curves(0, replace(size, last_rate=1.0), {"other": NONE})
    assert constant["raw_loss"] != found["raw_loss"]
    half = run.curves(0, replace(size, bf16=True), {"other": NONE})
    assert half["raw_loss"] != found["raw_loss"]
    assert half["raw_loss"] == pytest.approx(found["raw_loss"], rel=0.05)


class Net(nn.Module):
    """One convolution, and a loss as Ultralytics' models have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def loss(self, image: Tensor) -> Tensor:
        return self.conv(image)


def test_forward_and_gradients_are_in_bfloat16() -> None:
    torch.manual_seed(0)
    net = Net()
    image = torch.randn(2, 3, 8, 8, requires_grad=True)
    exact = net.loss(image)
    with torch.autocast("cpu", torch.bfloat16):
        own = net.loss(image)
    run.in_bf16(SimpleNamespace(model=net))
    found = net.loss(image)
    assert found.dtype == own.dtype == torch.bfloat16
    assert torch.allclose(found, own, atol=2**-7)
    assert not torch.equal(found.float(), exact)
    found.float().square().sum().backward()
    assert image.grad is not None
    for grad in (image.grad, net.conv.weight.grad, net.conv.bias.grad):
        assert torch.equal(grad, grad.bfloat16().float())
    exact.square().sum().backward()
    assert not torch.equal(image.grad, image.grad.bfloat16().float())


def test_a_validation_that_left_pictures_out_stops_the_run() -> None:
    log = logging.Logger("of a test")
    log.addFilter(run.refuse_partial)
    log.warning("anything else")
    with pytest.raises(RuntimeError, match=r"limit 3\.6s exceeded: mAP would depend"):
        log.warning("NMS time limit 3.6s exceeded")


@pytest.mark.parametrize("classes", [1, 10])
def test_the_stand_in_keeps_each_box_that_overlaps_no_better_one(classes: int) -> None:
    torch.manual_seed(classes)
    corner, edges = torch.rand(150, 2) * 60, torch.rand(150, 2) * 40 + 1
    boxes = torch.cat([corner, corner + edges], 1) + torch.randint(classes, (150, 1)) * 7680
    scores = torch.rand(150)
    kept: list[int] = []
    for number in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[number], boxes[better]) <= 0.7 for better in kept):
            kept.append(number)
    assert _nms(boxes, scores, 0.7).tolist() == kept
    assert 20 < len(kept) < 150


def overlap(one: Tensor, other: Tensor) -> float:
    """What two boxes share, as a share of what they cover."""
    shared = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0).prod()
    return float(shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared))


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
