"""Is the engine "blocked" faster than "foreach", where no C kernel was built?

    python -m benchmarks.without_compiler

Both run in the same rounds, in a new order each round; a figure is the ratio of their median times. It
is all repeated, and the table holds the median ratio with the smallest and the largest.
"""

from __future__ import annotations

from statistics import median

import torch

from benchmarks.report import arguments, check, polyak, run, table, write
from polyak.bench.measure import Measured
from polyak.bench.shapes import MODELS, Shaped, Workload

REPEATS = 3
WORK = {
    "60 tensors": lambda: Workload(Shaped([(64, 64)] * 60)),
    "750 tensors": lambda: Workload(MODELS["many_small"]().model),
    "ResNet-50, 25.6 M": lambda: Workload(MODELS["resnet50"]().model),
}
CASES = {"float32": "float32", "bfloat16": "float32"}


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=31)
    makers = {
        f"{engine}, {policy}": polyak(engine, policy)
        for engine in ("blocked", "foreach")
        for policy in ("skip", "ignore")
    }
    found: dict[str, Measured] = {}
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for i in range(REPEATS):
        for head, work in WORK.items():
            for params, store in CASES.items():
                torch.manual_seed(i)
                one = check(run(head, makers, options, params=params, store=store, work=work()))
                found[f"{head}, {params} → {store}, {i}"] = one
                for policy in ("skip", "ignore"):
                    blocked, foreach = (one.figures[f"{e}, {policy}"].ratio for e in ("blocked", "foreach"))
                    ratios.setdefault((params, policy, head), []).append(blocked / foreach)
    rows = {
        f'{params} → {CASES[params]}, "{policy}"': [
            f"{median(each):.2f} ({min(each):.2f}–{max(each):.2f})"
            for head in WORK
            for each in [ratios[params, policy, head]]
        ]
        for params in CASES
        for policy in ("skip", "ignore")
    }
    title = f'Time of one update by "blocked" over one by "foreach", {REPEATS} repeats;'
    write("without_compiler", title, table(list(WORK), rows), found, options)


if __name__ == "__main__":
    main()
