"""An update passes through few files, so that it can be read from ``EMA.update`` to the kernel in one go."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from torch import nn

import polyak

HOUSE = str(Path(polyak.__file__).parent)
MOST = 10


def entered(ema: polyak.EMA) -> set[str]:
    """Files of polyak that run Python code in one update."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOUSE):
            files.add(frame.f_code.co_filename.removeprefix(HOUSE))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        ema.update()
    finally:
        sys.setprofile(before)
    return files


def test_an_update_enters_few_files() -> None:
    """Of a constant decay with the C kernel: averaged parameters and statistics, and a copied counter."""
    ema = polyak.EMA(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), 0.999, engine="native")
    for _ in range(3):
        ema.update()
    files = entered(ema)
    assert {"/_core/advance.py", "/_kernel/native.py"} < files
    assert len(files) <= MOST, sorted(files)
