"""Registers and spills of each variant of the Triton kernel, as NVIDIA's assembler reports them.

    python -m benchmarks.registers [--save]

Registers bound how many blocks of 8 warps an SM runs at once (65,536 registers each on sm_80 and sm_90), and
so how many bytes are in flight to hide the memory's latency. The kernel is compiled and not run: no GPU is
needed, and how fast it is stays unknown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
THREADS, REGISTERS, MOST_WARPS = 256, 65536, 64  # a block's; an SM's
VARIANTS = [
    ("float32", "float32", 1),
    ("float32", "float32", 3),
    ("bfloat16", "float32", 1),
    ("bfloat16", "bfloat16", 1),
    ("bfloat16", "split", 1),
    ("bfloat16", "split", 4),
    ("float32", "compensated", 1),
    ("float16", "float16", 1),
    ("float64", "float64", 1),
]


class Report(NamedTuple):
    """What the assembler says of one variant on one architecture."""

    architecture: str
    live: str
    store: str
    tracks: int
    persistent: bool
    registers: int
    spilled_bytes: int

    @property
    def blocks(self) -> int:
        """Blocks of 8 warps that fit on an SM; registers come in units of 8 a thread."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * THREADS)
        return min(by_registers, MOST_WARPS * 32 // THREADS)


def ptx_of(architecture: int, live: str, store: str, tracks: int, persistent: bool, skip: bool = True) -> str:
    """The kernel's assembly for a GPU that need not be here."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from polyak.torch._engines import triton_kernels as kernels

    pointers = {"table": "*i64", "blocks": "*i32", "scalars": "*i64", "seen": "*i64"}
    pointers |= {"tensors": "*i32", "updates": "*i32"}
    given: dict[str, Any] = {"TRACKS": tracks, "LIVE": live, "STORE": store, "LARGEST": 65504.0, "SKIP": skip}
    given["PERSISTENT"] = persistent
    signature = {**pointers, "count": "i32", **dict.fromkeys(given, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    source = ASTSource(kernels.average, signature, constexprs=given, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    return build(source, target=target, options={"num_warps": THREADS // 32}).asm["ptx"]


def assembled(ptx: str) -> tuple[int, int]:
    """Registers a thread and bytes spilled, of the assembler that comes with Triton."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    [name] = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [str(ptxas), "-v", f"--gpu-name={name}", str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return int(re.findall(r"Used (\d+) registers", said)[0]), spilled


def reports() -> list[Report]:
    out: list[Report] = []
    for architecture in (80, 90):
        for live, store, tracks in VARIANTS:
            for persistent in (False, True):
                registers, spilled = assembled(ptx_of(architecture, live, store, tracks, persistent))
                out.append(Report(f"sm_{architecture}", live, store, tracks, persistent, registers, spilled))
    return out


def table(found: list[Report]) -> str:
    lines = ["| GPU | θ → average | tracks | grid | registers | spilled bytes | blocks an SM |"]
    lines += ["|---|---|---:|---|---:|---:|---:|"]
    for r in found:
        grid = "persistent" if r.persistent else "a program per block"
        kind = f"{r.live} → {r.store}"
        cells = (r.architecture, kind, r.tracks, grid, r.registers, r.spilled_bytes, r.blocks)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/registers-DATE.*")
    options = parser.parse_args(arguments)
    import triton

    found = reports()
    text = f"Triton {triton.__version__}, its own ptxas, 8 warps; compiled, not run.\n\n{table(found)}\n"
    print(text)
    if options.save:
        file = RESULTS / f"registers-{datetime.date.today()}"
        file.with_suffix(".md").write_text(text)
        rows = [{**r._asdict(), "blocks": r.blocks} for r in found]
        about = {"triton": triton.__version__, "rows": rows}
        file.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
