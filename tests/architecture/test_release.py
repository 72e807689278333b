"""What a release says of itself is so: versions, bounds, licences, and what is deprecated."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from release.check import ADDRESSES, refuse_placeholders

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION: str = PROJECT["project"]["version"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]

NAMED = {  # how pages write the names of packages
    "PyTorch": "torch",
    "torch": "torch",
    "NumPy": "numpy",
    "PaddlePaddle": "paddlepaddle",
    "Ignite": "pytorch-ignite",
    "Lightning": "lightning",
    "Triton": "triton",
    "Ray": "ray",
    "Ultralytics": "ultralytics",
    "Accelerate": "accelerate",
    "Keras": "keras",
    "Transformers": "transformers",
}
CLAIM = re.compile(rf"\b({'|'.join(NAMED)}) (?:≥ ?)?(\d+(?:\.\d+)+)(?: or newer| and newer| 或更新)|"
                   rf"\b({'|'.join(NAMED)}) ≥ ?(\d+(?:\.\d+)+)")  # fmt: skip


def requirements() -> dict[str, list[Requirement]]:
    """Every requirement of the package, its extras and its groups, by name."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    found: dict[str, list[Requirement]] = {}
    for text in (text for texts in lists for text in texts if isinstance(text, str)):
        requirement = Requirement(text)
        found.setdefault(requirement.name, []).append(requirement)
    return found


def lowest(requirement: Requirement) -> str | None:
    return next((bound.version for bound in requirement.specifier if bound.operator == ">="), None)


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        package, _, rest = line.partition("==")
        found.setdefault(package, set()).add(rest.split(" ")[0])
    return found


def false_claims(page: str) -> list[str]:
    """Bounds that a page states and pyproject.toml does not."""
    known = requirements()
    wrong: list[str] = []
    for one, first, other, second in CLAIM.findall(page):
        name, bound = NAMED[one or other], first or second
        bounds = {lowest(requirement) for requirement in known[name]} - {None}
        if bound not in bounds:
            wrong.append(f"{one or other} {bound}, and pyproject.toml: {bounds}")
    return wrong


def test_every_requirement_has_one_lower_bound_wherever_it_is_named() -> None:
    for name in requirements().keys() - {"polyak"}:
        bounds = {lowest(requirement) for requirement in requirements()[name]} - {None}
        assert len(bounds) == 1, f"{name}: {bounds}"


def test_the_locks_hold_what_is_asked_for() -> None:
    torch, paddle = locked("constraints.txt"), locked("constraints-paddle.txt")
    released = set(PROJECT["dependency-groups"]["release"])
    for name, all_of_it in requirements().items():
        name = re.sub(r"[._]", "-", name).lower()
        for requirement in all_of_it:
            if name == "polyak" or str(requirement) in {str(Requirement(text)) for text in released}:
                continue
            versions = torch.get(name, set()) | paddle.get(name, set())
            assert versions, f"{name} is in neither lock"
            for version in torch.get(name, set()) if "<2.4" not in str(requirement) else paddle[name]:
                assert version in requirement.specifier, f"{requirement}, and the lock has {version}"
    assert "torch" not in paddle
    assert "paddlepaddle" not in torch


def test_pages_state_the_bounds_that_hold() -> None:
    stated = 0
    for page in PAGES:
        assert false_claims(page.read_text()) == [], page
        stated += len(CLAIM.findall(page.read_text()))
    assert stated >= 2


def test_a_false_claim_is_seen() -> None:
    assert len(false_claims("PaddlePaddle 2.6 or newer, and torch ≥ 1.9")) == 2
    assert false_claims("PaddlePaddle 3.0 or newer, and torch ≥ 2.4") == []


def test_the_release_notes_state_the_bounds_that_hold() -> None:
    for page in ("news.md", "news.zh.md"):
        text = (ROOT / "docs" / page).read_text()
        for name in ("PyTorch", "PaddlePaddle", "NumPy"):
            [bound] = re.findall(rf"^\| {name} \| (\d+\.\d+)", text, re.MULTILINE)
            assert {bound} == {lowest(r) for r in requirements()[NAMED[name]]} - {None}


def test_python_is_the_same_everywhere() -> None:
    project = PROJECT["project"]
    minors = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d", c)]
    assert project["requires-python"] == f">={minors[0]}"
    assert f"Python {minors[0]} or newer" in (ROOT / "README.md").read_text()
    assert f"| Python | {minors[0]} |" in (ROOT / "docs" / "news.md").read_text()
    tag = PROJECT["tool"]["distutils"]["bdist_wheel"]["py_limited_api"]
    assert tag == f"cp{minors[0].replace('.', '')}"
    assert PROJECT["tool"]["cibuildwheel"]["build"].split() == [
        f"{tag}-manylinux_x86_64",
        f"{tag}-manylinux_aarch64",
    ]


def test_the_version_is_the_same_everywhere() -> None:
    assert re.search(rf"^version: {re.escape(VERSION)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION


def test_the_addresses_are_of_one_host_and_pages_send_nobody_to_a_reserved_one() -> None:
    hosts = [set(re.findall(r"[\w-]+\.example\b", (ROOT / name).read_text())) for name in ADDRESSES]
    assert hosts in ([set()] * len(ADDRESSES), [{"polyak.example"}] * len(ADDRESSES))
    top = [path for path in ROOT.iterdir() if path.suffix in (".md", ".cff", ".toml", ".yml", ".in")]
    for page in {*PAGES, *top} - {ROOT / name for name in ADDRESSES}:
        assert re.search(r"\w\.example\b", page.read_text()) is None, page


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_release_is_refused_while_an_address_leads_nowhere(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in ADDRESSES:
        (tmp_path / each).write_text("https://localhost/polyak.examples")
    refuse_placeholders(tmp_path, publishes=True)
    (tmp_path / name).write_text('Source = "https://polyak.example/source"')
    with pytest.raises(SystemExit, match=f"Not ready to publish: addresses at .example in {name}$"):
        refuse_placeholders(tmp_path, publishes=True)
    refuse_placeholders(tmp_path, publishes=False)
    assert capsys.readouterr().out.endswith(f"in {name}\n")


def test_every_dependency_is_explained() -> None:
    """CONTRIBUTING has a row for each, with its lower bound."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in requirements().keys() - {"polyak"}:
        assert re.search(rf"^\|.*`{re.escape(name)}`", text, re.MULTILINE), (
            f"{name} has no row in CONTRIBUTING.md"
        )


def test_what_is_by_others_is_named() -> None:
    notices = (ROOT / "THIRD_PARTY_NOTICES.md").read_text()
    bundled = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.min.*")}
    assert set(re.findall(r"`(src/[^`]+)`", notices)) == bundled
    for path in bundled:
        assert (ROOT / path.replace(".min.js", ".LICENSE.txt")).exists()


def test_pages_say_which_extra_brings_agpl_code() -> None:
    for name in ("how-to/ultralytics", "how-to/index"):
        for ending in (".md", ".zh.md"):
            assert "AGPL-3.0" in (ROOT / "docs" / (name + ending)).read_text()


# Deprecation. ``typing_extensions.deprecated`` (``warnings.deprecated`` from Python 3.13 on) marks the name
# for readers, type checkers and callers; its message has one form, which says when the name goes.
FORM = re.compile(r"deprecated since (\d+\.\d+), to be removed in (\d+\.\d+): use \S.*")


def deprecations(source: str) -> list[str]:
    """The messages of the decorator in a file."""
    return [
        decorator.args[0].value if decorator.args and isinstance(decorator.args[0], ast.Constant) else ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "deprecated"
    ]


def against_the_policy(message: str, version: str) -> str | None:
    """What is wrong with a deprecation, in the release with this version."""
    said = FORM.fullmatch(message)
    if said is None:
        return "it does not say: deprecated since X.Y, to be removed in X.Z: use …"
    since, gone = Version(said[1]), Version(said[2])
    if since > Version(version):
        return "it is deprecated since a later version"
    if (gone.major, gone.minor) < (since.major, since.minor + 2) and gone.major == since.major:
        return "it stays for two minor releases"
    return "it should be gone" if gone <= Version(version) else None


def test_what_is_deprecated_keeps_the_policy() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for message in deprecations(path.read_text()):
            assert against_the_policy(message, VERSION) is None, path


MARKED = """
from typing_extensions import deprecated

@deprecated("{message}")
def old(): ...
"""


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("deprecated since 0.2, to be removed in 0.4: use new", None),
        ("deprecated since 0.2, to be removed in 1.0: use new", None),
        ("deprecated", "it does not say"),
        ("deprecated since 0.2, to be removed in 0.3: use new", "two minor releases"),
        ("deprecated since 0.4, to be removed in 0.6: use new", "later version"),
        ("deprecated since 0.1, to be removed in 0.3: use new", "should be gone"),
    ],
)
def test_a_deprecation_against_the_policy_is_seen(message: str, wrong: str | None) -> None:
    [found] = deprecations(MARKED.format(message=message))
    answer = against_the_policy(found, "0.3.1" if wrong is not None else "0.2.0")
    assert answer is None if wrong is None else wrong in str(answer)


def test_a_deprecated_name_warns_and_works() -> None:
    from typing_extensions import deprecated

    @deprecated("deprecated since 0.2, to be removed in 0.4: use new")
    def old() -> int:
        return 7

    with pytest.warns(DeprecationWarning, match="use new"):
        assert old() == 7
