"""One NaN must not poison an average for ever."""

import pytest
import torch
from torch import nn

import polyak


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
    ema.update()
    poison(2)
    again = polyak.EMA(model, 0.5)
    again.load_state_dict(ema.state_dict())
    ema = again
    poison(0)
    metrics = ema.metrics()
    assert (metrics["skipped"], metrics["skipped_tensors"]) == (3, {"0.weight": 2, "2.weight": 1})


@pytest.mark.parametrize("policy", ["skip", "raise"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, "split"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_average_begins_with_what_it_could_not_lose(policy: str, dtype: object, bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].bias[1] = bad
    with pytest.raises(polyak.NonFiniteError, match=r'1\.bias holds NaN, .* on_nonfinite="ignore"'):
        polyak.EMA(model, 0.5, dtype=dtype, on_nonfinite=policy)
    polyak.EMA(model, 0.5, dtype=dtype, on_nonfinite=policy, exclude="1.bias")
    assert not polyak.EMA(model, 0.5, dtype=dtype, on_nonfinite="ignore").module[1].bias.isfinite().all()


def test_nor_with_what_its_storage_cannot_hold() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 1e6]))})
    with pytest.raises(polyak.NonFiniteError, match=r"w holds .* beyond the storage's range"):
        polyak.EMA(model, 0.5, dtype=torch.float16)


def test_a_newcomer_that_is_not_finite_is_refused_and_nothing_is_averaged() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    ema = polyak.EMA(model, 0.5)
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


def test_reset_to_a_model_that_is_not_finite_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    ema = polyak.EMA(model, 0.5)
    ema.update()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(polyak.NonFiniteError, match="weight holds NaN"):
        ema.reset()
    assert ema.tracks["average"].tensors["weight"].isfinite().all()
    assert ema.tracks["average"].profile.weights().tolist() == [0.5, 0.5]


def test_nor_does_a_reset_with_nothing_left_to_average() -> None:
    model = nn.Linear(2, 2)
    ema = polyak.EMA(model, 0.5)
    ema.update()
    model.requires_grad_(False)
    with pytest.raises(polyak.PlanError, match="nothing to average"):
        ema.reset()
    assert set(ema.tracks["average"].tensors) == {"weight", "bias"}
