"""Which tensors, when, and how much: globs, several averages, optimizers that skip."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import polyak
from polyak import reference


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def backward(model: nn.Module, seed: int) -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()


def agree(ema: polyak.EMA, state: reference.State) -> None:
    for name, expected in state.average.items():
        np.testing.assert_allclose(ema.tracks["average"].tensors[name].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        ({"include": "2.*"}, {"2.weight", "2.bias"}),
        ({"include": ["0.weight", "2.weight"]}, {"0.weight", "2.weight"}),
        ({"exclude": ["0.*", "1.*"]}, {"2.weight", "2.bias"}),
        ({"include": "*.weight", "exclude": "1.*"}, {"0.weight", "2.weight"}),
    ],
)
def test_globs_choose_tensors_and_the_rest_is_the_models_own(globs: dict, names: set[str]) -> None:
    model = network()
    ema = polyak.EMA(model, 0.5, **globs)
    assert set(ema.tracks["average"].tensors) == names
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update()
    for name, p in ema.module.named_parameters():
        assert torch.equal(p, model.get_parameter(name)) == (name not in names)


def test_a_pattern_that_matches_nothing_is_an_error_that_lists_names() -> None:
    with pytest.raises(polyak.ConfigError, match=r"include='heads\.\*' matches no tensor.*0\.weight"):
        polyak.EMA(network(), 0.9, include=["0.*", "heads.*"])
    with pytest.raises(polyak.ConfigError, match="exclude='nothing'"):
        polyak.EMA(network(), 0.9, exclude="nothing")


def test_attach_counts_optimizer_steps_not_micro_batches() -> None:
    model = network()
    ema, state = polyak.EMA(model, polyak.Warmup(0.9)), reference.init(arrays(model), polyak.Warmup(0.9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    handle = ema.attach(optimizer)
    for micro in range(1, 13):
        backward(model, micro)
        if micro % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
            state = reference.update(state, arrays(model))
    assert ema.step == 3
    agree(ema, state)
    handle.remove()
    backward(model, 99)
    optimizer.step()
    assert ema.step == 3


@pytest.mark.parametrize("fused", [False, True])
def test_attach_does_not_count_steps_the_scaler_skips(fused: bool) -> None:
    model = network().float()
    ema, taken = polyak.EMA(model, 0.9), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    ema.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(6):
        x = torch.full((4, 3), 1e38 if step in (1, 4) else 1.0) * torch.rand(4, 3)
        scaler.scale(
            model(x).float().square().sum() * 1e30 if step in (1, 4) else model(x).square().sum()
        ).backward()
        before = model[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        taken += not torch.equal(before, model[0].weight)
    assert 0 < taken < 6, "some steps must be skipped for this to show anything"
    assert ema.step == taken


def test_attach_refuses_a_decay_that_counts_samples() -> None:
    model = network()
    ema = polyak.EMA(model, polyak.HalfLife(samples=1000))
    with pytest.raises(polyak.ConfigError, match=r"'average' counts samples.*ema\.update\(samples=…\)"):
        ema.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_samples_must_be_said_when_they_are_counted() -> None:
    ema = polyak.EMA(network(), {"a": 0.9, "b": polyak.HalfLife(tokens=1000)})
    with pytest.raises(polyak.ConfigError, match="counts tokens"):
        ema.update()
    assert ema.step == 0
    ema.update(tokens=10)
    assert (ema.tracks["a"].clock, ema.tracks["b"].clock) == (1, 10)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": -3}, {"steps": 1.5}])
def test_time_does_not_stand_still_or_go_back(bad: dict) -> None:
    with pytest.raises(polyak.ConfigError, match="at least 1"):
        polyak.EMA(network(), 0.9).update(**bad)


def test_every_and_batch_size_keep_the_half_life() -> None:
    lives = []
    for every, per_step, decay in (
        (1, 1, polyak.HalfLife(steps=50)),
        (8, 1, polyak.HalfLife(steps=50)),
        (1, 64, polyak.HalfLife(samples=50 * 64)),
    ):
        ema = polyak.EMA(nn.Linear(1, 1), decay, every=every)
        for _ in range(1600):
            ema.update(samples=per_step)
        lives.append(ema.tracks["average"].profile.half_life)
    assert lives == pytest.approx([50, 50, 50], rel=1e-6)


@settings(deadline=None)  # a shared machine may pause at any moment
@given(
    every=st.integers(1, 6),
    start=st.integers(0, 12),
    updates=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 90)), min_size=1, max_size=12),
    decay=st.sampled_from(
        [
            polyak.Constant(0.7),
            polyak.HalfLife(samples=50),
            polyak.Debiased(0.9),
            polyak.Warmup(0.95, after=2),
            polyak.Uniform(),
            polyak.Piecewise([(5, 0.3), (None, polyak.Ramp(0.9, tau=4))]),
        ]
    ),
)
def test_at_any_pace_the_average_is_the_references_and_its_profile_says_what_it_is(
    every: int, start: int, updates: list[tuple[int, int]], decay: polyak.Decay
) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(1, dtype=torch.float64))})
    ema = polyak.EMA(model, decay, every=every, start=start)
    state = reference.init(arrays(model), decay, every=every, start=start)
    trajectory = {0: 0.0}
    for i, (steps, samples) in enumerate(updates, 1):
        with torch.no_grad():
            model["w"].fill_(i * i % 11 - 5.0)
        ema.update(steps, samples=samples)
        trajectory[ema.step] = model["w"].item()
        units = samples if decay.unit == "samples" else steps
        state = reference.update(state, arrays(model), steps=steps, units=units)
        agree(ema, state)
        weights = ema.tracks["average"].profile.weights()
        assert set(weights.nonzero()[0]) <= trajectory.keys()
        said = sum(weights[t] * value for t, value in trajectory.items() if t < len(weights))
        assert ema.tracks["average"].tensors["w"].item() == pytest.approx(said, abs=1e-12)
    assert ema.step == sum(steps for steps, _ in updates)


def test_the_profile_of_a_newcomer_begins_where_it_joined() -> None:
    model = network()
    model[2].requires_grad_(False)
    ema, seen = polyak.EMA(model, 0.8), []
    for step in range(9):
        if step == 4:
            model[2].requires_grad_(True)
        with torch.no_grad():
            model[2].weight.add_(1.0 if step >= 4 else 0.0)
            model[0].weight.mul_(0.9)
        seen.append(arrays(model)["2.weight"])
        ema.update()
    track = ema.tracks["average"]
    weights = track.profile_of("2.weight").weights()
    assert weights[:5].tolist() == [0] * 5
    said = sum(w * theta for w, theta in zip(weights[1:], seen, strict=True))
    np.testing.assert_allclose(track.tensors["2.weight"].numpy(), said, atol=1e-12)
    assert track.profile_of("0.weight") == track.profile
    with pytest.raises(polyak.PlanError, match="'nope' is not averaged"):
        track.profile_of("nope")


def test_reset_starts_again_from_the_model() -> None:
    model = network()
    ema = polyak.EMA(model, polyak.Debiased(0.9))
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(1)
        ema.update()
    ema.reset("0.weight")
    track = ema.tracks["average"]
    assert torch.equal(track.tensors["0.weight"], model[0].weight)
    assert (track.clock, track.joined) == (3, {"0.weight": 3})
    ema.reset()
    assert (ema.step, ema.tracks["average"].clock) == (3, 0)
    assert ema.tracks["average"].profile == polyak.Profile.raw(3)
    with pytest.raises(polyak.ConfigError, match="names='x' matches no averaged tensor"):
        ema.reset("x")


def test_copy_to_is_all_or_nothing() -> None:
    model, other = network(), network()
    ema = polyak.EMA(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(2)
    ema.update()
    ema.copy_to(other)
    assert torch.equal(other[0].weight, ema.module[0].weight)
    smaller = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    before = smaller[0].weight.clone()
    with pytest.raises(polyak.PlanError, match=r"2\.weight \(2, 4\) is \(3, 4\) there"):
        ema.copy_to(smaller)
    assert torch.equal(smaller[0].weight, before)
    ema.copy_to()
    assert torch.equal(model[0].weight, ema.module[0].weight)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decay": 1.2}, "beta=1.2"),
        ({"decay": {}}, "at least one track"),
        ({"decay": "0.9"}, "decay='0.9'"),
        ({"decay": True}, "decay=True"),
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, "every=2.5"),
        ({"device": "banana"}, "device='banana'"),
        ({"start": -1}, "start=-1"),
        ({"buffers": "mean"}, "buffers='mean'"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
        ({"on_nonfinite": "pray"}, "on_nonfinite='pray'"),
    ],
)
def test_bad_arguments_are_named(options: dict, says: str) -> None:
    with pytest.raises(polyak.ConfigError) as refused:
        polyak.EMA(network(), **options)
    assert says in str(refused.value)


def test_parameters_instead_of_the_model_are_a_named_mistake() -> None:
    with pytest.raises(polyak.ConfigError, match=r"model is a generator: give the nn\.Module itself"):
        polyak.EMA(network().parameters(), 0.9)  # type: ignore[arg-type]


def test_metrics_of_several_tracks_have_their_names() -> None:
    model = network()
    ema = polyak.EMA(model, {"short": 0.5, "long": 0.99})
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    metrics = ema.metrics()
    assert metrics["step"] == 1
    assert metrics["short/decay"] == 0.5
    assert metrics["long/initial_weight"] == pytest.approx(0.99)
    live = model.state_dict()
    for name, track in ema.tracks.items():
        theta = torch.cat([live[n].flatten() for n in track.tensors])
        average = torch.cat([t.flatten() for t in track.tensors.values()])
        distance = (average - theta).norm() / theta.norm()
        assert metrics[f"{name}/distance"] == pytest.approx(distance.item())
    assert metrics["long/distance"] > metrics["short/distance"] > 0


def test_repr_is_one_line_and_shows_no_tensor() -> None:
    ema = polyak.EMA(nn.Linear(2, 2), 0.5)
    ema.update()
    assert repr(ema) == "EMA(Linear, decay=Constant(beta=0.5), step=1)"
    assert repr(ema.tracks["average"]) == (
        "Track('average', decay=Constant(beta=0.5), 2 tensors, "
        "half-life 1 steps, mean age 0.5 steps, initial weight 0.5)"
    )
    several = polyak.EMA(nn.Linear(2, 2), {"a": 0.5, "b": polyak.Warmup(0.9)})
    assert "\n" not in repr(several)
    assert "{'a': Constant(beta=0.5), 'b': Warmup(" in repr(several)


def test_only_the_model_and_its_decay_go_by_place() -> None:
    with pytest.raises(TypeError, match="positional"):
        polyak.EMA(nn.Linear(2, 2), 0.5, "weight")  # pyright: ignore
