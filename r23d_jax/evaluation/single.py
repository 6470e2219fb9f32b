"""Class probabilities of one video, in memory that does not grow with its length."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r23d_jax.config import EvalConfig, Preprocessing, look_up
from r23d_jax.data.read.views import clip_steps, make_views
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.evaluation.video_source import FrameFolder, open_source, stride_of
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel

LEAST_CLIPS = 10  # a training may evaluate one clip per video to save time, which says little about a long video


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The scores of a video.

    Attributes:
      probabilities: (C,) float64, averaged over clips, as in `val/top1_video_softmax`.
      logits: (C,) float64, averaged over clips.
      num_frames: frames in the video; of optical flow, one fewer.
      num_clips: clips scored.
      seen: share of the video that the clips span, in (0, 1].
      stride: frames from one of a clip to the next.
      note: numbered pictures in a folder that are not frames of the video, in words; "" if there are none.
      pace: how the stride follows from the rate of the video, in words; "" if it is that of the training.
    """

    probabilities: np.ndarray
    logits: np.ndarray
    num_frames: int
    num_clips: int
    seen: float
    stride: float
    note: str = ""
    pace: str = ""


class Predictor:
    """Scores videos one at a time with the clips and the center crop of an evaluation.

    Args:
      model: a network in evaluation mode, e.g. from `load_checkpoint`.
      pre: the preprocessing it was trained with.
      views: which clips; its crops are not used, because a video is always cropped in the center.
      batch_size: clips per call of the network; with the clip length it bounds the memory in use.
    """

    def __init__(self, model: Any, pre: Preprocessing, views: EvalConfig, batch_size: int = 8):
        self._pre, self._batch_size = pre, batch_size
        self._views = dataclasses.replace(views, crops=1)
        self._mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
        network, self._params, self._batch_stats = split_model(model)
        self._step = make_eval_step(network, pre, self._mesh)

    def __call__(self, video: Path | np.ndarray) -> Prediction:
        """Scores a video file, a folder of numbered JPEG or PNG frames, or frames (T, H, W, 3) uint8 RGB.

        For a network that reads optical flow, the flow is computed as for training. A folder that `prepare --flow` made
        and an array (T, H, W, 2) uint8 hold it already.

        Raises:
          VideoError: if it cannot be read or decoded; the message names the file and the reason.
        """
        source = open_source(video, self._pre)
        num_frames = source.count()
        stride = stride_of(self._pre, source.rate)
        starts = make_views(np.array([num_frames]), self._pre, self._views, np.array([stride])).start
        clips = source.clips(starts)
        batches = []
        while batch := list(itertools.islice(clips, self._batch_size)):
            batches.append(self._score(np.stack(batch)))
        logits = np.concatenate(batches)
        span = clip_steps(self._pre.read_frames, stride)[-1] + 1
        return Prediction(
            probabilities=_softmax(logits).mean(axis=0),
            logits=logits.mean(axis=0),
            num_frames=num_frames,
            num_clips=len(starts),
            seen=len(np.unique((starts[:, None] + np.arange(span)) % num_frames)) / num_frames,
            stride=stride,
            note=source.numbering.left_out if isinstance(source, FrameFolder) else "",
            pace=_pace(self._pre, source.rate),
        )

    def _score(self, clips: np.ndarray) -> np.ndarray:
        """(n, t, h, w, c) uint8, n at most the batch size -> (n, C) float64 logits."""
        count, size = len(clips), self._batch_size
        padded = np.concatenate([clips, np.zeros((size - count, *clips.shape[1:]), np.uint8)])
        rows = {"video": padded, "view": np.arange(size, dtype=np.int32), "mask": np.ones(size, np.float32)}
        logits, _, _ = self._step(self._params, self._batch_stats, parallel.global_batch(rows, self._mesh))
        return np.asarray(logits)[:count].astype(np.float64)


def fuse(first: Prediction, second: Prediction, weight: float, scores: str) -> Prediction:
    """Adds the scores of two streams for one video, as `fusion.fuse` does for an evaluation.

    Args:
      first, second: predictions of networks with the same classes; counts and notes are those of `first`.
      weight: of the first stream, in [0, 1]; the second gets the rest.
      scores: "softmax" or "logits", the scores to add.
    """
    logits = weight * first.logits + (1 - weight) * second.logits
    shares = weight * first.probabilities + (1 - weight) * second.probabilities
    chosen = look_up({"softmax": shares, "logits": _softmax(logits)}, scores, "scores")
    return dataclasses.replace(first, probabilities=chosen, logits=logits, pace=first.pace or second.pace)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


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


def clips_of(views: EvalConfig) -> EvalConfig:
    """The clips to predict from: those of an evaluation, but at least `LEAST_CLIPS`."""
    return dataclasses.replace(views, num_clips=max(views.num_clips, LEAST_CLIPS))
