"""The demo where Paddle is the framework: the same records, the same claim, Paddle's own training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.nn.functional import cross_entropy

import polyak
from polyak.demo import data
from polyak.demo.in_paddle import PaddleLearner, lenet, pick_device, to_input
from polyak.demo.options import Options
from polyak.demo.run import run
from polyak.demo.training import EpochRecord, LossRecord, Training

DEBIAN = data.FASHION_MNIST.installed[0]


@pytest.fixture(scope="module")
def digits() -> data.Images:
    return data.digits()


class Run(Training):
    learner: PaddleLearner


def begin(images: data.Images, **options: object) -> Run:
    return Run(PaddleLearner(Options(device="cpu", **options)), images, epochs=2)  # type: ignore[arg-type]


def test_paddle_is_chosen_where_torch_is_missing() -> None:
    assert Options().chosen == "paddle"


def test_the_network_is_the_tutorials() -> None:
    assert sum(p.size for p in lenet().parameters()) == 62_006
    assert lenet()(paddle.zeros([2, 3, 32, 32])).shape == [2, 10]


def test_bytes_become_three_channels_from_minus_one_to_one() -> None:
    grey = paddle.to_tensor([0, 255], dtype="uint8").reshape([2, 1, 1, 1]).expand([2, 1, 32, 32])
    inputs = to_input(grey).numpy()
    assert inputs.shape == (2, 3, 32, 32)
    assert (inputs == np.float32([-1, 1]).reshape(2, 1, 1, 1)).all()


def test_the_records_are_those_of_torch(digits: data.Images) -> None:
    run = begin(digits)
    records = list(run.run(lambda: False))
    kinds = [LossRecord, LossRecord, LossRecord, EpochRecord] * 2
    assert [type(record) for record in records] == kinds
    assert [record.step for record in records] == [8, 16, 23, 23, 31, 39, 46, 46]
    assert run.learner.optimizer.get_lr() == 1e-3


def test_every_image_is_seen_once_per_epoch_in_an_order_of_its_own(digits: data.Images) -> None:
    learner = begin(digits).learner
    numbers = paddle.arange(len(digits.train.labels))
    pixels = paddle.zeros([len(numbers), 1, 32, 32], dtype="uint8")
    orders = [
        np.concatenate([labels.numpy() for _, labels in learner.shuffled(pixels, numbers)]) for _ in "12"
    ]
    for order in orders:
        assert (np.sort(order) == numbers.numpy()).all()
        assert (order != numbers.numpy()).any()
    assert (orders[0] != orders[1]).any()


def test_the_curves_are_those_of_a_plain_loop(digits: data.Images) -> None:
    """The same training written out, with the average kept by hand in float64."""
    run = begin(digits, decay=0.9, warmup=False, seed=5)
    [record] = run.run(lambda: run.ema.step == 8)
    paddle.seed(5)
    model, order = lenet(), np.random.default_rng(5).permutation(len(digits.train.labels))
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    average = [p.numpy().astype(np.float64) for p in model.parameters()]
    losses = []
    for batch in np.split(order[: 8 * 64], 8):
        inputs = to_input(paddle.to_tensor(digits.train.pixels[batch]))
        loss = cross_entropy(model(inputs), paddle.to_tensor(digits.train.labels[batch]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
        for kept, p in zip(average, model.parameters(), strict=True):
            kept += 0.1 * (p.numpy().astype(np.float64) - kept)
    assert record.loss == pytest.approx(np.mean(losses), abs=1e-6)
    for kept, p in zip(average, run.learner.ema.module.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), kept, atol=1e-6)


def test_the_averages_loss_is_taken_before_it_has_seen_the_batch(digits: data.Images) -> None:
    run = begin(digits, warmup=False)
    inputs, labels = next(run.learner.shuffled(*run.train))
    with paddle.no_grad():
        before = float(cross_entropy(run.learner.model(inputs), labels))
    raw, ema = run._step(inputs, labels)
    assert float(raw) == before
    assert float(ema) == pytest.approx(before), "both start from the same weights"
    raw, ema = run._step(inputs, labels)
    assert float(raw) != float(ema)


def test_evaluation_is_over_all_images_whatever_the_batch(digits: data.Images) -> None:
    run = begin(digits)
    *_, last = run.run(lambda: False)
    whole = run.learner.evaluate(*run.test, batch=360)
    assert run.learner.evaluate(*run.test, batch=7) == pytest.approx(whole)
    assert isinstance(last, EpochRecord)
    assert whole == pytest.approx((last.test_loss, last.accuracy))
    scores = run.learner.ema(to_input(run.test[0]))
    right = scores.argmax(1).numpy() == digits.test.labels
    assert right.mean() == pytest.approx(last.ema_accuracy)


def test_a_seed_decides_the_run(digits: data.Images) -> None:
    def figures(seed: int) -> list[dict[str, object]]:
        return [{**asdict(r), "seconds": None} for r in begin(digits, seed=seed).run(lambda: False)]

    first = figures(3)
    assert figures(3) == first
    assert figures(4) != first


@pytest.mark.parametrize("name", ["toaster", "cpu:x", *([] if paddle.is_compiled_with_cuda() else ["gpu"])])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(polyak.ConfigError, match=f"device='{name}' cannot be used here: .*or say cpu"):
        pick_device(name)


def test_on_fashion_mnist_the_average_has_the_lower_loss(tmp_path: Path) -> None:
    if not DEBIAN.is_dir() and not os.environ.get("POLYAK_REQUIRE_IMAGES"):
        pytest.skip("apt-get install dataset-fashion-mnist")
    result = run(Options("fashion-mnist", DEBIAN, epochs=1, out=tmp_path))
    raw, ema = result.summary.raw, result.summary.ema
    assert ema.train_loss < raw.train_loss
    assert ema.test_loss < raw.test_loss
    assert ema.last > 0.85, "a network that learned nothing would be at 0.10"


def test_the_command_writes_what_happened_and_is_quiet_about_it(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("polyak"), "demo", "--data", "digits", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--json", "--out", "run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    shown = json.loads(done.stdout)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["loss", "loss", "loss", "epoch"]
    assert shown["ema"]["last"] == lines[-1]["ema_accuracy"]

    average = polyak.load(tmp_path / "run/average.safetensors")
    learner = PaddleLearner(Options())
    for name, tensor in learner.model.state_dict().items():
        tensor.set_value(average.tensors[name])
    assert learner.evaluate(*learner.to_device(data.digits().test)).accuracy == lines[-1]["ema_accuracy"]
    assert average.header.step == 23
