"""Files of PyTorch's, and whose weights were found in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polyak._foreign.parts import Recognised


def saved(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def roles(found: Recognised) -> dict[str, tuple[str, str]]:
    """By the name of a part, its role and its path."""
    return {part.name: (part.role, part.path) for part in found.parts}
