"""ema-pytorch's KarrasEMA and PostHocEMA and polyak's, side by side on one training run."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import ema_pytorch as ours
from polyak.errors import CheckpointError, ConfigError
from tests.dropin.side import agree, network, train

theirs = pytest.importorskip("ema_pytorch")
COUNTER = "num_batches_tracked"  # ema-pytorch leaves it where it was

OPTIONS: list[dict[str, Any]] = [
    {"sigma_rel": 0.1},
    {"gamma": 3.0},
    {"gamma": 0.0},
    {"gamma": 3.0, "frozen": True},
    {"gamma": 3.0, "ignore_names": {"0.weight"}, "param_or_buffer_names_no_ema": {"4.bias"}},
    {"gamma": 3.0, "ignore_startswith_names": {"1."}, "allow_different_devices": True},
    {"gamma": 3.0, "ema_model": network, "move_ema_to_online_device": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_one_average_is_ema_pytorchs_step_by_step(options: dict[str, Any]) -> None:
    model = network()
    a, b = (library.KarrasEMA(model, update_every=1, **options) for library in (theirs, ours))

    def after(step: int) -> None:
        a.update()
        b.update()
        assert a.beta == pytest.approx(b.beta, abs=1e-12)
        agree(a, b, but=COUNTER)

    train(model, 25, after)
    mine, other = (list(inspect.signature(lib.KarrasEMA.__init__).parameters) for lib in (ours, theirs))
    assert mine == other
    fresh_a, fresh_b = (library.KarrasEMA(model, update_every=1, **options) for library in (theirs, ours))
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(a.state_dict())
    train(model, 3, lambda step: (fresh_a.update(), fresh_b.update()))
    agree(fresh_a, fresh_b, but=COUNTER)


def run(
    library: Any, folder: Path, every: int, steps: int = 240, **options: Any
) -> tuple[Any, list[torch.Tensor]]:
    """A walk of one long weight, and the points of it."""
    torch.manual_seed(0)
    model = nn.Linear(400, 1, bias=False)
    given = {
        "gammas": (5.0, 15.0),
        "checkpoint_every_num_steps": 20,
        "checkpoint_folder": str(folder),
    } | options
    emas = library.PostHocEMA(model, update_every=every, **given)
    points = []
    for _ in range(steps):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        points.append(model.weight.detach().double().clone())
        emas.update()
    return emas, points


def wanted(points: list[torch.Tensor], gamma: float, every: int) -> torch.Tensor:
    """The average with that γ, in double precision."""
    average = points[0].clone()
    for n in range(1 + every, len(points) + 1, every):
        beta = ((n + 1 - every) / (n + 1)) ** (gamma + 1)
        average = beta * average + (1 - beta) * points[n - 1]
    return average


def test_the_checkpoints_are_ema_pytorchs(tmp_path: Path) -> None:
    a, _ = run(theirs, tmp_path / "a", 1, 60)
    b, _ = run(ours, tmp_path / "b", 1, 60)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        one, other = (torch.load(tmp_path / side / name) for side in "ab")
        assert list(one) == list(other)
        for key in one:
            torch.testing.assert_close(one[key].float(), other[key].float(), rtol=1e-3, atol=1e-5)
    a.checkpoint_folder, b.checkpoint_folder = b.checkpoint_folder, a.checkpoint_folder
    for emas in (a, b):
        made = emas.synthesize_ema_model(gamma=8.0)
        assert made.gamma == 8.0
    x = torch.randn(2, 400)
    for one, other in zip(a(x), b(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    agree(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("step", [None, 160])
def test_the_average_made_is_the_one_wanted(tmp_path: Path, dtype: torch.dtype, step: int | None) -> None:
    emas, points = run(ours, tmp_path, 1, checkpoint_dtype=dtype)
    made = emas.synthesize_ema_model(gamma=8.0, step=step).ema_model.weight.double()
    exact = wanted(points[:step], 8.0, 1)
    assert float((made - exact).norm() / (exact - points[(step or 240) - 1]).norm()) < 0.05


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    def make(**options: Any) -> Any:
        return ours.PostHocEMA(nn.Linear(2, 1), checkpoint_folder=tmp_path, **options)

    with pytest.raises(ConfigError, match="exactly one"):
        make()
    with pytest.raises(ConfigError, match="two different"):
        make(gammas=(3.0, 3.0))
    with pytest.raises(ConfigError, match="update_every"):
        make(gammas=(3.0, 5.0), update_every=0)
    emas = make(gammas=(3.0, 5.0), update_every=1, checkpoint_every_num_steps="manual")
    with pytest.raises(CheckpointError, match="no checkpoints"):
        emas.synthesize_ema_model(gamma=4.0)
    for _ in range(3):
        emas.update()
    assert not list(tmp_path.iterdir())
    emas.checkpoint()
    for step in (2, 4):
        with pytest.raises(ConfigError, match=f"step={step}"):
            emas.synthesize_ema_model(gamma=4.0, step=step)
    with pytest.raises(ConfigError, match="exactly one"):
        emas.synthesize_ema_model()


# What is different.


def test_update_every_does_not_change_the_width(tmp_path: Path) -> None:
    a, points = run(theirs, tmp_path / "a", 10)
    b, _ = run(ours, tmp_path / "b", 10)
    for place, gamma in enumerate((5.0, 15.0)):
        exact = wanted(points, gamma, 10)
        away = (exact - points[-1]).norm()
        ones = [float((emas.ema_models[place].ema_model.weight - exact).norm() / away) for emas in (a, b)]
        assert ones[0] > 0.5, "ema-pytorch applies the decay of one step for ten"
        assert ones[1] < 1e-5


@pytest.mark.parametrize(("every", "gamma"), [(1, 1.0), (10, 8.0)])
def test_what_is_made_is_nearer_to_what_was_wanted(tmp_path: Path, every: int, gamma: float) -> None:
    a, points = run(theirs, tmp_path / "a", every)
    b, _ = run(ours, tmp_path / "b", every)
    exact = wanted(points, gamma, every)
    away = (exact - points[-1]).norm()
    errors = [
        float((emas.synthesize_ema_model(gamma=gamma).ema_model.weight - exact).norm() / away)
        for emas in (a, b)
    ]
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 2


def test_counters_and_large_numbers_survive_a_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1e5)
    for library in (theirs, ours):
        emas = library.PostHocEMA(
            model, gammas=(3.0, 5.0), checkpoint_every_num_steps="manual", checkpoint_folder=str(tmp_path)
        )
        for average in emas.ema_models:
            average.step.fill_(70_001)
        emas.checkpoint()
        state = torch.load(tmp_path / "0.70001.pt")
        kept = library is ours
        assert (float(state["step"]) == 70_001) == kept, "float16 holds no such number"
        assert bool(state["ema_model.weight"].isfinite().all()) == kept


def test_a_checkpoint_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: Any, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    for library in (theirs, ours):
        folder = tmp_path / library.__name__
        emas = library.PostHocEMA(nn.Linear(2, 1), gammas=(3.0, 5.0), checkpoint_folder=str(folder))
        monkeypatch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="no space"):
            emas.checkpoint()
        assert [path.suffix for path in folder.iterdir()] == ([".part"] if library is ours else [".pt"])
