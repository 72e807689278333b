"""Right after a training step, what does an update cost under each schedule, and what does its look?

    python -m benchmarks.schedules         # needs: pip install -r benchmarks/requirements.txt

A step of AdamW leaves nothing of what updates need in the caches. Each round takes a step before every
row, in a new order; a figure is the median over rounds of (time of the row) / (time of one cached
``_foreach_lerp_`` over the same tensors in the same round), which checks nothing and counts nothing.
Drop-ins stand beside the classes whose place they take.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from importlib import import_module
from statistics import median

import torch
from torch import nn

import polyak
from benchmarks.report import arguments, number, table, write
from benchmarks.training import of_timm
from polyak.bench.shapes import MODELS, Workload, classifying
from tests.shims import torchvision_without_ops

PATIENCE = 60.0  # seconds that all steps on one model may take; but two rounds at least
Run = Callable[[], object]
BASE, TWO = "cached `_foreach_lerp_`", "two cached `_foreach_lerp_`"


def deep() -> Workload:
    """750 tensors of about 6,600 elements in 375 layers."""
    layers = [layer for _ in range(375) for layer in (nn.Linear(81, 81), nn.Tanh())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 81), *layers[2:], nn.Linear(81, 10))
    return Workload(model, classifying(model, 9))


WORKS: dict[str, Callable[[], Workload]] = {
    "LeNet": MODELS["lenet"],
    "750 small": deep,
    "ResNet-18, 64²": of_timm("resnet18", 64),
}


def rows_of(model: nn.Module) -> dict[str, Run]:
    """Every row's function on one model."""
    theta = [p.detach() for p in model.parameters()]
    one, other = [p.clone() for p in theta], [p.clone() for p in theta]
    decays = {
        "constant": 0.999,
        "HalfLife": polyak.HalfLife(steps=1000),
        "Debiased": polyak.Debiased(0.999),
        "Warmup": polyak.Warmup(0.9999),
        "Power": polyak.Power(sigma_rel=0.1),
        "two of Power": {"short": polyak.Power(sigma_rel=0.05), "long": polyak.Power(sigma_rel=0.1)},
    }
    emas = {name: polyak.EMA(model, decay) for name, decay in decays.items()}
    averages = emas["constant"]._averages  # pyright: ignore[reportPrivateUsage]

    def base() -> None:
        torch._foreach_lerp_(one, theta, 1e-3)  # pyright: ignore[reportPrivateUsage]

    def two() -> None:
        base()
        torch._foreach_lerp_(other, theta, 1e-3)  # pyright: ignore[reportPrivateUsage]

    return {
        BASE: base,
        TWO: two,
        "the look alone": averages.intact,
        "the engine alone": lambda: averages.updater.update((0.001,), 0),
        **{f"`ema.update()`, {name}": ema.update for name, ema in emas.items()},
        **dropins(model),
    }


def dropins(model: nn.Module) -> dict[str, Run]:
    """The classes of other libraries, and polyak's in their place."""
    torchvision_without_ops()
    classes = {
        "timm's ModelEmaV3": ("timm.utils", "polyak.dropin.timm", "ModelEmaV3"),
        "Ultralytics' ModelEMA": ("ultralytics.utils.torch_utils", "polyak.dropin.ultralytics", "ModelEMA"),
    }
    found: dict[str, Run] = {}
    for name, (theirs, ours, attribute) in classes.items():
        for module, label in ((theirs, name), (ours, f"{name}, drop-in")):
            average = getattr(import_module(module), attribute)(copy.deepcopy(model))
            found[label] = lambda average=average: average.update(model)
    for module, label in (("diffusers.training_utils", ""), ("polyak.dropin.diffusers", ", drop-in")):
        average = import_module(module).EMAModel(list(model.parameters()))
        found[f"diffusers' EMAModel{label}"] = lambda average=average: average.step(model.parameters())
    return found


def measured(work: Workload, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of every row in every round, and the median seconds of a training step."""
    assert work.step is not None
    work.step()
    begun = time.perf_counter()
    work.step()
    once = time.perf_counter() - begun
    rows, steps = rows_of(work.model), list[float]()
    rounds = max(2, min(rounds, round(PATIENCE / (once * len(rows)))))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for done in range(rounds + 3):
        for name in random.Random(done).sample(list(rows), len(rows)):
            begun = time.perf_counter()
            work.step()
            stepped = time.perf_counter()
            rows[name]()
            ended = time.perf_counter()
            if done >= 3:  # first calls plan and allocate
                steps.append(stepped - begun)
                seconds[name].append(ended - stepped)
    return seconds, median(steps)


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=51)
    found = {head: measured(make(), options.rounds) for head, make in WORKS.items()}
    rows: dict[str, list[str]] = {}
    for name in next(iter(found.values()))[0]:
        rows[name] = []
        for seconds, step in found.values():
            ratios = [one / base for one, base in zip(seconds[name], seconds[BASE], strict=True)]
            rows[name] += [number(median(ratios)), number(median(seconds[name]) / step, 100)]
    rows["*the first row, µs*"] = _spread([median(seconds[BASE]) for seconds, _ in found.values()])
    rows["*a training step, µs*"] = _spread([step for _, step in found.values()])
    heads = [f"{head}: {what}" for head in found for what in ("ratio", "% of a step")]
    title = "An update right after a training step, as many rounds as a minute holds and at most those named;"
    write("schedules", title, table(heads, rows), found, options)


def _spread(seconds: list[float]) -> list[str]:
    return [cell for one in seconds for cell in (number(one, 1e6, 0), "")]


if __name__ == "__main__":
    main()
