"""What the Dockerfiles say, read the way Docker reads them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "containers/provision.sh"
FLAVOURS = ("torch-cpu", "torch-cuda", "paddle-cpu", "paddle-gpu")


def dockerfile(flavour: str) -> str:
    return (ROOT / f"containers/{flavour}.Dockerfile").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest), comments left out, lines that end in a backslash joined to the next."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    return [(line.split()[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]
