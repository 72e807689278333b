"""Whole scripts: nothing is said of right ones, and of each wrong one what is wrong, at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyak.doctor import examine
from tests.doctor.corpus import BEYOND, RIGHT, WRONG
from tests.doctor.test_doctor import MISTAKES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.py") if path.name != "draw.py")
WITHOUT_AVERAGE = [page for page in PAGES if page.endswith("before.py") and "/from-" not in f"/{page}"]


def written(folder: Path, script: str) -> Path:
    path = folder / "train.py"
    path.write_text(script)
    return path


@pytest.mark.parametrize("page", PAGES)
def test_scripts_of_the_documentation_are_right(page: str) -> None:
    """What peers' users write stands in their ``before.py``."""
    seen = examine(DOCS / page)
    assert seen.findings == ()
    ours = "/from-" in f"/{page}" or not page.endswith(("before.py", "load.py"))
    assert bool(seen.recognised) == (ours and not page.startswith("server/"))  # whose average is elsewhere


@pytest.mark.parametrize("what", RIGHT)
def test_nothing_is_said_of_right_scripts_and_the_average_is_recognised(tmp_path: Path, what: str) -> None:
    seen = examine(written(tmp_path, RIGHT[what]))
    assert [(finding.check, finding.message) for finding in seen.findings] == []
    assert seen.recognised


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(tmp_path: Path, what: str) -> None:
    script, check, line = WRONG[what]
    [finding] = examine(written(tmp_path, script)).findings
    assert finding.check == check
    assert line in script.splitlines()[finding.line - 1]


@pytest.mark.parametrize("what", BEYOND)
def test_what_is_beyond_it_is_still_recognised(tmp_path: Path, what: str) -> None:
    seen = examine(written(tmp_path, BEYOND[what]))
    assert seen.recognised
    assert seen.findings == (), "found now: it belongs among WRONG"


def test_the_corpora_are_as_large_as_is_said() -> None:
    assert len(RIGHT) + len(PAGES) - len(WITHOUT_AVERAGE) >= 25
    assert len(WRONG) + len(MISTAKES) >= 25
