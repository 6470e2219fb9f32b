"""Intervals over recordings: known answers, and how often they cover the truth."""

import numpy as np
import pytest

from r23d_jax.evaluation.bootstrap import interval


def test_no_difference_gives_zero() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, 60) / 3  # thirds, whose sums are rounded
    found = interval(right - right, np.arange(60) % 3, np.arange(60) // 4)
    assert (found.mean, found.low, found.high) == (0, 0, 0) and found.holds_zero
    assert (found.videos, found.groups) == (60, 15)


def test_a_gain_on_every_recording_is_certain() -> None:
    found = interval(np.full(40, 0.25), np.zeros(40, int), np.arange(40) // 4)
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25) and not found.holds_zero


def test_a_gain_in_one_recording_is_not_shown() -> None:
    """Forty of 400 videos gain, all in one of ten recordings: over videos that would be certain."""
    gain = np.zeros(400)
    gain[:40] = 1.0
    whole = interval(gain, np.zeros(400, int), np.arange(400) // 40)
    assert whole.mean == pytest.approx(0.1) and whole.holds_zero and whole.high >= 0.3
    single = interval(gain, np.zeros(400, int), np.arange(400))
    assert not single.holds_zero and single.high < 0.14


def test_the_mean_is_that_of_the_splits() -> None:
    """Not that of all videos: a split with more of them does not weigh more."""
    values = np.array([1.0, 1.0, 1.0, 0.0])
    found = interval(values, np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]))
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 1.0)  # 1 where the second split is not drawn


def test_one_recording_gives_no_interval() -> None:
    found = interval(np.ones(5), np.zeros(5, int), np.zeros(5, int))
    assert found.mean == 1 and np.isnan(found.low) and np.isnan(found.high) and found.holds_zero


def test_the_interval_covers_the_truth_19_times_in_20() -> None:
    """400 tests of two networks on 60 recordings of 4 videos that are right or wrong together."""
    rng = np.random.default_rng(1)
    covered, over_videos = 0, 0
    group = np.repeat(np.arange(60), 4)
    for _ in range(400):
        difference = np.clip(rng.normal(0.1, 0.3, 60), -1, 1)[group] + rng.normal(0, 0.1, 240)
        found = interval(difference, np.zeros(240, int), group)
        covered += found.low <= 0.1 <= found.high
        error = difference.std() / np.sqrt(240)
        over_videos += abs(difference.mean() - 0.1) <= 1.96 * error
    assert 0.92 <= covered / 400 <= 0.975  # two standard errors are 0.022
    assert over_videos / 400 < 0.8  # what videos as the unit would have claimed
