"""What happens when in a video: scores of clips that slide over it, smoothed and merged into segments."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from scipy.special import softmax

from r23d_jax.config import Preprocessing, UserError
from r23d_jax.data.make.video import VideoError
from r23d_jax.data.read.views import clip_steps
from r23d_jax.evaluation.video_source import Source, stride_of

LONG_SECONDS = 60.0  # a longer video gets a timeline unless the user decides otherwise
ASSUMED_RATE = 25.0  # frames per second, where neither the video nor the training has a rate


@dataclasses.dataclass(frozen=True)
class TimelineOptions:
    """How a timeline is made."""

    every: float = 0.0  # seconds from one clip to the next; 0: half a clip
    smooth: float = 0.0  # seconds over which scores are averaged; 0: two clips
    # least smoothed score of a segment's class, in [0, 1]; where all are below, there is no segment
    min_score: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("smooth", self.smooth)):
            if not 0 <= value < float("inf"):
                raise UserError(f"{name} {value:g}: must be a number of seconds, or 0 for the default")
        if not 0 <= self.min_score <= 1:
            raise UserError(f"min_score {self.min_score:g}: must be between 0 and 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A part of a video with one class."""

    # start, end: seconds from the first frame
    start: float
    end: float
    label: int  # row of the class
    scores: np.ndarray  # (C,) float64, smoothed, averaged over the segment


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """The scores of the clips of a video, in order."""

    centers: np.ndarray  # (K,) the middle of each clip, in seconds from the first frame
    seconds: float  # duration of the video
    logits: np.ndarray  # (K, C) float32
    options: TimelineOptions  # with `every` and `smooth` as they were used

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """(K + 1,) seconds: clip k stands for the time from edge k to edge k + 1."""
        return np.concatenate([[0.0], (self.centers[1:] + self.centers[:-1]) / 2, [self.seconds]])

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """(K, C) float32 probabilities, each averaged over the clips whose middle is at most `smooth` / 2 away."""
        sums = np.zeros((len(self.logits) + 1, self.logits.shape[1]))
        np.cumsum(softmax(self.logits, -1), axis=0, out=sums[1:])
        reach = self.options.smooth / 2 + 1e-9
        first = np.searchsorted(self.centers, self.centers - reach)
        last = np.searchsorted(self.centers, self.centers + reach, side="right")
        return np.maximum((sums[last] - sums[first]) / (last - first)[:, None], 0).astype(np.float32)

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Neighboring clips with the same best class; none where that class scores less than `min_score`."""
        best = self.scores.argmax(axis=1)
        best[self.scores.max(axis=1) < self.options.min_score] = -1
        bounds = np.flatnonzero(np.diff(best, prepend=-2, append=-2))
        return tuple(
            Segment(float(self.edges[a]), float(self.edges[b]), int(best[a]), self.scores[a:b].mean(0, np.float64))
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
            if best[a] >= 0
        )

    def at(self, time: float) -> np.ndarray:
        """The (C,) smoothed scores at a time in seconds from the first frame."""
        return self.scores[np.clip(np.searchsorted(self.edges, time, side="right") - 1, 0, len(self.scores) - 1)]

    def mixed_with(self, other: "Timeline", weight: float, kind: str) -> "Timeline":
        """Adds the scores of a second stream, each from its clip that is nearest in time; see `single.fuse`."""
        theirs = other.logits[np.searchsorted(other.edges[1:-1], self.centers)]
        if kind == "softmax":
            shares = weight * softmax(self.logits, -1) + (1 - weight) * softmax(theirs, -1)
            mixed = np.log(np.maximum(shares, 1e-30))
        else:
            mixed = weight * self.logits + (1 - weight) * theirs
        return dataclasses.replace(self, logits=mixed.astype(np.float32))


class SlidingClips:
    """Clips that slide over a video, which is read once and never held; iterate over it once.

    A last clip that would pass the end is left out; a video that is shorter than a clip gives one, which is looped.

    Attributes:
      count: frames that were read, once the clips have ended.
      starts: the first frame of each clip so far.
    """

    def __init__(self, source: Source, pre: Preprocessing, options: TimelineOptions):
        self._source = source
        self.rate = source.own_rate or pre.frame_rate or ASSUMED_RATE
        self.stride = stride_of(pre, source.rate)
        self._steps = clip_steps(pre.read_frames, self.stride)
        self.span = int(self._steps[-1]) + 1
        length = self.span / self.rate
        every, smooth = options.every or length / 2, options.smooth or 2 * length
        self._hop = max(every * self.rate, 1.0)
        self.options = dataclasses.replace(options, every=self._hop / self.rate, smooth=smooth)
        self.count, self.starts = 0, list[int]()

    def __iter__(self) -> Iterator[np.ndarray]:
        offsets, held = frozenset(self._steps.tolist()), dict[int, np.ndarray]()
        for number, crop in enumerate(self._source.crops(lambda number: self._needed(number, offsets))):
            self.count = number + 1
            if crop is not None:
                held[number] = crop
            while self._start(len(self.starts)) + self.span <= self.count:
                start = self._start(len(self.starts))
                self.starts.append(start)
                yield np.stack([held[start + step] for step in self._steps.tolist()])
                following = self._start(len(self.starts))
                held = {k: kept for k, kept in held.items() if k >= following}
        if not self.count:
            raise VideoError("the video holds no frame")
        if not self.starts:
            self.starts.append(0)
            yield np.stack([held[k] for k in (self._steps % self.count).tolist()])

    def timeline(self, logits: np.ndarray) -> Timeline:
        """The timeline from the (K, C) logits of all clips."""
        centers = (np.array(self.starts) + min(self.span, self.count) / 2) / self.rate
        return Timeline(centers, self.count / self.rate, logits.astype(np.float32), self.options)

    def _start(self, row: int) -> int:
        return int(row * self._hop + 0.5)

    def _needed(self, number: int, offsets: frozenset[int]) -> bool:
        """Whether a clip reads the frame, or may have to because the video turns out to be shorter than a clip."""
        first = max(int((number - self.span) / self._hop) - 1, 0)
        rows = range(first, int(number / self._hop) + 2)
        return number < self.span or any(number - self._start(row) in offsets for row in rows)
