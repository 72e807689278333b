"""Does an average resist attacks better than the raw weights of adversarial training?

    python -m experiments.adversarial.run [--quick] [--out experiments/adversarial/results]

One run per seed is trained on PGD-10 and attacked with PGD-20: raw weights and average each with their own
gradients, from the same starting points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import polyak
from experiments import fashion, harness
from experiments.harness import Experiment, Numbers, Row
from experiments.small_images import (
    Curves,
    Split,
    Training,
    answers,
    batches,
    classifier,
    fit,
    load,
    moments,
    rows,
    score,
)


@dataclass(frozen=True, kw_only=True)
class Size(Training):
    """A training, the average, and the attack: ε in units of the whole range of a pixel."""

    evaluations: int = 6
    batch: int = 32
    lr: float = 2e-3
    epsilon: float = 0.1
    attack_steps: int = 10
    test_attack_steps: int = 20
    beta: float = 0.999


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int, start: torch.Generator
) -> Tensor:
    """Images within ε that the model gets wrong, if it can be made to.

    ``x ← Π(x + α·sign ∇ₓL)``, α = 2.5·ε/steps, from a random point (Madry et al. 2018, arXiv 1706.06083, §2).
    The model attacks itself in evaluation mode: in training mode BatchNorm would write down each attempt.
    """
    model.eval()
    low, high = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    x = torch.lerp(low, high, torch.rand(images.shape, generator=start))
    for _ in range(steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels), x)
        x = torch.clamp(x.detach() + 2.5 * epsilon / steps * gradient.sign(), low, high)
    return x


def judge(model: nn.Module, size: Size, test: Split) -> Callable[[Curves, str], None]:
    """Evaluate the model with the weights it has, clean and attacked, from starting points that stay."""

    def add(curves: Curves, name: str) -> None:
        start = torch.Generator().manual_seed(0)
        clean = answers(model, test.images)
        found: list[Tensor] = []
        for images, labels in zip(
            test.images.split(fashion.CHUNK), test.labels.split(fashion.CHUNK), strict=True
        ):
            harmed = pgd(model, images, labels, size.epsilon, size.test_attack_steps, start)
            found.append(answers(model, harmed))
        robust = torch.cat(found)
        curves.add(f"{name} clean", score(clean, test.labels))
        curves.add(f"{name} robust", score(robust, test.labels))
        right = clean.argmax(1) == test.labels
        fooled = (robust.argmax(1) != test.labels)[right]
        curves.setdefault(f"{name} fooled", []).append(100 * float(fooled.double().mean()))

    return add


def run(seed: int, size: Size) -> Numbers:
    train, test = load(size.data, size.train, size.test, size.side)
    model = classifier(seed, train)
    ema = polyak.EMA(model, polyak.Warmup(size.beta))
    start = torch.Generator().manual_seed(seed)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        harmed = pgd(model, images, labels, size.epsilon, size.attack_steps, start)
        return cross_entropy(model.train()(harmed), labels)

    steps = batches(len(train.labels), size.batch, size.steps, seed)
    curves, when, add = Curves(), moments(size.steps, size.evaluations), judge(model, size, test)
    for step in fit(model, train, steps, fashion.constant(size.lr), loss_of):
        ema.update()
        if step in when:
            add(curves, "raw")
            with ema.average_parameters():
                add(curves, "average")
    late = {f"{name}, last three": fmean(values[-3:]) for name, values in curves.items()}
    return curves.numbers() | late


def late(metric: str, name: str, unit: str, higher: bool, headline: bool = False) -> Row:
    """The mean of the last three evaluations, raw weights against average."""
    sides = [(f"{side} {metric}, last three", what) for side, what in zip(SIDES, WHAT, strict=True)]
    better = "higher" if higher else "lower"
    return Row(f"{name}, mean of the last three evaluations", unit, better, sides[0], sides[1], headline)


SIDES, WHAT = ("raw", "average"), ("raw weights", "average")
RAW, AVERAGE = (("raw robust", "raw weights"), ("average robust", "average"))
STEADINESS = {
    "last": "robust accuracy at the end",
    "jump": "jump of the robust accuracy",
    "wobble": "wobble of the robust accuracy",
}

EXPERIMENTS = (
    Experiment(
        name="adversarial",
        claim="The average of adversarial training resists attacks that the raw weights do not.",
        published="an article on PGD: attacks that succeed 42 → 34 %",
        gain=8.0,
        data=fashion.DATA,
        rows=(
            late("robust accuracy", "robust accuracy", "points", higher=True, headline=True),
            late("robust loss", "robust loss", "nats", higher=False),
            late("clean accuracy", "clean accuracy", "points", higher=True),
            late("fooled", "attacks that succeed", "points", higher=False),
            *rows("accuracy", "points", RAW, AVERAGE, STEADINESS),
        ),
        run=run,
        quick=Size(train=5_000, test=500, steps=600),
        full=Size(train=5_000, test=1_000, steps=1_200, side=32),
        curves={
            f"{side} {kind} accuracy": "percent, at six moments"
            for side in SIDES
            for kind in ("clean", "robust")
        },
    ),
)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
