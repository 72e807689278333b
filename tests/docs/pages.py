"""The scripts of docs/how-to, each run in a folder of its own."""

import os
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.shims import torchvision_without_ops

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
FOLDERS = sorted(path.name for path in HOW_TO.iterdir() if any(path.glob("*.py")))
PAIRS = [name for name in FOLDERS if (HOW_TO / name / "before.py").exists()]  # the others show methods
MIGRATIONS = [name for name in FOLDERS if name.startswith("from-")]
OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "True", "YOLO_AUTOINSTALL": "False"}


class Run(NamedTuple):
    """What a script left: its variables, its folder, and the parameters after each optimizer step."""

    variables: dict[str, Any]
    folder: Path
    path: list[list[Tensor]]

    @property
    def average(self) -> dict[str, Tensor]:
        """The average it wrote."""
        if (file := self.folder / "average.safetensors").exists():
            return load_file(file)
        if (file := self.folder / "average.pt").exists():
            return torch.load(file)
        return torch.load(self.folder / "last.pth.tar")["state_dict_ema"]


def run(page: str, script: str, folder: Path) -> Run:
    """Run docs/how-to/PAGE/SCRIPT.py, from the same seed each time."""
    torchvision_without_ops()
    path: list[list[Tensor]] = []

    def remember(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        path.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])

    (here := folder / script).mkdir()
    hook = register_optimizer_step_post_hook(remember)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name, value in OFFLINE.items():
            patch.setitem(os.environ, name, value)
        torch.manual_seed(0)
        try:
            variables = runpy.run_path(str(HOW_TO / page / f"{script}.py"))
        finally:
            hook.remove()
    return Run(variables, here, path)


def same_path(a: Run, b: Run) -> bool:
    """Whether two scripts trained alike, bit for bit, from the first step to the last."""
    return len(a.path) == len(b.path) > 0 and all(
        torch.equal(x, y)
        for one, other in zip(a.path, b.path, strict=True)
        for x, y in zip(one, other, strict=True)
    )
