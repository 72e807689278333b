"""Does an update take what the formula says, and grow with the parameters as it says?

    python -m benchmarks.slope             # 6 GB of memory

Models of 17 to 134 million parameters. A time is taken in units of the limit's for one parameter, in the same
round: one ``lerp_`` over flat float32 buffers, 12 bytes. The slope is that of the line of least squares
through the times of all sizes; by the formula it is ``bytes / 12``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.report import arguments, check, number, polyak, run, table, write
from polyak.bench.cost import LIMIT, STORED, moved
from polyak.bench.measure import Measured
from polyak.bench.shapes import Shaped, Workload

TENSOR = (4096, 4096)
TENSORS = (1, 2, 4, 8)
LIVE = {"float32": 4, "bfloat16": 2}
CASES = {
    "float32 → float32": ("float32", "float32", 1),
    "float32 → 3 of float32": ("float32", "float32", 3),
    "bfloat16 → float32": ("bfloat16", "float32", 1),
    "bfloat16 → bfloat16": ("bfloat16", "bfloat16", 1),
}


def slope(found: Sequence[Measured]) -> float:
    """Of the line through all sizes: what a further parameter costs, in units of the limit's."""
    sizes = [one.parameters for one in found]
    times = [one.figures["polyak"].ratio * one.parameters for one in found]
    return float(np.polyfit(sizes, times, 1)[0])


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=21)
    found = {
        head: [
            check(
                run(
                    f"{n} tensors",
                    {"polyak": polyak()},
                    options,
                    params=params,
                    store=store,
                    tracks=tracks,
                    work=Workload(Shaped([TENSOR] * n)),
                )
            )
            for n in TENSORS
        ]
        for head, (params, store, tracks) in CASES.items()
    }
    rows: dict[str, list[str]] = {}
    for head, (params, store, tracks) in CASES.items():
        each = moved(LIVE[params], STORED[store], tracks)
        formula, measured = each / LIMIT, slope(found[head])
        rows[head] = [str(each), number(formula), number(measured), number(measured / formula)]
    heads = ("bytes", "by formula", "measured", "measured / formula")
    title = "What each further parameter costs an update, over what it costs one flat `lerp_`;"
    write("slope", title, table(heads, rows), found, options)


if __name__ == "__main__":
    main()
