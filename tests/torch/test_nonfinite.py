"""One NaN must not poison an average for ever."""

from typing import Any

import pytest
import torch
from torch import nn

import polyak
from polyak.torch import tensors


@pytest.fixture(params=["native", "blocked", "foreach"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def values(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([1.0, 2.0, 3.0, 4.0]).to(dtype)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_skip_keeps_just_the_elements_that_are_bad(engine: str, dtype: torch.dtype, bad: float) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(values(dtype)), "v": nn.Parameter(values(dtype))})
    ema = polyak.EMA(model, 0.5, engine=engine)
    with torch.no_grad():
        model["w"].copy_(torch.tensor([3.0, bad, 5.0, bad]).to(dtype))
    ema.update()
    w = ema.tracks["average"].tensors["w"]
    assert w.real.tolist() == [2.0, 2.0, 4.0, 4.0]
    with torch.no_grad():
        model["w"].fill_(2.0)
    ema.update()
    assert w.isfinite().all()
    assert w.real.tolist() == [2.0, 2.0, 3.0, 3.0]
    metrics = ema.metrics()
    assert metrics["skipped"] == 1
    assert metrics["skipped_tensors"] == {"w": 1}


def test_a_first_copy_is_skipped_too(engine: str) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(values(torch.float32))})
    ema = polyak.EMA(model, polyak.Debiased(0.9), engine=engine)
    with torch.no_grad():
        model["w"].copy_(torch.tensor([5.0, float("nan"), 7.0, 8.0]))
    ema.update()
    assert ema.tracks["average"].tensors["w"].tolist() == [5.0, 2.0, 7.0, 8.0]


def test_huge_finite_values_are_not_skipped(engine: str) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.full((4,), 3e38))})
    ema = polyak.EMA(model, 0.5, engine=engine)
    ema.update()
    assert ema.tracks["average"].tensors["w"].tolist() == torch.full((4,), 3e38).tolist()
    assert ema.metrics()["skipped"] == 0


def test_raise_names_the_tensor_and_changes_nothing(engine: str) -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(3))})
    ema = polyak.EMA(model, 0.5, on_nonfinite="raise", engine=engine)
    with torch.no_grad():
        model["a"].fill_(9.0)
        model["b"][1] = float("nan")
    with pytest.raises(polyak.NonFiniteError, match=r"b is not finite.* at step 1"):
        ema.update()
    assert ema.step == 0
    assert ema.tracks["average"].tensors["a"].tolist() == [1, 1, 1]
    assert ema.tracks["average"].profile.steps == 0


NARROWER = [
    (torch.float32, torch.float16, 1e6),
    (torch.bfloat16, torch.float16, 65536.0),  # rounds to the largest float16 where compared in bfloat16
    (torch.float32, torch.bfloat16, 3.4e38),
    (torch.float64, torch.float32, 1e100),
    (torch.float64, torch.bfloat16, -1e39),
]


@pytest.mark.parametrize(("theta", "storage", "huge"), NARROWER)
def test_values_beyond_the_storage_never_make_it_infinite(
    engine: str, theta: torch.dtype, storage: torch.dtype, huge: float
) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(values(theta))})
    skipping, raising = (
        polyak.EMA(model, 0.0, dtype=storage, on_nonfinite=p, engine=engine) for p in ("skip", "raise")
    )
    with torch.no_grad():
        model["w"].copy_(torch.tensor([3.0, huge, 5.0, huge], dtype=torch.float64))
    assert model["w"].isfinite().all()
    with pytest.raises(polyak.NonFiniteError, match="w is not finite, or beyond the storage's range"):
        raising.update()
    skipping.update()
    assert skipping.tracks["average"].tensors["w"].tolist() == [3.0, 2.0, 5.0, 4.0]
    assert skipping.metrics()["skipped_tensors"] == {"w": 1}


def test_every_bad_tensor_is_named_wherever_it_is(engine: str) -> None:
    dtypes = {
        "a": torch.float32,
        "b": torch.bfloat16,
        "c": torch.float64,
        "d": torch.float32,
        "e": torch.bfloat16,
    }
    model = nn.ParameterDict({k: nn.Parameter(torch.ones(300, 1000, dtype=d)) for k, d in dtypes.items()})
    ema = polyak.EMA(model, 0.5)  # each tensor is more than one block
    with torch.no_grad():
        for name in "bde":
            model[name][-1, -1] = float("nan")
    ema.update()
    metrics = ema.metrics()
    assert (metrics["skipped"], metrics["skipped_tensors"]) == (1, {"b": 1, "d": 1, "e": 1})


def test_the_largest_number_of_the_storage_is_averaged(engine: str) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([65504.0, -65504.0]))})
    ema = polyak.EMA(model, 0.5, dtype=torch.float16, engine=engine)
    with torch.no_grad():
        model["w"].neg_()
    ema.update()
    assert ema.tracks["average"].tensors["w"].tolist() == [0.0, 0.0]
    assert ema.metrics()["skipped"] == 0


def test_ignore_lets_them_in() -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(2))})
    ema = polyak.EMA(model, 0.5, on_nonfinite="ignore")
    with torch.no_grad():
        model["a"][0] = float("nan")
    ema.update()
    assert ema.tracks["average"].tensors["a"].isnan().tolist() == [True, False]


def test_counts_survive_a_change_of_the_model_and_a_resume() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = polyak.EMA(model, 0.5)

    def poison(layer: int) -> None:
        with torch.no_grad():
            kept = model[layer].weight.clone()
            model[layer].weight[0, 0] = float("nan")
            ema.update()
            model[layer].weight.copy_(kept)

    poison(0)
    model.append(nn.Linear(2, 2))
    poison(2)
    again = polyak.EMA(model, 0.5)
    again.load_state_dict(ema.state_dict())
    ema = again
    poison(0)
    metrics = ema.metrics()
    assert (metrics["skipped"], metrics["skipped_tensors"]) == (3, {"0.weight": 2, "2.weight": 1})


STORAGES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "split": {"dtype": "split"},
    "compensated": {"compensated": True},
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_average_begins_with_the_first_finite_value(engine: str, storage: str, bad: float) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, bad])), "v": nn.Parameter(torch.ones(2))})
    ema = polyak.EMA(model, {"a": 0.5, "b": 0.75}, engine=engine, **STORAGES[storage])
    values = [[3.0, bad], [3.0, 8.0], [3.0, 16.0]]
    seen: dict[str, list[list[float]]] = {"a": [], "b": []}
    for value in values:
        with torch.no_grad():
            model["w"].copy_(torch.tensor(value))
        ema.update()
        for track, numbers in seen.items():
            numbers.append(ema.tracks[track].value("w").tolist())
    assert [numbers[0] for numbers in seen["a"]] == [2.0, 2.5, 2.75]
    assert [numbers[1] for numbers in seen["a"]][1:] == [8.0, 12.0]
    assert [numbers[1] for numbers in seen["b"]][1:] == [8.0, 10.0]
    assert ema.metrics()["skipped_tensors"] == {"w": 1}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
def test_an_infinity_that_stays_is_its_own_average(engine: str, storage: str, infinity: float) -> None:
    model = nn.ParameterDict({"mask": nn.Parameter(torch.tensor([1.0, infinity]))})
    ema = polyak.EMA(model, {"a": 0.5, "b": 0.75}, engine=engine, **STORAGES[storage])
    for _ in range(5):
        ema.update()
        assert [track.value("mask").tolist() for track in ema.tracks.values()] == [[1.0, infinity]] * 2


def test_nothing_is_looked_at_any_more_once_all_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, float("nan")]))})
    ema = polyak.EMA(model, 0.5)
    with torch.no_grad():
        model["w"].fill_(2.0)
    ema.update()
    monkeypatch.setattr(tensors, "all_finite", lambda given: pytest.fail("looked"))
    ema.update()


def test_what_the_storage_cannot_hold_begins_when_it_can() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 1e6]))})
    ema = polyak.EMA(model, 0.5, dtype=torch.float16)
    ema.update()
    with torch.no_grad():
        model["w"][1] = 1024.0
    ema.update()
    assert ema.tracks["average"].tensors["w"].tolist() == [1.0, 1024.0]


def poisoned() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].bias[1] = float("nan")
    return model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, "split"])
def test_raise_begins_with_nothing_that_is_not_finite(dtype: Any) -> None:
    with pytest.raises(polyak.NonFiniteError, match=r"1\.bias is not finite, .* its average would begin"):
        polyak.EMA(poisoned(), 0.5, dtype=dtype, on_nonfinite="raise")
    polyak.EMA(poisoned(), 0.5, dtype=dtype, on_nonfinite="raise", exclude="1.bias")


def test_ignore_begins_with_what_there_is() -> None:
    model = poisoned()
    ema = polyak.EMA(model, 0.5, on_nonfinite="ignore")
    with torch.no_grad():
        model[1].bias.fill_(1.0)
    ema.update()
    assert ema.tracks["average"].tensors["1.bias"].isfinite().tolist() == [True, False]


def test_a_newcomer_that_is_not_finite_is_refused_and_nothing_is_averaged() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    ema = polyak.EMA(model, 0.5, on_nonfinite="raise")
    before = ema.tracks["average"].tensors["0.weight"].clone()
    model.append(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(polyak.NonFiniteError, match=r"1\.weight"):
        ema.update()
    assert ema.step == 0
    assert torch.equal(ema.tracks["average"].tensors["0.weight"], before)
    with torch.no_grad():
        model[1].weight[0, 0] = 2.0
    ema.update()
    assert ema.tracks["average"].tensors["1.weight"][0, 0] == 2.0


def test_a_reset_that_is_refused_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    ema = polyak.EMA(model, 0.5, on_nonfinite="raise")
    ema.update()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(polyak.NonFiniteError, match="weight is not finite"):
        ema.reset()
    assert ema.tracks["average"].tensors["weight"].isfinite().all()
    assert ema.tracks["average"].profile.weights().tolist() == [0.5, 0.5]
    with torch.no_grad():
        model.weight[0, 0] = 1.0
    model.requires_grad_(False)
    with pytest.raises(polyak.PlanError, match="nothing to average"):
        ema.reset()
    assert set(ema.tracks["average"].tensors) == {"weight", "bias"}


@pytest.mark.parametrize("storage", STORAGES)
def test_a_run_that_resumes_with_a_poisoned_model_has_its_average(storage: str) -> None:
    model = nn.Linear(3, 3)
    ema = polyak.EMA(model, 0.9, **STORAGES[storage])
    ema.update()
    with torch.no_grad():
        model.weight.add_(0.1).fill_(float("nan"))
    again = polyak.EMA(model, 0.9, **STORAGES[storage])
    again.load_state_dict(ema.state_dict())
    for one in (ema, again):
        one.update()
        one.copy_to()
        assert model.weight.isfinite().all(), "which is how to go on from here"
        with torch.no_grad():
            model.weight.fill_(float("nan"))
    assert torch.equal(again.tracks["average"].tensors["weight"], ema.tracks["average"].tensors["weight"])


def test_a_poisoned_average_that_is_loaded_is_mended() -> None:
    model = nn.Linear(2, 2)
    sick = polyak.EMA(model, 0.5, on_nonfinite="ignore")
    with torch.no_grad():
        kept = model.weight.clone()
        model.weight[0, 0] = float("nan")
        sick.update()
        model.weight.copy_(kept)
    ema = polyak.EMA(model, 0.5)
    ema.load_state_dict(sick.state_dict())
    ema.update()
    assert torch.equal(ema.tracks["average"].tensors["weight"], kept)
