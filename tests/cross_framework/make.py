"""Writes what the other framework's tests read: ``python -m tests.cross_framework.make [FOLDER]``.

An average of a real training, saved with ``ema.save``, and what the averaged network says to fixed inputs.
No environment has both frameworks, so what one wrote is kept here and read in the other.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(5, 2, 6, 6)).astype(np.float32), rng.integers(0, 7, 5)


def make(folder: Path) -> None:
    if find_spec("paddle"):
        from tests.cross_framework import paddle_net as net

        name = "paddle"
    else:
        from tests.cross_framework import torch_net as net

        name = "torch"
    ema = net.averaged()
    ema.save(folder / f"{name}.safetensors")
    np.save(folder / f"{name}.npy", net.output(ema.module, *inputs()))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
