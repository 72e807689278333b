"""How much longer does importing polyak make the start of a program that imports NumPy or torch anyway?

    python -m benchmarks.imports

Each import runs in fresh processes, in a new order in each round, with compiled bytecode there. Times are
processor time, which other programs on the machine disturb less, and medians over rounds; the ratio to the
framework's own import is what another machine can be compared with. The garbage collector is off: one pass
through torch's objects takes longer than polyak, and where it falls is chance.
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
CLOCK = (
    "import gc, time; gc.disable()\n{}\nbegun = time.process_time()\n{}\nprint(time.process_time() - begun)"
)


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=15)
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(options.rounds + 1):
        for name in random.sample(list(IMPORTS), len(IMPORTS)):
            command = [sys.executable, "-c", CLOCK.format(*IMPORTS[name])]
            seconds[name].append(float(subprocess.run(command, check=True, capture_output=True).stdout))
    middle = {name: median(each[1:]) for name, each in seconds.items()}  # the first compiled the bytecode
    rows: dict[str, list[str]] = {}
    for name in IMPORTS:
        base = "torch" if "torch" in name and "NumPy" not in name else "NumPy"
        rows[name] = [number(middle[name], 1e3, 1), number(middle[name] / middle[base], 1, 3)]
    heads = ["ms", "of the framework's own import"]
    write("imports", "Importing, processor time;", table(heads, rows), seconds, options)


if __name__ == "__main__":
    main()
