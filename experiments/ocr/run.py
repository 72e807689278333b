"""Text-line recognition in PaddlePaddle: what an average of the weights is worth, and what it costs.

    python -m experiments.ocr.run --quick              # one seed, minutes on a CPU
    python -m experiments.ocr.run --quick --seeds 5
    python -m experiments.ocr.run                      # five seeds of the full size: an hour and more
    python -m experiments.ocr.run --schedule constant

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

import paddle

from experiments.ocr import data
from experiments.ocr.configs import FULL, QUICK
from experiments.ocr.summary import summary
from experiments.ocr.train import trained

HERE = Path(__file__).parent


def main() -> None:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the quick size instead of the full one")
    parser.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    parser.add_argument("--seeds", type=int, help="how many; by default 1 if quick, else 5")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    config = QUICK if options.quick else FULL
    config = replace(config, training=replace(config.training, schedule=options.schedule))
    folder = data.CACHE / config.name
    lines = data.prepared(config.lines, folder / "lines")
    count = options.seeds or (1 if options.quick else 5)
    settings = json.dumps(asdict(config)).encode()
    kept = (
        folder / f"{options.schedule}-{hashlib.sha256(settings).hexdigest()[:8]}"
    )  # other settings, other runs
    seeds = [trained(config, seed, lines, kept / f"seed-{seed}") for seed in range(count)]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, paddle {paddle.__version__}, {paddle.get_device()}"
    )
    report = {"date": date.today().isoformat(), "machine": machine, "config": asdict(config)}
    report |= {"lines": data.digest(lines), "summary": summary(seeds), "seeds": seeds}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{config.name}-{options.schedule}-{report['date']}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    for name, model in report["summary"]["models"].items():
        print(f"{name}: best {model['best']['mean']:.1%}, last {model['last']['mean']:.1%}")
    print(f"{path}; python -m experiments.ocr.table writes its tables into README.md and README.zh.md")


if __name__ == "__main__":
    main()
