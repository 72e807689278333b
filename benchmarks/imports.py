"""How much longer does importing polyak make the start of a program that imports NumPy or a framework anyway?

    python -m benchmarks.imports [--paddle PYTHON]

Each import runs in fresh processes, in a new order in each round, with compiled bytecode there. Times are
processor time, which other programs on the machine disturb less, and medians over rounds; the ratio to the
framework's own import is what another machine can be compared with. The garbage collector is off: one pass
through torch's objects takes longer than polyak, and where it falls is chance. ``--paddle`` names the
interpreter of an environment with PaddlePaddle.
"""

from __future__ import annotations

import random
import subprocess
import sys
from statistics import median

from benchmarks.report import arguments, number, table, write

# What is imported before, and what is measured.
IMPORTS = {
    "NumPy": ("pass", "import numpy"),
    "`import polyak` beyond NumPy": ("import numpy", "import polyak"),
    "all names of `polyak` but torch's, beyond NumPy": (
        "import numpy, polyak",
        "for name in polyak.__all__:\n    if name not in ('EMA', 'Teacher', 'update_batchnorm'):"
        " getattr(polyak, name)",
    ),
    "torch": ("pass", "import torch"),
    "`import polyak.torch` beyond torch": ("import torch", "import polyak.torch"),
}
PADDLE = {
    "Paddle": ("pass", "import paddle"),
    "`import polyak.paddle` beyond Paddle": ("import paddle", "import polyak.paddle"),
}
CLOCK = (
    "import gc, time; gc.disable()\n{}\nbegun = time.process_time()\n{}\nprint(time.process_time() - begun)"
)


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=15, more={"--paddle": "the interpreter of an environment with it"})
    imports = IMPORTS | (PADDLE if options.paddle else {})
    seconds: dict[str, list[float]] = {name: [] for name in imports}
    for _ in range(options.rounds + 1):
        for name in random.sample(list(imports), len(imports)):
            python = options.paddle if name in PADDLE else sys.executable
            command = [python, "-c", CLOCK.format(*imports[name])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds[name].append(float(done.stdout.splitlines()[-1]))
    middle = {name: median(each[1:]) for name, each in seconds.items()}  # the first compiled the bytecode
    rows: dict[str, list[str]] = {}
    for name in imports:
        base = next(own for own in ("NumPy", "torch", "Paddle") if own in name)
        rows[name] = [number(middle[name], 1e3, 1), number(middle[name] / middle[base], 1, 3)]
    heads = ["ms", "of the framework's own import"]
    write("imports", "Importing, processor time;", table(heads, rows), seconds, options)


if __name__ == "__main__":
    main()
