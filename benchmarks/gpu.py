"""Everything that waits for a GPU, in one command: tests, sanitizer, bandwidth, whole steps.

    make gpu                               # or: python -m benchmarks.gpu [--only tests sanitizer …]

Where there is no GPU it says so and exits 0. Otherwise it runs each part in a process of its own, goes on
when one fails, and writes what came out, with the date and the machine, to benchmarks/results/gpu-DATE.md.
Exit status 1 if a part failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = ("tests/torch/engines", "tests/torch/test_compiled_step.py", "tests/torch/test_on_gpu.py")


class Part(NamedTuple):
    """One command, what it shows, and the program it needs besides Python."""

    shows: str
    command: Sequence[str]
    needs: str = sys.executable


def parts(folder: Path, out: Path) -> dict[str, Part]:
    """All parts, in the order of what matters most if the time is short."""
    python = (sys.executable, "-m")
    worker = (*python, "tests.torch.engines.triton_worker", "run", "cuda", str(folder / "sanitized.pt"))
    sanitizer = "compute-sanitizer"

    def bench(shows: str, module: str) -> Part:
        return Part(shows, (*python, f"benchmarks.{module}", "--device", "cuda", "--out", str(out)))

    return {
        "tests": Part(
            "engines, graphs, compiled steps beside plain torch", (*python, "pytest", "-q", *TESTS)
        ),
        "beside": bench("a training step with inline, overlap and offload", "beside"),
        "update": bench("bandwidth beside lerp_ and the peers", "update"),
        "precision": bench("bandwidth of 16-bit and two-part storage", "precision"),
        "swap": bench("the average in and out of the model", "swap"),
        "training": bench("an update right after a training step", "training"),
        "sanitizer": Part(
            "no access outside of tensors", (sanitizer, "--error-exitcode", "9", *worker), sanitizer
        ),
        "registers": Part("registers by variant", (*python, "benchmarks.registers")),
    }


def ran(part: Part, limit: float) -> tuple[str, str, float]:
    """How a part ended, the end of what it printed, and its seconds."""
    if shutil.which(part.needs) is None:
        return f"left out: {part.needs} is not installed", "", 0.0
    begun = time.monotonic()
    try:
        done = subprocess.run(
            part.command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")},
        )
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else ""
        return f"failed: not done after {limit:.0f} s", printed[-4000:], limit
    end = "passed" if done.returncode == 0 else f"failed: exit status {done.returncode}"
    return end, done.stdout[-4000:], time.monotonic() - begun


def main(arguments: list[str]) -> int:
    """Run, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of parts to run")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each part")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("No GPU here: nothing was run, and nothing is claimed. docs/gpu.md says what that leaves open.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        chosen = parts(Path(folder), options.out)
        if unknown := set(options.only or ()) - set(chosen):
            parser.error(f"--only {' '.join(sorted(unknown))}: must be of {', '.join(chosen)}")
        lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.today()}.", ""]
        failed = False
        for name in options.only or chosen:
            end, printed, seconds = ran(chosen[name], options.limit)
            failed |= end.startswith("failed")
            print(f"{name}: {end} ({seconds:.0f} s)", flush=True)
            lines += [f"## {name}: {end}", "", f"{chosen[name].shows}; {seconds:.0f} s", ""]
            lines += ["```", printed.rstrip(), "```", ""] if printed else []
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"gpu-{date.today()}.md").write_text("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
