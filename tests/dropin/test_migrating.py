"""The page of differences lists every difference that is tested, and no other."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGES = sorted((HERE.parents[1] / "docs").glob("migrating*.md"))
FILES = sorted(path for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)


def listed(page: Path) -> dict[str, list[str]]:
    """File to the tests named below its heading."""
    found: dict[str, list[str]] = {}
    for section in page.read_text().split("\n## ")[1:]:
        for name in re.findall(r"`tests/dropin/(\w+)\.py`", section):
            found[name] = re.findall(r"\| `(test_\w+)` \|", section)
    return found


def differing(text: str) -> set[str]:
    """Tests below the line that begins the differences."""
    return set(re.findall(r"^def (test_\w+)", text.split("\n# What is different.\n")[1], re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_difference_is_listed_and_each_test_listed_exists(page: Path, path: Path) -> None:
    text, names = path.read_text(), listed(page)[path.stem]
    assert differing(text) <= set(names)
    assert set(names) <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    assert len(names) == len(set(names)) > 3


def test_both_languages_are_there() -> None:
    assert len(PAGES) == 2
    assert listed(PAGES[0]) == listed(PAGES[1])
