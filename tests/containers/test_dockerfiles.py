"""Dockerfiles keep the rules, and the script says beforehand what it would install."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.containers.images import FLAVOURS, ROOT, SCRIPT, dockerfile, in_context, instructions

KNOWN = {"FROM", "ARG", "RUN", "ENV", "USER", "WORKDIR", "CMD", "ADD", "COPY"}
PINNED = re.compile(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?")


def offences(text: str) -> list[str]:
    """What of a Dockerfile is against the rules."""
    said = instructions(text)
    defaults = {f"${name}": value for _, rest in said for name, value in [rest.partition("=")[::2]]}
    found = [
        f"{name} {rest}: a base has a tag with a version"
        for name, rest in said
        if name == "FROM" and not PINNED.fullmatch(defaults.get(rest, rest))
    ]
    found += [
        f"ARG {rest}: none but the base has a default"
        for name, rest in said
        if name == "ARG" and "=" in rest and not rest.startswith("BASE=")
    ]
    found += [f"{name}: no instruction of Docker's" for name, _ in said if name not in KNOWN]
    found += [f"{name} {rest}: RUN alone brings content in" for name, rest in said if name in ("ADD", "COPY")]
    runs = [rest for name, rest in said if name == "RUN"]
    if len(runs) != 1 or not re.search(r" /src/containers/provision\.sh [\w-]+$", runs[0]):
        found.append(f"RUN {runs}: there is one, and it calls provision.sh")
    users = [rest for name, rest in said if name == "USER"]
    if not users or users[-1] in ("root", "0"):
        found.append(f"USER {users}: the last is not root")
    if ("CMD", '["polyak", "demo"]') not in said:
        found.append("CMD: the demo is what runs")
    return found


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_dockerfile_keeps_the_rules_and_differs_in_its_flavour_alone(flavour: str) -> None:
    text = dockerfile(flavour)
    assert offences(text) == []
    assert text.replace(flavour, FLAVOURS[0]) == dockerfile(FLAVOURS[0])
    assert f"provision.sh {flavour}\n" in text


def test_there_are_no_others() -> None:
    assert {path.name for path in SCRIPT.parent.glob("*.Dockerfile")} == {f"{f}.Dockerfile" for f in FLAVOURS}


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("BASE=debian:12.12-slim", "BASE=debian", "a tag with a version"),
        ("BASE=debian:12.12-slim", "BASE=debian:latest", "a tag with a version"),
        ("FROM $BASE", "FROM debian", "a tag with a version"),
        ("FROM $BASE", "FROM $OTHER", "a tag with a version"),
        ("ARG PIP_INDEX_URL", "ARG PIP_INDEX_URL=https://example.org/simple", "none but the base"),
        ("ARG WHEELS", "ARGS WHEELS", "no instruction"),
        ("USER polyak\n", "", "not root"),
        ("USER polyak", "USER root", "not root"),
        ("USER polyak", "USER polyak\nUSER 0", "not root"),
        ("USER polyak", "ADD https://example.org/x /x\nUSER polyak", "RUN alone"),
        ("USER polyak", "RUN true\nUSER polyak", "there is one"),
        ("provision.sh", "other.sh", "calls provision.sh"),
        ('"demo"', '"bench"', "the demo"),
    ],
)
def test_an_offence_is_seen(right: str, wrong: str, words: str) -> None:
    [offence] = offences(dockerfile("torch-cpu").replace(right, wrong))
    assert words in offence


def test_each_argument_is_one_the_script_explains() -> None:
    arguments = {rest for name, rest in instructions(dockerfile("torch-cpu")) if name == "ARG"}
    explained = set(re.findall(r"^# ([A-Z_]+)  +", SCRIPT.read_text(), re.MULTILINE))
    assert arguments - {"BASE=debian:12.12-slim"} == explained - {"FLAVOUR", "PREFIX"}


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("containers/provision.sh", True),
        ("src/polyak/report/assets/d3.min.js", True),
        ("src/polyak/_kernel/_native.abi3.so", False),
        ("src/polyak/__pycache__/ema.cpython-311.pyc", False),
        ("dist/polyak-0.2.0-py3-none-any.whl", True),
        ("dist/polyak-0.2.0.tar.gz", False),
        ("experiments/harness.py", True),
        ("tests/README.md", False),
        (".git/config", False),
    ],
)
def test_the_context_holds_what_images_need_and_little_else(path: str, sent: bool) -> None:
    assert in_context(path) == sent


def test_polyak_builds_from_what_the_context_holds(tmp_path: Path) -> None:
    """Without the kernel: compiling it takes long, and its sources are one folder that is sent whole."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(in_context, listed.splitlines()):
        (copy := tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, tmp_path],
        cwd=tmp_path / "src",
        env=os.environ | {"POLYAK_WITHOUT_KERNEL": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("polyak-*.whl")
    assert any(name.endswith("licenses/THIRD_PARTY_NOTICES.md") for name in ZipFile(wheel).namelist())


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True, check=False).stdout == ""


def planned(*arguments: str, **environment: str) -> str:
    command = [SCRIPT, "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def locked(name: str) -> str:
    lock = "constraints-paddle.txt" if name.startswith("paddle") else "constraints.txt"
    [version] = re.findall(rf"^{name}==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    return version


@pytest.mark.parametrize(
    ("flavour", "framework", "lock"),
    [
        ("torch-cpu", f"torch=={locked('torch')}+cpu", "constraints.txt"),
        ("torch-cuda", f"torch=={locked('torch')}", "constraints.txt"),
        ("paddle-cpu", f"paddlepaddle=={locked('paddlepaddle')}", "constraints-paddle.txt"),
        ("paddle-gpu", f"paddlepaddle-gpu=={locked('paddlepaddle')}", "constraints-paddle.txt"),
    ],
)
def test_a_plan_is_the_same_but_for_the_framework(flavour: str, framework: str, lock: str) -> None:
    plan = planned(flavour)
    assert f" install {framework} {ROOT}[images]\n" in plan
    checked, installed = f"/offered.py {flavour} {framework} {ROOT}/{lock}\n", f"/pip install {framework} "
    assert plan.index(checked) < plan.index(installed)
    other = planned("torch-cpu").replace(f"torch=={locked('torch')}+cpu", framework)
    other = other.replace("torch-cpu", flavour).replace(f"{ROOT}/constraints.txt", f"{ROOT}/{lock}")
    if flavour == "torch-cuda":  # Triton builds its launcher on the GPU it first meets
        other = "".join(line for line in other.splitlines(keepends=True) if " purge " not in line)
        assert " gcc libc6-dev python3-dev\n" in plan
    assert plan == other


def test_a_plan_follows_its_prefix(tmp_path: Path) -> None:
    plan = planned("paddle-gpu", str(tmp_path / "here"))
    assert f"+ {tmp_path}/here/bin/pip install paddle" in plan
    assert "/opt/polyak" not in plan
    assert not (tmp_path / "here").exists(), "a plan is not carried out"


def test_a_release_is_installed_without_a_compiler() -> None:
    plan = planned("torch-cpu", POLYAK="0.2.0")
    assert " polyak[images]==0.2.0\n" in plan
    assert str(ROOT) + "[images]" not in plan
    assert "gcc" not in plan
    assert " gcc " in planned("torch-cuda", POLYAK="0.2.0"), "for Triton"


def refused(**environment: str) -> str:
    done = subprocess.run(
        [SCRIPT, "--dry-run", "torch-cpu"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_wheel_is_installed_if_it_is_there(tmp_path: Path) -> None:
    wheel = os.path.relpath(tmp_path / "polyak.whl", ROOT)
    words = f"POLYAK='{wheel}' is not a file of the clone; put the wheel into dist/"
    assert words in refused(POLYAK=wheel)
    (tmp_path / "polyak.whl").touch()
    plan = planned("torch-cpu", POLYAK=wheel)
    assert f" {ROOT}/{wheel}[images]\n" in plan
    assert "gcc" not in plan


def test_jupyter_comes_when_asked_for() -> None:
    assert "+ /opt/polyak/bin/pip install jupyterlab>=4\n" in planned("paddle-cpu", JUPYTER="1")
    assert "jupyter" not in planned("paddle-cpu")


def test_a_mirror_replaces_the_servers_of_debian_before_anything_is_fetched(tmp_path: Path) -> None:
    first = planned("torch-cpu", APT_MIRROR="http://mirror.example/").splitlines()[0]
    *command, path = shlex.split(first.removeprefix("+ "))
    assert path == "/etc/apt/sources.list.d/debian.sources"
    sources = tmp_path / "debian.sources"
    sources.write_text("URIs: http://deb.debian.org/debian\nURIs: http://deb.debian.org/debian-security\n")
    subprocess.run([*command, sources], check=True)
    assert sources.read_text() == (
        "URIs: http://mirror.example/debian\nURIs: http://mirror.example/debian-security\n"
    )


def test_a_mirror_that_a_bare_debian_cannot_trust_is_refused() -> None:
    assert "does not begin with http://" in refused(APT_MIRROR="https://mirror.example")


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--dry-run", "jax-cpu")])
def test_an_unknown_flavour_is_refused(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not known; choose torch-cpu, torch-cuda, paddle-cpu or paddle-gpu" in done.stderr
    assert done.stdout == ""
