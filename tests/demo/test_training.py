"""The loop, its records and its clock, on the digits that ship with scikit-learn."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import polyak
from polyak.demo import data, training
from polyak.demo.in_torch import TorchLearner, lenet, pick_device, to_input
from polyak.demo.options import Options, Rate
from polyak.demo.training import EpochRecord, LossRecord, Record, Training
from polyak.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> data.Images:
    return data.digits()


def replace_train(images: data.Images, count: int) -> data.Images:
    """The same with the first training images only."""
    pixels, labels = images.train
    return images._replace(train=data.Split(pixels[:count], labels[:count]))


class Run(Training):
    learner: TorchLearner


def begin(images: data.Images, epochs: int = 2, lr: Rate = "constant", **options: object) -> Run:
    return Run(TorchLearner(Options(device="cpu", **options)), images, epochs, lr)  # type: ignore[arg-type]


def train(images: data.Images, **options: object) -> tuple[Run, list[Record]]:
    run = begin(images, **options)
    return run, list(run.run(lambda: False))


def test_the_network_is_the_tutorials() -> None:
    assert sum(p.numel() for p in lenet().parameters()) == 62_006
    assert lenet()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_bytes_become_three_channels_from_minus_one_to_one() -> None:
    grey = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 32, 32)
    inputs = to_input(grey)
    assert inputs.shape == (2, 3, 32, 32)
    assert inputs[0].eq(-1).all()
    assert inputs[1].eq(1).all()
    colour = torch.arange(3, dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert to_input(colour)[0, :, 0, 0].tolist() == pytest.approx([-1, 1 / 127.5 - 1, 2 / 127.5 - 1])


def test_the_learning_rate_is_a_cosine_per_epoch_from_1e3_towards_1e4(digits: data.Images) -> None:
    reference = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=10, eta_min=1e-4)
    for epoch in range(11):
        assert training.cosine(epoch, 10) == pytest.approx(schedule.get_last_lr()[0])
        reference.step()
        schedule.step()
    run = begin(digits, lr="cosine")
    records = list(run.run(lambda: False))
    assert [group["lr"] for group in run.learner.optimizer.param_groups] == [training.cosine(1, 2)]
    rates = {record.epoch: record.lr for record in records if isinstance(record, LossRecord)}
    assert rates == {1: training.cosine(0, 2), 2: training.cosine(1, 2)}


@pytest.mark.parametrize("batches", [782, 938])  # of CIFAR-10 and of Fashion-MNIST
def test_the_tutorials_own_schedule_is_the_constant_rate(digits: data.Images, batches: int) -> None:
    """It is given its length in steps and stepped once an epoch, so ten epochs are hardly any of it."""
    tutorial = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(tutorial, 2 * batches, 1e-4)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        tutorial.step()
        schedule.step()
    few = replace_train(digits, 64)
    ours = [r.lr for r in begin(few, epochs=10).run(lambda: False) if isinstance(r, LossRecord)]
    assert ours == pytest.approx(rates, rel=1e-4)
    assert ours != pytest.approx([training.cosine(epoch, 10) for epoch in range(10)], rel=1e-4)


def test_records_come_at_each_third_and_after_each_epoch(digits: data.Images) -> None:
    run, records = train(digits)
    assert run.steps_per_epoch == 23
    seen = [(type(record), record.epoch, record.step) for record in records]
    assert seen == [
        (LossRecord, 1, 8),
        (LossRecord, 1, 16),
        (LossRecord, 1, 23),
        (EpochRecord, 1, 23),
        (LossRecord, 2, 31),
        (LossRecord, 2, 39),
        (LossRecord, 2, 46),
        (EpochRecord, 2, 46),
    ]


@pytest.mark.parametrize("count", [1, 64, 65, 129])
def test_every_image_is_seen_once_per_epoch(digits: data.Images, count: int) -> None:
    few = replace_train(digits, count)
    run = begin(few, epochs=3)
    seen: list[int] = []
    step = run._step

    def watch(inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(labels))
        return step(inputs, labels)

    run._step = watch  # type: ignore[method-assign]
    records = list(run.run(lambda: False))
    steps = math.ceil(count / 64)
    assert len(seen) == 3 * steps
    assert sum(seen) == 3 * count
    assert sum(isinstance(record, LossRecord) for record in records) == 3 * min(3, steps)


def test_the_curves_are_those_of_a_plain_loop(digits: data.Images) -> None:
    """The same training written out, with the average kept by hand in float64."""
    _, records = train(digits, decay=0.9, warmup=False, seed=5)
    torch.manual_seed(5)
    model, order = lenet(), torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    average = [p.detach().double().numpy().copy() for p in model.parameters()]
    pixels, labels = map(torch.from_numpy, digits.train)
    losses = []
    for batch in torch.randperm(len(labels), generator=order)[: 8 * 64].split(64):
        loss = cross_entropy(model(to_input(pixels[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for kept, p in zip(average, model.parameters(), strict=True):
            kept += 0.1 * (p.detach().double().numpy() - kept)
    assert records[0].loss == pytest.approx(np.mean(losses), abs=1e-6)

    stopped = begin(digits, decay=0.9, warmup=False, seed=5)
    list(stopped.run(lambda: stopped.ema.step == 8))
    for kept, p in zip(average, stopped.learner.ema.module.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), kept, atol=1e-6)


def test_the_averages_loss_is_taken_before_it_has_seen_the_batch(digits: data.Images) -> None:
    run = begin(digits, warmup=False)
    pixels, labels = to_input(run.train[0][:64]), run.train[1][:64]
    with torch.no_grad():
        before = cross_entropy(run.learner.model(pixels), labels)
    raw, ema = run._step(pixels, labels)
    assert raw == before
    assert ema == pytest.approx(float(before)), "both start from the same weights"
    raw, ema = run._step(pixels, labels)
    assert raw != ema


def test_evaluation_is_over_all_images_whatever_the_batch(digits: data.Images) -> None:
    run, records = train(digits)
    whole = run.learner.evaluate(*run.test, batch=360)
    assert run.learner.evaluate(*run.test, batch=7) == pytest.approx(whole)
    last = records[-1]
    assert isinstance(last, EpochRecord)
    assert whole == pytest.approx((last.test_loss, last.accuracy))
    scores = run.ema(to_input(run.test[0]))
    assert float((scores.argmax(1) == run.test[1]).float().mean()) == pytest.approx(last.ema_accuracy)
    assert float(cross_entropy(scores, run.test[1])) == pytest.approx(last.ema_test_loss)


@pytest.mark.slow
def test_a_seed_decides_the_run(digits: data.Images) -> None:
    def figures(seed: int) -> list[dict[str, object]]:
        records = train(digits, seed=seed)[1]
        return [{**asdict(record), "seconds": None} for record in records]

    first = figures(3)
    assert figures(3) == first
    assert figures(4) != first


def test_stopping_reports_the_steps_since_the_last_record(digits: data.Images) -> None:
    run = begin(digits)
    steps = iter(range(1, 100))
    records = list(run.run(lambda: next(steps) == 10))
    assert [record.step for record in records] == [8, 10]
    assert run.ema.step == 10


def test_the_time_of_a_step_is_the_trainings_and_of_an_update_the_averages(
    digits: data.Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(digits)
    now = iter([0.0, 3.0, 4.0, 10.0, 12.0, 12.5])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(now))
    for _ in range(2):
        run._step(to_input(run.train[0][:4]), run.train[1][:4])
    assert run.seconds == training.Seconds(train=5.0, ema=1.5)
    assert run.seconds.ema_share == pytest.approx(1.5 / 6.5)


def test_devices_by_name() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in {"cpu", "cuda"}
    for name in ("toaster", "cpu:x", "" if torch.cuda.is_available() else "cuda"):
        with pytest.raises(
            ConfigError, match=f"device='{name}' cannot be used here: .*Leave it out, or say cpu"
        ):
            pick_device(name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed=-1 must lie in 0"),
        ({"seed": 2**63}, "must lie in 0"),
        ({"decay": 1.5}, "beta=1.5"),
        ({"decay": float("nan"), "warmup": False}, "beta=nan"),
    ],
)
def test_an_option_outside_its_rule_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**wrong)  # type: ignore[arg-type]


def test_torch_is_chosen_where_it_is_installed() -> None:
    assert Options().chosen == "torch"
    assert Options(framework="paddle").chosen == "paddle"


def test_warmup_is_a_choice() -> None:
    assert Options().schedule == polyak.Warmup(0.9998)
    assert Options(warmup=False, decay=0.5).schedule == polyak.Constant(0.5)
