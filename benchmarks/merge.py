"""How fast can four checkpoints be averaged, beside other tools and beside reading the files at all?

    python -m venv build/mergekit && build/mergekit/bin/pip install -r benchmarks/merge-requirements.txt
    python -m benchmarks.merge --timm avg_checkpoints.py --mergekit build/mergekit/bin/mergekit-yaml

``avg_checkpoints.py`` is the script of that name in timm's repository. Every contender is a process of
its own, timed from start to end; before each the files are dropped from the page cache. A round reads
the files once from end to end and then runs all contenders in a new order, so that a noisy neighbour
hits all; a figure is the median over rounds. Afterwards all averages must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

COUNT = 4  # checkpoints
LAYERS, WIDTH, HIDDEN, KEYS, WORDS = 8, 2048, 5632, 256, 36_000  # 500 M parameters
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": WORDS,
    "tie_word_embeddings": False,
}
POLYAK = "from polyak.cli import main; main()"
TIMM = (
    "import runpy, sys; from tests.shims import torchvision_without_ops as shim; shim(); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Run(NamedTuple):
    """One process.

    seconds: from its start to its end.  cpu: of them, what all its threads computed together.
    peak: most bytes of memory.  anonymous: the same without the pages of mapped files.
    """

    seconds: float
    cpu: float
    peak: int
    anonymous: int


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a small Llama."""
    block = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (KEYS, WIDTH),
        "self_attn.v_proj": (KEYS, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    yield from {
        "model.embed_tokens": (WORDS, WIDTH),
        "lm_head": (WORDS, WIDTH),
        "model.norm": (WIDTH,),
    }.items()
    for layer in range(LAYERS):
        yield from ((f"model.layers.{layer}.{name}", shape) for name, shape in block.items())


def make(scratch: str, dtype: str, model: str) -> None:
    """Checkpoints like those of one run: a common part and a small part of their own."""
    import ml_dtypes  # noqa: F401  # makes "bfloat16" a NumPy dtype
    import numpy as np
    from safetensors.numpy import save_file

    folder = Path(scratch)
    tensors = list(shapes()) if model == "llama" else [("large", (250_000_000,)), ("small", (250_000, 1000))]
    for i in range(COUNT):
        common, own = np.random.default_rng(0), np.random.default_rng(1 + i)
        made = {
            f"{name}.weight": np.asarray(
                common.standard_normal(shape, np.float32) + 0.01 * own.standard_normal(shape, np.float32)
            ).astype(dtype)
            for name, shape in tensors
        }
        (folder / str(i)).mkdir(parents=True)
        save_file(made, folder / str(i) / "model.safetensors", {"format": "pt"})
        (folder / str(i) / "config.json").write_text(json.dumps({**CONFIG, "dtype": dtype}))


def files(folder: Path) -> list[Path]:
    """The checkpoints."""
    return [folder / str(i) / "model.safetensors" for i in range(COUNT)]


def drop(paths: Sequence[Path]) -> None:
    """Out of the page cache, so that the next to read them reads the disk."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_plainly(paths: Sequence[Path]) -> Run:
    """Read the files one after another into one buffer of 1 MiB."""
    buffer = memoryview(bytearray(1 << 20))
    begun, worked = time.perf_counter(), time.process_time()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return Run(time.perf_counter() - begun, time.process_time() - worked, 0, 0)


def watched(command: Sequence[str]) -> Run:
    """Run to the end, looking at its anonymous memory 100 times a second."""
    anonymous = [0]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output: list[bytes] = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))  # type: ignore
    reader.start()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            anonymous[0] = max([anonymous[0], *(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))])

    looker = threading.Thread(target=look)
    looker.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    looker.join()
    reader.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{b''.join(output).decode()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, anonymous[0] * 1024)


def polyak(folder: Path, out: Path) -> list[str]:
    """The command of this library."""
    return [sys.executable, "-c", POLYAK, "average", *map(str, files(folder)), "-o", str(out)]


def timm(script: Path) -> Callable[[Path, Path], list[str]]:
    """timm's script, writing safetensors."""
    return lambda folder, out: [
        *(sys.executable, "-c", TIMM, str(script), "--input", str(folder), "--filter", "*/model.safetensors"),
        *("--output", str(out), "--no-sort", "--safetensors"),
    ]


def mergekit(script: Path) -> Callable[[Path, Path], list[str]]:
    """mergekit's linear merge, adding in float32 and writing what it read."""

    def command(folder: Path, out: Path) -> list[str]:
        dtype = json.loads((folder / "0" / "config.json").read_text())["dtype"]
        models = [{"model": str(folder / str(i)), "parameters": {"weight": 1 / COUNT}} for i in range(COUNT)]
        config = folder / "merge.yaml"  # JSON is YAML
        config.write_text(
            json.dumps({"merge_method": "linear", "dtype": "float32", "out_dtype": dtype, "models": models})
        )
        return [str(script), str(config), str(out.parent), "--no-copy-tokenizer", "--no-write-model-card"]

    return command


AGREE = """
import sys, numpy as np
from polyak._foreign.open_any import open_weights
with open_weights(sys.argv[1]) as ours, open_weights(sys.argv[2]) as theirs:
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in ours.tensors.items():
        a, b = tensor.read().astype(np.float64), theirs.tensors[name].read().astype(np.float64)
        unit = 2.0 ** -8 if "bfloat16" in (str(tensor.dtype), str(theirs.tensors[name].dtype)) else 2.0 ** -22
        assert np.all(np.abs(a - b) <= unit * np.maximum(np.abs(a), 1)), name
"""


def measure(
    folder: Path, contenders: dict[str, Callable[[Path, Path], list[str]]], rounds: int
) -> dict[str, list[Run]]:
    """All runs of each contender; those of "reading" hold no memory."""
    results: dict[str, list[Run]] = {name: [] for name in ("reading", *contenders)}
    order = list(contenders)
    for done in range(rounds):
        random.Random(done).shuffle(order)
        drop(files(folder))
        results["reading"].append(read_plainly(files(folder)))
        for name in order:
            out = folder / name.split()[0] / "model.safetensors"
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            command = contenders[name](folder, out)
            drop(files(folder))
            results[name].append(watched(command))
            print(f"  {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    ours, *others = (folder / name.split()[0] / "model.safetensors" for name in contenders)
    for other in others:
        subprocess.run([sys.executable, "-c", AGREE, str(ours), str(other)], check=True)
    return results


def machine() -> str:
    """The processor's name and how many of it there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"


def rows(results: dict[str, list[Run]]) -> list[str]:
    """One line of the table for each contender."""
    reading = [run.seconds for run in results["reading"]]
    cpu = statistics.median(run.cpu for run in results["reading"])
    made = [f"| *reading the files* | {statistics.median(reading):.1f} | 1.00 | {cpu:.1f} | | |"]
    for name, runs in results.items():
        if name != "reading":
            seconds = statistics.median(run.seconds for run in runs)
            share = statistics.median(limit / run.seconds for limit, run in zip(reading, runs, strict=True))
            peak = statistics.median(run.peak for run in runs) / 1e6
            anonymous = statistics.median(run.anonymous for run in runs) / 1e6
            cpu = statistics.median(run.cpu for run in runs)
            made.append(
                f"| {name} | {seconds:.1f} | {share:.2f} | {cpu:.1f} | {peak:,.0f} | {anonymous:,.0f} |"
            )
    return made


def main() -> None:
    """Measure, print the tables, write them with date and machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timm", type=Path, help="avg_checkpoints.py of timm's repository")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of an environment that has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure: 12 GB", default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    contenders: dict[str, Callable[[Path, Path], list[str]]] = {"polyak": polyak}
    if options.timm:
        contenders["timm avg_checkpoints.py"] = timm(options.timm)
    if options.mergekit:
        contenders["mergekit linear"] = mergekit(options.mergekit)
    cases = {
        "float32": ("float32", "llama", contenders),
        "bfloat16": ("bfloat16", "llama", contenders),
        "float32, half of it one tensor": ("float32", "large", {"polyak": polyak}),
    }
    busy = f"{os.getloadavg()[2]:.1f} other processes running"  # over the last quarter of an hour
    lines = [f"Averaging four checkpoints; {machine()}, {busy}, files not cached, {date.today()}.", ""]
    raw: dict[str, dict[str, list[Run]]] = {}
    for name, (dtype, model, who) in cases.items():
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            code = "import sys; from benchmarks.merge import make; make(*sys.argv[1:])"
            subprocess.run([sys.executable, "-c", code, scratch, dtype, model], check=True)
            size = sum(path.stat().st_size for path in files(Path(scratch)))
            raw[name] = measure(Path(scratch), who, options.rounds)
        lines += [
            f"{name}: {COUNT} files of {size / COUNT / 1e9:.1f} GB",
            "",
            "| | s | bandwidth, of reading | processors, s | peak memory, MB | without mapped files, MB |",
            "|---|---:|---:|---:|---:|---:|",
            *rows(raw[name]),
            "",
        ]
    print("\n".join(lines))
    options.out.mkdir(exist_ok=True)
    stem = options.out / f"merge-{date.today()}"
    stem.with_suffix(".md").write_text("\n".join(lines))
    runs = {case: {who: [r._asdict() for r in found] for who, found in c.items()} for case, c in raw.items()}
    stem.with_suffix(".json").write_text(
        json.dumps({"date": str(date.today()), "machine": machine(), "runs": runs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
