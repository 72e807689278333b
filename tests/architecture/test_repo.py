"""What no file of this repository may be or hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 400  # lines of a module of the library

# Written in two parts, so that this file does not hold them itself.
FORBIDDEN = {
    "a package registry's host": re.compile(
        "pypi" r"\.(org|python)|files\.python" r"hosted|registry\.npm" "js"
    ),
    "a path of one machine": re.compile(r"/(work|root|home|Users)/(?!user\b)" r"[\w.-]+/|/tmp" r"/\w"),
}


def tracked() -> list[Path]:
    """Files under version control; outside a clone, as in a source archive, there is nothing to check."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def offences(name: str, text: str) -> list[str]:
    """What a text file holds that it must not."""
    found = [f"{name}: {what}: {hit[0]!r}" for what, rule in FORBIDDEN.items() if (hit := rule.search(text))]
    lines = text.count("\n")
    if name.startswith("src/") and name.endswith(".py") and lines > LONGEST:
        found.append(f"{name}: {lines} lines, more than {LONGEST}")
    return found


def test_no_file_breaks_the_rules() -> None:
    found: list[str] = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += offences(str(path.relative_to(ROOT)), text)
    assert found == []


def test_everything_imported_is_tracked() -> None:
    """A module that was never added works here and nowhere else."""
    known = set(tracked())
    assert [path for path in (ROOT / "src").rglob("*.py") if path not in known] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "https://" + "pypi" + ".org/simple"),
        ("a.py", "/" + "root/project/x"),
        ("a.py", "/" + "tmp/x"),
        ("src/polyak/long.py", "x = 1\n" * 401),
    ],
)
def test_an_offence_is_seen(name: str, text: str) -> None:
    assert len(offences(name, text)) == 1
    assert offences(name, "nothing") == []
