"""Fuzzing guided by coverage, for as long as one likes: ``python -m tests.fuzz.run [SECONDS] [TARGET …]``.

Needs atheris (``pip install atheris``), which runs on Linux and macOS. Each target has a process and a
corpus of its own, ``build/fuzz/TARGET``; a later run goes on from there. What fails is written there too,
as ``crash-…``, and ``python -m tests.fuzz.run 0 TARGET FILE`` runs it again.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("atheris is not installed. Install it with: pip install atheris")

with atheris.instrument_imports(include=["polyak._files", "polyak._foreign"]):
    from polyak._files.header import KEY, Header
    from polyak._files.layout import Spec
    from polyak._files.open import INDEX
    from polyak._files.shards import write_sharded
    from polyak._foreign.load import load
    from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError
from polyak.schedules import Profile, Warmup
from tests.checkpoints.mutations import MUTATIONS, plain
from tests.checkpoints.test_fuzz import compare, content, told, written

Target = tuple[Callable[[bytes], object], list[bytes]]
FOLDER = Path(__file__).parents[2] / "build" / "fuzz"


def safetensors(folder: Path) -> Target:
    """Any file: what polyak reads is what the safetensors package reads."""

    def check(data: bytes) -> None:
        if data[8:9] == b"{":  # else another format may be meant
            compare(folder / "a", data)

    return check, [plain(random.Random(i)) for i in range(30)]


def average(folder: Path) -> Target:
    """An average: refused, or the one that was written."""
    whole = written(folder).read_bytes()
    path = folder / "average.safetensors"
    original = told(load(path))

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read = load(path)
        except CheckpointError:
            return
        # Checksums can be found by a fuzzer that sees what they are compared with; then it is another file.
        assert data != whole or told(read) == original

    return check, [whole]


def index(folder: Path) -> Target:
    """An index of polyak's: refused, or the whole set."""
    arrays = {f"t{i}": np.full(10, i, np.uint8) for i in range(5)}
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    metadata = Header("average", 1, None, None, "average", "run").to_metadata()
    write_sharded(folder / "a.safetensors", specs, metadata, lambda name: [arrays[name]], 20)
    path = folder / f"a.safetensors{INDEX}"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read = load(path)
        except CheckpointError:
            return
        assert content(dict(read.tensors)) == content(arrays)

    return check, [path.read_bytes()]


def header(folder: Path) -> Target:
    """The text of a header: refused, or the same after being written again."""

    def check(data: bytes) -> None:
        try:
            read = Header.from_metadata({KEY: data.decode(errors="surrogateescape")}, "file")
        except CheckpointError:
            return
        assert Header.from_metadata(read.to_metadata(), "file") == read

    decay = Warmup(0.999)
    profiles = [None, Profile.from_decay(decay, 100), Profile.raw(3) * 0.5 + Profile.from_decay(0.9, 10**18)]
    seeds = [Header("a", 7, decay, profile, "average", "run", {"b": 2}) for profile in profiles]
    return check, [seed.to_metadata()[KEY].encode() for seed in seeds]


def anything(folder: Path) -> Target:
    """Any file of any format: read or refused."""

    def check(data: bytes) -> None:
        (folder / "a").write_bytes(data)
        try:
            with open_weights(folder / "a") as weights:
                for tensor in weights.tensors.values():
                    tensor.read()
        except CheckpointError:
            return

    golden = Path(__file__).parents[1] / "golden_files"
    return check, [file.read_bytes() for file in golden.rglob("*") if file.is_file()] + safetensors(folder)[1]


TARGETS = {target.__name__: target for target in (safetensors, average, index, header, anything)}


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Now and then as the other tests do it, else as libFuzzer does."""
    chance = random.Random(seed)
    if chance.random() < 0.3:
        try:
            return chance.choice(MUTATIONS)(data, chance)[:max_size]
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
        ):  # it is no safetensors file any more
            pass
    return atheris.Mutate(data, max_size)


def fuzz(name: str, seconds: int, files: list[str]) -> None:
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        check, seeds = TARGETS[name](Path(folder))
        for i, seed in enumerate(seeds):
            (corpus / f"seed-{i}").write_bytes(seed)
        limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=4096"]
        report = [f"-artifact_prefix={corpus}/", "-print_final_stats=1", "-verbosity=0"]
        atheris.Setup(
            [sys.argv[0], *limits, *report, *(files or [str(corpus)])], check, custom_mutator=mutated
        )
        atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    names = [name for name in sys.argv[2:] if name in TARGETS] or list(TARGETS)
    files = [name for name in sys.argv[2:] if name not in TARGETS]
    failed = 0
    for name in names:
        print(f"{name}: {' '.join(str(TARGETS[name].__doc__).split())}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz.run", "--one", name, str(seconds), *files]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
