"""Two processes with ``fully_shard`` keep one average: each its part; a file holds all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shims import torchvision_without_ops
from tests.tensors import same
from tests.trainers.test_ddp import files, two

torchvision_without_ops()


@pytest.mark.parametrize(
    ("trainer", "file"),
    [
        ("accelerate", "run/polyak.safetensors"),
        ("transformers", "run/checkpoint-4/polyak.safetensors"),
        ("lightning", "run/step=4.ckpt/polyak.safetensors"),
    ],
)
def test_a_trainer_with_fully_shard_averages_evaluates_saves_and_resumes(
    trainer: str, file: str, tmp_path: Path
) -> None:
    pytest.importorskip(trainer)
    first, second = two(trainer, tmp_path, "fully_sharded_worker")
    assert file in files(tmp_path)
    assert ("run/report.html" in files(tmp_path)) is (trainer == "accelerate"), "asked of it alone"
    for one in (first, second):
        assert one["steps"] == [8, 8]
        assert one["error"] < 4e-6, "the recursion over the run's own parameters"
        assert one["seen"], "an evaluation sees the average"
        assert all(one["seen"].values()), one["seen"]
        assert not all(one["raw"].values()), "and training the raw weights"
    whole, resumed = first["averages"]
    assert same(whole, resumed)
    assert same(whole, second["averages"][0])
    assert same(whole, second["averages"][1])
