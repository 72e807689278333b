"""The scripts on the pages about teachers, SwitchEMA and BEMA run, and what the pages say of them holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import polyak
from tests.docs.pages import HOW_TO, Run, run

TEXT = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)


def words(text: str) -> str:
    """Without numbers, which differ a little from one machine to the next."""
    return re.sub(r"[-+]?\d[\d.]*", "#", text).strip()


def shown(page: str, script: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script; what it prints has to be on both pages, but for the numbers."""
    left = run(page, script, folder)
    printed = words(capsys.readouterr().out)
    for language in ("", ".zh"):
        assert printed in map(words, TEXT.findall((HOW_TO / f"{page}{language}.md").read_text()))
    return left


def test_self_distillation_shows_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = shown("teachers", "self_distillation", tmp_path, capsys)
    gain = left.variables["gain"]
    assert gain.shape == (3, 2)
    assert (gain.mean(0).abs() < 2.48 * gain.std(0)).all(), "Student's interval of three seeds, 95 %"
    assert left.variables["results"].min() > 85


def test_a_mean_teacher_helps_with_few_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gain = shown("teachers", "mean_teacher", tmp_path, capsys).variables["gain"]
    assert gain.min() > 0, "in every seed, student and teacher"


def test_byol_does_not_collapse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = shown("teachers", "byol", tmp_path, capsys).variables
    assert min(left["trained"], left["averaged"]) > 0.85
    with torch.no_grad():
        directions = torch.nn.functional.normalize(left["teacher"].ema(left["images"]))
    assert directions.std(0).norm() > 0.1, "of 1 if they are spread evenly, 0 if all are equal"
    assert left["teacher"].ema.tracks["average"].beta == 1.0


def test_a_detector_learns_from_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = shown("teachers", "detector", tmp_path, capsys).variables
    assert left["used"] > 100
    torch.manual_seed(0)
    untrained = float(left["loss_of"](left["Detector"]().eval()(left["test"][0]), left["test"][1]).detach())
    assert max(left["raw"], left["average"]) < 0.75 * untrained


def test_switching_early_with_a_long_window_is_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = shown("switch-ema", "switch_ema", tmp_path, capsys).variables["losses"]
    none, late, early, long = losses.values()
    assert all(torch.equal(arm[:, 0], arm[:, 1]) for arm in (late, early, long)), "raw is the average"
    assert not torch.equal(none[:, 0], none[:, 1])
    assert (long[:, 1] > torch.stack([none[:, 1], late[:, 1], early[:, 1]]).max(0).values).all()


def test_bema_is_its_formula_and_knows_its_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = shown("bema", "bema", tmp_path, capsys).variables
    ema, made, alpha = left["ema"], left["made"], left["alpha"]
    base = polyak.load(polyak.Archive(tmp_path / "bema" / "snapshots").snapshots[0].path)
    for name, tensor in made.tensors.items():
        average, now = (ema.tracks[track].tensors[name].numpy() for track in ("average", "now"))
        wanted = average + alpha * (now - base.tensors[name])
        np.testing.assert_allclose(tensor, wanted, rtol=1e-5, atol=1e-6)
    weights = made.header.profile.weights()
    np.testing.assert_allclose(weights, left["profile"].weights(), atol=1e-6)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] < 0 < weights[-1]
    losses = list(left["held_out"].values())
    assert losses[2:] == sorted(losses[2:], reverse=True), "the larger α, the better, in a run that goes on"
    assert losses[-1] < losses[1]
