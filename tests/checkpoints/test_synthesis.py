"""Synthesised averages against tracked ones, on a network that really trains."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import polyak
from polyak import Anneal, Archive, CheckpointError, ConfigError, HalfLife, Power, Profile, Uniform
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights

STEPS = 1000
TARGETS = {
    **{f"half-life {h}": HalfLife(steps=h) for h in (80, 110, 150, 250, 500)},
    "half-life of a tenth": HalfLife(share=0.1),
    **{f"width {s}": Power(sigma_rel=s) for s in (0.08, 0.09, 0.12, 0.16, 0.2)},
}


class Trained(NamedTuple):
    """A finished run: its archives, the averages tracked beside them, the parameters at each step."""

    folder: Path
    direct: dict[int, polyak.EMA]
    model: nn.Module
    path: np.ndarray


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run on scikit-learn's digits: two tracks, two cadences, two dtypes, ten averages beside them."""
    folder = tmp_path_factory.mktemp("run")
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=3e-4)
    tracks = {"narrow": Power(sigma_rel=0.05), "wide": Power(sigma_rel=0.1)}
    kept = {every: polyak.EMA(model, tracks, every=every) for every in (1, 10)}
    direct = {every: polyak.EMA(model, TARGETS, every=every) for every in (1, 10)}
    archives = [
        Archive(folder / f"{dtype}-{every}", ema, every=40, dtype=dtype, keep="all")
        for every, ema in kept.items()
        for dtype in ("float32", "float16")
    ]
    path = [flat(dict(model.named_parameters()))]
    for _ in range(STEPS):
        batch = torch.randint(len(y), (64,))
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
        for ema in (*kept.values(), *direct.values()):
            ema.update()
        path.append(flat(dict(model.named_parameters())))
    for archive in archives:
        archive.close()
    return Trained(folder, direct, model, np.stack(path))


def flat(tensors: dict[str, torch.Tensor | np.ndarray]) -> np.ndarray:
    """The parameters end to end, float64; buffers left out."""
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    return np.concatenate([np.asarray(torch.as_tensor(tensors[n]).detach().double()).ravel() for n in names])


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.01), ("float16", 0.02)])
@pytest.mark.parametrize("target", TARGETS)
def test_it_is_the_average_that_was_tracked(
    trained: Trained, target: str, dtype: str, most: float, every: int
) -> None:
    tracked = flat(trained.direct[every].tracks[target].tensors)
    made = polyak.synthesize(trained.folder / f"{dtype}-{every}", TARGETS[target])
    away = np.linalg.norm(tracked - trained.path[-1])
    error = np.linalg.norm(flat(dict(made.tensors)) - tracked) / away
    assert error < most
    assert error < 3 * made.error + 1e-4  # what was expected is of the size of what is found
    assert made.error < most
    assert len(made.coefficients) == 51
    assert sum(made.coefficients.values()) == pytest.approx(1)


def test_it_loads_into_the_model_and_buffers_come_along(trained: Trained) -> None:
    made = polyak.synthesize(trained.folder / "float32-1", HalfLife(steps=110))
    state = {name: torch.from_numpy(array) for name, array in made.tensors.items()}
    trained.model.load_state_dict(state, strict=True)
    assert state["1.num_batches_tracked"] == STEPS
    tracked = trained.direct[1].tracks["half-life 110"].tensors["1.running_var"]
    np.testing.assert_allclose(state["1.running_var"], tracked, rtol=1e-2)


def test_its_profile_is_that_of_what_was_made(trained: Trained) -> None:
    """The header's weights times the true trajectory give the tensors."""
    made = polyak.synthesize(trained.folder / "float32-1", Uniform(), last=300)
    assert made.header.profile is not None
    weights = made.header.profile.weights()
    assert weights.sum() == pytest.approx(1)
    expected = weights @ trained.path[: len(weights)]
    np.testing.assert_allclose(flat(dict(made.tensors)), expected, atol=1e-5)


@pytest.mark.parametrize(("decay", "shape"), [(Uniform(), "linear"), (Anneal(300), "cosine")])
def test_an_anneal_over_the_last_steps(trained: Trained, decay: polyak.Decay, shape: str) -> None:
    """The end of a run whose last 300 updates had been scaled down, to first order."""
    made = polyak.synthesize(trained.folder / "float32-1", decay, last=300)
    x = np.arange(300) / 300
    g = 1 - x if shape == "linear" else (1 + np.cos(np.pi * x)) / 2
    annealed = trained.path[-301] + g @ np.diff(trained.path[-301:], axis=0)
    away = np.linalg.norm(annealed - trained.path[-1])
    assert np.linalg.norm(flat(dict(made.tensors)) - annealed) / away < 0.01


@pytest.mark.parametrize("at", [480, 777])
def test_it_stands_at_any_step(trained: Trained, at: int) -> None:
    """At a snapshot it is exact enough; between two it must say how far off it may be."""
    weights = Profile.from_decay(HalfLife(steps=120), at).weights()
    expected = weights @ trained.path[: at + 1]
    made = polyak.synthesize(trained.folder / "float32-1", HalfLife(steps=120), at=at, max_error=1)
    away = np.linalg.norm(expected - trained.path[at])
    assert np.linalg.norm(flat(dict(made.tensors)) - expected) / away < max(0.01, 2 * made.error)
    assert made.header.step == at
    assert (made.error < 0.01) == (at == 480)


def test_a_profile_is_a_target(trained: Trained) -> None:
    wanted = 0.5 * Profile.from_decay(0.99, STEPS) + 0.5 * Profile.from_decay(0.998, STEPS)
    made = polyak.synthesize(trained.folder / "float32-1", wanted)
    expected = wanted.weights() @ trained.path
    away = np.linalg.norm(expected - trained.path[-1])
    assert np.linalg.norm(flat(dict(made.tensors)) - expected) / away < 0.01
    assert made.header.decay is None


def test_what_cannot_be_met_is_refused_and_nothing_written(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "narrow.safetensors"
    with pytest.raises(
        CheckpointError,
        match=r"with an expected error of \d+\.\d% of .*; max_error is 2\.0%\. .*synthesizable",
    ):
        polyak.synthesize(trained.folder / "float16-1", HalfLife(steps=2), out=out)
    assert list(tmp_path.iterdir()) == []
    assert polyak.synthesize(trained.folder / "float16-1", HalfLife(steps=2), max_error=math.inf).error > 0.02


def test_to_a_file_it_is_the_same_in_less_memory(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    made = polyak.synthesize(trained.folder / "float16-1", HalfLife(steps=100))
    seen: list[tuple[int, int]] = []
    written = polyak.synthesize(
        trained.folder / "float16-1",
        HalfLife(steps=100),
        out=out,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(seen) == len(made.tensors)
    assert seen[-1] == (sum(t.nbytes for t in made.tensors.values()),) * 2
    assert written.tensors == {}
    read = polyak.load(out)
    assert read.header == made.header == written.header
    for name, tensor in made.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read.tensors[name], tensor)


@pytest.mark.slow
def test_memory_is_the_output_and_a_tensor(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(4)))  # 4 x 4 MB
    ema = polyak.EMA(model, Power(gamma=7))
    with Archive(tmp_path, ema, every=1, dtype="float16", keep="all"):
        for _ in range(20):
            ema.update()
    tracemalloc.start()
    made = polyak.synthesize(tmp_path, HalfLife(steps=5), max_error=math.inf)
    held = tracemalloc.get_traced_memory()[1]
    del made
    tracemalloc.reset_peak()
    polyak.synthesize(tmp_path, HalfLife(steps=5), max_error=math.inf, out=tmp_path / "out.safetensors")
    streamed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 16e6 + 5 * 4e6
    assert streamed < 5 * 4e6


@pytest.mark.parametrize("how", ["unfrozen", "reset", "added"])
def test_a_tensor_that_joined_late_has_its_own_mixture(tmp_path: Path, how: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].requires_grad_(how != "unfrozen")
    ema = polyak.EMA(model, {"narrow": Power(gamma=30), "wide": Power(gamma=7)})
    direct = polyak.EMA(model, HalfLife(steps=120))
    random = torch.Generator().manual_seed(0)
    with Archive(tmp_path, ema, every=10, dtype="float32", keep="all"):
        for step in range(1, 401):
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += torch.randn(parameter.shape, generator=random)
            ema.update()
            direct.update()
            if step == 150:
                if how == "unfrozen":
                    model[1].requires_grad_(True)
                elif how == "added":
                    model.append(nn.Linear(2, 2))
                else:
                    ema.reset("1.*")
                    direct.reset("1.*")
    made = polyak.synthesize(tmp_path, HalfLife(steps=120), max_error=0.05)
    for name, tensor in direct.tracks["average"].tensors.items():
        away = float((tensor - model.get_parameter(name).detach()).norm())
        # A newcomer's first value is in no snapshot but as what its averages still hold of it.
        assert np.linalg.norm(made.tensors[name] - tensor.numpy()) < 0.05 * away, name


def test_reachable_tells_what_synthesize_would(trained: Trained) -> None:
    rows = polyak.synthesizable(trained.folder / "float16-1", half_lives=[30, 100, 400])
    for row in rows:
        made = polyak.synthesize(
            trained.folder / "float16-1", HalfLife(steps=row.half_life), max_error=math.inf
        )
        assert (made.error, made.noise_gain) == pytest.approx((row.error, row.noise_gain), rel=1e-6)
    assert [row.half_life for row in polyak.synthesizable(trained.folder / "float16-1")] == pytest.approx(
        np.geomspace(1, STEPS, 25)
    )


@pytest.mark.parametrize("at", [-1, 39, 1001])
def test_at_lies_within_the_run(trained: Trained, at: int) -> None:
    with pytest.raises(ConfigError, match=f"at={at}: the snapshots reach from step 40 to 1000"):
        polyak.synthesize(trained.folder / "float32-1", 0.9, at=at)
    with pytest.raises(ConfigError, match=f"at={at}"):
        polyak.synthesizable(trained.folder / "float32-1", at=at)


def test_a_damaged_snapshot_is_named(trained: Trained, tmp_path: Path) -> None:
    for path in (trained.folder / "float32-1").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = tmp_path / "000000400-wide.safetensors"
    whole = bytearray(victim.read_bytes())
    whole[-40] ^= 1
    victim.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"000000400-wide\.safetensors is damaged"):
        polyak.synthesize(tmp_path, HalfLife(steps=100))


def changed(path: Path, value: float, place: int) -> None:
    """Write a snapshot again with another value in its tensor "weight"."""
    with open_weights(path) as weights:
        arrays, metadata = {name: tensor.read() for name, tensor in weights.tensors.items()}, weights.metadata
    arrays["weight"][0, place] = value
    write_arrays(path, arrays, metadata)


def test_the_same_infinity_in_all_snapshots_stays_and_a_nan_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    ema = polyak.EMA(model, {"narrow": Power(gamma=30), "wide": Power(gamma=7)})
    with Archive(tmp_path, ema, every=10, dtype="float32", keep="all"):
        for _ in range(200):
            with torch.no_grad():
                model.weight += torch.randn(1, 3)
            ema.update()
    for path in tmp_path.glob("*.safetensors"):
        changed(path, -math.inf, 1)
    made = polyak.synthesize(tmp_path, HalfLife(steps=50), max_error=math.inf)
    assert min(made.coefficients.values()) < 0 < max(made.coefficients.values())
    assert made.tensors["weight"][0, 1] == -np.inf
    assert np.isfinite(made.tensors["weight"][0, ::2]).all()
    changed(tmp_path / "000000100-wide.safetensors", math.nan, 2)
    with pytest.raises(CheckpointError, match=r"000000100-wide\.safetensors: weight is nan at \(0, 2\)"):
        polyak.synthesize(tmp_path, HalfLife(steps=50), max_error=math.inf)


def test_averages_of_an_infinite_weight_are_named(tmp_path: Path) -> None:
    """Their distances in the headers are NaN: no reason to blame every other tensor."""
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight[0, 1] = -math.inf
    ema = polyak.EMA(model, Power(gamma=7), on_nonfinite="ignore")
    with Archive(tmp_path, ema, every=10, dtype="float32", keep="all"):
        for _ in range(40):
            ema.update()
    with pytest.raises(CheckpointError, match=r"weight is -?(nan|inf) at \(0, 1\)"):
        polyak.synthesize(tmp_path, HalfLife(steps=20), max_error=math.inf)
