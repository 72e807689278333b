"""What a run came to, from records written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.demo import screen
from polyak.demo.summary import mean_jump, summarize
from polyak.demo.training import EpochRecord, LossRecord, Seconds

SPENT = Seconds(train=9.0, ema=1.0, watch=3.0, test=0.5, test_ema=0.25)
RECORDS = [
    LossRecord(1, 10, 1e-3, 0.9, 1.1, Seconds()),
    EpochRecord(1, 10, 0.8, 0.7, 0.60, 0.50, Seconds()),
    LossRecord(2, 20, 1e-3, 0.5, 0.4, Seconds()),
    EpochRecord(2, 20, 0.6, 0.5, 0.90, 0.75, Seconds()),
    LossRecord(3, 30, 1e-3, 0.4, 0.3, Seconds()),
    EpochRecord(3, 30, 0.7, 0.4, 0.70, 0.85, SPENT),
]


def test_best_last_jump_and_share() -> None:
    summary = summarize(RECORDS)
    assert (summary.raw.best, summary.raw.last) == (0.90, 0.70)
    assert (summary.ema.best, summary.ema.last) == (0.85, 0.85)
    assert summary.raw.jump == pytest.approx((0.30 + 0.20) / 2)
    assert summary.ema.jump == pytest.approx((0.25 + 0.10) / 2)
    assert (summary.raw.test_loss, summary.ema.test_loss) == (0.7, 0.4)
    assert (summary.raw.train_loss, summary.ema.train_loss) == (0.4, 0.3)
    assert summary.ema_share == pytest.approx(0.1)
    assert summary.epochs == 3


def test_the_rows_of_the_table() -> None:
    assert screen.rows(summarize(RECORDS)) == [
        ("best accuracy", "90.00%", "85.00%"),
        ("last accuracy", "70.00%", "85.00%"),
        ("mean jump from epoch to epoch", "25.00%", "17.50%"),
        ("last loss, test images", "0.7000", "0.4000"),
        ("last loss, training batches", "0.4000", "0.3000"),
    ]
    times = "\n".join(screen.times(summarize(RECORDS)))
    assert "10.0% of the training time (1.00 s of 10.00 s)" in times
    assert "3.00 s for its loss on the training batches, 0.50 s and 0.25 s for the test images" in times


def test_before_the_first_epoch_the_table_has_dashes() -> None:
    started = [LossRecord(1, 3, 1e-3, 0.9, 1.1, SPENT)]
    summary = summarize(started)
    assert (summary.epochs, summary.raw.best, summary.raw.jump) == (0, None, None)
    rows = screen.rows(summary)
    assert [row[1:] for row in rows[:4]] == [("-", "-")] * 4
    assert rows[4][1:] == ("0.9000", "1.1000")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_jump_is_zero_only_for_a_constant_curve_and_blind_to_direction(values: list[float]) -> None:
    jump = mean_jump(values)
    assert jump is not None
    assert (jump == 0) == (len(set(values)) == 1)
    assert jump == pytest.approx(mean_jump(values[::-1]))
    assert jump * (len(values) - 1) >= max(values) - min(values) - 1e-12


def test_one_epoch_has_no_jump() -> None:
    assert mean_jump([0.5]) is None
