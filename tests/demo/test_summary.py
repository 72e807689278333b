"""What a run came to, from records written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.demo import screen
from polyak.demo.options import Options
from polyak.demo.summary import summarize, wobble
from polyak.demo.training import EpochRecord, LossRecord, Seconds

SPENT = Seconds(train=9.0, ema=1.0)
RECORDS = [
    LossRecord(1, 10, 1e-3, 0.9, 1.1, Seconds()),
    EpochRecord(1, 10, 0.8, 0.7, 0.60, 0.50, Seconds()),
    LossRecord(2, 20, 1e-3, 0.5, 0.4, Seconds()),
    EpochRecord(2, 20, 0.6, 0.5, 0.90, 0.75, Seconds()),
    LossRecord(3, 30, 1e-3, 0.4, 0.3, Seconds()),
    EpochRecord(3, 30, 0.7, 0.4, 0.70, 0.85, Seconds()),
    EpochRecord(4, 40, 0.6, 0.4, 0.80, 0.86, SPENT),
]


def test_best_last_wobble_and_share() -> None:
    summary = summarize(RECORDS)
    assert (summary.raw.best, summary.raw.last) == (0.90, 0.80)
    assert (summary.ema.best, summary.ema.last) == (0.86, 0.86)
    assert summary.raw.wobble == pytest.approx((0.90 + 0.80) / 2 - 0.70)
    assert summary.ema.wobble == pytest.approx(0.85 - (0.75 + 0.86) / 2)
    assert (summary.raw.test_loss, summary.ema.test_loss) == (0.6, 0.4)
    assert (summary.raw.train_loss, summary.ema.train_loss) == (0.4, 0.3)
    assert summary.ema_share == pytest.approx(0.1)
    assert summary.epochs == 4


def test_the_rows_of_the_table() -> None:
    assert screen.rows(summarize(RECORDS)) == [
        ("best accuracy", "90.00%", "86.00%"),
        ("last accuracy", "80.00%", "86.00%"),
        ("wobble of the accuracy, late epochs", "15.00%", "4.50%"),
        ("last loss, test images", "0.6000", "0.4000"),
        ("last loss, training batches", "0.4000", "0.3000"),
    ]
    assert "10.0% of the training time (1.00 s of 10.00 s)" in screen.cost(summarize(RECORDS))


def test_before_the_first_epoch_the_table_has_dashes() -> None:
    started = [LossRecord(1, 3, 1e-3, 0.9, 1.1, SPENT)]
    summary = summarize(started)
    assert (summary.epochs, summary.raw.best, summary.raw.wobble) == (0, None, None)
    rows = screen.rows(summary)
    assert [row[1:] for row in rows[:4]] == [("-", "-")] * 4
    assert rows[4][1:] == ("0.9000", "1.1000")


@given(st.lists(st.floats(0, 1), min_size=4, max_size=20), st.floats(-1, 1))
def test_the_wobble_is_blind_to_a_steady_rise_and_to_the_first_half(values: list[float], rise: float) -> None:
    found = wobble(values)
    assert found is not None
    assert wobble([value + rise * epoch for epoch, value in enumerate(values)]) == pytest.approx(found)
    early = (len(values) - 1) // 2
    assert wobble([value + 1 for value in values[:early]] + values[early:]) == found


def test_three_epochs_have_no_wobble() -> None:
    assert wobble([0.5, 0.9, 0.5]) is None
    assert wobble([0.1, 0.5, 0.9, 0.5]) == pytest.approx(0.4)


def test_the_gain_is_what_the_run_would_have_lost() -> None:
    gain = screen.gain(summarize(RECORDS), "constant")
    assert gain == [
        "Without averaging this run would have lost 6.00 points: 80.00% accuracy instead of 86.00%, "
        "and a loss of 0.6000 instead of 0.4000.",
        "With --lr cosine the falling learning rate does the averaging.",
    ]
    worse = summarize([*RECORDS, EpochRecord(5, 50, 0.3, 0.4, 0.90, 0.88, SPENT)])
    sentence, about = screen.gain(worse, "cosine")
    assert "would have gained 2.00 points: 90.00% accuracy instead of 88.00%" in sentence
    assert about.startswith("Here the falling learning rate did the averaging")
    started = [LossRecord(1, 3, 1e-3, 0.9, 1.1, SPENT)]
    assert screen.gain(summarize(started), "constant") == []


def test_the_half_lives_in_force_stand_beside_the_decay() -> None:
    """With warm-up ln 2·t^⅔, roughly: 0.9998 itself, 3,465 steps, is reached at step 350,000."""
    assert screen.decay(Options(epochs=10), 938) == (
        "decay 0.9998 with warm-up: a half-life of 65 steps after the first epoch, 305 after the last"
    )
    assert screen.decay(Options(epochs=100, warmup=False), 938) == (
        "decay 0.9998: a half-life of 938 steps after the first epoch, 3,465 after the last"
    )
