"""Text-line recognition in PaddlePaddle: what an average of the weights is worth, and what it costs.

    python -m experiments.ocr.run --quick              # one seed at both learning rates, minutes on a CPU
    python -m experiments.ocr.run --quick --seeds 5
    python -m experiments.ocr.run                      # five seeds of the full size: hours
    python -m experiments.ocr.run --schedule constant  # one learning rate only

Each seed trains once; raw weights and every average are evaluated at the same moments on the same lines.
A run that was stopped goes on where it stopped. Remove runs/ocr to begin anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import paddle

from experiments.ocr import data
from experiments.ocr.configs import FULL, QUICK, Config, Schedule
from experiments.ocr.summary import screen, summary
from experiments.ocr.train import trained

SCHEDULES: tuple[Schedule, ...] = "constant", "cosine"


def experiment(config: Config, count: int, out: Path) -> dict[str, Any]:
    """The report of so many seeds at one learning rate, written to ``out``."""
    folder, schedule = data.CACHE / config.name, config.training.schedule
    lines = data.prepared(config.lines, folder / "lines")
    settings = json.dumps(asdict(config)).encode()
    # Other settings, other runs.
    kept = folder / f"{schedule}-{hashlib.sha256(settings).hexdigest()[:8]}"
    seeds = [trained(config, seed, lines, kept / f"seed-{seed}") for seed in range(count)]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, paddle {paddle.__version__}, {paddle.get_device()}"
    )
    report = {"date": date.today().isoformat(), "machine": machine, "config": asdict(config)}
    report |= {"lines": data.digest(lines), "summary": summary(seeds), "seeds": seeds}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{config.name}-{schedule}-{report['date']}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}")
    return report


def main() -> None:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the quick size instead of the full one")
    parser.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate; by default both")
    parser.add_argument("--seeds", type=int, help="how many; by default 1 if quick, else 5")
    parser.add_argument(
        "--out", type=Path, default=data.CACHE / "results", help="folder of the reports; results/ has ours"
    )
    options = parser.parse_args()
    config = QUICK if options.quick else FULL
    found = {}
    for schedule in [options.schedule] if options.schedule else SCHEDULES:
        one = replace(config, training=replace(config.training, schedule=schedule))
        report = experiment(one, options.seeds or (1 if options.quick else 5), options.out)
        found[schedule] = report["summary"]["models"]
    print(*screen(found), sep="\n")


if __name__ == "__main__":
    main()
