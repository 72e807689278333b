"""Foreign files into polyak's format, and back into what the libraries themselves load."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

import polyak
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from polyak.convert.convert import convert
from polyak.convert.export import export_tree, write_paddle
from polyak.convert.rename_rules import name_map
from polyak.errors import CheckpointError, ConfigError
from polyak.torch.write import write_torch
from tests.shims import torchvision_without_ops

others_warn = pytest.mark.filterwarnings("ignore")  # what other libraries warn of is not tested here


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def equal(path: Path, state: dict[str, torch.Tensor]) -> bool:
    read = load_file(path)
    return read.keys() == state.keys() and all(
        np.array_equal(read[name], tensor.numpy()) and read[name].dtype == tensor.numpy().dtype
        for name, tensor in state.items()
    )


@pytest.fixture
def averaged(tmp_path: Path) -> tuple[Path, Path, polyak.EMA]:
    """An average of polyak's and the raw model, as files."""
    net = model()
    ema = polyak.EMA(net, decay=0.9)
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn_like(parameter)
        ema.update()
    ema.save(tmp_path / "average.safetensors")
    ema.save(tmp_path / "raw.safetensors", track="raw")
    return tmp_path / "average.safetensors", tmp_path / "raw.safetensors", ema


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(values)) for name, values in polyak.load(path).tensors.items()}


def test_average_and_raw_go_into_files_of_their_own(tmp_path: Path) -> None:
    raw, ema = model(1), model(2)
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "step": 7}, tmp_path / "both.pt")
    made = convert(tmp_path / "both.pt", tmp_path / "out.safetensors")
    assert [(one.path.name, one.role, one.tensors) for one in made] == [
        ("out-average.safetensors", "average", 7),
        ("out-raw.safetensors", "raw", 7),
    ]
    assert equal(made[0].path, ema.state_dict())
    assert equal(made[1].path, raw.state_dict())
    average, raw_header = polyak.load(made[0].path).header, polyak.load(made[1].path).header
    assert (average.role, average.step, average.decay, average.profile) == ("average", 7, None, None)
    assert (raw_header.role, raw_header.step) == ("raw", 7)
    assert raw_header.profile == polyak.Profile.raw(7)


@pytest.mark.parametrize("part", ["average", "raw"])
def test_one_part(part: str, tmp_path: Path) -> None:
    states = {"raw": model(1).state_dict(), "average": model(2).state_dict()}
    torch.save({"model": states["raw"], "ema": states["average"]}, tmp_path / "both.pt")
    [made] = convert(tmp_path / "both.pt", tmp_path / "out.safetensors", part=part)
    assert made.path == tmp_path / "out.safetensors"
    assert equal(made.path, states[part])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.pt", "out.safetensors"]


def test_plain_weights_make_no_claim(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "plain.pt")
    [made] = convert(tmp_path / "plain.pt", tmp_path / "plain.safetensors")
    assert made.role == "unknown"
    assert equal(made.path, model().state_dict())
    with safe_open(made.path, "np") as file:
        assert set(file.metadata()) == {"format", "polyak_sums"}
        assert file.metadata()["format"] == "pt"
    with pytest.raises(CheckpointError, match="plain weights file"):
        polyak.load(made.path)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    ],
)  # fmt: skip
def test_every_dtype_and_shape_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    values = (torch.arange(24) % 5).to(dtype)
    state = {"all": values, "turned": values.view(4, 6).t(), "one": values[3], "none": values[:0].view(0, 2)}
    torch.save(state, tmp_path / "in.pt")
    [made] = convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    with safe_open(made.path, "pt") as file:
        for name, tensor in state.items():
            read = file.get_tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_what_the_format_cannot_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex128)}, tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match=r"b of .*in\.pt is complex128"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_one_tensor_is_in_memory(tmp_path: Path) -> None:
    size = 1 << 22
    torch.save({f"t{i}": torch.full((size,), float(i)) for i in range(12)}, tmp_path / "in.pt")
    tracemalloc.start()
    convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * size * 4
    assert load_file(tmp_path / "out.safetensors")["t11"][-1] == 11


@pytest.mark.parametrize("out", ["out.pt", "out", ".", "memory://out.safetensors"])
def test_out_must_be_a_safetensors_file(out: str, tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "in.pt")
    target = out if "://" in out else tmp_path / out
    with pytest.raises(ConfigError, match="must be a local file whose name ends in"):
        convert(tmp_path / "in.pt", target)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "in.pt")
    with pytest.raises(ConfigError, match=r"part='average': .*in\.pt holds weights \(unknown\)\."):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors", part="average")


def test_an_optimizer_is_no_model(tmp_path: Path) -> None:
    torch.save(torch.optim.SGD(model().parameters(), lr=0.1).state_dict(), tmp_path / "optimizer.bin")
    with pytest.raises(CheckpointError, match="holds no weights of a model"):
        convert(tmp_path / "optimizer.bin", tmp_path / "out.safetensors")


def test_the_average_in_a_resumable_state(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    averaged[2].save(tmp_path / "state.safetensors", resumable=True)
    convert(tmp_path / "state.safetensors", tmp_path / "out.safetensors")
    ours, expected = polyak.load(tmp_path / "out.safetensors"), polyak.load(averaged[0])
    assert ours.header == expected.header
    assert ours.tensors.keys() == expected.tensors.keys()
    assert all(np.array_equal(ours.tensors[name], expected.tensors[name]) for name in expected.tensors)


def test_a_damaged_source_leaves_nothing(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    damaged = bytearray(averaged[0].read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        convert(tmp_path / "damaged.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_may_be_converted_onto_itself(averaged: tuple[Path, Path, polyak.EMA]) -> None:
    before = polyak.load(averaged[0])
    convert(averaged[0], averaged[0])
    after = polyak.load(averaged[0])
    assert after.header == before.header
    assert all(np.array_equal(after.tensors[name], before.tensors[name]) for name in before.tensors)


def test_shards(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    convert(averaged[0], tmp_path / "out.safetensors", max_shard_size=40)
    assert (tmp_path / "out.safetensors.index.json").exists()
    assert polyak.load(tmp_path / "out.safetensors").header == polyak.load(averaged[0]).header


# Back: each layout as its own library loads it.


def test_to_torch(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    write_torch(tmp_path / "out.pt", export_tree(averaged[0], "torch").tree)
    read = torch.load(tmp_path / "out.pt", weights_only=True)
    net = model(5)
    net.load_state_dict(read)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state_of(averaged[0]).items())


def test_to_swa_utils_and_round(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    write_torch(tmp_path / "out.pt", export_tree(averaged[0], "swa_utils").tree)
    other = torch.optim.swa_utils.AveragedModel(model(5))
    other.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    assert int(other.n_averaged) == 3
    kept = state_of(averaged[0])
    assert all(torch.equal(other.module.state_dict()[name], tensor) for name, tensor in kept.items())
    [back] = convert(tmp_path / "out.pt", tmp_path / "back.safetensors")
    assert equal(back.path, kept)
    again = export_tree(back.path, "swa_utils").tree  # the number of updates has come along
    assert int(again["n_averaged"]) == 3


@others_warn
def test_to_timm(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    torchvision_without_ops()
    pytest.importorskip("timm")
    from timm.models import load_checkpoint

    average, raw, _ = averaged
    write_torch(tmp_path / "out.pth", export_tree(average, "timm", raw=raw).tree)
    for use_ema, source in ((True, average), (False, raw)):
        net = model(5)
        load_checkpoint(net, str(tmp_path / "out.pth"), use_ema=use_ema)
        kept = state_of(source)
        assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("with_raw", [True, False])
def test_to_ema_pytorch(with_raw: bool, averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    module = pytest.importorskip("ema_pytorch")
    average, raw, _ = averaged
    made = export_tree(average, "ema-pytorch", raw=raw if with_raw else None)
    write_torch(tmp_path / "out.pt", made.tree)
    other = module.EMA(model(5), include_online_model=with_raw)
    other.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    assert (int(other.step), bool(other.initted)) == (3, True)
    loaded = other.ema_model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state_of(average).items())
    if with_raw:
        online = other.online_model.state_dict()
        assert all(torch.equal(online[name], tensor) for name, tensor in state_of(raw).items())


def lightning_module() -> Any:
    torchvision_without_ops()
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model(5)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Module


def prefixed(path: Path, out: Path) -> Path:
    """The same under ``net.``, as a module of Lightning's holds it."""
    rules = out.with_suffix(".json")
    rules.write_text(json.dumps({"layers": [{"from": "(.*)", "to": r"net.\1"}]}))
    convert(path, out, names=name_map(str(rules)))
    return out


@others_warn
def test_to_lightning(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    kind = lightning_module()
    average = prefixed(averaged[0], tmp_path / "net-average.safetensors")
    write_torch(tmp_path / "out.ckpt", export_tree(average, "lightning").tree)
    module = kind.load_from_checkpoint(tmp_path / "out.ckpt")
    kept = state_of(averaged[0])
    assert all(torch.equal(module.net.state_dict()[name], tensor) for name, tensor in kept.items())


@others_warn
def test_the_weight_averaging_callback_takes_up_what_was_written(
    averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path
) -> None:
    kind = lightning_module()
    from lightning.pytorch.callbacks import WeightAveraging

    average = prefixed(averaged[0], tmp_path / "net-average.safetensors")
    raw = prefixed(averaged[1], tmp_path / "net-raw.safetensors")
    tree = export_tree(average, "lightning", raw=raw).tree
    write_torch(tmp_path / "out.ckpt", tree)
    checkpoint = torch.load(tmp_path / "out.ckpt", weights_only=True)
    module, callback = kind(), WeightAveraging()
    callback._average_model = torch.optim.swa_utils.AveragedModel(module)
    module.load_state_dict(checkpoint["state_dict"])  # as the Trainer does first
    callback.on_load_checkpoint(None, module, checkpoint)  # pyright: ignore[reportArgumentType]
    assert int(callback._average_model.n_averaged) == 3
    for source, net in ((averaged[0], callback._average_model.module.net), (averaged[1], module.net)):
        kept = state_of(source)
        assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in kept.items())


def test_a_foreign_file_goes_to_another_library_directly(tmp_path: Path) -> None:
    net = model()
    ema = torch.optim.swa_utils.AveragedModel(net)
    ema.update_parameters(net)
    torch.save({"model": net.state_dict(), "ema": ema.state_dict()}, tmp_path / "in.pt")
    tree = export_tree(tmp_path / "in.pt", "ema-pytorch").tree
    assert int(tree["step"]) == 1
    assert {name.split(".")[0] for name in tree} == {"initted", "step", "online_model", "ema_model"}


def test_a_count_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match=r"does not say how many updates made it.*--updates"):
        export_tree(tmp_path / "in.pt", "swa_utils")
    assert int(export_tree(tmp_path / "in.pt", "swa_utils", updates=9).tree["n_averaged"]) == 9


@pytest.mark.parametrize("to", ["ultralytics", "edm2", "torch_ema", "diffusers"])
def test_what_cannot_be_written_says_what_to_do(to: str, averaged: tuple[Path, Path, polyak.EMA]) -> None:
    with pytest.raises(ConfigError, match=rf"to='{to}': polyak cannot write .* Load the average into"):
        export_tree(averaged[0], to)


def test_an_unknown_library(averaged: tuple[Path, Path, polyak.EMA]) -> None:
    with pytest.raises(ConfigError, match="to='keras': must be one of torch, timm"):
        export_tree(averaged[0], "keras")


def test_the_copy_an_average_begins_with_is_no_update(tmp_path: Path) -> None:
    ema = polyak.EMA(model(), decay=0.9, start=2)
    for _ in range(5):
        ema.update()
    ema.save(tmp_path / "a.safetensors")
    assert int(export_tree(tmp_path / "a.safetensors", "swa_utils").tree["n_averaged"]) == 3


def test_several_averages_must_be_chosen_from(tmp_path: Path) -> None:
    tree = {"ema_a": model(1).state_dict(), "ema_b": model(2).state_dict()}
    torch.save(tree, tmp_path / "in.pt")
    with pytest.raises(ConfigError, match="holds average-ema_a, average-ema_b: choose one"):
        export_tree(tmp_path / "in.pt", "torch")
    chosen = export_tree(tmp_path / "in.pt", "torch", part="average-ema_b").tree
    assert np.array_equal(chosen["0.weight"], tree["ema_b"]["0.weight"].numpy())


def test_to_paddle_and_back(averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path) -> None:
    made = export_tree(averaged[0], "paddle", names=name_map("torch-to-paddle"))
    write_paddle(tmp_path / "out.pdparams", made.tree)
    kept = polyak.load(averaged[0]).tensors
    read = pickle.loads((tmp_path / "out.pdparams").read_bytes())
    assert set(read) == {"0.weight", "0.bias", "1.weight", "1.bias", "1._mean", "1._variance"}
    assert np.array_equal(read["0.weight"], kept["0.weight"].T)
    assert np.array_equal(read["1._variance"], kept["1.running_var"])
    assert made.dropped == ("1.num_batches_tracked",)
    assert made.unmatched == ()
    [back] = convert(tmp_path / "out.pdparams", tmp_path / "b.safetensors", names=name_map("paddle-to-torch"))
    restored = load_file(back.path)
    assert set(restored) == set(kept) - {"1.num_batches_tracked"}
    assert all(np.array_equal(values, kept[name]) for name, values in restored.items())
    write_torch(tmp_path / "out.pt", export_tree(tmp_path / "out.pdparams", "torch").tree)
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(np.array_equal(tensor.numpy(), read[name]) for name, tensor in again.items())


def test_bfloat16_goes_to_paddle_by_its_bits(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3.25], ml_dtypes.bfloat16)
    write_arrays(tmp_path / "in.safetensors", {"a": values}, {})
    write_paddle(tmp_path / "out.pdparams", export_tree(tmp_path / "in.safetensors", "paddle").tree)
    assert pickle.loads((tmp_path / "out.pdparams").read_bytes())["a"].dtype == np.uint16
    with open_weights(tmp_path / "out.pdparams") as weights:
        read = weights.tensors["a"].read()
    assert read.dtype == values.dtype
    assert np.array_equal(read, values)


def test_what_paddle_has_not_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "in.safetensors", {"a": np.ones(2, np.uint16)}, {})
    with pytest.raises(CheckpointError, match="a is uint16, a dtype that Paddle does not have"):
        write_paddle(tmp_path / "out.pdparams", export_tree(tmp_path / "in.safetensors", "paddle").tree)
    assert not (tmp_path / "out.pdparams").exists()


def test_a_failed_write_keeps_the_old_file(
    averaged: tuple[Path, Path, polyak.EMA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.pt").write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_torch(tmp_path / "out.pt", export_tree(averaged[0], "torch").tree)
    assert (tmp_path / "out.pt").read_bytes() == b"old"
    assert not list(tmp_path.glob(".out.pt*"))
