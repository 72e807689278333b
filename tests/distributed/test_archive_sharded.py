"""Archives and the best checkpoint of sharded averages: whole tensors, written once, by rank 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import polyak
from polyak.errors import CheckpointError, ConfigError
from tests.distributed import models
from tests.distributed.ranks import Ranks

DECAYS = {"short": 0.7, "long": 0.9}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """``‖a-b‖²`` over the parameters."""
    return sum(float((a[name].double() - b[name].double()).square().sum()) for name in b)


def record(rank: int, mode: str, folder: Path) -> None:
    """Six steps with a snapshot each second, float16 overflowing in the rows of odd ranks only."""
    sharded = models.MODES[mode]()
    ema = polyak.EMA(sharded.model, DECAYS, **sharded.ema)
    optimizer = torch.optim.SGD(sharded.model.parameters(), 0.1)
    truth: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    with polyak.Archive(folder, ema, every=2) as archive:
        for step in range(1, 7):
            models.train(sharded, optimizer, step, rank)
            if step == 5:
                with torch.no_grad():
                    sharded.model.get_parameter("again.weight").add_(1e6 * (rank % 2))
            ema.update()
            if step % 2 == 0:
                truth[step] = models.average(ema, "long"), models.theta(sharded.model)
    if rank:
        return
    names = [f"{0:09}-base", *(f"{step:09}-{name}" for step in (2, 4, 6) for name in DECAYS)]
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == sorted(names)
    assert archive.steps == [0, 2, 4, 6]
    for step, (expected, theta) in truth.items():
        found = polyak.load(folder / f"{step:09}-long.safetensors")
        overflowed = step == 6
        assert found.tensors["again.weight"].dtype == (np.float32 if overflowed else np.float16)
        assert found.tensors["inner.weight"].dtype == np.float16
        trained = {name: t for name, t in expected.items() if name in theta and name != "running_mean"}
        for name, tensor in trained.items():
            stored = torch.from_numpy(found.tensors[name])
            assert torch.equal(stored, tensor.to(stored.dtype)), name
        state = found.header.state
        apart = distance(trained, {name: theta[name] for name in trained})
        rounded = distance(trained, {n: torch.from_numpy(found.tensors[n]) for n in trained})
        assert state["apart"] == pytest.approx(apart, rel=1e-5)
        assert state["rounded"] == pytest.approx(rounded, rel=1e-3)


@pytest.mark.parametrize(("mode", "world"), [("fully_shard", 3), ("hybrid", 4)])
def test_an_archive_holds_whole_tensors_and_distances_over_all_ranks(
    mode: str, world: int, four: Ranks, tmp_path: Path
) -> None:
    """Replicas count once; a tensor that one rank cannot store in float16 is float32 from all."""
    four.run(world, record, mode, tmp_path)
    made = polyak.synthesize(tmp_path, 0.8)
    assert made.tensors["inner.weight"].shape == (models.HIDDEN, models.FEATURES)


def resumed(rank: int, folder: Path) -> str:
    """Continue from step 2 of 4; another EMA's run is refused by every rank."""
    sharded = models.MODES["fully_shard"]()
    ema = polyak.EMA(sharded.model, 0.9)
    with polyak.Archive(folder, ema, every=1):
        for step in range(1, 5):
            ema.update()
            if step == 2:
                ema.save(folder / "state", resumable=True)
    again = polyak.EMA(sharded.model, 0.9)
    again.load(folder / "state")
    with polyak.Archive(folder, again, every=1):
        again.update()
    with pytest.raises(CheckpointError, match="belongs to run"):
        polyak.Archive(folder, polyak.EMA(sharded.model, 0.9))
    return ema.run


def test_a_resumed_run_continues_its_archive(four: Ranks, tmp_path: Path) -> None:
    assert len(set(four.run(2, resumed, tmp_path))) == 1
    assert sorted(path.name[:9] for path in tmp_path.glob("*.safetensors")) == [f"{i:09}" for i in range(4)]
    assert sorted(path.name[:9] for path in (tmp_path / "abandoned").iterdir()) == [f"{i:09}" for i in (3, 4)]


def best(rank: int, folder: Path) -> list[object]:
    sharded = models.MODES["fully_shard"]()
    ema = polyak.EMA(sharded.model, DECAYS)
    kept = polyak.BestCheckpoint(folder / "best.safetensors", after=0)
    optimizer = torch.optim.SGD(sharded.model.parameters(), 0.1)
    found: list[object] = []
    for step, metric in enumerate((0.5, 0.7, 0.6)):
        models.train(sharded, optimizer, step, rank)
        ema.update()
        found.append(kept.consider(ema, metric if rank == 0 else -metric, "long"))  # rank 0's decides
        if metric == 0.7:
            held = models.average(ema, "long")
            if rank == 0:
                stored = polyak.load(kept.path).tensors
                assert all(torch.equal(torch.from_numpy(stored[name]), t) for name, t in held.items())
    with pytest.raises(ConfigError, match="track='middle'"):
        kept.consider(ema, 1.0, "middle")
    return [*found, kept.metric, ema.run, len(kept.decisions)]


def test_rank_0_decides_which_average_is_the_best(four: Ranks, tmp_path: Path) -> None:
    one, *others = four.run(3, best, tmp_path)
    assert one[:4] == [True, True, False, 0.7]
    assert one[-1] == 3
    assert all(other == one for other in others)
    assert {path.name for path in tmp_path.iterdir()} == {"best.safetensors", "best.safetensors.jsonl"}
