"""Trainings and `prepare` killed at random moments, in few; `kill.py` in this folder does it in many."""

from pathlib import Path

import pytest

from tests.hostile.reliability import kill, soak


@pytest.mark.long
def test_a_training_killed_again_and_again_ends_as_if_left_alone(tmp_path: Path) -> None:
    report = kill.kill_trainings(tmp_path, times=3, seed=0)
    assert not report["wrong"], kill.table("train", report)
    assert len(report["kills"]) == 3


@pytest.mark.long
def test_prepare_killed_again_and_again_writes_the_same_bytes(tmp_path: Path) -> None:
    report = kill.kill_prepare(tmp_path, times=3, seed=0)
    assert not report["wrong"], kill.table("prepare", report)
    assert len(report["kills"]) == 3


def test_growth_is_seen() -> None:
    """The soak compares the second quarter of a process' life with the last, from its first step on."""
    samples = [{"step": 0, "rss_mib": 5.0, "descriptors": 3, "threads": 2}]
    samples += [{"step": i, "rss_mib": 100.0 + i, "descriptors": 8, "threads": 2} for i in range(1, 101)]
    growth = soak.growth(samples)
    assert growth == {"rss_mib": (138.0, 188.0), "descriptors": (8, 8), "threads": (2, 2)}
    assert soak.growth(samples[:10]) is None
