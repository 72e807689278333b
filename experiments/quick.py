"""Every experiment at its quick size, or the one whose turn it is today.

python -m experiments.quick             # all: three quarters of an hour
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


# In an environment without torch. Of the two learning rates, the one at which an average gains.
TEXT_LINES = ["make", "ocr", "ARGS=--quick --schedule constant --out runs/ocr-quick"]


def command(name: str) -> list[str]:
    """That of an experiment, with a stand-in for torchvision's operators where those do not load."""
    if name == "ocr":
        return TEXT_LINES
    helped = name in DETECTORS and not torchvision_loads()
    stand_in = ["tests.with_torchvision"] if helped else []
    return [sys.executable, "-m", *stand_in, f"experiments.{name}.run", "--quick"]


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
    names = ["ocr", *NAMES]
    for name in [names[day % len(names)]] if options.today else names:
        subprocess.run(command(name), check=True)


if __name__ == "__main__":
    main(date.today().toordinal())
