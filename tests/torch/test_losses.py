"""``polyak.losses`` beside NumPy's sums, over real processes where a mean goes over all of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import polyak
from polyak import ConfigError
from polyak.losses import DINO, byol, consistency, distillation, ramp


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Outputs of a student and a teacher, as tensors that would carry gradients and as arrays."""
    a, b = (np.random.default_rng(2 * seed + i).normal(0, 3, shape) for i in (0, 1))
    return torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True), a, b


def number(loss: Tensor) -> float:
    return float(loss.detach())


LOSSES: dict[str, Any] = {
    "byol": byol,
    "consistency": consistency,
    "distillation": lambda s, t: distillation(s, t, 3.0),
    "DINO": lambda s, t: DINO(5).double()(s, t),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_go_to_the_student_alone(loss: Any) -> None:
    student, teacher, *_ = drawn(0, 4, 5)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_further_dimensions_are_further_samples(loss: Any) -> None:
    student, teacher, *_ = drawn(1, 2, 3, 5)
    torch.testing.assert_close(loss(student, teacher), loss(student.reshape(6, 5), teacher.reshape(6, 5)))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 20))
def test_each_is_its_formula(seed: int, temperature: float) -> None:
    student, teacher, s, t = drawn(seed, 4, 5)
    close = {"rel": 1e-9, "abs": 1e-12}
    cosines = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert number(byol(student, teacher)) == pytest.approx((2 - 2 * cosines).mean(), **close)
    wanted = ((softmax(s) - softmax(t)) ** 2).mean()
    assert number(consistency(student, teacher)) == pytest.approx(wanted, **close)
    p, q = softmax(t / temperature), softmax(s / temperature)
    wanted = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert number(distillation(student, teacher, temperature)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(st.integers(0, 5000), st.integers(1, 2000))
def test_the_ramp(step: int, length: int) -> None:
    assert ramp(step, length) == pytest.approx(math.exp(-5 * (1 - min(step / length, 1)) ** 2))
    assert ramp(step, length) <= ramp(step + 1, length) <= 1
    assert ramp(length, length) == 1


def test_dino_centres_before_it_moves_the_centre() -> None:
    loss, centre = DINO(5, 0.2, 0.05, momentum=0.75).double(), np.zeros(5)
    for seed in range(4):
        student, teacher, s, t = drawn(seed, 6, 5)
        wanted = -(softmax((t - centre) / 0.05) * np.log(softmax(s / 0.2))).sum(1).mean()
        assert number(loss(student, teacher)) == pytest.approx(wanted, rel=1e-9)
        centre = 0.75 * centre + 0.25 * t.mean(0)
        np.testing.assert_allclose(loss.center.numpy(), centre, rtol=1e-12)
    loss.eval()
    loss(student, teacher)
    np.testing.assert_allclose(loss.center.numpy(), centre, rtol=1e-12)
    assert [*loss.state_dict()] == ["center"]
    assert not loss.center.requires_grad


def test_bad_numbers_are_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ConfigError, match="temperature=0"):
        distillation(x, x, 0)
    with pytest.raises(ConfigError, match="ramp"):
        ramp(1, 0)
    with pytest.raises(ConfigError, match="ramp"):
        ramp(-1, 5)
    for wrong in ({"student_temperature": 0}, {"teacher_temperature": -1}, {"momentum": 1.5}):
        with pytest.raises(ConfigError, match="DINO"):
            DINO(2, **wrong)


def test_the_front_door_leads_to_them() -> None:
    assert polyak.losses.byol is byol


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loss = DINO(3, momentum=0.5)
    for step in range(3):
        loss(torch.zeros(4, 3), torch.full((4, 3), 2.0 * rank + step))
    torch.save(loss.center, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_centre_follows_the_mean_over_all_processes(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
    centres = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*centres)
    wanted = 0.0
    for step in range(3):
        wanted = 0.5 * wanted + 0.5 * (1.0 + step)  # the mean of 0 + step and 2 + step
    assert centres[0].tolist() == pytest.approx([wanted] * 3)
