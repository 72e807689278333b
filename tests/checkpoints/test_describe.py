"""What describe says of files, shards, archives and other libraries' checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import polyak
from polyak._files.open import header_of
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from polyak.cli.describe import CheckpointSummary, Snapshots, describe, figures_of, to_json
from polyak.errors import CheckpointError
from polyak.schedules.profile import Run


def trained(steps: int = 30) -> polyak.EMA:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30))
    ema = polyak.EMA(net, {"short": 0.9, "long": polyak.HalfLife(steps=100)})
    for _ in range(steps):
        ema.update()
    return ema


def checkpoint(path: Path, verify: bool = True) -> CheckpointSummary:
    found = describe(path, verify)
    assert isinstance(found, CheckpointSummary)
    return found


def test_an_average(tmp_path: Path) -> None:
    ema = trained()
    ema.save(tmp_path / "a.safetensors", track="long")
    found = checkpoint(tmp_path / "a.safetensors")
    assert (found.library, found.role, found.run, found.step) == ("polyak", "average", ema.run, 30)
    assert found.integrity == "verified"
    [one] = found.parts
    assert (one.name, one.decay) == ("long", polyak.HalfLife(steps=100))
    assert (one.tensors.count, one.tensors.elements) == (7, 20 * 30 + 30 + 4 * 30 + 1)
    assert one.tensors.nbytes == 750 * 4 + 8
    assert one.tensors.dtypes == {"float32": 6, "int64": 1}
    profile = ema.tracks["long"].profile
    assert one.figures is not None
    assert one.figures.mean_age == pytest.approx(profile.mean_age)
    assert one.figures.half_life == pytest.approx(profile.half_life)
    assert one.figures.effective_samples == pytest.approx(profile.effective_samples)
    assert one.figures.initial_weight == pytest.approx(0.5**0.3)


def test_the_raw_model_has_no_profile_to_speak_of(tmp_path: Path) -> None:
    trained().save(tmp_path / "raw.safetensors", track="raw")
    found = checkpoint(tmp_path / "raw.safetensors")
    assert (found.role, found.step, found.parts[0].figures) == ("raw", 30, None)


def test_shards(tmp_path: Path) -> None:
    trained().save(tmp_path / "a.safetensors", track="short", max_shard_size=500)
    for where in (tmp_path / "a.safetensors", tmp_path / "a.safetensors.index.json"):
        found = checkpoint(where)
        assert (found.role, found.parts[0].tensors.elements, found.integrity) == ("average", 751, "verified")


def test_a_resumable_state(tmp_path: Path) -> None:
    trained().save(tmp_path / "state.safetensors", resumable=True)
    found = checkpoint(tmp_path / "state.safetensors")
    assert (found.role, found.step, found.integrity) == ("resumable", 30, "verified")
    assert [(one.name, one.role, one.path) for one in found.parts] == [
        ("short", "average", "0/"),
        ("long", "average", "1/"),
    ]
    assert found.parts[1].decay == polyak.HalfLife(steps=100)
    assert found.parts[1].figures is not None
    assert found.parts[1].tensors.count == 7  # a buffer that is copied, num_batches_tracked, among them
    assert found.counters["skipped"] == [0, {}]
    assert "tracks" not in found.counters


def test_every_damaged_tensor_is_named(tmp_path: Path) -> None:
    trained().save(tmp_path / "a.safetensors", track="short")
    good = (tmp_path / "a.safetensors").read_bytes()
    with open_weights(tmp_path / "a.safetensors") as weights:
        places = {name: lazy.offset for name, lazy in weights.tensors.items()}  # pyright: ignore
    for name, offset in places.items():
        bad = bytearray(good)
        bad[offset] ^= 1
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"bad\.safetensors is damaged: tensor {name} "):
            describe(tmp_path / "bad.safetensors")
        assert checkpoint(tmp_path / "bad.safetensors", verify=False).integrity == "not checked"


def test_a_tensor_larger_than_what_is_summed_together(tmp_path: Path) -> None:
    values = np.arange((1 << 22) + 5, dtype=np.float32)  # 16 MB and 20 bytes
    write_arrays(tmp_path / "big.safetensors", {"x": values}, {})
    assert checkpoint(tmp_path / "big.safetensors").integrity == "verified"
    data = bytearray((tmp_path / "big.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "big.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="tensor x"):
        describe(tmp_path / "big.safetensors")


def test_files_without_checksums_say_so(tmp_path: Path) -> None:
    save_file({"x": np.ones(3)}, tmp_path / "plain.safetensors")
    found = checkpoint(tmp_path / "plain.safetensors")
    assert (found.library, found.role, found.integrity) == ("", None, "no checksums")
    assert found.parts[0].tensors.dtypes == {"float64": 1}
    assert "nothing says" in found.notes[0]


def test_a_folder_as_hugging_face_lays_it_out(tmp_path: Path) -> None:
    save_file({"a": np.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(4)}, tmp_path / "model-00002-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = {"metadata": {"total_size": 56}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = checkpoint(tmp_path)
    assert (found.format, found.parts[0].tensors.elements) == ("safetensors", 7)


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_distributed_checkpoint(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": {"w": torch.ones(3, 2)}, "step": 4}, checkpoint_id=tmp_path / "dcp")
    found = checkpoint(tmp_path / "dcp")
    assert (found.format, found.parts[0].role, found.parts[0].tensors.elements) == ("dcp", "unknown", 6)


def test_a_foreign_file(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    ema = torch.optim.swa_utils.AveragedModel(net)
    ema.update_parameters(net)
    tree = {"model": net.state_dict(), "ema": ema.state_dict(), "global_step": 12}
    torch.save(tree, tmp_path / "run.pt")
    found = checkpoint(tmp_path / "run.pt")
    assert (found.format, found.library, found.step, found.updates) == ("pytorch", "swa_utils", 12, 1)
    assert [(one.role, one.path) for one in found.parts] == [("average", "ema"), ("raw", "model")]
    polyak_file = tmp_path / "run.safetensors"
    from polyak.convert.convert import convert

    convert(tmp_path / "run.pt", polyak_file, part="average")
    again = checkpoint(polyak_file)
    assert (again.role, again.updates, again.notes) == ("average", 1, ("converted from swa_utils",))


def test_an_archive(tmp_path: Path) -> None:
    ema = trained(0)
    with polyak.Archive(tmp_path / "runs", ema, every=20, keep="all") as archive:
        for _ in range(100):
            ema.update()
    found = describe(tmp_path / "runs")
    assert isinstance(found, Snapshots)
    assert (found.run, found.steps, found.tracks) == (ema.run, tuple(archive.steps), ("long", "short"))
    files = list((tmp_path / "runs").glob("*.safetensors"))
    assert (found.files, found.nbytes) == (len(files), sum(path.stat().st_size for path in files))
    assert found.reach == tuple(polyak.synthesizable(archive))


def test_an_archive_that_has_only_begun(tmp_path: Path) -> None:
    ema = trained(0)
    archive = polyak.Archive(tmp_path / "runs", ema, every=20)
    archive.flush()
    found = describe(tmp_path / "runs")
    assert isinstance(found, Snapshots)
    assert (found.steps, found.tracks, found.reach) == ((0,), (), ())


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    ema = trained()
    ema.save(tmp_path / "a.safetensors", track="long")
    data = json.loads(json.dumps(to_json(describe(tmp_path / "a.safetensors"))))
    [part] = data["parts"]
    assert polyak.Decay.from_config(part["decay"]) == polyak.HalfLife(steps=100)
    assert polyak.Profile.from_json(json.dumps(part["profile"])) == ema.tracks["long"].profile
    assert part["figures"].keys() == {"mean_age", "half_life", "effective_samples", "initial_weight"}
    with polyak.Archive(tmp_path / "runs", ema, every=20):
        ema.update()
    data = json.loads(json.dumps(to_json(describe(tmp_path / "runs"))))
    assert data["reach"][0].keys() == {"half_life", "error", "noise_gain"}


def test_a_profile_without_end_costs_no_time(tmp_path: Path) -> None:
    endless = polyak.Profile(((1.0, (Run(polyak.Constant(0.9), 0, 10**18, 1, 1),)),))
    assert figures_of(endless) is None
    trained().save(tmp_path / "a.safetensors", track="short")
    with open_weights(tmp_path / "a.safetensors") as weights:
        header = replace(header_of(weights), profile=endless)
        arrays = {name: lazy.read() for name, lazy in weights.tensors.items()}
    write_arrays(tmp_path / "a.safetensors", arrays, header.to_metadata())
    assert checkpoint(tmp_path / "a.safetensors").parts[0].figures is None


@pytest.mark.parametrize("where", ["none.safetensors", "."])
def test_what_is_no_checkpoint(where: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        describe(tmp_path / where)
