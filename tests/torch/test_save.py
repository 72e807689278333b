"""An average on disk: complete, plain, and it says what it is."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import polyak
from polyak._files import header as schema


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


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    _, ema = trained()
    ema.save(tmp_path / "a.safetensors")
    assert polyak.load(tmp_path / "a.safetensors").header.step == 6
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_and_then_its_folder_are_forced_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def watch(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "a.safetensors").exists()))

    monkeypatch.setattr(os, "fsync", watch)
    trained()[1].save(tmp_path / "a.safetensors")
    assert seen == [(False, False), (True, True)]


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    trained()[1].save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(polyak.CheckpointError, match="nowhere"):
        trained()[1].save(tmp_path / "nowhere" / "a.safetensors")


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ema = trained()
    path = tmp_path / "a.safetensors"
    ema.save(path)
    whole = path.read_bytes()
    with pytest.raises(polyak.CheckpointError, match="missing"):
        polyak.load(tmp_path / "missing.safetensors")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(polyak.CheckpointError, match=r"a\.safetensors is not a valid"):
        polyak.load(path)
    monkeypatch.setattr(schema, "FORMAT", 9)
    ema.save(path)
    monkeypatch.undo()
    with pytest.raises(polyak.CheckpointError, match="format 9"):
        polyak.load(path)


def test_what_the_format_has_no_name_for_is_refused_by_name(tmp_path: Path) -> None:
    double = nn.ParameterDict({"z": nn.Parameter(torch.ones(2, dtype=torch.complex128))})
    with pytest.raises(polyak.CheckpointError, match=r"z is torch\.complex128"):
        polyak.EMA(double, 0.9).save(tmp_path / "a.safetensors")
    sparse = nn.Linear(2, 2)
    sparse.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(polyak.CheckpointError, match=r"mask is torch\.float32, torch\.sparse_coo"):
        polyak.EMA(sparse, 0.9).save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_frozen_tensors_in_one_memory_are_each_written_whole(tmp_path: Path) -> None:
    flat, model = torch.arange(10.0), nn.Linear(2, 2)
    views = {"first": flat[:6], "second": flat[3:], "square": flat[:4].view(2, 2), "row": flat[:4]}
    for name, view in views.items():
        model.register_parameter(name, nn.Parameter(view, requires_grad=False))
    polyak.EMA(model, 0.9).save(tmp_path / "a.safetensors")
    written = load_file(tmp_path / "a.safetensors")
    for name, view in views.items():
        assert torch.equal(written[name], view), name


def test_a_lazy_conjugate_is_written_conjugated(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.frozen = nn.Parameter(torch.tensor([1 + 2j]).conj(), requires_grad=False)
    polyak.EMA(model, 0.9).save(tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["frozen"].tolist() == [1 - 2j]


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_a_wrapper_leaves_no_trace_in_the_file(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = Tied()
    polyak.EMA(wrap(model), 0.9).save(tmp_path / "a.safetensors")
    Tied().load_state_dict(load_file(tmp_path / "a.safetensors"))


def test_channels_last_and_parametrized_weights_load_strictly(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
        return nn.ModuleList([nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last), normed, spectral])

    model = make()
    ema = polyak.EMA(model, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update()
    ema.save(tmp_path / "a.safetensors")
    fresh = make()
    fresh.load_state_dict(load_file(tmp_path / "a.safetensors"))
    for name, value in ema.module.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
