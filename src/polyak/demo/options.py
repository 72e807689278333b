"""The options of a demo run, checked before anything is read, downloaded or written."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import polyak
from polyak.errors import ConfigError

Data: TypeAlias = Literal["auto", "fashion-mnist", "cifar10", "digits"]
Framework: TypeAlias = Literal["auto", "torch", "paddle"]
Rate: TypeAlias = Literal["constant", "cosine"]
FRAMEWORKS = {"torch": "demo", "paddle": "paddle,images"}  # with the extras that bring what the demo needs


@dataclass(frozen=True)
class Options:
    """One demo run.

    Args:
        data: the images.
        root: a folder that holds the image files, or receives the downloaded ones.
        epochs: passes over the training images, at least 1.
        lr: "constant", 1e-3 throughout, or "cosine", from 1e-3 down towards 1e-4.
        decay: β of the average.
        warmup: let the decay grow to β from 0 instead of starting there.
        seed: of the initial weights and of the order of the images, in 0 … 2⁶³-1.
        device: "auto", or the framework's name of it: "cpu", "cuda:1", "mps"; in Paddle "gpu:1".
        out: folder of the files that the run writes; None takes a new one under `runs/`.
        framework: "torch", "paddle", or "auto" for the first of them that is installed.

    Raises:
        ConfigError: β or the seed is outside its range, or `out` already holds a run.
    """

    data: Data = "auto"
    root: Path | None = None
    epochs: int = 10
    lr: Rate = "constant"
    decay: float = 0.9998
    warmup: bool = True
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    framework: Framework = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must lie in 0 … 2⁶³-1")
        if self.out is not None and (self.out / "metrics.jsonl").exists():
            raise ConfigError(f"out={str(self.out)!r} already holds a run; name another folder or remove it")
        _ = self.schedule  # checks β

    @property
    def schedule(self) -> polyak.Decay:
        """The decay of the average."""
        return polyak.Warmup(self.decay) if self.warmup else polyak.Constant(self.decay)

    @property
    def chosen(self) -> str:
        """The framework; torch if it is "auto" and none is installed, which is then reported as missing."""
        if self.framework != "auto":
            return self.framework
        return next((name for name in FRAMEWORKS if find_spec(name)), "torch")

    def make_folder(self) -> Path:
        """Create the folder of this run."""
        if self.out is None:
            return _first_free(Path("runs"))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out={str(self.out)!r} cannot be made: {error}") from error
        return self.out


def _first_free(parent: Path) -> Path:
    n = 1
    while True:
        try:
            folder = parent / f"demo-{n}"
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1
