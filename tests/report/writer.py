"""A training that does as ordered: `python -m tests.report.writer FOLDER`, an order on each line of stdin.

``steps N`` trains so many steps, with a line of the log and a snapshot at every twentieth; ``half`` writes
half of a line and ``rest`` what it lacks; ``again`` begins anew. Each order is answered with the step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import polyak


def line(step: int) -> str:
    return json.dumps({"step": step, "loss": 1 + 1 / step, "ema_loss": 1 + 0.5 / step}) + "\n"


def main(folder: Path) -> None:
    model = torch.nn.Linear(3, 2)
    ema = polyak.EMA(model, {"short": polyak.Power(gamma=17), "long": polyak.Power(gamma=7)})
    log = (folder / "metrics.jsonl").open("w")
    with polyak.Archive(folder / "snapshots", ema, every=20):
        for order, *number in map(str.split, sys.stdin):
            if order == "steps":
                for _ in range(int(number[0])):
                    with torch.no_grad():
                        model.weight += 0.1 * torch.randn(2, 3)
                    ema.update()
                    if ema.step % 20 == 0:
                        log.write(line(ema.step))
            elif order == "again":
                log.close()
                log = (folder / "metrics.jsonl").open("w")
                log.write('{"step": 20, "loss": 7.5, "ema_loss": 7.25}\n')
            else:
                whole = line(ema.step + 1)
                log.write(whole[:20] if order == "half" else whole[20:])
            log.flush()
            print(ema.step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
