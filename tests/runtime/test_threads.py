"""Results of threads: all of them, each item's in order, with its error, and no thread outlives the reader."""

import threading
import time
from collections import defaultdict

import pytest

from r23d_jax.runtime.threads import Ended, in_threads


def test_every_result_arrives_and_every_item_ends_once() -> None:
    def work(item: int):
        for k in range(item):
            yield 10 * item + k
        if item == 3:
            raise ValueError("three")

    results = defaultdict(list)
    for row, result in in_threads(work, [2, 0, 3, 5], threads=3, depth=2):
        results[row].append(result)
    assert results[0][:-1] == [20, 21] and results[2][:-1] == [30, 31, 32] and results[3][:-1] == list(range(50, 55))
    assert all(isinstance(results[row][-1], Ended) for row in (0, 1, 3)) and str(results[2][-1]) == "three"


@pytest.mark.parametrize("depth", [1, 4])
def test_threads_wait_for_a_slow_reader_and_end_with_it(depth: int) -> None:
    made = []

    def work(item: int):
        for k in range(1000):
            made.append(k)
            yield k

    before = threading.active_count()
    results = in_threads(work, range(4), threads=2, depth=depth)
    next(results)
    time.sleep(0.2)
    assert len(made) <= depth + 1 + 2, "those that wait, the one taken, and one in the hands of each thread"
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
