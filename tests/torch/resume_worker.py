"""Continue every saved run in a process of its own: ``python -m tests.torch.resume_worker FOLDER``."""

import sys
from pathlib import Path

import torch

from tests.torch.resume_cases import CASES, advance, begin


def finish(folder: Path) -> None:
    for file in sorted(folder.glob("*.half.pt")):
        saved = torch.load(file, weights_only=True)
        name = file.name.removesuffix(".half.pt")
        model, optimizer, ema = begin(CASES[name])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        advance(model, optimizer, ema, saved["step"], 23)
        torch.save(ema.state_dict(), file.with_name(f"{name}.resumed.pt"))


if __name__ == "__main__":
    finish(Path(sys.argv[1]))
