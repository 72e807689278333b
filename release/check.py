"""Builds a release from the last commit and tries it as a user would. Each stage prints how long it took.

    make release-check                    all of it, with the oldest and the newest torch: gigabytes, an hour
    make release-check ARGS=--no-torch    without frameworks: what CI runs

Stages end in an exception at the first thing that is wrong, and the first command while an address of the
project ends in .example.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "release"
DIST = ROOT / "dist"
TOOLS = Path(sys.executable).parent  # of the environment that `make release-check` made
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Whether it works at all, without a framework.
EVERYWHERE = [
    *(f"tests/{name}" for name in ("no_extras", "core", "schedules/test_decays.py")),
    *("-m", "not slow", "--ignore=src"),
]
# With torch all is tested that looks at the package and not at the repository around it.
WHOLE = [f"--ignore=tests/{name}" for name in ("architecture", "containers", "docs", "experiments")]
# At their lowest bounds others' libraries warn of each other, and lack what these compare polyak with; slow
# tests, most of them of trainers, fail there where a trainer does not do yet what they look at.
AT_LOWEST = [
    *("-m", "not slow", "-W", "default", "-p", "no:anyio"),
    "--ignore=tests/dropin/test_swa_utils.py",
    "--ignore=tests/dropin/test_ultralytics.py",
    "--deselect=tests/checkpoints/test_convert.py::test_the_weight_averaging_callback_takes_up_what_was_written",
    "--deselect=tests/checkpoints/test_foreign.py::test_lightning_with_its_averaging_callback",
    "--deselect=tests/checkpoints/test_foreign.py::test_lightning_after_training_has_overwritten_the_raw_model",
    "--deselect=tests/cli/test_cli.py::test_a_value_outside_its_choices_is_a_usage_error",
    "--deselect=tests/server/test_counting.py::test_every_schedule_gives_its_own_profile[HalfLife in tokens]",
    "--deselect=tests/report/test_curve.py::test_a_picture_has_a_curve_a_star_and_crosses",
]
LOCKED = ("--constraint", ROOT / "constraints.txt")
ADDRESSES = ("pyproject.toml", "SECURITY.md", "CITATION.cff")
GLIBC = "2.17"  # of manylinux2014
PLATFORM = "manylinux2014_x86_64"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long it took."""
    begun = time.monotonic()
    yield
    print(f"=== release: {name}: {time.monotonic() - begun:.0f} s", flush=True)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; it is shown if the command fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{shlex.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout


def uv(*arguments: str | Path, **environment: str) -> str:
    """Run uv, which also looks where pip is told to look for wheels."""
    links = os.environ.get("PIP_FIND_LINKS", "")
    return run(TOOLS / "uv", *arguments, UV_FIND_LINKS=links.replace(" ", ","), **environment)


def interpreter(version: str) -> str | None:
    """Where this Python is, if it is here; pyenv's shims start it when told the version."""
    try:
        command = [f"python{version}", "-c", "import sys; print(sys.executable)"]
        return subprocess.run(
            command, env=os.environ | {"PYENV_VERSION": version}, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(name: str, python: str, *requirements: str | Path) -> Path:
    """A new environment with these installed; its Python."""
    folder = WORK / name
    uv("venv", "--quiet", "--seed", "--clear", "--python", python, folder)
    inside = folder / "bin" / "python"
    if requirements:
        uv("pip", "install", "--quiet", "--python", inside, *requirements)
    return inside


def commit(folder: Path) -> Path:
    """The files of the last commit, at the commit's time."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def same_bytes(sdist: Path, when: int) -> None:
    """Write a source archive again with nothing in it that differs between two builds of the same files."""
    with tarfile.open(sdist) as old:
        members = sorted(old.getmembers(), key=lambda member: member.name)
        held = [(member, old.extractfile(member) if member.isfile() else None) for member in members]
        plain = sdist.with_suffix("")
        with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as new:
            for member, content in held:
                member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
                member.mode, member.pax_headers = 0o755 if member.mode & 0o100 else 0o644, {}
                new.addfile(member, content)
    run("gzip", "--best", "--no-name", "--force", plain)


def builds(folder: Path) -> list[Path]:
    """A source archive, and from it a wheel with the kernel for old Linux systems and one without it."""
    when = run("git", "log", "-1", "--format=%ct").strip()
    source, out = commit(folder / "source"), folder / "dist"
    lock = ("--build-constraint", ROOT / "constraints.txt", "--quiet", "--out-dir", out)
    python = interpreter(PYTHONS[0]) or sys.executable
    uv("build", "--sdist", source, *lock, SOURCE_DATE_EPOCH=when)
    [sdist] = out.glob("*.tar.gz")
    same_bytes(sdist, int(when))
    # Zig's C compiler links against the glibc it is told, wherever it runs; manylinux's images need Docker.
    # Its runtime library does not say what the processor can do; GCC's does. Without it the baseline runs.
    zig = f"{sys.executable} -m ziglang cc -target x86_64-linux-gnu.{GLIBC}"
    # Debugging symbols would hold the folder's name, and archives the time.
    plainly = {"SOURCE_DATE_EPOCH": when, "CFLAGS": "-g0", "LDFLAGS": "-Wl,--strip-all"}
    linked = f"{zig} -shared {run('gcc', '--print-libgcc-file-name').strip()}"
    uv("build", "--wheel", sdist, "--python", python, *lock, **plainly, CC=zig, LDSHARED=linked)
    uv("build", "--wheel", sdist, "--python", python, *lock, **plainly, POLYAK_WITHOUT_KERNEL="1")
    [native] = out.glob("*-cp310-abi3-linux_x86_64.whl")
    tag = ("wheel", "tags", "--remove", "--platform-tag", PLATFORM)
    run(sys.executable, "-m", *tag, native, SOURCE_DATE_EPOCH=when)  # it writes the archive anew
    return sorted([*out.glob("*.tar.gz"), *out.glob("*.whl")])


def hashes(files: list[Path]) -> dict[str, str]:
    """Of each file by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def build_twice() -> list[Path]:
    """The files of the release, whose bytes are those of a second build elsewhere."""
    first, second = builds(WORK / "a"), builds(WORK / "another place")
    if hashes(first) != hashes(second):
        raise SystemExit(f"two builds of one commit differ:\n{hashes(first)}\n{hashes(second)}")
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for file in first:
        print(f"{hashes([file])[file.name]}  {file.name}  {file.stat().st_size:,} bytes")
    return [Path(shutil.copy(file, DIST)) for file in first]


def glibc_of(library: Path) -> tuple[int, ...]:
    """The newest version of glibc that a shared library asks for."""
    symbols = run("objdump", "-T", library)
    return max(tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", symbols))


def examine(files: list[Path]) -> None:
    """What an index, an old Linux and a distributor would complain about."""
    run(TOOLS / "twine", "check", "--strict", *files)
    rating = run(TOOLS / "pyroma", "--min", "10", next(file for file in files if file.suffix == ".gz"))
    print(re.findall(r"(?m)^.*rating.*$", rating, re.IGNORECASE))
    for wheel in (file for file in files if file.suffix == ".whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(WORK / wheel.stem)
            names = set(archive.namelist())
        tracked = run("git", "ls-files", "src/polyak").split()
        missing = {name.removeprefix("src/") for name in tracked} - names
        kernel = sorted(name for name in names if name.endswith(".so"))
        if missing or bool(kernel) != (PLATFORM in wheel.name):
            raise SystemExit(f"{wheel.name}: without {missing}, with {kernel}")
        for name in kernel:
            asked = glibc_of(WORK / wheel.stem / name)
            size = (WORK / wheel.stem / name).stat().st_size
            print(f"{name}: {size:,} bytes, asks for glibc {'.'.join(map(str, asked))}")
            if asked > tuple(map(int, GLIBC.split("."))):
                raise SystemExit(f"{name} asks for glibc {asked}: what was it linked against?")
            print(
                run(TOOLS / "auditwheel", "show", wheel)
                .split("following platform tag:")[1]
                .split(".\n")[0]
                .strip()
            )
    run(
        TOOLS / "cibuildwheel",
        "--platform",
        "linux",
        "--archs",
        "x86_64",
        "--print-build-identifiers",
        "--allow-empty",
        ROOT,
    )


def bill_of_materials(wheel: Path) -> None:
    """What is installed with polyak, by name, version and licence."""
    python = environment("bill", sys.executable, wheel, *LOCKED)
    out = DIST / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
    of = ("environment", python, "--pyproject", ROOT / "pyproject.toml", "--mc-type", "library")
    run(TOOLS / "cyclonedx-py", *of, "--output-reproducible", "--output-file", out)
    print(f"{out.name}: {out.stat().st_size:,} bytes")


ENGINE = "from polyak._kernel import NO_KERNEL, native; print(native.VARIANT if native else NO_KERNEL)"


def without_a_compiler() -> None:
    """The source archive installs silently without a compiler, and its advice works where there is one."""
    needed = ["numpy", "ml_dtypes", "typer", "rich", "setuptools", "pip"]
    python = environment("no-compiler", sys.executable, *needed, *LOCKED)
    pip = (python, "-m", "pip")
    only = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(DIST), "PIP_CACHE_DIR": str(WORK / "cache")}
    first = ("install", "--no-build-isolation", "--no-deps", "--no-binary", "polyak", "polyak")
    if re.search("(?i)warn|error", shown := run(*pip, *first, "--quiet", CC="false", **only)):
        raise SystemExit(f"without a compiler it is not silent: {shown}")
    said = run(python, "-c", ENGINE).strip()
    advice = re.search(r"pip (install .+)", said)
    if advice is None:
        raise SystemExit(f"without a compiler: {said!r}")
    run(*pip, *advice[1].split(), "--no-build-isolation", **only)
    now = run(python, "-c", ENGINE).strip()
    print(f"{said!r}, and then {now!r}")
    if "not built" in now:
        raise SystemExit("the advice does not bring the kernel")


FOUND = "import polyak, sys; print(sys.version.split()[0], *polyak.__path__)"


def tests(name: str, python: Path, *arguments: str) -> None:
    """Run tests against what is installed; for the examples in it, the folder of sources leads there."""
    place = WORK / f"{name}-tests"
    commit(place)
    shutil.rmtree(place / "src")
    (place / "src").mkdir()
    version, package = run(python, "-c", FOUND, cwd=place).strip().split(" ", 1)
    (place / "src" / "polyak").symlink_to(package)
    pytest = (python, "-m", "pytest", "-q", "-n2", "--dist=loadfile", "-p", "no:cacheprovider")
    shown = run(*pytest, *arguments, cwd=place, OMP_NUM_THREADS="1")
    print(f"{name}, Python {version}: {shown.strip().splitlines()[-1]}", flush=True)


TESTERS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "safetensors", "setuptools"]


def on_each_python(wheel: Path) -> None:
    """The wheel, with the locked versions, on every Python that is here."""
    for version in PYTHONS:
        found = interpreter(version)
        if found is None:
            print(f"Python {version} is not on this machine")
            continue
        name = f"python-{version}"
        tests(
            name,
            environment(name, found, wheel, *LOCKED, *TESTERS),
            *EVERYWHERE,
        )


def oldest_python() -> str:
    """The oldest that is here."""
    return interpreter(PYTHONS[0]) or sys.executable


def lowest(name: str, extras: str, *constraints: str) -> Path:
    """A file that pins all that pyproject.toml names for these extras to the lowest version it allows.

    Resolving ``polyak[extras]`` itself that way pins nothing: what a wheel requires is not direct.
    """
    held, out = WORK / f"{name}.in", WORK / f"{name}.txt"
    held.write_text("\n".join(constraints))
    asked = ("--resolution", "lowest-direct", "--python", oldest_python(), "--constraint", held)
    named = [f"--extra={extra}" for extra in extras.split(",")]
    uv("pip", "compile", "--quiet", "pyproject.toml", *asked, *named, "--output-file", out)
    return out


def at_lowest_bounds(wheel: Path) -> None:
    """Without a framework, the lowest version of everything that polyak names, on the oldest Python."""
    extras = "remote,plot,images"
    pinned = ("--constraint", lowest("lowest", extras))
    python = environment("lowest", oldest_python(), f"polyak[{extras}] @ {wheel.as_uri()}", *pinned, *TESTERS)
    tests("lowest", python, *EVERYWHERE)


def all_extras() -> str:
    """Those of the main environment."""
    return "torch," + re.findall(r"(?m)^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text())[0]


def with_oldest_torch(wheel: Path) -> None:
    """The oldest torch and the lowest version of every trainer, on the oldest Python."""
    bound = re.findall(r"torch>=([\d.]+)", (ROOT / "pyproject.toml").read_text())[0]
    # Named, because torchvision, of which no version is named, would bring a newer one.
    pins = lowest("oldest-torch", all_extras(), f"torch=={bound}.0")
    others, instead = WORK / "others.txt", WORK / "instead.txt"
    others.write_text("diffusers<0.37")  # newer ones import torch.accelerator
    instead.write_text("triton")  # this torch's, though it is older than the kernels need
    asked = ("--constraint", pins, "--constraint", others, "--override", instead, "--group", "dev")
    python = environment(
        "oldest-torch", oldest_python(), f"polyak[{all_extras()}] @ {wheel.as_uri()}", *asked
    )
    with_torch("oldest-torch", python, *AT_LOWEST)


def with_newest_torch(wheel: Path) -> None:
    """Whatever is newest of everything, on the newest Python."""
    newest = interpreter(PYTHONS[-1]) or sys.executable
    asked = (f"polyak[{all_extras()}] @ {wheel.as_uri()}", "--group", "dev")
    with_torch("newest-torch", environment("newest-torch", newest, *asked))


def with_torch(name: str, python: Path, *options: str) -> None:
    """The suite, and which torch it is."""
    print(name, "is", run(python, "-c", "import torch; print(torch.__version__)").strip(), flush=True)
    tests(name, python, *WHOLE, *options)


def placeholders(root: Path) -> list[str]:
    """The files that give the project's addresses and still have one at .example, which nobody can own."""
    return [name for name in ADDRESSES if re.search(r"\.example\b", (root / name).read_text())]


def refuse_placeholders(root: Path, publishes: bool) -> None:
    """End a release with them; CI's run, which publishes nothing, says so."""
    if found := placeholders(root):
        said = f"Not ready to publish: addresses at .example in {', '.join(found)}"
        if publishes:
            raise SystemExit(said)
        print(said)


def main(arguments: list[str]) -> None:
    """All stages, in order."""
    if changed := run("git", "status", "--short", "--untracked-files=no"):
        print(f"not committed, so not in this release:\n{changed}")
    shutil.rmtree(WORK, ignore_errors=True)
    with stage("build twice"):
        files = build_twice()
    native = next(file for file in files if PLATFORM in file.name)
    stages: list[tuple[str, Callable[[], object]]] = [
        ("examine", lambda: examine(files)),
        ("bill of materials", lambda: bill_of_materials(native)),
        ("without a compiler", without_a_compiler),
        ("each Python", lambda: on_each_python(native)),
        ("lowest bounds", lambda: at_lowest_bounds(native)),
    ]
    if "--no-torch" not in arguments:
        stages += [
            ("oldest torch", lambda: with_oldest_torch(native)),
            ("newest torch", lambda: with_newest_torch(native)),
        ]
    for name, do in stages:
        with stage(name):
            do()
    refuse_placeholders(ROOT, publishes="--no-torch" not in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
