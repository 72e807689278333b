"""Does a network learn more when it learns from its own average as well?

    python -m experiments.distillation.run [--quick] [--out experiments/distillation/results]

Two runs per seed with the same batches: labels alone, and labels with the logits of a teacher, the average of
the student. Student and average of both are evaluated: the average of a student that had no teacher costs
nothing, so it is what teaching has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

import polyak
from experiments import fashion, harness
from experiments.harness import Experiment, Numbers
from experiments.small_images import (
    Curves,
    Split,
    Training,
    batches,
    classifier,
    evaluate,
    fit,
    load,
    moments,
    rows,
)


@dataclass(frozen=True, kw_only=True)
class Size(Training):
    """A training, the weight of what the teacher says, and the teacher's decay."""

    weight: float = 0.5
    beta: float = 0.999


def curves_of(seed: int, size: Size, weight: float, train: Split, test: Split, name: str) -> Curves:
    """One run: the student and its average at each moment. Without a weight the teacher is not asked."""
    student = classifier(seed, train)
    teacher = polyak.Teacher(student, polyak.Warmup(size.beta))

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        logits = student(images)
        loss = cross_entropy(logits, labels)
        return loss + weight * mse_loss(logits, teacher(images)) if weight else loss

    steps = batches(len(train.labels), size.batch, size.steps, seed)
    found, when = Curves(), moments(size.steps, size.evaluations)
    for step in fit(student, train, steps, fashion.constant(size.lr), loss_of):
        teacher.update()
        if step in when:
            found.add(f"{name} student", evaluate(student, test))
            found.add(f"{name} average", evaluate(teacher, test))
    return found


def run(seed: int, size: Size) -> Numbers:
    train, test = load(size.data, size.train, size.test, size.side)
    alone = curves_of(seed, size, 0.0, train, test, "alone")
    taught = curves_of(seed, size, size.weight, train, test, "taught")
    return alone.numbers() | taught.numbers()


STUDENT, TAUGHT = ("alone student", "student without a teacher"), ("taught student", "student with a teacher")
AVERAGE = ("alone average", "average without a teacher")
TAUGHT_AVERAGE = ("taught average", "average with a teacher")
STEADINESS = {"jump": "jump of the accuracy", "wobble": "wobble of the accuracy"}

EXPERIMENTS = (
    Experiment(
        name="distillation",
        claim="An average that also taught its network is more accurate than one that did not.",
        published="an article on self-distillation, ImageNet: accuracy +0.8 points",
        gain=0.8,
        data=fashion.DATA,
        rows=(
            *rows(
                "accuracy", "points", AVERAGE, TAUGHT_AVERAGE, {"last": "accuracy at the end"}, headline=True
            ),
            *rows("loss", "nats", AVERAGE, TAUGHT_AVERAGE, {"last": "loss at the end"}),
            *rows("accuracy", "points", STUDENT, TAUGHT, {"last": "accuracy at the end"} | STEADINESS),
            *rows("loss", "nats", STUDENT, TAUGHT, {"last": "loss at the end"}),
            *rows("accuracy", "points", STUDENT, AVERAGE, {"last": "accuracy at the end"} | STEADINESS),
            *rows("loss", "nats", STUDENT, AVERAGE, {"last": "loss at the end"}),
        ),
        run=run,
        quick=Size(train=5_000, test=2_000, steps=800, evaluations=8),
        full=Size(train=5_000, test=3_000, steps=1_500, evaluations=10),
        seeds=6,
        curves={
            f"{arm} {weights} accuracy": "percent, at ten moments"
            for arm in ("alone", "taught")
            for weights in ("student", "average")
        },
    ),
)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
