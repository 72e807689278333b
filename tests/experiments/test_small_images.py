"""The experiments on small images: tiny real runs; two sides differ in what is tried and in nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments import small_images
from experiments.adversarial import run as adversarial
from experiments.byol import dino
from experiments.byol import run as byol
from experiments.distillation import run as distillation
from experiments.fashion import constant
from experiments.harness import Experiment, continued
from experiments.longrun import run as longrun
from experiments.small_images import Split, batches, classifier, evaluate, load

TINY = {"train": 300, "test": 250, "steps": 12, "evaluations": 3, "data": "digits"}
SIZES: dict[str, tuple[Experiment, dict[str, Any]]] = {
    "longrun": (longrun.EXPERIMENTS[0], TINY),
    "distillation": (distillation.EXPERIMENTS[0], TINY),
    "adversarial": (adversarial.EXPERIMENTS[0], TINY | {"attack_steps": 2, "test_attack_steps": 3}),
    "byol": (byol.BYOL, TINY | {"batch": 32, "known": 100}),
    "dino": (byol.DINO, {"steps": 12, "evaluations": 3}),
}


def size(name: str, **settings: Any) -> Any:
    experiment, tiny = SIZES[name]
    return replace(experiment.quick, **(tiny | settings))


@pytest.fixture(scope="module")
def found() -> dict[str, Mapping[str, Any]]:
    """The numbers of a tiny run of each."""
    return {name: experiment.run(0, size(name)) for name, (experiment, _) in SIZES.items()}


@pytest.mark.parametrize("name", SIZES)
def test_a_seed_repeats_its_numbers_exactly_and_another_has_others(
    name: str, found: dict[str, Mapping[str, Any]]
) -> None:
    run = SIZES[name][0].run
    torch.manual_seed(77)  # nothing may depend on what ran before
    assert run(0, size(name)) == found[name]
    other = run(1, size(name))
    assert other.keys() == found[name].keys()
    assert sum(other[key] != found[name][key] for key in other) > len(other) / 2


@pytest.mark.parametrize("name", SIZES)
def test_a_report_has_every_row_and_curve(
    name: str, found: dict[str, Mapping[str, Any]], tmp_path: Path
) -> None:
    again = replace(SIZES[name][0], run=lambda seed, settings: found[name], quick=size(name))
    report = continued(again, "quick", 2, tmp_path, lambda _: None)
    sides = [row[side] for row in report["rows"] for side in ("without", "with")]
    numbers = [value for side in sides for value in side["values"]]
    assert all(map(math.isfinite, numbers))
    assert report["curves"]
    for curve in report["curves"]:
        assert len(found[name][curve]) >= 3
    said = [(row["metric"], row["without"]["what"], row["with"]["what"]) for row in report["rows"]]
    assert len(set(said)) == len(said), "two rows that read the same"


# The loop


def plain(seed: int, settings: Any, train: Split, test: Split) -> tuple[nn.Module, list[float]]:
    """The same training without polyak, and the losses at the same moments."""
    model = classifier(seed, train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    losses = []
    for step, rows in enumerate(batches(len(train.labels), settings.batch, settings.steps, seed), start=1):
        model.train()
        optimizer.zero_grad()
        cross_entropy(model(train.images[rows]), train.labels[rows]).backward()
        optimizer.step()
        if step % (settings.steps // settings.evaluations) == 0:
            losses.append(evaluate(model, test).loss)
    return model, losses


@pytest.mark.parametrize("name", ["longrun", "distillation"])
def test_the_raw_weights_are_those_of_a_plain_loop(name: str, found: dict[str, Mapping[str, Any]]) -> None:
    settings = size(name)
    train, test = load("digits", settings.train, settings.test, settings.side)
    curve = {"longrun": "constant raw loss", "distillation": "alone student loss"}[name]
    assert found[name][curve] == plain(0, settings, train, test)[1]


def test_a_longer_run_begins_like_a_shorter_one(found: dict[str, Mapping[str, Any]]) -> None:
    longer = longrun.run(0, size("longrun", steps=24, evaluations=6))
    for side in ("raw", "average", "short"):
        assert longer[f"constant {side} loss"][:3] == found["longrun"][f"constant {side} loss"]
        assert longer[f"cosine {side} loss"][:3] != found["longrun"][f"cosine {side} loss"]


@given(images=st.integers(2, 50), size=st.integers(1, 50), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_batches_are_epochs_without_repetition(images: int, size: int, steps: int, seed: int) -> None:
    size = min(size, images)
    others = torch.get_rng_state()
    rows = batches(images, size, steps, seed)
    assert torch.equal(torch.get_rng_state(), others), (
        "dropout and noise elsewhere must not depend on the batches"
    )
    assert len(rows) == steps
    per_epoch = images // size
    for start in range(0, steps, per_epoch):
        epoch = torch.cat(rows[start : start + per_epoch]).tolist()
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(images))
    again = batches(images, size, steps, seed)
    assert all(torch.equal(a, b) for a, b in zip(rows, again, strict=True))


def test_half_the_side_shows_the_same_images() -> None:
    (large, _), (small, _) = (load("digits", 20, 10, side) for side in (32, 8))
    assert large.images.shape[1:] == (1, 32, 32)
    assert small.images.shape[1:] == (1, 8, 8)
    torch.testing.assert_close(large.images[:, :, ::4, ::4], small.images)  # 8×8, shown four times as large
    assert torch.equal(large.labels, small.labels)
    assert (float(large.images.min()), float(large.images.max())) == (0, 1)


def test_moments_are_even_and_end_with_the_run() -> None:
    assert sorted(small_images.moments(10, 4)) == [2, 5, 8, 10]


# Two sides


def test_an_average_without_a_memory_is_the_raw_weights(found: dict[str, Mapping[str, Any]]) -> None:
    """Each side is evaluated with its own weights, attacks included, and on the same images."""
    numbers = longrun.run(0, size("longrun", beta=0.0))
    for schedule in ("constant", "cosine"):
        assert numbers[f"{schedule} average loss"] == numbers[f"{schedule} raw loss"]
        assert numbers[f"{schedule} short loss"] == found["longrun"][f"{schedule} short loss"]
        assert found["longrun"][f"{schedule} average loss"] != found["longrun"][f"{schedule} raw loss"]
    numbers = adversarial.run(0, size("adversarial", beta=0.0))
    for kind in ("clean loss", "robust loss", "fooled"):
        assert numbers[f"average {kind}"] == numbers[f"raw {kind}"] == found["adversarial"][f"raw {kind}"]
    assert found["adversarial"]["average robust loss"] != found["adversarial"]["raw robust loss"]


def test_a_teacher_whose_word_weighs_nothing_changes_nothing(found: dict[str, Mapping[str, Any]]) -> None:
    """Asking it draws no random number and writes into no BatchNorm."""
    numbers = distillation.run(0, size("distillation", weight=1e-30))
    for who in ("student", "average"):
        assert numbers[f"taught {who} loss"] == numbers[f"alone {who} loss"]
        assert numbers[f"alone {who} loss"] == found["distillation"][f"alone {who} loss"]
        assert found["distillation"][f"taught {who} loss"] != found["distillation"][f"alone {who} loss"]


Loss = Callable[[Tensor, Tensor], Tensor]


def recorded(
    module: Any, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]
) -> tuple[list[list[Any]], list[list[float]]]:
    """Of each arm that ``run`` trains, by step: the labels and sums of both views, and the losses."""
    seen: list[list[Any]] = []
    losses: list[list[float]] = []
    fit, views = module.fit, module.views

    def watched_fit(model: nn.Module, train: Split, rows: Any, rate: Any, loss_of: Loss) -> Any:
        seen.append([])
        losses.append([])

        def watched(images: Tensor, labels: Tensor) -> Tensor:
            seen[-1].append(labels.tolist())
            loss = loss_of(images, labels)
            losses[-1].append(float(loss.detach()))
            return loss

        return fit(model, train, rows, rate, watched)

    def watched_views(seed: int) -> Callable[[Tensor], Tensor]:
        view = views(seed)

        def watched(images: Tensor) -> Tensor:
            shown = view(images)
            seen[-1].append((float(shown.double().sum()), float(shown.double().square().sum())))
            return shown

        return watched

    monkeypatch.setattr(module, "fit", watched_fit)
    monkeypatch.setattr(module, "views", watched_views)
    run()
    return seen, losses


def test_byol_arms_see_the_same_and_begin_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, losses = recorded(byol, monkeypatch, lambda: byol.run(0, size("byol")))
    assert len(seen) == len(byol.ARMS)
    assert len(seen[0]) == 3 * TINY["steps"]
    assert all(arm == seen[0] for arm in seen)
    first = [arm[0] for arm in losses]
    with_norm, without = first[:4], first[4:]
    assert len(set(with_norm)) == len(set(without)) == 1, "the teacher begins as its student in all of them"
    settings = size("byol")
    train, _ = load("digits", settings.train, settings.test, settings.side)
    images = train.images[batches(len(train.labels), settings.batch, 1, 0)[0]]
    for norm, answered in ((True, with_norm), (False, without)):
        torch.manual_seed(0)
        online, view = byol.Online(1, norm).train(), byol.views(0)
        one, other = (online.projected(view(images)) for _ in range(2))  # as a teacher answers
        pairs = ((online.predictor(one), other), (online.predictor(other), one))
        expected = sum(2 - 2 * nn.functional.cosine_similarity(p, z.detach()).mean() for p, z in pairs)
        torch.testing.assert_close(torch.tensor(answered[0]), torch.as_tensor(expected).detach())
    assert len({arm[-1] for arm in losses}) == len(losses)


def test_dino_arms_see_the_same_and_begin_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, losses = recorded(dino, monkeypatch, lambda: dino.run(0, size("dino")))
    assert len(seen) == len(dino.ARMS)
    assert len(seen[0]) == 3 * TINY["steps"]
    assert all(arm == seen[0] for arm in seen)
    assert len({arm[0] for arm in losses}) == 1
    assert len({arm[-1] for arm in losses}) == len(losses)


def test_momentum_0_is_a_teacher_that_is_the_student(found: dict[str, Mapping[str, Any]]) -> None:
    assert found["byol"]["0 teacher"] == found["byol"]["0 last"]
    assert found["byol"]["0.996 to 1 teacher"] != found["byol"]["0.996 to 1 last"]


# The pieces


def test_an_attack_stays_near_and_harms_without_a_trace() -> None:
    train, _ = load("digits", 64, 10, 16)
    model = classifier(0, train)
    rows, rate = batches(64, 32, 40, 0), constant(3e-3)
    for _ in small_images.fit(model, train, rows, rate, lambda x, y: cross_entropy(model(x), y)):
        pass
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def attacked(steps: int) -> Tensor:
        start = torch.Generator().manual_seed(0)
        return adversarial.pgd(model.train(), train.images, train.labels, 0.1, steps, start)

    def loss(images: Tensor) -> float:
        return float(cross_entropy(small_images.answers(model, images), train.labels))

    harmed = attacked(10)
    assert float((harmed - train.images).abs().max()) <= 0.1 + 1e-6
    assert float(harmed.min()) >= 0
    assert float(harmed.max()) <= 1
    assert not harmed.requires_grad
    assert loss(attacked(0)) < 0.5 * loss(harmed), "more than noise of the same size does"
    assert loss(attacked(2)) < loss(harmed)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_one_step_of_an_attack_is_its_formula() -> None:
    train, _ = load("digits", 16, 10, 16)
    model = classifier(0, train).eval()
    x = adversarial.pgd(model, train.images, train.labels, 0.1, 0, torch.Generator().manual_seed(5))
    x = x.clone().requires_grad_()
    cross_entropy(model(x), train.labels).backward()
    assert x.grad is not None
    moved = x.detach() + 0.25 * x.grad.sign()
    expected = torch.minimum(torch.maximum(moved, train.images - 0.1), train.images + 0.1).clamp(0, 1)
    made = adversarial.pgd(model, train.images, train.labels, 0.1, 1, torch.Generator().manual_seed(5))
    torch.testing.assert_close(made, expected)


def test_a_view_moves_mirrors_hides_and_changes_brightness() -> None:
    view, n = byol.views(0), 400
    flat = view(torch.ones(n, 1, 16, 16)).flatten(1)
    bright = flat.max(1).values
    assert 0.6 <= float(bright.min()) < 0.65
    assert 1.35 < float(bright.max()) <= 1.4
    assert ((flat == 0) | (flat == bright[:, None])).all()
    hidden = (flat == 0).sum(1)
    assert int(hidden.min()) == 36, "the square alone, where nothing moved or it covers what came in"
    assert int(hidden.max()) <= 36 + 256 - 14 * 14
    column = torch.zeros(n, 1, 16, 16)
    column[..., 4] = 1
    where = view(column).amax(2).squeeze(1)  # [n, columns]
    places = [set(row.nonzero().flatten().tolist()) for row in where]
    assert {len(place) for place in places} <= {0, 1}
    assert set().union(*places) == {2, 3, 4, 5, 6} | {9, 10, 11, 12, 13}


def test_a_probe_reads_what_is_there_and_guesses_where_nothing_is() -> None:
    labels = torch.arange(10).repeat(60)
    torch.manual_seed(0)
    told = nn.functional.one_hot(labels, 10).float() + 0.1 * torch.randn(600, 10)
    assert byol.probe(told, labels, 300) > 99
    assert byol.probe(torch.randn(600, 10), labels, 300) < 20
    assert byol.probe(torch.randn(60, 200), labels[:60], 30) < 50  # enough to learn all 60 by heart


def test_both_collapses_say_nothing_of_an_image() -> None:
    uniform, one = torch.full((100, 64), 1 / 64), torch.eye(64)[:1].repeat(100, 1)
    assert dino.entropies(uniform) == pytest.approx((math.log(64), math.log(64)))
    assert dino.entropies(one) == pytest.approx((0, 0))
    assert dino.entropies(torch.eye(64)) == pytest.approx((math.log(64), 0))
    assert float(dino.Prototypes(8, 64)(10 * torch.randn(50, 8)).detach().abs().max()) <= 1 + 1e-6
