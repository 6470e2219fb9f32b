"""Bootstrap intervals of an accuracy, or of the difference of two on the same videos, over recordings."""

import dataclasses
import functools

import numpy as np

RESAMPLES, CONFIDENCE = 10_000, 0.95
_CHUNK = 1_000  # resamples at a time, to bound the memory


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    The interval covers the choice of the recordings: where it would lie if other recordings of the same kind were
    tested with the same trained networks. It does not cover the randomness of training. Seeds are averaged, which makes
    that smaller, but how much it varies from one set of seeds to another is not in the interval.
    """

    mean: float  # of the tested videos, in the unit of the values
    # low, high: the middle 95 % of the resampled means; nan with fewer than two groups
    low: float
    high: float
    videos: int  # number of videos
    groups: int  # number of resampled groups

    @property
    def holds_zero(self) -> bool:
        """Whether the interval of a difference holds zero, so that no difference is shown."""
        return not (self.low > 0 or self.high < 0)

    @property
    def negated(self) -> "Interval":
        """The interval of the opposite difference."""
        return dataclasses.replace(self, mean=0 - self.mean, low=0 - self.high, high=0 - self.low)


def interval(values: np.ndarray, parts: np.ndarray, groups: np.ndarray) -> Interval:
    """The mean over parts of the mean of each part, with a percentile interval over resampled groups.

    Clips of one group are cut from one recording, and a network is often right or wrong on all of them. So whole groups
    are drawn with replacement, as many as there are, `RESAMPLES` times and always the same ones. A part whose groups
    were not drawn is left out of that resample.

    Args:
      values: (N,) float: how often a video was right, averaged over seeds; or the difference of two such.
      parts: (N,) int, from 0: the split or fold that a value belongs to.
      groups: (N,) int, from 0: its recording.
    """
    num_parts, num_groups = int(parts.max()) + 1, int(groups.max()) + 1
    cell = groups * num_parts + parts
    shape = (num_groups, num_parts)
    sums = np.bincount(cell, weights=values, minlength=num_groups * num_parts).reshape(shape)
    counts = np.bincount(cell, minlength=num_groups * num_parts).reshape(shape).astype(np.float64)
    mean = float(np.mean(sums.sum(axis=0) / counts.sum(axis=0)))
    low = high = float("nan")
    if num_groups > 1:
        means = []
        for drawn in np.split(_draws(num_groups), RESAMPLES // _CHUNK):
            times = drawn.astype(np.float64)
            total = times @ counts
            means.append(
                np.nanmean(np.divide(times @ sums, total, out=np.full_like(total, np.nan), where=total > 0), 1)
            )
        tail = 50 * (1 - CONFIDENCE)
        # rounded, so that the sums of equal rows give an exact zero
        low, high = (float(end) for end in np.round(np.percentile(np.concatenate(means), (tail, 100 - tail)), 12))
    return Interval(mean, low, high, len(values), num_groups)


@functools.lru_cache(maxsize=1)
def _draws(num_groups: int) -> np.ndarray:
    """How often each group is drawn, (RESAMPLES, num_groups) int16; the same in every call."""
    rng = np.random.default_rng(0)
    rows = (rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups)) for _ in range(RESAMPLES))
    return np.fromiter(rows, np.dtype((np.int16, num_groups)), RESAMPLES)
