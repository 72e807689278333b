"""A half-life that is a share of the training: through states, files and archives it stays what it was."""

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from polyak import EMA, HalfLife
from polyak.cli.describe import CheckpointSummary, describe

DECAY = HalfLife(share=0.1)


def moved(model: nn.Linear, ema: EMA, steps: int) -> None:
    for _ in range(steps):
        with torch.no_grad():
            model.weight.add_(1)
        ema.update()


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    model = nn.Linear(2, 1)
    ema = EMA(model, DECAY)
    moved(model, ema, 30)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    other = nn.Linear(2, 1)
    other.load_state_dict(model.state_dict())
    resumed = EMA(other, HalfLife(share=0.1))
    assert not resumed.load_state_dict(torch.load(file, weights_only=True))
    moved(model, ema, 30)
    moved(other, resumed, 30)
    assert torch.equal(resumed.module.weight, ema.module.weight)
    profile = resumed.tracks["average"].profile
    assert profile == ema.tracks["average"].profile
    assert profile.half_life == pytest.approx(6)


def test_files_and_inspect_name_it(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    ema = EMA(model, DECAY)
    moved(model, ema, 60)
    ema.save(tmp_path / "a.safetensors")
    assert polyak.load(tmp_path / "a.safetensors").header.decay == DECAY
    found = describe(tmp_path / "a.safetensors")
    assert isinstance(found, CheckpointSummary)
    [part] = found.parts
    assert part.decay == DECAY
    assert part.figures is not None
    assert part.figures.half_life == pytest.approx(6)


def test_an_archive_of_it_gives_another_share(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    ema = EMA(model, {"narrow": HalfLife(share=0.02), "wide": DECAY})
    direct = EMA(model, HalfLife(share=0.05))
    archive = polyak.Archive(tmp_path / "archive", ema, every=10, keep="all")
    for _ in range(200):
        moved(model, ema, 1)
        direct.update()
    archive.close()
    made = polyak.synthesize(tmp_path / "archive", HalfLife(share=0.05))
    assert made.error < 0.02
    assert torch.tensor(made.tensors["weight"]).allclose(direct.module.weight, rtol=1e-3)
