"""A run that is cut, saved, loaded in a new process and continued ends as if it had never been cut."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from polyak.cli.describe import CheckpointSummary, describe
from tests.golden_files.make_states import SETTINGS, STEPS
from tests.states import closed, flat, opened
from tests.torch.resume_cases import CASES, advance, begin

Damage = Callable[[dict[str, Any]], Any]
HALF = 10  # in the middle of every=3 and every=4


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case's first half, then one new process that finishes them all."""
    folder = tmp_path_factory.mktemp("resume")
    for name, options in CASES.items():
        model, optimizer, ema = begin(options)
        advance(model, optimizer, ema, 0, HALF)
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        torch.save({**saved, "step": HALF}, folder / f"{name}.half.pt")
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "tests.torch.resume_worker", folder], cwd=root, check=True, timeout=120
    )
    return folder


@pytest.mark.parametrize("name", CASES)
def test_continuing_equals_never_having_stopped(resumed: Path, name: str) -> None:
    model, optimizer, ema = begin(CASES[name])
    advance(model, optimizer, ema, 0, 23)
    whole = flat(opened(ema.state_dict()))
    continued = flat(opened(torch.load(resumed / f"{name}.resumed.pt", weights_only=True)))
    assert continued.pop("/run") != whole.pop("/run")  # the run goes on under its first id
    assert continued.keys() == whole.keys()
    for key, value in whole.items():
        same = (
            torch.equal(continued[key], value) if isinstance(value, torch.Tensor) else continued[key] == value
        )
        assert same, key


def state_of(**options: Any) -> tuple[polyak.EMA, dict[str, Any]]:
    model, optimizer, ema = begin(options)
    advance(model, optimizer, ema, 0, 3)
    return ema, ema.state_dict()


def renamed(state: dict[str, Any]) -> None:
    tensors = state["tracks"]["average"]["tensors"]
    tensors["0.weights"] = tensors.pop("0.weight")


def reshaped(state: dict[str, Any]) -> None:
    state["tracks"]["average"]["tensors"]["0.weight"] = torch.zeros(8, 4)


def recast(state: dict[str, Any]) -> None:
    tensors = state["tracks"]["average"]["tensors"]
    tensors["3.bias"] = tensors["3.bias"].bfloat16()


def made_complex(state: dict[str, Any]) -> None:
    tensors = state["tracks"]["average"]["tensors"]
    tensors["3.bias"] = tensors["3.bias"] * 1j


DIFFERENT: dict[str, tuple[Any, dict[str, Any]]] = {
    "0.weight": (renamed, {}),
    "0.weight (8, 4) for (8, 3)": (reshaped, {}),
    "0.bais: in the state only": (
        lambda s: s["tracks"]["average"]["tensors"].update({"0.bais": torch.zeros(8)}),
        {},
    ),
    "3.bias torch.bfloat16 to torch.float32": (recast, {}),
    "3.bias torch.complex64 for torch.float32": (made_complex, {}),
    "Constant(beta=0.5)": (None, {"decay": 0.5}),
    "every=2 (state: 1)": (None, {"every": 2}),
    "start=5 (state: 0)": (None, {"start": 5}),
    "seed=1 (state: 0)": (None, {"seed": 1}),
    "track other": (None, {"decay": {"average": 0.9, "other": 0.5}}),
}


@pytest.mark.parametrize("says", DIFFERENT)
def test_a_difference_is_refused_by_name_and_loaded_only_when_asked(says: str) -> None:
    _, state = state_of(decay=0.9)
    change, options = DIFFERENT[says]
    if change:
        change(state)
    ema = begin({"decay": 0.9, **options})[2]
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat(ema.state_dict()).items()}
    with pytest.raises(polyak.CheckpointError) as refused:
        ema.load_state_dict(state)
    assert says in str(refused.value)
    for key, value in flat(ema.state_dict()).items():
        kept = torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]
        assert kept, key
    report = ema.load_state_dict(state, strict=False)
    assert report
    assert says in str(report)
    assert ema.step == 3
    assert torch.equal(
        ema.tracks["average"].tensors["3.weight"], state["tracks"]["average"]["tensors"]["3.weight"]
    )
    ema.update()


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_is_at_once_what_was_saved(name: str) -> None:
    model, optimizer, ema = begin(CASES[name])
    advance(model, optimizer, ema, 0, HALF)
    again = begin(CASES[name])[2]
    assert not again.load_state_dict(ema.state_dict())
    saved, loaded = flat(ema.state_dict()), flat(again.state_dict())
    assert loaded.keys() == saved.keys()
    for key, value in saved.items():
        same = torch.equal(loaded[key], value) if isinstance(value, torch.Tensor) else loaded[key] == value
        assert same, key
    assert [t.beta for t in again.tracks.values()] == [t.beta for t in ema.tracks.values()]


def test_a_state_that_fits_reports_nothing() -> None:
    _, state = state_of(decay=0.9)
    assert not begin({"decay": 0.9})[2].load_state_dict(state)


VALUES: list[Damage] = [
    lambda s: s.pop("step"),
    lambda s: s.update(step=-1),
    lambda s: s.update(step=float("inf")),
    lambda s: s.update(step=2.5),
    lambda s: s.update(waiting=-1),
    lambda s: s.update(elapsed={"steps": -3}),
    lambda s: s.update(skipped=[]),
    lambda s: s.update(skipped=[1, {"0.weight": "once"}]),
    lambda s: s["tracks"]["average"].update(clock=float("inf")),
    lambda s: s["tracks"]["average"].update(clock=-2),
    lambda s: s["tracks"]["average"].update(beta=7.0),
    lambda s: s["tracks"]["average"].update(beta=float("nan")),
    lambda s: s["tracks"]["average"].update(joined={"0.weight": -4}),
    lambda s: s["tracks"]["average"].update(profile='{"decays":[],"terms":[]}'),
    lambda s: s["tracks"]["average"].update(
        profile=(polyak.Profile.raw(1) + polyak.Profile.raw(2)).to_json()
    ),
    lambda s: s.update(format=99),
    lambda s: s["tracks"]["average"].update(profile="{}"),
    lambda s: s["tracks"]["average"].update(decay={"kind": "Nonsense"}),
]
TENSORS: list[Damage] = [
    lambda s: s.pop("tracks"),
    lambda s: s.update(copies=None),
    lambda s: s["tracks"]["average"].pop("tensors"),
    lambda s: s["tracks"]["average"].update(tensors=[1]),
    lambda s: s.update(copies=[1]),
    lambda s: s["tracks"]["average"]["tensors"].update({"3.bias": torch.zeros(2, device="meta")}),
    lambda s: s["tracks"]["average"]["tensors"].update({"3.bias": torch.zeros(2).to_sparse()}),
    lambda s: s["copies"].update({"1.num_batches_tracked": torch.zeros((), device="meta").long()}),
    lambda s: s["tracks"].update(average=None),
    lambda s: s["tracks"]["average"]["tensors"].update({"0.weight": "text"}),
    lambda s: s.update(tracks=[1]),
]
TEXTS: list[Damage] = [
    lambda s: s.update(polyak="no JSON"),
    lambda s: s.update(polyak=3),
    lambda s: s.update(polyak="[]"),
    lambda s: s.update(polyak="{}"),
    lambda s: s.update(polyak="[" * 100_000),
    lambda s: s.pop("tracks"),
    lambda s: s.update(tracks=[1]),
    lambda s: s.update(copies=[1]),
]


def damaged_before_it_had_a_text(state: dict[str, Any], damage: Damage) -> dict[str, Any]:
    state = opened(state)
    damage(state)
    return state


def damaged_in_its_text(state: dict[str, Any], damage: Damage) -> dict[str, Any]:
    return closed(damaged_before_it_had_a_text(state, damage))


def damaged(state: dict[str, Any], damage: Damage) -> dict[str, Any]:
    damage(state)
    return state


@pytest.mark.parametrize(
    ("how", "damage"),
    [
        *[(damaged_before_it_had_a_text, one) for one in VALUES + TENSORS],
        *[(damaged_in_its_text, one) for one in VALUES],
        *[(damaged, one) for one in TEXTS],
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(how: Any, damage: Damage) -> None:
    state = how(state_of(decay=0.9)[1], damage)
    ema = begin({"decay": 0.9})[2]
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat(ema.state_dict()).items()}
    for strict in (True, False):
        with pytest.raises(polyak.CheckpointError):
            ema.load_state_dict(state, strict=strict)
        for key, value in flat(ema.state_dict()).items():
            kept = (
                torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]
            )
            assert kept, key


def test_what_the_state_lacks_does_not_take_its_history() -> None:
    _, state = state_of(decay=0.9)
    del state["tracks"]["average"]["tensors"]["3.weight"]
    model, _, ema = begin({"decay": 0.9})
    ema.load_state_dict(state, strict=False)
    track = ema.tracks["average"]
    assert track.joined == {"3.weight": 3}
    ema.update()
    expected = 0.9 * model[3].weight.double() + 0.1 * model[3].weight.double()
    torch.testing.assert_close(track.tensors["3.weight"].double(), expected)
    assert track.profile_of("3.weight").weights().tolist() == pytest.approx([0, 0, 0, 0.9, 0.1])


def test_a_newcomer_keeps_its_own_history() -> None:
    model, optimizer, ema = begin({"decay": 0.9})
    model[3].requires_grad_(False)
    ema = polyak.EMA(model, 0.9)
    advance(model, optimizer, ema, 0, 4)
    model[3].requires_grad_(True)
    advance(model, optimizer, ema, 4, 9)
    again = polyak.EMA(model, 0.9)
    again.load_state_dict(ema.state_dict())
    for name in ("0.weight", "3.weight"):
        assert again.tracks["average"].profile_of(name) == ema.tracks["average"].profile_of(name)
    assert again.tracks["average"].joined == {"3.weight": 5, "3.bias": 5}


GOLDEN = Path(__file__).parents[1] / "golden_files/states/torch.pt"


def test_a_state_from_before_it_had_a_text_is_continued() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    model[3].requires_grad_(False)
    ema = polyak.EMA(model, **SETTINGS)
    state = torch.load(GOLDEN, weights_only=True)
    assert not ema.load_state_dict(state)
    again = opened(ema.state_dict())
    for key, value in flat(state).items():
        loaded = flat(again)[key]
        assert torch.equal(loaded, value) if isinstance(value, torch.Tensor) else loaded == value, key
    assert (ema.step, ema.metrics()["skipped_tensors"]) == (STEPS, {"0.bias": 1})
    assert ema.tracks["long"].joined == {"2.weight": 4, "2.bias": 4}
    found = describe(GOLDEN)
    assert isinstance(found, CheckpointSummary)
    assert [(part.name, part.role) for part in found.parts] == [("short", "average"), ("long", "average")]


def test_names_are_the_models_own_whatever_wraps_it() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    wrapped = polyak.EMA(torch.compile(model, backend="eager"), 0.9)
    _, state = state_of(decay=0.9)
    assert not wrapped.load_state_dict(state)
