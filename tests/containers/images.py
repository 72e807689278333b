"""What the Dockerfiles say, read the way Docker reads them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import dockerfile as buildkit

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "containers/provision.sh"
FLAVOURS = ("torch-cpu", "torch-cuda", "paddle-cpu", "paddle-gpu")


def dockerfile(flavour: str) -> str:
    return (ROOT / f"containers/{flavour}.Dockerfile").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest), as BuildKit's parser finds them."""
    return [
        (found.cmd.upper(), found.original.partition(" ")[2].strip()) for found in buildkit.parse_string(text)
    ]


def in_context(path: str) -> bool:
    """Whether ``docker build`` sees this file: the last line of .dockerignore that is about it decides."""
    folders = [path, *map(str, Path(path).parents)]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        # fnmatch's * also crosses folders, so **/ needs only to match nothing, too.
        if any(fnmatchcase(name, p) for name in folders for p in (pattern, pattern.removeprefix("**/"))):
            sent = line.startswith("!")
    return sent
