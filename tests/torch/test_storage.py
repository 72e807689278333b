"""Averages kept in two parts, "split" and compensated, through everything that reads or writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyak
from polyak._core.save_and_load import capture
from polyak._foreign.open_any import open_weights

KINDS: dict[str, dict[str, Any]] = {"split": {"dtype": "split"}, "compensated": {"compensated": True}}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def trained(options: dict[str, Any], steps: int = 5) -> polyak.EMA:
    model = network()
    ema = polyak.EMA(model, {"a": 0.9, "b": 0.99}, **options)
    advance(ema, range(steps))
    return ema


def advance(ema: polyak.EMA, steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for tensor in ema.model.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
        ema.update()


def parts(ema: polyak.EMA) -> dict[str, Tensor]:
    return {
        f"{track}.{kept}.{name}": tensor.clone()
        for track, one in ema.tracks.items()
        for kept in ("tensors", "residuals")
        for name, tensor in getattr(one, kept).items()
    }


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_what_is_kept_is_what_was_asked_for(kind: str) -> None:
    track = trained(KINDS[kind]).tracks["a"]
    form = {"split": (torch.bfloat16, torch.int8), "compensated": (torch.float32, torch.float32)}[kind]
    averaged = {name for name, _ in network().named_parameters()}
    assert averaged <= track.residuals.keys()
    for name, low in track.residuals.items():
        assert (track.tensors[name].dtype, low.dtype) == form
        assert low.shape == track.tensors[name].shape
    assert any(bool(low.any()) for low in track.residuals.values())


def test_all_digits_follow_float64(kind: str) -> None:
    exact, kept = trained({"dtype": torch.float64}), trained(KINDS[kind])
    near = {"split": 2.0**-13, "compensated": 2.0**-26}[kind]
    for track in "ab":
        for name, value in exact.tracks[track].tensors.items():
            assert torch.allclose(kept.tracks[track].value(name).double(), value, rtol=near, atol=near)


def test_wider_and_complex_tensors_need_no_second_part(kind: str) -> None:
    tensors = {"c": torch.ones(2, dtype=torch.complex64), "f": torch.ones(2)}
    if kind == "compensated":
        tensors["d"] = torch.ones(2).double()
    ema = polyak.EMA(nn.ParameterDict({k: nn.Parameter(t) for k, t in tensors.items()}), 0.5, **KINDS[kind])
    assert set(ema.tracks["average"].residuals) == {"f"}
    ema.update()


def test_the_first_average_is_theta_to_all_its_digits(kind: str) -> None:
    model = network()
    ema = polyak.EMA(model, 0.9, **KINDS[kind])
    for name, theta in model.named_parameters():
        value = ema.tracks["average"].value(name).double()
        near = 2.0**-16 if kind == "split" else 0
        assert torch.allclose(value, theta.double(), rtol=near, atol=0)


WAYS: dict[str, Callable[[polyak.EMA, polyak.EMA, Path], object]] = {
    "state_dict": lambda old, new, _: new.load_state_dict(copy.deepcopy(old.state_dict())),
    "torch.save": lambda old, new, folder: new.load_state_dict(_through_file(old, folder / "s.pt")),
    "resumable": lambda old, new, folder: (old.save(folder / "s", resumable=True), new.load(folder / "s"))[1],
}


def _through_file(ema: polyak.EMA, path: Path) -> Any:
    torch.save(ema.state_dict(), path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("way", WAYS)
def test_both_parts_come_back_bit_by_bit_and_go_on_as_before(kind: str, way: str, tmp_path: Path) -> None:
    whole, old = trained(KINDS[kind], 9), trained(KINDS[kind], 5)
    new = polyak.EMA(old.model, {"a": 0.9, "b": 0.99}, **KINDS[kind])
    assert not WAYS[way](old, new, tmp_path)
    assert equal(parts(new), parts(old))
    advance(new, range(5, 9))
    assert equal(parts(new), parts(whole))


def test_a_float32_state_goes_into_split_and_back_losing_8_bits() -> None:
    old = trained({})
    split = polyak.EMA(network(1), {"a": 0.9, "b": 0.99}, dtype="split")
    with pytest.raises(polyak.CheckpointError, match=r"a/0\.weight torch\.float32 to torch\.bfloat16"):
        split.load_state_dict(old.state_dict())
    assert split.load_state_dict(old.state_dict(), strict=False).converted
    back = polyak.EMA(network(2), {"a": 0.9, "b": 0.99})
    assert back.load_state_dict(split.state_dict(), strict=False).converted
    for track in "ab":
        for name, value in old.tracks[track].tensors.items():
            assert torch.allclose(split.tracks[track].value(name), value, rtol=2.0**-16, atol=0)
            assert torch.equal(back.tracks[track].tensors[name], split.tracks[track].value(name))


def test_a_float32_state_goes_into_compensated_and_back_exactly() -> None:
    old = trained({})
    wide = polyak.EMA(network(1), {"a": 0.9, "b": 0.99}, compensated=True)
    assert "from one part to two" in wide.load_state_dict(old.state_dict(), strict=False).converted[0]
    assert all(not bool(low.any()) for low in wide.tracks["a"].residuals.values())
    back = polyak.EMA(network(2), {"a": 0.9, "b": 0.99})
    back.load_state_dict(wide.state_dict(), strict=False)
    assert equal(parts(back), parts(old))


def test_one_form_of_two_parts_goes_into_the_other() -> None:
    old = trained({"compensated": True})
    new = polyak.EMA(network(1), {"a": 0.9, "b": 0.99}, dtype="split")
    assert new.load_state_dict(old.state_dict(), strict=False).converted
    for name, low in new.tracks["a"].residuals.items():
        value = old.tracks["a"].value(name)
        assert torch.allclose(new.tracks["a"].value(name).double(), value, rtol=2.0**-16, atol=0)
        assert low.dtype == torch.int8


def rename(lows: dict[str, Any]) -> None:
    lows["nobody"] = lows.pop("0.weight")


def shorten(lows: dict[str, Any]) -> None:
    lows["0.weight"] = lows["0.weight"][:2]


def widen(lows: dict[str, Any]) -> None:
    lows["0.weight"] = lows["0.weight"].to(torch.float64)


def take_for_a_number(lows: dict[str, Any]) -> None:
    lows["0.weight"] = 3


def empty(lows: dict[str, Any]) -> None:
    lows["0.weight"] = None


def lose_values(lows: dict[str, Any]) -> None:
    lows["0.weight"] = lows["0.weight"].to("meta")


@pytest.mark.parametrize("spoil", [rename, shorten, widen, take_for_a_number, empty, lose_values])
@pytest.mark.parametrize("strict", [True, False])
def test_a_malformed_second_part_is_refused_and_nothing_changed(
    kind: str, spoil: Callable[[dict[str, Any]], None], strict: bool
) -> None:
    state = copy.deepcopy(trained(KINDS[kind]).state_dict())
    spoil(state["tracks"]["b"]["lows"])
    ema = polyak.EMA(network(1), {"a": 0.9, "b": 0.99}, **KINDS[kind])
    before, step = parts(ema), ema.step
    with pytest.raises(polyak.CheckpointError):
        ema.load_state_dict(state, strict)
    assert equal(parts(ema), before)
    assert ema.step == step


def test_lows_that_are_no_table_are_refused(kind: str) -> None:
    state = copy.deepcopy(trained(KINDS[kind]).state_dict())
    state["tracks"]["a"]["lows"] = 5
    ema = trained(KINDS[kind])
    before = parts(ema)
    with pytest.raises(polyak.CheckpointError):
        ema.load_state_dict(state)
    assert equal(parts(ema), before)


@pytest.mark.parametrize("size", [1, 2])
def test_a_tensor_of_another_shape_is_left_as_it_is(kind: str, size: int) -> None:
    theirs = polyak.EMA(nn.Linear(2, size), 0.5, **KINDS[kind])
    mine = polyak.EMA(nn.Linear(2, 3), 0.5, **KINDS[kind])
    before = parts(mine)
    assert mine.load_state_dict(theirs.state_dict(), strict=False).resized
    assert equal(parts(mine), before)


@pytest.mark.parametrize("options", [("split", torch.bfloat16), (torch.bfloat16, "split")])
def test_a_state_with_other_parts_is_no_exact_match(options: tuple[Any, Any]) -> None:
    theirs, mine = (polyak.EMA(nn.Linear(2, 3), 0.5, dtype=dtype) for dtype in options)
    with pytest.raises(polyak.CheckpointError):
        mine.load_state_dict(theirs.state_dict())


def test_a_plain_file_holds_the_average_as_any_tool_reads_it(kind: str, tmp_path: Path) -> None:
    ema = trained(KINDS[kind])
    ema.save(tmp_path / "average.safetensors", "b")
    with open_weights(tmp_path / "average.safetensors") as weights:
        assert set(weights.tensors) == set(ema.model.state_dict())
        for name, tensor in ema.tracks["b"].tensors.items():
            read = np.array(weights.tensors[name].read()).astype(np.float64)
            np.testing.assert_array_equal(read, tensor.double().numpy())


@pytest.mark.parametrize("theta", [torch.float32, torch.float64, torch.bfloat16])
def test_the_model_computes_with_all_digits_it_has_room_for(kind: str, theta: torch.dtype) -> None:
    model = nn.Linear(30, 30, bias=False).to(theta)
    ema = polyak.EMA(model, 0.9, **({"dtype": torch.float32} | KINDS[kind]))
    with torch.no_grad():
        model.weight.add_(0.1234567)
    for _ in range(3):
        ema.update()
    raw, track = model.weight.detach().clone(), ema.tracks["average"]
    # In the first part's own dtype the model points at it.
    expected = (track.tensors["weight"] if theta == torch.bfloat16 else track.value("weight")).to(theta)
    before = parts(ema)
    with ema.average_parameters():
        assert torch.equal(model.weight, expected)
        assert model.weight.dtype == theta
    assert torch.equal(model.weight, raw)
    other = nn.Linear(30, 30, bias=False).to(theta)
    ema.copy_to(other)
    assert torch.equal(other.weight, expected)
    ema.copy_to()
    assert torch.equal(model.weight, expected)
    assert equal(parts(ema), before)


def test_a_float16_model_has_room_for_more_digits_than_bfloat16() -> None:
    model = nn.Linear(30, 30, bias=False).half()
    ema = polyak.EMA(model, 0.9, dtype="split")
    expected = ema.tracks["average"].value("weight").half()
    with ema.average_parameters():
        assert torch.equal(model.weight, expected)


def test_the_module_is_on_the_first_parts_and_follows(kind: str) -> None:
    ema = trained(KINDS[kind])
    module = ema.module_of("b")
    for step in (5, 6):
        advance(ema, range(step, step + 1))
        for name, tensor in module.named_parameters():
            assert torch.equal(tensor, ema.tracks["b"].tensors[name])


def test_a_captured_copy_has_all_digits_and_no_later_update_reaches_it(kind: str) -> None:
    ema = trained(KINDS[kind])
    expected = {name: ema.tracks["a"].value(name).to(torch.float32) for name in ema.tracks["a"].residuals}
    captured = capture(ema, "a", "float32")
    apart = sum(
        float((ema.tracks["a"].value(name).double() - theta.detach().double()).square().sum())
        for name, theta in ema.model.named_parameters()
    )
    assert captured.header.state["apart"] == pytest.approx(apart, rel=1e-4)
    advance(ema, range(5, 8))
    for name, value in expected.items():
        torch.testing.assert_close(captured.content.tensors[name], value, atol=0, rtol=0)


def test_an_archive_stores_all_digits(kind: str, tmp_path: Path) -> None:
    model = network()
    ema = polyak.EMA(model, {"a": 0.9, "b": 0.99}, **KINDS[kind])
    archive = polyak.Archive(tmp_path / "archive", ema, every=2, dtype="float32")
    advance(ema, range(2))
    expected = {name: ema.tracks["a"].value(name).to(torch.float32) for name in ema.tracks["a"].residuals}
    archive.flush()
    advance(ema, range(2, 3))
    archive.close()
    files = [file for file in (tmp_path / "archive").rglob("*.safetensors") if "a" in file.name]
    assert files
    found = False
    for file in files:
        with open_weights(file) as weights:
            read = {
                name: np.array(weights.tensors[name].read()) for name in expected if name in weights.tensors
            }
        found |= all(name in read and np.array_equal(read[name], expected[name].numpy()) for name in expected)
    assert found


def test_a_reset_tensor_starts_again_with_both_parts(kind: str) -> None:
    ema = trained(KINDS[kind])
    ema.reset("0.weight")
    fresh = polyak.EMA(ema.model, 0.9, **KINDS[kind]).tracks["average"]
    for track in ema.tracks.values():
        assert torch.equal(track.tensors["0.weight"], fresh.tensors["0.weight"])
        assert torch.equal(track.residuals["0.weight"], fresh.residuals["0.weight"])


def test_a_newcomer_has_both_parts_and_the_others_keep_theirs(kind: str) -> None:
    model = network()
    ema = polyak.EMA(model, {"a": 0.9, "b": 0.99}, **KINDS[kind])
    advance(ema, range(3))
    kept = ema.tracks["a"].residuals["0.weight"]
    model.append(nn.Linear(3, 3))
    advance(ema, range(3, 4))
    assert ema.tracks["a"].residuals["0.weight"] is kept
    assert ema.tracks["a"].residuals.keys() >= {"3.weight", "3.bias"}


def test_compensated_averages_of_another_dtype_are_refused() -> None:
    with pytest.raises(polyak.ConfigError, match="only float32 averages are compensated"):
        polyak.EMA(nn.Linear(2, 2), 0.9, compensated=True, dtype="split")
