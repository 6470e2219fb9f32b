"""Class probabilities of videos, in memory that does not grow with their length."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import softmax

from r23d_jax.config import EvalConfig, Preprocessing, look_up
from r23d_jax.data.make.video import VideoError
from r23d_jax.data.read.views import clip_steps, make_views
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.evaluation.timeline import LONG_SECONDS, SlidingClips, Timeline, TimelineOptions
from r23d_jax.evaluation.video_source import FrameFolder, Source, open_source, stride_of
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel
from r23d_jax.runtime.threads import Ended, in_threads

Video = Path | str | np.ndarray  # a file or a folder of frames, an address, or frames (T, H, W, C) uint8
MOST_THREADS = 16  # that decode videos
BATCHES_IN_FLIGHT = 2  # dispatched before the oldest one's scores are read


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The scores of a video."""

    probabilities: np.ndarray  # (C,) float64, averaged over clips, as in `val/top1_video_softmax`
    logits: np.ndarray  # (C,) float64, averaged over clips
    num_frames: int  # frames in the video; of optical flow, one fewer
    num_clips: int  # clips scored
    seen: float  # share of the video that the clips span, in (0, 1]
    stride: float  # frames from one of a clip to the next
    note: str = ""  # numbered pictures in a folder that are not frames of the video, in words; "" if there are none
    pace: str = ""  # how the stride follows from the rate of the video, in words; "" if it is that of the training
    seconds: float = 0.0  # duration of the video, without a timeline as its header states it; 0 if that is not known
    timeline: Timeline | None = None  # what happens when; None if only the whole video was asked for


class _Reading:
    """The clips of one video, and its prediction once they are scored."""

    def __init__(
        self, source: Source, pre: Preprocessing, views: EvalConfig, seconds: float, options: TimelineOptions | None
    ):
        self._source, self._pre, self._seconds = source, pre, seconds
        self._sliding = None if options is None else SlidingClips(source, pre, options)
        self.num_clips = -1  # not known before the last clip
        if self._sliding is None:
            self._frames = source.count()
            self._stride = stride_of(pre, source.rate)
            strides = np.array([self._stride])
            self._starts = make_views(np.array([self._frames]), pre, views, strides).start

    def clips(self) -> Iterator[np.ndarray]:
        yield from self._source.clips(self._starts) if self._sliding is None else self._sliding
        if self._sliding is not None:
            self._frames, self._stride = self._sliding.count, self._sliding.stride
            self._starts = np.array(self._sliding.starts)
        self.num_clips = len(self._starts)

    def share(self, scored: int) -> float:
        """Of its clips, in [0, 1], that have been scored; 0 if it is not known how many there are."""
        if self._sliding is None:
            return scored / len(self._starts)
        return min(scored * self._sliding.options.every / self._seconds, 1.0) if self._seconds else 0.0

    def prediction(self, logits: np.ndarray) -> Prediction:
        """From the (V, C) logits of its clips."""
        span = int(clip_steps(self._pre.read_frames, self._stride)[-1]) + 1
        # How many clips span each frame; one that passes the end continues at frame 0.
        spanned = np.zeros(self._frames, np.int32)
        for start in self._starts.tolist():
            spanned[start : start + span] = 1
            spanned[: max(start + span - self._frames, 0)] = 1
        timeline = None if self._sliding is None else self._sliding.timeline(logits)
        return Prediction(
            probabilities=softmax(logits, -1).mean(axis=0),
            logits=logits.mean(axis=0),
            num_frames=self._frames,
            num_clips=self.num_clips,
            seen=float(spanned.mean()),
            stride=self._stride,
            note=self._source.numbering.left_out if isinstance(self._source, FrameFolder) else "",
            pace=_pace(self._pre, self._source.rate),
            seconds=self._seconds if timeline is None else timeline.seconds,
            timeline=timeline,
        )


class Predictor:
    """Scores videos with the center crop of an evaluation: with its clips, or with clips that slide over the video.

    Args:
      model: a network in evaluation mode, e.g. from `load_checkpoint`.
      views: which clips; its crops are not used, because a video is always cropped in the center.
      batch_size: clips per call of the network; with the clip length it bounds the memory in use.
    """

    def __init__(self, model: Any, pre: Preprocessing, views: EvalConfig, batch_size: int = 8):
        self.preprocessing, self._batch_size = pre, batch_size
        self._views = dataclasses.replace(views, crops=1)
        self._mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
        network, params, batch_stats = split_model(model)
        self._step = make_eval_step(network, pre, self._mesh)
        self._params, self._batch_stats = params, batch_stats

    def __call__(self, video: Video, timeline: TimelineOptions | None = None, rate: float = 0.0) -> Prediction:
        """Scores a video file, a folder of numbered JPEG or PNG frames, or frames (T, H, W, 3) uint8 RGB.

        For a network that reads optical flow, the flow is computed as for training. A folder that `prepare --flow` made
        and an array (T, H, W, 2) uint8 hold it already.

        Args:
          video: one of these, or an address that is a str.
          timeline: how a timeline is made; None: the whole video only.
          rate: of an array, in frames per second; 0 if not known.

        Raises:
          VideoError: if it cannot be read or decoded; the message names the file and the reason.
        """
        return self.one(video, lambda seconds: timeline, rate)

    def one(self, video: Video, timeline: Callable[[float], TimelineOptions | None], rate: float = 0.0) -> Prediction:
        """As a call; whether there is a timeline may depend on the duration, as for `many`."""
        (prediction,) = self.many([video], timeline, rate)
        if isinstance(prediction, VideoError):
            raise prediction
        return prediction

    def many(
        self,
        videos: Sequence[Video],
        timeline: Callable[[float], TimelineOptions | None] = lambda seconds: None,
        rate: float = 0.0,
        scored: Callable[[float], None] = lambda share: None,
    ) -> Iterator[Prediction | VideoError]:
        """Scores videos, several of which are decoded at a time, and whose clips share batches of one shape.

        Args:
          videos: as for a call, of any sizes.
          timeline: from the duration that a video's header states, 0 if it states none, to how its timeline is made;
            None: no timeline.
          rate: of arrays, in frames per second; 0 if not known.
          scored: called after each batch with the share of all videos that has been scored.

        Yields:
          The prediction of each video in their order, or why it cannot be read.
        """
        readings: dict[int, _Reading] = {}

        def clips(row: int) -> Iterator[np.ndarray]:
            source = open_source(videos[row], self.preprocessing, rate)
            seconds = source.seconds()
            options = timeline(seconds)
            if options is not None:
                source = open_source(videos[row], self.preprocessing, rate, even=True)
            readings[row] = _Reading(source, self.preprocessing, self._views, seconds, options)
            yield from readings[row].clips()

        logits: dict[int, list[np.ndarray]] = collections.defaultdict(list)
        ended: dict[int, Ended | VideoError] = {}
        in_flight: collections.deque[tuple[list[int], jax.Array]] = collections.deque()
        waiting: list[tuple[int, np.ndarray]] = []
        turn = 0

        def collect(most: int) -> None:
            while len(in_flight) > most:
                rows, batch = in_flight.popleft()
                for row, scores in zip(rows, np.asarray(batch).astype(np.float64), strict=False):  # the rest is padding
                    logits[row].append(scores)
                active = sum(reading.share(len(logits[row])) for row, reading in list(readings.items()))
                scored((turn + active) / len(videos))

        def finished() -> Iterator[Prediction | VideoError]:
            nonlocal turn
            while turn in ended:
                end = ended[turn]
                if isinstance(end, Ended) and len(logits[turn]) < readings[turn].num_clips:
                    return
                scores = np.array(logits.pop(turn, []))
                reading = readings.pop(turn, None)
                turn += 1
                yield reading.prediction(scores) if isinstance(end, Ended) and reading else end  # type: ignore[misc]

        threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
        with contextlib.closing(in_threads(clips, range(len(videos)), threads, self._batch_size)) as results:
            for row, result in results:
                if isinstance(result, np.ndarray):
                    waiting.append((row, result))
                    if len(waiting) == self._batch_size:
                        in_flight.append(self._score(waiting))
                        waiting = []
                        collect(BATCHES_IN_FLIGHT)
                elif isinstance(result, (Ended, VideoError)):
                    ended[row] = result
                else:
                    raise result
                yield from finished()
        if waiting:
            in_flight.append(self._score(waiting))
        collect(0)
        yield from finished()

    def probabilities(self, clip: np.ndarray) -> np.ndarray:
        """The (C,) float64 probabilities of one clip (t, h, w, c) uint8."""
        return softmax(np.asarray(self._score([(0, clip)])[1])[0].astype(np.float64), -1)

    def _score(self, clips: list[tuple[int, np.ndarray]]) -> tuple[list[int], jax.Array]:
        """Rows of videos with their clips (t, h, w, c) uint8, at most the batch size -> the rows, (batch, C) logits."""
        rows, size = [row for row, _ in clips], self._batch_size
        video = np.zeros((size, *clips[0][1].shape), np.uint8)
        np.stack([clip for _, clip in clips], out=video[: len(clips)])
        batch = {"video": video, "view": np.arange(size, dtype=np.int32), "mask": np.ones(size, np.float32)}
        logits, _, _ = self._step(self._params, self._batch_stats, parallel.global_batch(batch, self._mesh))
        return rows, logits


def fuse(first: Prediction, second: Prediction, weight: float, scores: str) -> Prediction:
    """Adds the scores of two streams for one video, as `fusion.fuse` does for an evaluation.

    Args:
      first, second: predictions of networks with the same classes; counts and notes are those of `first`.
      weight: of the first stream, in [0, 1]; the second gets the rest.
      scores: "softmax" or "logits", the scores to add.
    """
    logits = weight * first.logits + (1 - weight) * second.logits
    shares = weight * first.probabilities + (1 - weight) * second.probabilities
    chosen = look_up({"softmax": shares, "logits": softmax(logits, -1)}, scores, "scores")
    timeline = first.timeline
    if timeline is not None and second.timeline is not None:
        timeline = timeline.mixed_with(second.timeline, weight, scores)
    pace = first.pace or second.pace
    return dataclasses.replace(first, probabilities=chosen, logits=logits, pace=pace, timeline=timeline)


def _pace(pre: Preprocessing, rate: float) -> str:
    """How the stride follows from the rate of a video, in words."""
    if not pre.frame_rate:
        return ""
    if not rate:
        return f"its rate is not known, and is taken as the {pre.frame_rate:.4g} frames a second of the training"
    usual, stride = pre.stride_at(pre.frame_rate), pre.stride_at(rate)
    if abs(stride - usual) < 0.01 * usual:
        return ""
    return (
        f"{rate:.4g} frames a second, {pre.frame_rate:.4g} in training: a stride of {stride:.4g} frames instead of "
        f"{usual:.4g}"
    )


def only_long(options: TimelineOptions) -> Callable[[float], TimelineOptions | None]:
    """A timeline for videos of more than `LONG_SECONDS`, for `Predictor.many`."""
    return lambda seconds: options if seconds > LONG_SECONDS else None
