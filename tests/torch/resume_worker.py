"""Continue every saved run in a process of its own: ``python resume_worker.py FOLDER``."""

import sys
from pathlib import Path

import torch
from resume_cases import CASES, advance, begin

for file in sorted(Path(sys.argv[1]).glob("*.half.pt")):
    saved = torch.load(file, weights_only=True)
    name = file.name.removesuffix(".half.pt")
    model, optimizer, ema = begin(CASES[name])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    ema.load_state_dict(saved["ema"])
    advance(model, optimizer, ema, saved["step"], 23)
    torch.save(ema.state_dict(), file.with_name(f"{name}.resumed.pt"))
