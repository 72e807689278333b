"""Two containers, one seed: the same average bit for bit. ``make test-containers``, as root, on Debian.

Docker is not needed: a bare root made by debootstrap stands for the base image, and the Dockerfile's own
words are carried out in it. It takes minutes and the network, so no ordinary run of the tests collects it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyak
from polyak import Average
from polyak._files.header import KEY
from tests.containers.images import ROOT, dockerfile, in_context, instructions

SUITE = "bookworm"  # Debian 12, as the Dockerfiles' tag says
# A command in a root, with folders of this machine that it may read. In namespaces of their own the mounts
# and processes end with it.
APART = ("unshare", "--mount", "--pid", "--fork")
ENTER = """
mount -t proc proc "$root/proc"
for folder in $lent; do
    mkdir -p "$root$folder"
    mount --bind -o ro "$folder" "$root$folder"
done
exec chroot "$@"
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the base image holds."""
    root = tmp_path_factory.mktemp("bare")
    subprocess.run(["debootstrap", "--variant=minbase", SUITE, root], check=True, stdout=subprocess.DEVNULL)
    root.chmod(0o755)  # pytest's folders are closed to other users
    (root / "etc/apt/sources.list").unlink()  # this machine's are lent
    for path in LENT:
        if path.is_file():
            copy = root / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    yield root
    shutil.rmtree(root)


def pip_settings() -> dict[str, str]:
    """What pip reads here from files and from the environment, as environment variables."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    pairs = re.findall(r"^(?:global|install|:env:)\.([\w-]+)=(.*)$", said, re.MULTILINE)
    return {f"PIP_{key.upper().replace('-', '_')}": shlex.split(value)[0] for key, value in pairs}


def named_in(settings: dict[str, str]) -> set[Path]:
    """Files and folders of this machine among the settings; of an index also the files it links to."""
    words = " ".join(settings.values()).replace("file://", "").split()
    return {path for word in words if (path := Path(word.removesuffix("/simple"))).is_absolute()}


# This machine's own ways for apt-get and pip to their registries.
LENT = {
    *map(Path, ("/etc/resolv.conf", "/etc/apt/sources.list.d", "/usr/local/share/ca-certificates")),
    *named_in(pip_settings()),
}


class Container:
    """A root, and a Dockerfile's words for what runs in it."""

    def __init__(self, root: Path, words: dict[str, str]) -> None:
        self.root, self.words = root, words

    @classmethod
    def built(cls, bare: Path, root: Path, flavour: str) -> Container:
        """The image: a copy of the bare root, made into what a Dockerfile says."""
        image = cls(root, dict(instructions(dockerfile(flavour))))
        subprocess.run(["cp", "-a", bare, root], check=True)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        files = b"\0".join(name for name in listed.split(b"\0") if name and in_context(name.decode()))
        (root / "src").mkdir()
        tar = subprocess.run(
            ["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=files, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", root / "src"], input=tar.stdout, check=True)
        build = re.sub(r"--mount=\S+ ", "", image.words["RUN"])
        image.enter([], ["sh", "-c", build], pip_settings())
        shutil.rmtree(root / "src")  # Docker only lent it
        return image

    def copied(self, root: Path) -> Container:
        """A container of this image."""
        subprocess.run(["cp", "-a", self.root, root], check=True)
        return Container(root, self.words)

    def enter(self, options: list[str], command: list[str], environment: dict[str, str]) -> str:
        outside = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        lent = " ".join(str(path) for path in LENT if path.is_dir())
        done = subprocess.run(
            [*APART, "sh", "-ec", ENTER, "sh", *options, self.root, *command],
            env=outside | environment | {"root": str(self.root), "lent": lent},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def run(self, *arguments: str) -> str:
        """The default command with arguments, as its user, in its folder."""
        path = re.findall(r'PATH="([^:]+)', self.words["ENV"])[0]
        command = shlex.join([*json.loads(self.words["CMD"]), *arguments])
        inside = f"cd {self.words['WORKDIR']} && PATH={path}:$PATH {command}"
        return self.enter([f"--userspec={self.words['USER']}"], ["sh", "-c", inside], {})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flavour", ["torch-cpu", "paddle-cpu"])
def test_two_containers_and_one_seed_give_one_average(flavour: str, bare: Path, tmp_path: Path) -> None:
    """With as many threads as there are cores. A second image would be of the same locked versions."""
    image = Container.built(bare, tmp_path / "image", flavour)
    assert (image.root / "usr/share/datasets/fashion-mnist").is_dir(), "what the demo takes by default"

    def average(name: str) -> Average:
        container = image.copied(tmp_path / name)
        container.run("--data", "digits", "--epochs", "5", "--seed", "7", "--out", "here")
        out = container.root / container.words["WORKDIR"].lstrip("/") / "here"
        assert out.stat().st_uid != 0
        found = polyak.load(out / "average.safetensors")
        shutil.rmtree(container.root)
        return found

    first, second = average("first"), average("second")
    assert different(first, second) == []
    next(iter(second.tensors.values())).view("uint8")[..., -1] ^= 1
    assert len(different(first, second)) == 1, "one bit is seen"
    headers = [json.loads(average.header.to_metadata()[KEY]) for average in (first, second)]
    assert headers[0].pop("run") != headers[1].pop("run")
    assert headers[0] == headers[1]


def different(one: Average, two: Average) -> list[str]:
    """Names of tensors that are not equal bit for bit."""
    assert one.tensors.keys() == two.tensors.keys()
    return [name for name in one.tensors if one.tensors[name].tobytes() != two.tensors[name].tobytes()]
