"""How many broken videos a run bears: the fraction of all, and no alarm because the first few were bad luck."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from r23d_jax.config import DataConfig
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read.broken import BrokenLog, BrokenVideoError


def index_of(count: int) -> VideoIndex:
    """Videos without frames, which are broken without anything being read."""
    names, zeros = np.array([f"v{i}" for i in range(count)]), np.zeros(count, np.int32)
    frames: Any = None
    return VideoIndex(("A",), names, zeros, zeros, frames, "made up")


def tried_before_the_stop(order: np.ndarray, broken: set[int], fraction: float) -> int | None:
    """Takes batches of 16 in this order; None if nothing stops it."""
    log, index = BrokenLog(DataConfig(max_broken_fraction=fraction), log=lambda line: None), index_of(len(order))
    for start in range(0, len(order), 16):
        batch = order[start : start + 16]
        delivered = np.array([int(video in broken) for video in batch.tolist()])
        try:
            log.observe(index, batch[:, None], delivered, replaced=False)
        except BrokenVideoError:
            return start + len(batch)
    return None


@pytest.mark.parametrize("seed", range(40))
def test_a_fraction_that_is_allowed_never_stops_a_run(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(1000)
    assert tried_before_the_stop(order, set(range(20)), 0.05) is None
    assert tried_before_the_stop(order, set(range(50)), 0.05) is None, "exactly what is allowed"
    assert tried_before_the_stop(order, set(range(51)), 0.05) is not None, "one more"


def test_the_first_ones_may_be_bad_luck_but_not_too_bad() -> None:
    """32 videos may hold 1.6 broken ones, and by chance 5.1 more; of 360 in all 18 are allowed."""
    order = np.arange(360)
    assert tried_before_the_stop(order, {0, 20}, 0.05) is None
    assert tried_before_the_stop(order, {0, 1, 2, 20, 21, 22}, 0.05) is None
    assert tried_before_the_stop(order, {0, 1, 2, 20, 21, 22, 23}, 0.05) == 32
    assert tried_before_the_stop(order, set(range(0, 360, 2)), 0.05) == 32, "a half is seen early"


def test_none_is_borne_where_none_is_allowed() -> None:
    assert tried_before_the_stop(np.arange(60), {3}, 0.0) == 16
    assert tried_before_the_stop(np.arange(12), {3}, 0.0) == 12


def test_one_video_of_a_small_set_does_not_end_a_run() -> None:
    assert tried_before_the_stop(np.arange(12), {3}, 0.05) is None
    assert tried_before_the_stop(np.arange(12), {3, 4}, 0.05) == 12


def test_good_training_videos_do_not_make_up_for_broken_test_videos() -> None:
    """20 of 120 test videos are a sixth, and 20 of all 520 would be allowed."""
    log, train, test = (
        BrokenLog(DataConfig(max_broken_fraction=0.05), log=lambda line: None),
        index_of(400),
        index_of(120),
    )
    test = dataclasses.replace(test, names=np.char.add("test_", test.names))
    for start in range(0, 400, 16):
        log.observe(train, np.arange(start, start + 16)[:, None], np.zeros(16, int), replaced=True)
    with pytest.raises(BrokenVideoError, match=r"^20 of the 120 videos tried so far cannot be read"):
        log.observe(test, np.arange(120)[:, None], np.repeat([1, 0], [20, 100]), replaced=False)
    assert list(log.faults) == [f"test_v{i}" for i in range(20)]


def test_a_video_of_two_lists_is_diagnosed_once_and_counts_in_both() -> None:
    lines: list[str] = []
    log = BrokenLog(DataConfig(max_broken_fraction=0.05), log=lines.append)
    log.observe(index_of(12), np.array([[3]]), np.array([1]), replaced=False)
    again = index_of(12)
    log.observe(again, np.array([[3]]), np.array([1]), replaced=False)
    assert len(lines) == 1 and len(log.faults) == 1
    with pytest.raises(BrokenVideoError, match=r"^2 of the 2 videos"):
        log.observe(again, np.array([[4]]), np.array([1]), replaced=False)


def test_all_may_be_broken_where_that_is_allowed() -> None:
    assert tried_before_the_stop(np.arange(100), set(range(100)), 1.0) is None


def test_the_message() -> None:
    log, batch = BrokenLog(DataConfig(), log=lambda line: None), np.arange(40)[:, None]
    with pytest.raises(BrokenVideoError) as caught:
        log.observe(index_of(40), batch, np.repeat([1, 0], [7, 33]), replaced=False)
    listed = "".join(f"  v{i}: the video has no frames\n" for i in range(5))
    assert str(caught.value) == (
        "7 of the 40 videos tried so far cannot be read, more than config.data.max_broken_fraction=0.05 allows:\n"
        f"{listed}  and 2 more\nMake the frames again, or raise --config.data.max_broken_fraction"
    )
