"""An average on disk: complete, plain, and it says what it is."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import polyak


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def trained() -> tuple[nn.Module, polyak.EMA]:
    model = Tied()
    ema = polyak.EMA(model, {"short": polyak.Warmup(0.9), "long": 0.99}, every=2)
    for _ in range(6):
        with torch.no_grad():
            model.embed.weight.add_(1)
        ema.update()
    return model, ema


def test_a_strict_load_of_the_file_gives_the_average(tmp_path: Path) -> None:
    model, ema = trained()
    ema.save(tmp_path / "a.safetensors", track="long")
    fresh = Tied()
    fresh.load_state_dict(load_file(tmp_path / "a.safetensors"))
    expected = ema.module_of("long").state_dict()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(fresh.embed.weight, model.embed.weight)


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    _, ema = trained()
    ema.save(tmp_path / "a.safetensors")
    average = polyak.load(tmp_path / "a.safetensors")
    header = average.header
    assert (header.track, header.step, header.role, header.run) == ("short", 6, "average", ema.run)
    assert header.decay == polyak.Warmup(0.9)
    assert header.profile == ema.tracks["short"].profile
    assert (average.tensors["head.weight"] == average.tensors["embed.weight"]).all()


def test_bfloat16_is_read_without_a_framework(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    ema = polyak.EMA(model, 0.9, dtype=torch.bfloat16)
    ema.save(tmp_path / "a.safetensors")
    weight = polyak.load(tmp_path / "a.safetensors").tensors["weight"]
    assert weight.dtype.name == "bfloat16"
    assert weight.astype("float32").tolist() == model.weight.bfloat16().float().tolist()


def test_only_what_was_included_is_written(tmp_path: Path) -> None:
    model = Tied()
    polyak.EMA(model, 0.9, include="norm.*").save(tmp_path / "a.safetensors")
    names = {n for n in model.state_dict() if n.startswith("norm.")}
    assert set(load_file(tmp_path / "a.safetensors")) == names


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ema = trained()
    target = tmp_path / "a.safetensors"
    ema.save(target)
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(polyak.CheckpointError, match=r"No space left.*Nothing was changed"):
        ema.save(target, track="long")
    assert target.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(polyak.CheckpointError, match="nowhere"):
        trained()[1].save(tmp_path / "nowhere" / "a.safetensors")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    _, ema = trained()
    path = tmp_path / "a.safetensors"
    ema.save(path)
    whole = path.read_bytes()
    with pytest.raises(polyak.CheckpointError, match="missing"):
        polyak.load(tmp_path / "missing.safetensors")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(polyak.CheckpointError, match=r"a\.safetensors cannot be read"):
        polyak.load(path)
    path.write_bytes(whole.replace(b'\\"format\\":1', b'\\"format\\":9'))
    with pytest.raises(polyak.CheckpointError, match="format 9"):
        polyak.load(path)


def test_complex128_is_refused_by_name(tmp_path: Path) -> None:
    model = nn.ParameterDict({"z": nn.Parameter(torch.ones(2, dtype=torch.complex128))})
    with pytest.raises(polyak.CheckpointError, match="z is complex128"):
        polyak.EMA(model, 0.9).save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
