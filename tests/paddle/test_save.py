"""What a Paddle EMA writes, who can read it, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file

import polyak
from polyak import Archive, BestCheckpoint, CheckpointError, ConfigError, NonFiniteError
from polyak._files import shards
from polyak._foreign.open_any import open_weights
from polyak._foreign.recognize import recognise
from polyak.paddle import EMA

from .conftest import Beside, array, assert_equal, averages, fill, network, trained

POLYAK = [sys.executable, "-c", "from polyak.cli import main; main()"]


def run(*arguments: str | Path) -> str:
    command = [*POLYAK, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    return done.stdout


# --- averages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [None, 20], ids=["one file", "shards"])
def test_an_average_is_a_plain_file_with_the_layers_keys(tmp_path: Path, shard: int | None) -> None:
    layer = nn.Sequential(network(), nn.utils.spectral_norm(nn.Linear(2, 2)))
    layer.register_buffer("steps", paddle.to_tensor(7))
    layer.register_buffer("table", paddle.ones([3]), persistable=False)
    ema = trained(layer)
    ema.save(tmp_path / "a.safetensors", max_shard_size=shard)
    loaded = polyak.load(tmp_path / "a.safetensors")
    assert (loaded.header.role, loaded.header.step, loaded.header.run) == ("average", 4, ema.run)
    assert loaded.tensors.keys() == layer.state_dict().keys()
    for name, tensor in ema.module.state_dict().items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor.numpy(), err_msg=name)
    if shard is None:
        theirs = load_file(tmp_path / "a.safetensors")
        assert theirs.keys() == loaded.tensors.keys()
    again = nn.Sequential(network(), nn.utils.spectral_norm(nn.Linear(2, 2)))
    again.register_buffer("steps", paddle.to_tensor(0))
    missing, unexpected = again.set_state_dict({k: paddle.to_tensor(v) for k, v in loaded.tensors.items()})
    assert not missing
    assert not unexpected


def test_the_raw_weights_are_saved_too(tmp_path: Path) -> None:
    layer = network()
    ema = trained(layer)
    ema.save(tmp_path / "raw.safetensors", track="raw")
    for name, value in polyak.load(tmp_path / "raw.safetensors").tensors.items():
        np.testing.assert_array_equal(value, layer.state_dict()[name].numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_storage_is_written_as_it_is(tmp_path: Path, dtype: str) -> None:
    ema = trained(network(), dtype=dtype)
    ema.save(tmp_path / "a.safetensors")
    for name, value in polyak.load(tmp_path / "a.safetensors").tensors.items():
        assert str(value.dtype) == dtype
        np.testing.assert_array_equal(value.astype("float64"), array(averages(ema)[name]))


KINDS = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [[], [0], [3, 0], [5, 3]], ids=str)
def test_buffers_of_every_kind_come_back_bit_by_bit(tmp_path: Path, kind: str, shape: list[int]) -> None:
    layer = nn.Linear(2, 2)
    values = paddle.arange(15).reshape([5, 3]) % 2
    held = paddle.zeros(shape) if 0 in shape else values if shape else values[2, 1]
    layer.register_buffer("held", held.astype("float32").astype(kind))
    ema = EMA(layer, 0.9, buffers="copy")
    ema.save(tmp_path / "a.safetensors")
    value = polyak.load(tmp_path / "a.safetensors").tensors["held"]
    assert (str(value.dtype), list(value.shape)) == (kind, shape)
    np.testing.assert_array_equal(value.astype("complex64"), held.numpy().astype("complex64"))
    ema.save(tmp_path / "state.safetensors", resumable=True)
    layer.register_buffer("held", paddle.ones(shape).astype(kind))
    again = EMA(layer, 0.9, buffers="copy")
    assert not again.load(tmp_path / "state.safetensors")
    back = again.state_dict()["copies"]["held"]
    assert str(back.dtype) == f"paddle.{kind}"
    assert list(back.shape) == shape
    np.testing.assert_array_equal(back.astype("float32").numpy(), held.astype("float32").numpy())


@pytest.mark.parametrize("kind", [{}, {"resumable": True}, {"max_shard_size": 20}, {"track": "raw"}], ids=str)
def test_a_save_in_the_background_is_of_its_moment(tmp_path: Path, kind: dict[str, Any]) -> None:
    layer = network()
    ema = trained(layer)
    ema.save(tmp_path / "now.safetensors", **kind)
    saving = ema.save(tmp_path / "later.safetensors", background=True, **kind)
    with paddle.no_grad():
        for parameter in layer.parameters():
            parameter.add_(paddle.ones_like(parameter))
    ema.update()
    saving.wait()
    with (
        open_weights(tmp_path / "now.safetensors") as now,
        open_weights(tmp_path / "later.safetensors") as later,
    ):
        assert now.metadata["polyak"] == later.metadata["polyak"]
        for name, tensor in now.tensors.items():
            np.testing.assert_array_equal(tensor.read(), later.tensors[name].read(), err_msg=name)


@pytest.mark.parametrize("track", ["average", "raw"])
def test_what_changes_while_it_is_written_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: str
) -> None:
    layer = network()
    ema = trained(layer)
    ema.save(tmp_path / "a.safetensors", track)
    before = (tmp_path / "a.safetensors").read_bytes()
    write_body = shards.write_body

    def training(*arguments: Any) -> None:
        write_body(*arguments)
        for parameter in layer.parameters():
            parameter.add_(paddle.ones_like(parameter))
        if track == "average":
            ema.update()

    monkeypatch.setattr(shards, "write_body", training)
    with paddle.no_grad(), pytest.raises(CheckpointError, match="changed while they were read"):
        ema.save(tmp_path / "a.safetensors", track)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match=r"Name it 'a.safetensors'"):
        ema.save(tmp_path / "a.pdparams")


def test_inspect_says_what_a_file_is(tmp_path: Path) -> None:
    ema = trained(network(), polyak.Warmup(0.99))
    ema.save(tmp_path / "a.safetensors")
    said = run("inspect", tmp_path / "a.safetensors")
    assert "Warmup" in said
    assert "step 4" in said
    ema.save(tmp_path / "state.safetensors", resumable=True)
    assert "resumable, polyak, step 4" in run("inspect", tmp_path / "state.safetensors")


# --- states -------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "tracks": {"decay": {"a": 0.5, "b": polyak.Power(gamma=3.0)}},
    "mid-accumulation": {"decay": polyak.Warmup(0.99), "every": 3},
    "before the start": {"decay": polyak.Debiased(0.9), "start": 15},
    "bfloat16": {"decay": 0.95, "dtype": "bfloat16", "seed": 3},
    "split": {"decay": 0.95, "dtype": "split"},
    "compensated": {"decay": 0.95, "compensated": True},
    "ops": {"decay": 0.9, "engine": "ops"},
}


@pytest.mark.parametrize("shard", [None, 40], ids=["one file", "shards"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_resumable_file_holds_exactly_the_state(
    tmp_path: Path, form: dict[str, Any], shard: int | None
) -> None:
    layer = network()
    ema = EMA(layer, **form)
    for value in (1.5, float("nan"), 2.5, 3.5):
        fill(layer[0].weight, value)
        ema.update()
    ema.save(tmp_path / "a.safetensors", resumable=True, max_shard_size=shard)
    again = EMA(network(), **form)
    assert not again.load(tmp_path / "a.safetensors")
    assert_equal(again.state_dict(), ema.state_dict())
    with pytest.raises(CheckpointError, match=r"0\.623|track"):
        EMA(network(), 0.623).load(tmp_path / "a.safetensors")


def test_a_resumable_file_and_an_average_are_not_taken_for_each_other(tmp_path: Path) -> None:
    ema = trained(network())
    ema.save(tmp_path / "average.safetensors")
    ema.save(tmp_path / "state.safetensors", resumable=True)
    with pytest.raises(CheckpointError, match=r"whole training state.*ema\.load"):
        polyak.load(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"holds average weights.*resumable=True"):
        ema.load(tmp_path / "average.safetensors")


def _text(state: Any) -> None:
    state["tracks"]["average"]["tensors"]["0.weight"] = "text"


def _array(state: Any) -> None:
    state["tracks"]["average"]["tensors"]["0.weight"] = np.zeros([2, 3])


def _reshaped(state: Any) -> None:
    state["tracks"]["average"]["tensors"]["0.weight"] = paddle.zeros([3, 3])


def _sparse(state: Any) -> None:
    sparse = paddle.sparse.sparse_coo_tensor([[0], [1]], [1.0], [2, 3])
    state["tracks"]["average"]["tensors"]["0.weight"] = sparse


def _empty(state: Any) -> None:
    with paddle.LazyGuard():
        state["tracks"]["average"]["tensors"]["0.weight"] = nn.Linear(2, 3).weight


def _low(state: Any) -> None:
    state["tracks"]["average"]["lows"] = {"0.weight": paddle.zeros([2, 3], "int8")}


DAMAGES = [_text, _array, _reshaped, _sparse, _empty, _low]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_by_name_and_nothing_changes(damage: Any) -> None:
    state = trained(network()).state_dict()
    damage(state)
    ema = EMA(network(), 0.9)
    before = {name: array(t) for name, t in averages(ema).items()}
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        ema.load_state_dict(state)
    assert ema.step == 0
    for name, tensor in averages(ema).items():
        np.testing.assert_array_equal(array(tensor), before[name])


def test_a_state_of_another_precision_is_converted_only_when_asked() -> None:
    state = trained(network(), dtype="float64").state_dict()
    ema = EMA(network(), 0.9)
    with pytest.raises(CheckpointError, match=r"0\.weight .*float64 to .*float32"):
        ema.load_state_dict(state)
    assert "0.weight" in str(ema.load_state_dict(state, strict=False))
    for name, tensor in averages(ema).items():
        expected = array(state["tracks"]["average"]["tensors"][name].astype("float32"))
        np.testing.assert_array_equal(array(tensor), expected)


# --- what is not finite, and numbers to log ----------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "ops"])
def test_raise_names_the_tensor_the_step_and_the_way_out(engine: str) -> None:
    layer = network()
    ema = EMA(layer, 0.9, on_nonfinite="raise", engine=engine)
    ema.update()
    fill(layer[2].bias, float("inf"))
    with pytest.raises(NonFiniteError, match=r'2\.bias is not finite.* at step 2 .*Nothing.*="skip"'):
        ema.update()
    assert ema.step == 1


@pytest.mark.parametrize("engine", ["native", "ops"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_ignore_lets_them_in(engine: str, dtype: str) -> None:
    layer = nn.Linear(2, 2).to(dtype=dtype)
    ema = EMA(layer, 0.9, dtype="float32", on_nonfinite="ignore", engine=engine)
    start = array(layer.bias.astype("float32"))
    fill(layer.weight, float("nan"))
    fill(layer.bias, 3)
    ema.update()
    assert np.isnan(array(averages(ema)["weight"])).all()
    np.testing.assert_allclose(array(averages(ema)["bias"]), 0.9 * start + 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("ops", {}),
        ("native", {}),
        ("native", {"dtype": "bfloat16"}),
        ("native", {"dtype": "split"}),
        ("native", {"compensated": True}),
    ],
)
def test_an_infinity_that_stays_is_its_own_average(engine: str, options: dict[str, Any]) -> None:
    layer = nn.Linear(2, 2)
    fill(layer.bias, -float("inf"))
    ema = EMA(layer, 0.5, engine=engine, **options)
    for _ in range(4):
        ema.update()
        assert np.isneginf(array(ema.tracks["average"].value("bias").astype("float32"))).all()


@pytest.mark.parametrize("engine", ["native", "ops"])
def test_metrics(engine: str) -> None:
    layer = nn.Linear(2, 2)
    ema = EMA(layer, polyak.Uniform(), engine=engine)
    for value in (1.0, float("nan"), 3.0):
        fill(layer.weight, value)
        ema.update()
    told = ema.metrics()
    assert json.dumps(told)
    assert (told["step"], told["skipped"], told["skipped_tensors"]) == (3, 1, {"weight": 1})
    assert told["engine"].startswith(engine)
    held = averages(ema)
    apart = sum(((array(held[k]) - array(v)) ** 2).sum() for k, v in layer.state_dict().items())
    size = sum((array(v) ** 2).sum() for v in layer.state_dict().values())
    assert told["distance"] == pytest.approx(np.sqrt(apart / size), rel=1e-5)


def test_the_c_kernel_and_paddles_operators_agree() -> None:
    layer = network()
    one, other = (Beside(copy.deepcopy(layer), engine=engine).run(6).ema for engine in ("native", "ops"))
    for name, average in averages(one).items():
        np.testing.assert_allclose(array(average), array(averages(other)[name]), rtol=1e-6, atol=1e-7)


def test_storage_that_needs_the_kernel_says_so_without_it() -> None:
    for form in ({"dtype": "bfloat16"}, {"dtype": "split"}, {"compensated": True}):
        with pytest.raises(ConfigError, match=r'need the C kernel.*dtype="float32" works everywhere'):
            EMA(network(), 0.9, engine="ops", **form)


WORDS: dict[str, dict[str, Any]] = {
    r"dtype=int8: must be one of .*float32": {"dtype": "int8"},
    r"on_nonfinite='stop': must be": {"on_nonfinite": "stop"},
    r"engine='triton': must be one of auto, native, ops": {"engine": "triton"},
    r"buffers='all': must be": {"buffers": "all"},
    r"compensated=True with dtype=bfloat16": {"compensated": True, "dtype": "bfloat16"},
    r"every=0": {"every": 0},
    r"start=-1": {"start": -1},
}


@pytest.mark.parametrize("says", WORDS)
def test_a_wrong_word_is_refused_with_its_name_and_the_rule(says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        EMA(network(), 0.9, **WORDS[says])


# --- the rest of polyak on a Paddle average -----------------------------------------------------------


def test_best_checkpoint_keeps_the_best(tmp_path: Path) -> None:
    layer = network()
    ema = EMA(layer, 0.5)
    best = BestCheckpoint(tmp_path / "best.safetensors", after=0)
    kept: dict[str, np.ndarray] = {}
    for metric in (0.5, 0.9, 0.7):
        fill(layer[0].weight, metric)
        ema.update()
        if best.consider(ema, paddle.to_tensor(metric)):
            kept = {name: array(t) for name, t in averages(ema).items()}
    assert best.metric == pytest.approx(0.9)
    for name, value in polyak.load(tmp_path / "best.safetensors").tensors.items():
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("dtype", ["float32", "float16", paddle.float16, "bfloat16"], ids=str)
def test_another_average_is_synthesized_from_snapshots(tmp_path: Path, dtype: Any) -> None:
    layer = nn.Linear(3, 2)
    ema = EMA(layer, {"a": polyak.Power(sigma_rel=0.05), "b": polyak.Power(sigma_rel=0.25)})
    wanted = EMA(layer, polyak.Power(sigma_rel=0.15))
    random = np.random.default_rng(0)
    with Archive(tmp_path / "runs", ema, every=20, dtype=dtype) as archive:
        for _ in range(200):
            with paddle.no_grad():
                layer.weight.set_value(
                    (0.95 * layer.weight.numpy() + 0.05 * random.normal(size=[3, 2])).astype("float32")
                )
            ema.update()
            wanted.update()
    made = polyak.synthesize(archive, wanted.tracks["average"].profile)
    error = np.abs(made.tensors["weight"] - array(averages(wanted)["weight"])).max()
    assert error < 0.02
    assert archive.steps[-1] == 200


# --- files of Paddle's that hold several sets of weights ----------------------------------------------


def found_in(path: Path) -> dict[str, tuple[str, list[str]]]:
    with open_weights(path) as weights:
        return {one.path: (one.role, sorted(one.tensors)) for one in recognise(weights).parts}


@pytest.mark.parametrize("ending", ["pdparams", "ckpt", "pdstates"])
def test_a_training_checkpoint_is_read_whatever_it_is_called(ending: str, tmp_path: Path) -> None:
    layer = nn.Linear(4, 2)
    ema = trained(layer)
    tree = {"model": layer.state_dict(), "ema": ema.state_dict(), "epoch": 3}
    paddle.save(tree, str(tmp_path / f"last.{ending}"))
    assert found_in(tmp_path / f"last.{ending}") == {
        "ema.tracks.average.tensors": ("average", ["bias", "weight"]),
        "model": ("raw", ["bias", "weight"]),
    }


def test_zero_cost_checkpoints_of_paddlenlp(tmp_path: Path) -> None:
    """``ema.<rank>.pdopt``: float32 parameters by their own names, master weights by Paddle's."""
    state = {"norm.weight": paddle.ones([2]), "master_weights": {"linear_0.w_0": paddle.ones([4, 2])}}
    for name in ("ema.tp00_pp00_shard00.pdopt", "ema.pdopt", "optimizer.pdopt", "schema.pdopt"):
        paddle.save(state, str(tmp_path / name))
    for name in ("ema.tp00_pp00_shard00.pdopt", "ema.pdopt"):
        assert found_in(tmp_path / name) == {"": ("average", ["linear_0.w_0", "norm.weight"])}
    for name in ("optimizer.pdopt", "schema.pdopt"):
        [(role, _)] = found_in(tmp_path / name).values()
        assert role == "optimizer"
