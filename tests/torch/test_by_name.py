"""One average whose tensors have different decays, chosen by their names."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize

import polyak
from polyak import ByName, CheckpointError, ConfigError, HalfLife, PlanError, Profile
from polyak._core.track import timelines_of
from polyak._files.open import header_of
from polyak._foreign.open_any import open_weights
from polyak.cli.describe import CheckpointSummary, describe, to_json
from polyak.convert.convert import convert
from polyak.convert.rename_rules import NameMap, Rule
from polyak.dropin import (
    diffusers,
    ema_pytorch,
    mmengine,
    simple,
    swa_utils,
    timm,
    torch_ema,
    ultralytics,
    yolo,
)
from polyak.server.tensors import values_of
from polyak.trainers._averaging import arguments_in, numbers
from tests.schedules.strategies import decays
from tests.work import lines_run

PARTS = ByName({"attn.*": HalfLife(steps=10), "*norm*": 0.5, "*": 0.99})


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    parts = {"attn": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3), "head": nn.Linear(3, 2)}
    return nn.ModuleDict(parts)


def move(model: nn.Module, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=random))
            else:
                tensor.add_(1)


def trained(decay: Any = PARTS, steps: int = 5, **options: Any) -> polyak.EMA[nn.ModuleDict]:
    ema = polyak.EMA(network(), decay, **options)
    advance(ema, steps)
    return ema


def advance(ema: polyak.EMA[Any], steps: int) -> None:
    for _ in range(steps):
        move(ema.model, ema.step)
        ema.update()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


STEPPED = decays.filter(lambda decay: decay.unit == "steps")


@settings(max_examples=40, deadline=None)
@given(
    first=STEPPED,
    second=STEPPED,
    every=st.integers(1, 3),
    start=st.integers(0, 4),
    dtype=st.sampled_from([None, torch.bfloat16, torch.float64, "split"]),
    engine=st.sampled_from(["auto", "foreach", "blocked"]),
)
def test_each_tensor_is_bit_by_bit_that_of_an_average_with_its_decay(
    first: polyak.Decay, second: polyak.Decay, every: int, start: int, dtype: Any, engine: Any
) -> None:
    options: dict[str, Any] = {"every": every, "start": start, "dtype": dtype, "engine": engine}
    named = trained(ByName({"attn.*": first, "*": second}), 8, **options).tracks["average"]
    alone = [trained(decay, 8, **options).tracks["average"] for decay in (first, second)]
    for name, tensor in named.tensors.items():
        track = alone[0 if name.startswith("attn.") else 1]
        assert torch.equal(tensor, track.tensors[name]), name
        assert named.profile_of(name) == track.profile_of(name)


class TestTheArgument:
    def test_a_tensor_that_no_pattern_matches_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r'norm\.weight is matched by no pattern .*End with "\*"'):
            polyak.EMA(network(), ByName({"attn.*": 0.9, "head.*": 0.9}))

    def test_a_pattern_that_matches_nothing_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"ByName='\*\.attn\.\*' matches no averaged tensor; .* at"):
            polyak.EMA(network(), ByName({"*.attn.*": 0.9, "*": 0.99}))

    def test_a_pattern_behind_one_that_takes_all_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"'attn\.\*': …}\) has no effect"):
            polyak.EMA(network(), ByName({"*": 0.9, "attn.*": 0.99}))

    def test_what_is_left_out_needs_no_decay_and_counts_for_no_pattern(self) -> None:
        ema = polyak.EMA(network(), ByName({"attn.*": 0.9, "norm.*": 0.5}), exclude="head.*")
        assert set(ema.tracks["average"].patterns.values()) == {"attn.*", "norm.*"}
        with pytest.raises(ConfigError, match=r"'head\.\*' matches no averaged"):
            polyak.EMA(network(), ByName({"head.*": 0.9, "*": 0.5}), exclude="head.*")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "must be a decay for each pattern"),
            ([0.9], "must be a decay for each pattern"),
            ({3: 0.9}, "3 must be a name or a glob"),
            ({"*": "0.9"}, "decay='0.9': must be a number"),
            ({"*": 1.5}, r"must lie in \[0, 1\]"),
            ({"*": PARTS}, "is several decays"),
            ({"*": polyak.Adaptive(1, 10)}, "is several decays"),
        ],
    )
    def test_what_is_no_decay_for_each_pattern_is_refused(self, given: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ByName(given)

    def test_it_is_a_value(self) -> None:
        again = ByName({"attn.*": HalfLife(steps=10), "*norm*": polyak.Constant(0.5), "*": 0.99})
        assert (again, hash(again)) == (PARTS, hash(PARTS))
        assert pickle.loads(pickle.dumps(again)) == PARTS == eval(repr(PARTS), vars(polyak))
        assert ByName({"a": 0.9, "*": 0.8}) != ByName({"*": 0.8, "a": 0.9})  # the first match wins
        with pytest.raises(AttributeError):
            again.rules = ()  # pyright: ignore[reportAttributeAccessIssue]

    def test_a_rate_in_place_of_a_decay_warns(self) -> None:
        with pytest.warns(UserWarning, match=r"decay=0\.1 keeps only 0\.1 of the average") as warned:
            ByName({"*": 0.1})
        assert warned[0].filename == __file__

    @pytest.mark.parametrize(
        "where",
        [
            polyak.schedules.as_decay,
            polyak.Debiased,
            lambda decay: polyak.compose(decay, 1, 2),
            lambda decay: Profile.from_decay(decay, 10),
            lambda decay: polyak.Piecewise([(None, decay)]),
            lambda decay: polyak.Scaled(decay, 2),
        ],
    )
    def test_where_one_decay_is_needed_it_is_refused_by_name(self, where: Any) -> None:
        with pytest.raises(ConfigError, match=r"ByName\(.* is several decays"):
            where(PARTS)

    def test_scaling_scales_each(self) -> None:
        scaled = polyak.scale_decay(ByName({"a": HalfLife(steps=8), "b": polyak.Uniform(), "*": 0.9}), 2)
        assert scaled == ByName({"a": HalfLife(steps=4), "b": polyak.Uniform(), "*": 0.9**2})


class TestNames:
    def test_wrappers_add_nothing_to_a_name(self) -> None:
        model = network()
        model["attn"] = checkpoint_wrapper(model["attn"])
        model["head"] = torch.compile(model["head"], backend="eager")  # pyright: ignore[reportArgumentType]
        ema = polyak.EMA(nn.DataParallel(model), ByName({"attn.weight": 0.9, "head.bias": 0.8, "*": 0.7}))
        patterns = ema.tracks["average"].patterns
        assert (patterns["attn.weight"], patterns["head.bias"]) == ("attn.weight", "head.bias")
        assert {
            pattern for name, pattern in patterns.items() if name not in ("attn.weight", "head.bias")
        } == {"*"}

    def test_a_tied_tensor_has_the_first_pattern_that_matches_any_of_its_names(self, tmp_path: Path) -> None:
        model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
        model["head"].weight = model["embed"].weight
        ema = polyak.EMA(model, ByName({"head.*": 0.9}))
        assert ema.tracks["average"].profile_of("embed.weight").terms[0][1] == ()
        ema.update()
        ema.save(tmp_path / "average.safetensors")
        header = polyak.load(tmp_path / "average.safetensors").header
        assert (
            header.profile_of("embed.weight")
            == header.profile_of("head.weight")
            == Profile.from_decay(0.9, 1)
        )

    def test_a_tensor_that_is_renamed_keeps_its_decay(self) -> None:
        ema = polyak.EMA(network(), {"a": ByName({"head.weight": 0.9, "*": 0.5})})
        advance(ema, 2)
        parametrize.register_parametrization(ema.model["head"], "weight", nn.Identity())
        advance(ema, 2)
        track, renamed = ema.tracks["a"], "head.parametrizations.weight.original"
        assert track.profile_of(renamed) == Profile.from_decay(0.9, 4)

    def test_one_that_joins_later_gets_its_decay_and_its_shorter_profile(self) -> None:
        model = network()
        model["attn"].requires_grad_(False)
        ema = polyak.EMA(model, PARTS)  # a pattern for what is frozen yet is no mistake
        advance(ema, 3)
        model["attn"].requires_grad_(True)
        advance(ema, 2)
        profile = ema.tracks["average"].profile_of("attn.weight")
        assert profile == ema.tracks["average"].profiles["attn.*"].since(4)
        assert ema.tracks["average"].profile_of("head.bias") == Profile.from_decay(0.99, 5)

    def test_one_that_joins_and_has_no_decay_is_refused_and_nothing_is_lost(self) -> None:
        model = network()
        model["head"].requires_grad_(False)
        ema = polyak.EMA(model, ByName({"attn.*": 0.9, "norm.*": 0.9}))
        advance(ema, 2)
        before = copy.deepcopy(ema.tracks["average"].tensors)
        model["head"].requires_grad_(True)
        with pytest.raises(ConfigError, match=r"head\.weight is matched by no pattern"):
            ema.update()
        model["head"].requires_grad_(False)
        assert ema.step == 2
        assert_equal(dict(ema.tracks["average"].tensors), before)
        ema.update()

    def test_restarting_some_tensors_shortens_their_profiles(self) -> None:
        ema = trained()
        ema.reset("attn.*")
        advance(ema, 1)
        track = ema.tracks["average"]
        assert track.profile_of("attn.bias") == track.profiles["attn.*"].since(5)
        assert track.profile_of("head.bias") == track.profiles["*"]
        ema.reset()
        assert {profile.initial_weight for profile in ema.tracks["average"].profiles.values()} == {1.0}


class TestTheCost:
    def test_one_pass_reads_each_parameter_once(self) -> None:
        """Engines are made per set of owners, and no tensor is in two of them."""
        ema = trained({"a": PARTS, "b": 0.9, "c": ByName({"*.bias": 0.9, "*": 0.99})})
        engines = ema._averages.updater._engines  # pyright: ignore
        pairs = [pair for engine in engines for pair in engine.pairs]
        assert sorted(pair.name for pair in pairs) == sorted(ema.tracks["a"].tensors)
        assert {len(pair.averages) for pair in pairs} == {3}
        assert len(engines) == len({pair.places for pair in pairs}) == 6

    def test_an_update_with_a_plain_decay_runs_no_more_lines_than_before_there_were_names(self) -> None:
        ema = trained(0.99, engine="auto")
        if "native" not in ema.metrics()["engine"]:
            pytest.skip("counted with the C kernel")
        assert lines_run(ema.update) <= 89

    def test_lines_do_not_grow_with_tensors(self) -> None:
        def lines(layers: int) -> int:
            model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
            ema = polyak.EMA(model, ByName({"*.bias": 0.9, "*": 0.99}))
            for _ in range(3):
                ema.update()
            return lines_run(ema.update)

        assert lines(2) == lines(40)


class TestTheTrack:
    def test_it_has_no_single_profile(self) -> None:
        track = trained().tracks["average"]
        for what in ("profile", "beta", "clock", "history"):
            with pytest.raises(ConfigError, match=rf"'average' .* no single {what}: see profile_of\(name\)"):
                getattr(track, what)
        with pytest.raises(PlanError, match="'nothing' is not averaged"):
            track.profile_of("nothing")

    def test_it_shows_each_pattern(self) -> None:
        ema = trained()
        assert "decay=ByName({'attn.*': HalfLife(steps=10)" in repr(ema)
        for text in (str(ema), repr(ema.tracks["average"]), ema._repr_html_()):
            assert all(pattern in text for pattern in PARTS.decays)

    def test_metrics_are_by_pattern(self) -> None:
        metrics = trained({"a": PARTS, "b": 0.9}).metrics()
        assert metrics["a/attn.*/decay"] == pytest.approx(2**-0.1)
        assert metrics["a/*/initial_weight"] == pytest.approx(0.99**5)
        assert metrics["a/distance"] > 0
        assert metrics["b/decay"] == 0.9
        assert "attn.*/half_life" in trained().metrics()

    def test_loggers_get_names_they_accept(self) -> None:
        assert {"ema/attn._/decay", "ema/_norm_/decay", "ema/_/initial_weight"} <= numbers(trained()).keys()

    def test_a_teacher_can_have_one(self) -> None:
        teacher = polyak.Teacher(
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ByName({"0.*": 1.0, "*": 0.5})
        )
        move(teacher.ema.model, 1)
        frozen = {name: t.clone() for name, t in teacher.module.state_dict().items()}
        teacher.update()
        assert torch.equal(teacher.module.state_dict()["0.weight"], frozen["0.weight"])
        assert not torch.equal(teacher.module.state_dict()["1.weight"], frozen["1.weight"])
        again = polyak.Teacher(
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ByName({"0.*": 1.0, "*": 0.5})
        )
        again.load_state_dict(teacher.state_dict())
        assert again.ema.tracks["average"].profiles == teacher.ema.tracks["average"].profiles

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda ema: pickle.loads(pickle.dumps(ema))])
    def test_a_copy_goes_on_alone(self, copied: Any) -> None:
        ema = trained({"a": PARTS, "b": 0.9})
        twin = copied(ema)
        advance(twin, 3)
        assert {p.steps for p in ema.tracks["a"].profiles.values()} == {5}
        advance(ema, 3)
        for track in ("a", "b"):
            assert_equal(dict(ema.tracks[track].tensors), dict(twin.tracks[track].tensors))
        assert ema.tracks["a"].profiles == twin.tracks["a"].profiles

    def test_an_optimizer_knows_no_samples(self) -> None:
        ema = polyak.EMA(network(), ByName({"attn.*": HalfLife(samples=9), "*": 0.9}))
        with pytest.raises(ConfigError, match="'average' counts samples"):
            ema.attach(torch.optim.SGD(ema.model.parameters(), 0.1))
        ema.update(samples=9)
        assert ema.metrics()["attn.*/decay"] == 0.5

    def test_it_follows_an_optimizer(self) -> None:
        ema = polyak.EMA(network(), PARTS)
        optimizer = torch.optim.SGD(ema.model.parameters(), 0.1)
        ema.attach(optimizer)
        for parameter in ema.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert ema.tracks["average"].profile_of("attn.bias").steps == 1

    @pytest.mark.parametrize("policy", ["skip", "raise", "ignore"])
    def test_nan_is_handled_in_every_part_and_counted_once(self, policy: Any) -> None:
        ema = trained(on_nonfinite=policy)
        with torch.no_grad():
            for name in ("attn", "head"):
                ema.model[name].weight[0, 0] = torch.nan
        if policy == "raise":
            before = copy.deepcopy(ema.tracks["average"].tensors)
            with pytest.raises(polyak.NonFiniteError, match=r"attn\.weight"):
                ema.update()
            return assert_equal(dict(ema.tracks["average"].tensors), before)
        ema.update()
        finite = all(bool(tensor.isfinite().all()) for tensor in ema.tracks["average"].tensors.values())
        assert finite is (policy == "skip")
        metrics = ema.metrics()
        expected = (1, {"attn.weight": 1, "head.weight": 1}) if policy == "skip" else (0, {})
        assert (metrics["skipped"], metrics["skipped_tensors"]) == expected
        return None

    def test_observing_has_nothing_to_choose(self) -> None:
        with pytest.raises(ConfigError, match=r"ByName\(.*leaves nothing to choose"):
            trained().observe(lambda model: 1.0)


class TestSwapping:
    def test_all_of_it_is_live_at_once_and_gone_afterwards(self) -> None:
        ema = trained({"a": 0.5, "b": PARTS})
        raw = {name: tensor.clone() for name, tensor in ema.model.state_dict().items()}
        held = ema.tracks["b"].tensors
        with ema.average_parameters("b") as model:
            assert ema.live == "b"
            assert all(
                torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items() if name in held
            )
        assert_equal(dict(ema.model.state_dict()), raw)
        other = network()
        ema.copy_to(other, "b")
        module = ema.module_of("b").state_dict()
        for name, tensor in held.items():
            assert torch.equal(other.state_dict()[name], tensor)
            assert torch.equal(module[name], tensor)


class TestInitialWeights:
    def test_the_pattern_that_is_mostly_old_is_named(self) -> None:
        ema = trained(ByName({"attn.*": 0.9999, "*": 0.9}), 120)
        with pytest.warns(UserWarning, match=r"99% of the average 'average' of attn\.\* is still"):
            _ = ema.module

    def test_one_that_is_kept_on_purpose_is_not(self) -> None:
        ema = trained(ByName({"attn.*": 1.0, "*": 0.9}), 120)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _ = ema.module

    def test_the_best_checkpoint_waits_for_every_part_but_that(self, tmp_path: Path) -> None:
        kept = polyak.BestCheckpoint(tmp_path / "kept.safetensors", mode="max")
        assert kept.consider(trained(ByName({"attn.*": 1.0, "*": 0.5}), 20), 0.5)
        late = polyak.BestCheckpoint(tmp_path / "late.safetensors", mode="max")
        with pytest.warns(UserWarning, match="rests on the initial parameters"):
            assert not late.consider(trained(ByName({"attn.*": 0.9999, "*": 0.5}), 120), 0.5)


class TestStates:
    def test_the_patterns_of_a_state_need_not_be_the_same_words(self) -> None:
        ema = trained(ByName({"attn.*": 0.9, "*": 0.5}))
        again = polyak.EMA(network(), ByName({"[nh]*": 0.5, "attn.weight": 0.9, "attn.bias": 0.9}))
        assert not again.load_state_dict(ema.state_dict())
        for name in ema.tracks["average"].tensors:
            assert again.tracks["average"].profile_of(name) == ema.tracks["average"].profile_of(name)

    def test_another_decay_is_refused_by_pattern(self) -> None:
        state = trained().state_dict()
        again = polyak.EMA(network(), ByName({**PARTS.decays, "*": 0.9}))
        with pytest.raises(CheckpointError, match=r"average/\*: Constant\(beta=0\.9\) \(state: .*0\.99\)"):
            again.load_state_dict(state)
        report = again.load_state_dict(state, strict=False)
        assert len(report.schedules) == 1
        advance(again, 1)
        profile = again.tracks["average"].profile_of("head.bias")
        assert [run.decay for run in profile.terms[0][1]] == [polyak.Constant(0.99), polyak.Constant(0.9)]

    def test_a_plain_average_can_be_continued_by_name(self) -> None:
        state = trained(0.9).state_dict()
        again = polyak.EMA(network(), ByName({"attn.*": 0.9, "*": 0.5}))
        assert again.load_state_dict(state, strict=False).schedules == [
            "average/*: Constant(beta=0.5) (state: Constant(beta=0.9))"
        ]
        advance(again, 1)
        assert again.tracks["average"].profile_of("attn.bias") == Profile.from_decay(0.9, 6)

    def test_several_histories_do_not_become_one(self) -> None:
        state = trained().state_dict()
        again = polyak.EMA(network(), 0.9)
        move(again.model, 3)
        before = copy.deepcopy(again.tracks["average"].tensors)
        for strict in (True, False):
            with pytest.raises(
                CheckpointError, match=r"of 'attn\.\*' and '\*norm\*' in the .*one history for both"
            ):
                again.load_state_dict(state, strict)
        assert_equal(dict(again.tracks["average"].tensors), before)

    def test_a_pattern_that_the_state_lacks_starts_again(self) -> None:
        model = network()
        model["head"].requires_grad_(False)
        ema = polyak.EMA(model, ByName({"attn.*": 0.9, "*": 0.5}))
        advance(ema, 4)
        again = polyak.EMA(network(), ByName({"head.*": 0.7, "attn.*": 0.9, "*": 0.5}))
        with pytest.raises(CheckpointError, match=r"the schedule average/head\.\*: not in the state"):
            again.load_state_dict(ema.state_dict())
        again.load_state_dict(ema.state_dict(), strict=False)
        advance(again, 1)
        profile = again.tracks["average"].profile_of("head.bias")
        assert (profile.steps, profile.initial_weight) == (5, pytest.approx(0.7))
        assert again.tracks["average"].profile_of("attn.bias") == Profile.from_decay(0.9, 5)

    def test_a_renamed_tensor_keeps_its_decay_in_the_state_too(self) -> None:
        """Its new name matches another pattern, in this run and in one that resumes it."""
        decay, model = ByName({"h*": 0.9, "*": 0.5}), network()
        model["hidden"] = nn.Linear(2, 2)
        ema = polyak.EMA(model, decay)
        advance(ema, 2)
        ema.model["outer"] = nn.ModuleDict({"head": ema.model["head"]})
        del ema.model["head"]
        advance(ema, 1)
        track = ema.tracks["average"]
        assert track.patterns["outer.head.weight"] == "h*"
        again = polyak.EMA(copy.deepcopy(ema.model), decay)
        assert again.tracks["average"].patterns["outer.head.weight"] == "*"
        assert not again.load_state_dict(ema.state_dict())
        advance(ema, 2)
        advance(again, 2)
        assert again.tracks["average"].patterns == track.patterns
        assert again.tracks["average"].profile_of("outer.head.weight") == Profile.from_decay(0.9, 5)
        assert_equal(dict(again.tracks["average"].tensors), dict(track.tensors))

    def test_a_state_with_a_pattern_of_no_schedule_is_malformed(self) -> None:
        state = trained().state_dict()
        values = json.loads(state["polyak"])
        values["tracks"]["average"]["patterns"]["attn.bias"] = "gone"
        with pytest.raises(CheckpointError, match="the pattern 'gone', and no schedule of it"):
            polyak.EMA(network(), PARTS).load_state_dict({**state, "polyak": json.dumps(values)})

    def test_a_trainer_finds_the_decays_in_its_checkpoint(self) -> None:
        decays, _ = arguments_in(trained({"a": PARTS, "b": 0.9}).state_dict(), {})
        assert decays == {"a": PARTS, "b": polyak.Constant(0.9)}

    def test_a_resumable_file_is_bit_by_bit_the_run(self, tmp_path: Path) -> None:
        ema = trained({"a": PARTS, "b": 0.9}, dtype=torch.bfloat16, seed=3)
        ema.save(tmp_path / "all.safetensors", resumable=True)
        again = polyak.EMA(copy.deepcopy(ema.model), {"a": PARTS, "b": 0.9}, dtype=torch.bfloat16, seed=3)
        assert not again.load(tmp_path / "all.safetensors")
        advance(ema, 4)
        advance(again, 4)
        for track in ("a", "b"):
            assert_equal(dict(ema.tracks[track].tensors), dict(again.tracks[track].tensors))
        found = describe(tmp_path / "all.safetensors")
        assert isinstance(found, CheckpointSummary)
        assert [len(part.rules) for part in found.parts] == [3, 0]

    def test_the_order_of_decays_is_that_of_the_tracks(self) -> None:
        ema = polyak.EMA(network(), {"a": PARTS, "b": 0.9})
        assert [line.decay for line in timelines_of(ema.tracks.values())] == [
            *PARTS.decays.values(),
            polyak.Constant(0.9),
        ]


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        trained().save(tmp_path / "average.safetensors")
        return tmp_path / "average.safetensors"

    def test_a_file_has_a_profile_for_each_pattern(self, file: Path) -> None:
        average, ema = polyak.load(file), trained()
        header = average.header
        assert {rule.pattern: rule.decay for rule in header.rules} == PARTS.decays
        for name, tensor in ema.tracks["average"].tensors.items():
            assert header.profile_of(name) == ema.tracks["average"].profile_of(name)
            np.testing.assert_array_equal(average.tensors[name], tensor.numpy())
        assert header.profile_of("norm.num_batches_tracked") is None

    def test_readers_that_know_no_patterns_find_a_known_header(self, file: Path) -> None:
        """What they see: an average whose profile is unknown, under the format they know."""
        with open_weights(file) as weights:
            fields = json.loads(weights.metadata["polyak"])
            assert weights.tensors["attn.weight"].read().shape == (3, 3)
        rules = fields.pop("rules")
        assert [rule["pattern"] for rule in rules] == list(PARTS.decays)
        plain = trained(0.9)
        plain.save(file)
        with open_weights(file) as weights:
            assert fields.keys() == json.loads(weights.metadata["polyak"]).keys()
        assert (fields["format"], fields["decay"], fields["profile"], fields["role"]) == (
            1,
            None,
            None,
            "average",
        )

    def test_a_state_in_a_pickle_says_the_same(self, file: Path, tmp_path: Path) -> None:
        torch.save(trained().state_dict(), tmp_path / "state.pt")
        assert polyak.load(tmp_path / "state.pt").header.rules == polyak.load(file).header.rules

    def test_inspect_shows_each_pattern(self, file: Path) -> None:
        found = describe(file)
        assert isinstance(found, CheckpointSummary)
        [part] = found.parts
        assert [(rule.decay, rule.tensors.count) for rule in part.rules] == [
            (HalfLife(steps=10), 2),
            (polyak.Constant(0.5), 4),
            (polyak.Constant(0.99), 2),
        ]
        assert part.figures is None
        assert part.rules[2].figures is not None
        assert to_json(found)["parts"][0]["rules"][0]["profile"]["decays"] == [
            {"kind": "HalfLife", "steps": 10}
        ]

    def test_conversion_keeps_the_patterns(self, file: Path, tmp_path: Path) -> None:
        convert(
            file,
            tmp_path / "other.safetensors",
            names=NameMap((Rule(r"attn\.(.*)", r"attention.\1"), Rule(".*", r"\g<0>"))),
        )
        with open_weights(tmp_path / "other.safetensors") as weights:
            header, old = header_of(weights), polyak.load(file).header
        assert header.rules[0].tensors == ("attention.weight", "attention.bias")
        assert header.rules[1:] == old.rules[1:]
        assert header.profile_of("attention.bias") == old.profile_of("attn.bias")

    def test_means_of_files_weigh_files_or_are_refused(self, file: Path, tmp_path: Path) -> None:
        out = tmp_path / "mean.safetensors"
        made = polyak.average_checkpoints([file, file], out)
        assert made.header.profile is None
        np.testing.assert_array_equal(
            polyak.load(out).tensors["attn.bias"], polyak.load(file).tensors["attn.bias"]
        )
        with pytest.raises(CheckpointError, match=r"an average by name, whose tensors have several profiles"):
            polyak.average_checkpoints([file, file], out, weights=polyak.Uniform())

    def test_an_archive_refuses_it(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"the track 'a' averages its tensors by several decays"):
            polyak.Archive(tmp_path / "archive", trained({"b": 0.9, "a": PARTS}))
        assert not list((tmp_path / "archive").glob("*.safetensors"))

    def test_a_dropin_refuses_it(self) -> None:
        model = nn.Linear(2, 1)
        given: Any = PARTS
        makers = [
            lambda: torch_ema.ExponentialMovingAverage(model.parameters(), decay=given),
            lambda: timm.ModelEmaV3(model, decay=given),
            lambda: timm.ModelEmaV2(model, decay=given),
            lambda: diffusers.EMAModel(model.parameters(), decay=given),
            lambda: ema_pytorch.EMA(model, beta=given),
            lambda: mmengine.ExponentialMovingAverage(model, momentum=given),
            lambda: swa_utils.get_ema_avg_fn(given),
            lambda: simple.EMA(model, given),
            lambda: ultralytics.ModelEMA(model, decay=given),
            lambda: yolo.ModelEMA(model, decay=given),
        ]
        for make in makers:
            with pytest.raises(ConfigError, match=r"is several decays"):
                make()

    def test_a_push_refuses_it(self, file: Path) -> None:
        for model in (file, polyak.load(file)):
            with pytest.raises(polyak.ServerError, match=r"a profile for each of attn\.\*, .* one decay"):
                values_of(model)
