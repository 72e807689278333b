"""Fails, before gigabytes are fetched, where a flavour's packages are in no index that pip was given.

    python offered.py FLAVOUR REQUIREMENT CONSTRAINTS

pip notices that a package is missing when it has fetched those before it. This reads the indexes' pages only.
"""

import re
import subprocess
import sys
from pathlib import Path

LOCKED_CUDA = re.compile(r"^(nvidia-\S+==\S+) ;.*sys_platform == 'linux'", re.MULTILINE)


def builds(requirement: str) -> list[str]:
    """What an index offers for ``NAME==VERSION`` on this machine, such as 2.13.0+cpu; pip takes the first."""
    name, version = requirement.split("==")
    command = [sys.executable, "-m", "pip", "index", "versions", name]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    offered = re.findall(r"[^\s,]+", said.partition("Available versions:")[2].partition("\n")[0])
    return [build for build in offered if version in (build, build.partition("+")[0])]


def problem(flavour: str, requirement: str, constraints: str) -> str | None:
    """Why this flavour cannot be installed, if it cannot."""
    offered = builds(requirement)
    if not offered:
        return f"no package index given to pip has {requirement} for this machine and Python"
    if flavour != "torch-cuda":
        return None
    if offered[0].endswith("+cpu"):
        return f"pip would take torch=={offered[0]}, which is without CUDA"
    if "+" in offered[0]:  # a build for another CUDA than the locked one names its own packages
        return None
    missing = [locked for locked in LOCKED_CUDA.findall(constraints) if not builds(locked)]
    return f"no package index given to pip has {', '.join(missing)}" if missing else None


if __name__ == "__main__":
    flavour, requirement, constraints = sys.argv[1:]
    if found := problem(flavour, requirement, Path(constraints).read_text()):
        sys.exit(f"{flavour}: {found}. Set WHEELS to the index of its builds, named on its installation page")
