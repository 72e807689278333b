"""What part of a training step does an update take?

    python -m benchmarks.training          # needs: pip install -r benchmarks/requirements.txt

Steps of AdamW on 64 images of noise; an update is timed right after a step, which leaves nothing of what
updates need in the caches. Medians; the more so, the more steps 30 seconds hold. The device is waited for
after each step and each update: what could overlap does not.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from benchmarks.peers import PEERS
from benchmarks.report import arguments, check, number, peer, polyak, run, table, write
from polyak.bench.shapes import MODELS, Workload, classifying
from tests.shims import torchvision_without_ops


def of_timm(name: str, side: int) -> Callable[[], Workload]:
    """One of timm's models and its training on images of so many pixels each way."""

    def made() -> Workload:
        torchvision_without_ops()
        model = import_module("timm").create_model(name, num_classes=10)
        return Workload(model, classifying(model, side))

    return made


ON_CPU = {"LeNet": MODELS["lenet"], "ResNet-18, 64²": of_timm("resnet18", 64)}
ON_GPU = {"ResNet-50": of_timm("resnet50", 224), "ViT-B": of_timm("vit_base_patch16_224", 224)}


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=101)
    works = ON_GPU if options.device.startswith("cuda") else ON_CPU
    makers = {"polyak": polyak()} | {name: peer(name) for name in PEERS}
    found = {head: check(run(head, makers, options, work=made())) for head, made in works.items()}
    heads = [f"{head}: {what}" for head in found for what in ("µs", "% of a step")]
    rows: dict[str, list[str]] = {}
    for name in makers:
        rows[name] = []
        for measured in found.values():
            one = measured.figures.get(name)
            rows[name].append(number(None if one is None else one.after_step, 1e6, 0))
            rows[name].append(number(None if one is None else one.share, 100))
    rows["*a training step*"] = [cell for one in found.values() for cell in (number(one.step, 1e6, 0), "")]
    write("training", "An update in training;", table(heads, rows), found, options)


if __name__ == "__main__":
    main()
