"""What averages of 1 billion to 1 trillion parameters cost, by the formulas of ``polyak.bench.plan``.

    python -m benchmarks.scale             # writes results/plan.md; nothing is measured

That real processes hold and send what the formulas say is tested in tests/distributed/test_plan.py.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import table
from polyak.bench.plan import Cluster, plan
from polyak.cli.bench import duration, size

RESULT = Path(__file__).parent / "results" / "plan.md"
PARAMS = {"1 billion": 1e9, "10 billion": 1e10, "100 billion": 1e11, "1 trillion": 1e12}
PIECES = (1, 8, 64, 1024, 10_000)


def page() -> str:
    """A row for each number of pieces: memory and time by the size of the model."""
    rows: dict[str, list[str]] = {}
    for mode, place in (("fully_shard", "GPU"), ("fully_shard, host", "host")):
        for pieces in PIECES:
            costs = [
                row
                for params in PARAMS.values()
                for row in plan(Cluster(params, gpus=pieces))
                if row.mode == mode
            ]
            cells = [f"{size(row.host or row.held)}, {duration(row.update)}" for row in costs]
            rows[f"{place}, {pieces:,}"] = [f"{costs[0].each:.2g}", *cells]
    return "\n".join([*table(("bytes per parameter", *PARAMS), rows), ""])


if __name__ == "__main__":
    RESULT.write_text(page())
    print(page())
