"""The text-line experiment on few lines: what it makes and learns, and that it goes on as it stopped."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from experiments.intervals import estimate
from experiments.ocr import data, model, run, sheet, table
from experiments.ocr.configs import FULL, QUICK, Config
from experiments.ocr.summary import distance, numbers, screen, summary
from experiments.ocr.train import Run, moments, rate, trained

HERE = Path(table.__file__).parent
FACES = [data.FONTS / file for file in {**data.SEEN, **data.HELD_OUT}]

needs_fonts = pytest.mark.skipif(
    not all(face.exists() for face in FACES) and "POLYAK_REQUIRE_IMAGES" not in os.environ,
    reason=f"needs fonts: apt-get install {data.PACKAGES}",
)


@pytest.fixture
def small() -> Config:
    lines = replace(QUICK.lines, characters=20, train=64, test=24)
    training = replace(QUICK.training, steps=8, batch=8, evaluations=4, warmup=2)
    return replace(QUICK, lines=lines, training=training)


def test_the_alphabet_is_the_first_level_of_gb2312() -> None:
    every = data.common()
    assert len(every) == len(set(every)) == 3755
    assert (every[0], every[-1]) == ("啊", "座")
    assert set(data.alphabet(60)) < set(every)


def test_no_string_is_in_both_parts(small: Config) -> None:
    lines = replace(small.lines, longest=2, test=200, train=400)
    test, train = (set(map(tuple, data.strings(lines, part))) for part in ("test", "train"))
    assert len(data.strings(lines, "train")) == 400
    assert not test & train
    assert not set(data.SEEN) & set(data.HELD_OUT)


@needs_fonts
def test_every_face_has_every_character() -> None:
    for file, face in {**data.SEEN, **data.HELD_OUT}.items():
        font = data.typeface(file, face, 12)
        unknown = bytes(font.getmask("\ue0ff"))
        assert not [c for c in data.common() if bytes(font.getmask(c)) in (b"", unknown)], file


@needs_fonts
def test_lines_are_a_function_of_their_settings(small: Config, tmp_path: Path) -> None:
    first = data.prepared(small.lines, tmp_path / "a")
    again = data.prepared(small.lines, tmp_path / "b")
    other = data.prepared(replace(small.lines, seed=1), tmp_path / "c")
    assert data.digest(first) == data.digest(again) != data.digest(other)
    images, labels = data.load(first, "train")
    assert images.shape == (64, 32, 72)
    assert ((labels > 0).sum(1) >= 2).all()
    assert images.std((1, 2)).min() > 5  # something is written on each


@needs_fonts
def test_lines_are_made_once_and_anew_when_settings_change(small: Config, tmp_path: Path) -> None:
    folder = data.prepared(small.lines, tmp_path / "lines")
    made = (folder / "train-images.npy").stat().st_mtime_ns
    data.prepared(small.lines, folder)
    assert (folder / "train-images.npy").stat().st_mtime_ns == made
    data.prepared(replace(small.lines, train=32), folder)
    assert len(data.load(folder, "train")[0]) == 32


def test_a_local_mixer_sees_its_window_only() -> None:
    paddle.seed(0)
    grid, seen = (8, 40), {}
    for local in (True, False):
        mixer = model.Mixer(32, 32, grid, local)
        x = paddle.randn([1, 320, 32])
        x.stop_gradient = False
        mixer(x)[0, 0].sum().backward()  # the token in the corner
        passed = np.abs(x.grad.numpy()[0]).sum(1).reshape(grid)
        down, across = np.nonzero(passed > 1e-15)  # Paddle's softmax gives nothing less than e^-64
        seen[local] = int(down.max()), int(across.max())
    assert seen == {True: (3, 5), False: (7, 39)}


def test_reading_takes_repetitions_and_blanks_away() -> None:
    columns = paddle.to_tensor([[0, 3, 3, 0, 3, 1, 1, 2], [0] * 8])
    assert model.read(paddle.nn.functional.one_hot(columns, 4)) == [[3, 3, 1, 2], []]


def test_the_edit_distance() -> None:
    assert [distance([1, 2, 3], b) for b in ([1, 2, 3], [1, 3], [], [3, 1, 2], [1, 4, 3, 5])] == [
        0,
        1,
        3,
        2,
        2,
    ]


def test_evaluations_lie_in_the_second_half_mostly() -> None:
    assert moments(QUICK.training) == [240, 480, *range(600, 1201, 60)]
    assert rate(QUICK.training, 1_200) == 0.0
    assert rate(replace(QUICK.training, schedule="constant"), 1_200) == QUICK.training.rate


@needs_fonts
def test_the_recogniser_learns_two_lines_by_heart(small: Config, tmp_path: Path) -> None:
    config = replace(
        small,
        lines=replace(small.lines, train=2),
        training=replace(small.training, batch=2, schedule="constant", steps=100),
    )
    run = Run(config, 0, data.prepared(config.lines, tmp_path / "lines"))
    run.test = run.images, run.labels
    for _ in range(60):
        run.train()
    assert run.score() == {"accuracy": 1.0, "edit": 0.0}


@needs_fonts
def test_a_run_goes_on_as_it_stopped(small: Config, tmp_path: Path) -> None:
    lines = data.prepared(small.lines, tmp_path / "lines")
    whole = Run(small, 0, lines)
    for _ in range(6):
        whole.train()
    first = Run(small, 0, lines)
    for _ in range(3):
        first.train()
    first.evaluate()
    first.save(tmp_path)
    second = Run(small, 0, lines)
    second.resume(tmp_path)
    for _ in range(3):
        second.train()
    assert second.step == 6
    assert second.rows == first.rows
    for name, tensor in whole.model.state_dict().items():
        assert (second.model.state_dict()[name].numpy() == tensor.numpy()).all(), name
    for track, average in whole.ema.tracks.items():
        for name, tensor in average.tensors.items():
            assert (second.ema.tracks[track].tensors[name].numpy() == tensor.numpy()).all(), name


@needs_fonts
def test_a_seed_is_trained_once(small: Config, tmp_path: Path) -> None:
    lines = data.prepared(small.lines, tmp_path / "lines")
    found = trained(small, 0, lines, tmp_path / "seed-0")
    assert [row["step"] for row in found["rows"]] == moments(small.training)
    assert found["rows"][-1].keys() == {"step", "raw", "Warmup(0.999)", "HalfLife(steps=1)"}
    assert found["cost"]["track_bytes"] == found["cost"]["model_bytes"]
    assert 0 < found["cost"]["one_track"] < 1
    before = (tmp_path / "seed-0/result.json").stat().st_mtime_ns
    assert trained(small, 0, lines, tmp_path / "seed-0") == found
    assert (tmp_path / "seed-0/result.json").stat().st_mtime_ns == before


def test_intervals_and_pairs() -> None:
    assert estimate([1.0, 2.0, 3.0]) == {"mean": 2.0, "half": pytest.approx(4.303 / 3**0.5, rel=1e-4)}
    assert estimate([1.0])["half"] is None
    curve = [(1, 0.0, 0.0), (2, 0.5, 0.6), (3, 0.7, 0.65), (4, 0.6, 0.7)]
    rows = [{"step": s, "raw": _score(a), "average": _score(b)} for s, a, b in curve]
    assert numbers(rows, "raw") == pytest.approx(
        {"best": 0.7, "last": 0.6, "edit": 0.4, "jump_mean": 0.15, "jump_largest": 0.2, "wobble": 0.15}
    )
    cost = {"step_seconds": 1.0, "one_track": 0.1, "all_tracks": 0.2}
    gain = summary([{"rows": rows, "cost": cost}])["models"]["average"]["gain"]
    assert gain["last"]["mean"] == pytest.approx(0.1)
    assert gain["jump_mean"]["mean"] == pytest.approx(-0.1)


@needs_fonts
def test_a_quick_run_shows_both_learning_rates_and_what_the_average_adds(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUICK", small)
    monkeypatch.setattr(data, "CACHE", tmp_path / "runs")
    monkeypatch.setattr("sys.argv", ["run", "--quick", "--out", str(tmp_path / "out")])
    run.main()
    assert len(list((tmp_path / "out").glob("quick-co*.json"))) == 2
    *_, first, raw, warm, half, second, _, _, _, sentence = capsys.readouterr().out.splitlines()
    assert (first, second) == ("learning rate constant", "learning rate cosine")
    for line, name in ((raw, "raw"), (warm, "Warmup(0.999)"), (half, "HalfLife(steps=1)")):
        assert re.fullmatch(
            rf"  {re.escape(name)} +best +\d+\.\d % +last +\d+\.\d % +wobble +\d+\.\d points", line
        )
    assert sentence.startswith("In lines read at the end, Warmup(0.999) differs from the raw weights by ")


def test_the_sentence_says_what_the_committed_runs_found() -> None:
    found = {r["config"]["training"]["schedule"]: r["summary"]["models"] for r in table.newest()[:2]}
    assert screen(found)[-1] == (
        "In lines read at the end, Warmup(0.999) differs from the raw weights by "
        "+9.2 points at the constant rate and -0.1 points at the cosine rate."
    )


@needs_fonts
def test_the_picture_shows_the_lines_that_are_made(tmp_path: Path) -> None:
    shown = np.asarray(Image.open(sheet.PICTURE), np.float64)
    made = np.asarray(sheet.sheet(FULL.lines), np.float64)
    assert shown.shape == made.shape
    assert np.corrcoef(shown.ravel(), made.ravel())[0, 1] > 0.99  # another FreeType draws other pixels
    for page in table.WORDS:
        assert "](lines.png)" in (HERE / page).read_text()


def _score(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "edit": 1 - accuracy}


@pytest.mark.parametrize("page", table.WORDS)
def test_the_pages_hold_the_tables_of_the_results(page: str) -> None:
    words = table.WORDS[page]
    text = (HERE / page).read_text()
    assert len(table.newest()) > 0
    for report in table.newest():
        assert table.table(report, words) in text
