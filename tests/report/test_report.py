"""`polyak report` as a command and a function, and its figures as files."""

from __future__ import annotations

import json
import string
from pathlib import Path
from xml.etree import ElementTree

import pytest

from polyak.errors import ConfigError
from polyak.report import report
from polyak.report.collect import collect
from polyak.report.figures import write_figures
from polyak.report.words import Language, Words
from tests.command_line import polyak
from tests.report.runs import write_log, write_run

ASSETS = Path(__file__).parents[2] / "src" / "polyak" / "report" / "assets"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one")


def test_the_command_writes_a_page_and_says_where(run: Path, tmp_path: Path) -> None:
    (run / "bad.csv").write_bytes(b"")
    done = polyak("report", run, "--lang", "zh", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "wrote report.html: one\n")
    text = (tmp_path / "report.html").read_text()
    assert '<html lang="zh-CN">' in text
    assert "半衰期" in text
    assert "Permission to use, copy, modify" in text, "the licence of what is drawn with"


def test_json_names_all_that_was_written(run: Path, tmp_path: Path) -> None:
    done = polyak("report", run, "-o", "a.html", "--figures", "figures", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert (facts["out"], facts["runs"]) == ("a.html", ["one"])
    assert sorted(facts["figures"]) == sorted(
        str(Path("figures", p.name)) for p in (tmp_path / "figures").iterdir()
    )


def test_what_could_not_be_read_is_said_on_stderr(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "run" / "metrics.jsonl", 3).parent
    (folder / "bad.safetensors").write_bytes(b"x")
    done = polyak("report", folder, cwd=tmp_path)
    assert done.returncode == 0
    assert "polyak: run: " in done.stderr
    assert "bad.safetensors" in done.stderr
    assert "bad.safetensors" in (tmp_path / "report.html").read_text()


def test_a_wrong_path_or_language_writes_nothing(run: Path, tmp_path: Path) -> None:
    done = polyak("report", "nothing", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing does not exist" in done.stderr
    with pytest.raises(ConfigError, match="language='fr'"):
        report([run], tmp_path / "a.html", language="fr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"paths=\[\]"):
        report([], tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_plot_is_a_figure_too(run: Path, tmp_path: Path, language: Language) -> None:
    written = write_figures(collect([run]), tmp_path, language)
    words = Words(language)
    names = sorted({path.stem for path in written})
    assert len(written) == len({*written}) == 2 * len(names)
    assert [name.partition("-")[0] for name in names] == [
        *("decisions", "distance", "merged", "metric", "metric", "profile", "sweep", "sweep")
    ]
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            drawn = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
            texts = {one.text for one in drawn}
            assert texts & {words(key) for key in ("x step", "x half-life", "x tokens")}, path


def test_both_languages_have_the_same_words_with_the_same_places() -> None:
    parse = string.Formatter().parse
    words = json.loads((ASSETS / "words.json").read_text())
    for key, texts in words.items():
        english, chinese = ({name for _, name, *_ in parse(texts[one]) if name} for one in ("en", "zh"))
        assert english == chinese, key
