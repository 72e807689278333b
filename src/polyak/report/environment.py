"""What a run was made with, in ``polyak-run.json``: written by the demo and by trainers, read by reports."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from polyak._files.write import atomic
from polyak._type_guards import is_dict

FILE = "polyak-run.json"
_PACKAGES = {  # by module: the distribution
    "torch": "torch",
    "paddle": "paddlepaddle",
    "lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "ultralytics": "ultralytics",
    "keras": "keras",
}


def environment(loaded: Mapping[str, object], **more: object) -> dict[str, str]:
    """Versions and machine.

    Args:
        loaded: ``sys.modules``: packages that are not among them are left out.
        more: engine, device, seed and whatever else describes the run.

    Examples:
        >>> environment({}, seed=3)["seed"]
        '3'
    """
    found = {"polyak": version("polyak"), "Python": platform.python_version()}
    for module, package in _PACKAGES.items():
        if module in loaded and (known := _version(package)):
            found[module] = known
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found | {name: str(value) for name, value in more.items()}


def write_environment(folder: Path, facts: Mapping[str, str]) -> None:
    """Write the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with atomic(folder / FILE) as temporary:
        temporary.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_environment(path: Path) -> dict[str, str]:
    """Names and values.

    Raises:
        ValueError: it is no such file.
    """
    found = json.loads(path.read_bytes())
    if not is_dict(found):
        raise ValueError("it is no JSON object")
    return {str(name): str(value) for name, value in found.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
