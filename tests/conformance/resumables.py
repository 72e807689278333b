"""Half a run by each framework, in files: ``python -m tests.conformance.resumables`` writes its own again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import polyak
from tests.conformance.row import Arrays, Member, Row

FOLDER = Path(__file__).parent / "resumables"
HALF, WHOLE = 11, 20  # between two updates where every=4
KINDS = ("float32", "float32 into bfloat16", "float32 into split")
OPTIONS: dict[str, Any] = {"decay": {"a": polyak.Warmup(0.9), "b": polyak.Power(gamma=3.0)}, "every": 4}


def points() -> list[Arrays]:
    """θ₀, θ₁, …; one element of θ₄ is not finite, which is counted and resumed."""
    rng = np.random.default_rng(3)
    made = [
        {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=()), "n": np.array(t)} for t in range(WHOLE + 1)
    ]
    made[4]["w"][0, 0] = np.nan
    return made


def run(row: Row, first: int, last: int, resume: Path | None = None) -> Member:
    theta = points()
    member = row.make(theta[first], **OPTIONS)
    if resume is not None:
        assert not member.ema.load(resume)
    for point in theta[first + 1 : last + 1]:
        member.step(point)
    return member


def file_of(framework: str, kind: str) -> Path:
    return FOLDER / f"{framework}-{kind.replace(' ', '-')}.safetensors"


def write() -> None:
    from tests.conformance.members import MEMBERS

    FOLDER.mkdir(exist_ok=True)
    for name, row in MEMBERS.items():
        framework, kind = name.split(" native, ") if " native, " in name else ("", "")
        if kind in KINDS:
            run(row, 0, HALF).ema.save(file_of(framework, kind), resumable=True)


if __name__ == "__main__":
    write()
