"""Every experiment at its quick size, or the one whose turn it is today.

python -m experiments.quick             # all: half an hour
python -m experiments.quick --today     # one, another each day: minutes
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import date

from experiments.results import NAMES

DETECTORS = ("detection",)
"""Those that need an operator of torchvision's."""


def module(name: str) -> list[str]:
    """Python's arguments, with a stand-in for torchvision's operators where those do not load."""
    if name in DETECTORS and not torchvision_loads():
        return ["-m", "tests.with_torchvision", f"experiments.{name}.run"]
    return ["-m", f"experiments.{name}.run"]


def torchvision_loads() -> bool:
    """Whether torchvision is one for this build of torch."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0


def main(day: int) -> None:
    """Run each in a process of its own, as a reader would.

    Args:
        day: counted from any beginning; whose turn it is.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--today", action="store_true", help="only the one whose turn it is")
    options = parser.parse_args()
    names = [NAMES[day % len(NAMES)]] if options.today else NAMES
    for name in names:
        subprocess.run([sys.executable, *module(name), "--quick"], check=True)


if __name__ == "__main__":
    main(date.today().toordinal())
