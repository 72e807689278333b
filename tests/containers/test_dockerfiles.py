"""Dockerfiles keep the rules, and the script says beforehand what it would install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.images import FLAVOURS, ROOT, SCRIPT, dockerfile, instructions

PINNED = re.compile(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?")


def offences(text: str) -> list[str]:
    """What of a Dockerfile is against the rules."""
    said = instructions(text)
    found = [
        f"{name} {rest}: a base has a tag with a version"
        for name, rest in said
        if name == "FROM" and not PINNED.fullmatch(rest)
    ]
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
        ("debian:12.12-slim", "debian", "a tag with a version"),
        ("debian:12.12-slim", "debian:latest", "a tag with a version"),
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


def test_the_context_holds_what_the_script_needs() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    locks = {"constraints.txt", "constraints-paddle.txt"}
    build = {"README.md", "LICENSE", "THIRD_PARTY_NOTICES.md", "pyproject.toml", "setup.py"}
    assert kept == {"containers", "native", "src"} | build | locks


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
    ("flavour", "package", "locked_as"),
    [
        ("torch-cpu", "torch", "torch"),
        ("torch-cuda", "torch", "torch"),
        ("paddle-cpu", "paddlepaddle", "paddlepaddle"),
        ("paddle-gpu", "paddlepaddle-gpu", "paddlepaddle"),
    ],
)
def test_a_plan_is_the_same_but_for_the_framework(flavour: str, package: str, locked_as: str) -> None:
    plan = planned(flavour)
    assert f" install {package}=={locked(locked_as)} {ROOT}[images]\n" in plan
    other = planned("torch-cpu").replace(f"torch=={locked('torch')}", f"{package}=={locked(locked_as)}")
    if flavour == "torch-cuda":  # Triton builds its launcher on the GPU it first meets
        other = "".join(line for line in other.splitlines(keepends=True) if " purge " not in line)
        assert " gcc libc6-dev python3-dev\n" in plan
    assert plan == other


def test_a_plan_follows_its_prefix_and_its_index(tmp_path: Path) -> None:
    plan = planned("paddle-gpu", str(tmp_path / "here"), WHEELS="https://example.org/simple")
    assert f"+ {tmp_path}/here/bin/pip install --extra-index-url https://example.org/simple paddle" in plan
    assert "/opt/polyak" not in plan
    assert not (tmp_path / "here").exists(), "a plan is not carried out"


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--dry-run", "jax-cpu")])
def test_an_unknown_flavour_is_refused(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not known; choose torch-cpu, torch-cuda, paddle-cpu or paddle-gpu" in done.stderr
    assert done.stdout == ""
