"""One video and a question: the probabilities of every class, in bounded memory however long the video is."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from r23d_jax import parallel
from r23d_jax.config import EvalConfig, Preprocessing
from r23d_jax.data.video import VideoError, iter_frames
from r23d_jax.evaluation.evaluate import make_eval_step
from r23d_jax.evaluation.views import make_views
from r23d_jax.models.functional import split_model

# Gives the frames of a video from the first on, each (H, W, 3) uint8 RGB, every time it is called.
FrameSource = Callable[[], Iterator[np.ndarray]]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says about a video.

    Attributes:
      probabilities: (C,) float64, averaged over clips, as in `val/top1_video_softmax`.
      num_frames: frames of the video.
      num_clips: clips scored.
    """

    probabilities: np.ndarray
    num_frames: int
    num_clips: int


class Predictor:
    """Scores videos one at a time with the clips and the center crop of an evaluation.

    Args:
      model: a network in evaluation mode, e.g. of `load_checkpoint`.
      pre: the preprocessing it was trained with.
      views: which clips; its crops are not used, a video is always cropped in the center.
      batch_size: clips per call of the network; with the clip length it bounds the memory that is used.
    """

    def __init__(self, model: Any, pre: Preprocessing, views: EvalConfig, batch_size: int = 8):
        self._pre, self._batch_size = pre, batch_size
        self._views = dataclasses.replace(views, crops=1)
        self._mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
        network, self._params, self._batch_stats = split_model(model)
        self._step = make_eval_step(network, pre, self._mesh)

    def __call__(self, source: FrameSource) -> Prediction:
        """Scores one video.

        The video is decoded twice, to count its frames and to cut its clips: headers do not count reliably, and keeping
        the frames would take as much memory as the video is long.

        Raises:
          VideoError: if it cannot be decoded; the message names the file and the reason.
        """
        num_frames = sum(1 for _ in source())
        starts = make_views(np.array([num_frames]), self._pre, self._views).start
        clips = cut_clips(source, num_frames, starts, self._pre)
        shares = [self._score(batch) for batch in _batched(clips, self._batch_size)]
        return Prediction(np.concatenate(shares).mean(axis=0), num_frames, len(starts))

    def _score(self, clips: np.ndarray) -> np.ndarray:
        """(n, t, h, w, c) uint8, n at most the batch size -> (n, C) float64 probabilities."""
        count, size = len(clips), self._batch_size
        padded = np.concatenate([clips, np.zeros((size - count, *clips.shape[1:]), np.uint8)])
        rows = {"video": padded, "view": np.arange(size, dtype=np.int32), "mask": np.ones(size, np.float32)}
        logits, _, _ = self._step(self._params, self._batch_stats, parallel.global_batch(rows, self._mesh))
        scores = np.asarray(logits)[:count].astype(np.float64)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def cut_clips(source: FrameSource, num_frames: int, starts: np.ndarray, pre: Preprocessing) -> Iterator[np.ndarray]:
    """Cuts clips while the video is decoded; holds only frames that a clip to come still needs.

    Args:
      source: the video.
      num_frames: its length.
      starts: (V,) first frames, rising. A clip that runs over the end goes on at frame 0.
      pre: clip length, stride and crop.

    Yields:
      V clips in order, each (pre.read_frames, crop_size, crop_size, 3) uint8.

    Raises:
      VideoError: if the video cannot be decoded, or ends before `num_frames`.
    """
    wanted = (starts[:, None] + np.arange(pre.read_frames)[None, :] * pre.frame_stride) % num_frames
    complete = wanted.max(axis=1)  # the frame with which a clip is complete
    # the first frame that clips from this one on need
    earliest = np.append(np.minimum.accumulate(wanted.min(axis=1)[::-1])[::-1], num_frames)
    needed = np.zeros(num_frames, bool)
    needed[wanted] = True
    held: dict[int, np.ndarray] = {}
    row = 0
    for number, frame in enumerate(source()):
        if row == len(starts):
            return
        if number < num_frames and needed[number]:
            held[number] = center_crop(frame, pre)
        while row < len(starts) and complete[row] <= number:
            yield np.stack([held[k] for k in wanted[row].tolist()])
            row += 1
            held = {k: kept for k, kept in held.items() if k >= earliest[row]}
    if row < len(starts):
        raise VideoError(f"the video changed while it was read: it had {num_frames} frames")


def center_crop(frame: np.ndarray, pre: Preprocessing) -> np.ndarray:
    raise NotImplementedError


def frame_source(path: Path) -> FrameSource:
    """The frames of a video file, or of a folder of numbered JPEG or PNG frames.

    Raises:
      VideoError: if a folder holds no frames. What is wrong with a file shows when it is read.
    """
    if not path.is_dir():
        return lambda: iter_frames(path, num_threads=0)
    files = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not files:
        raise VideoError(f"{path}: holds no .jpg or .png frames")
    return lambda: map(_read_image, files)


def _read_image(file: Path) -> np.ndarray:
    try:
        encoded = np.fromfile(file, np.uint8)
        # as stored: a rotation that a camera noted down is not applied, and frames for training do not have one
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if len(encoded) else None
    except (OSError, cv2.error) as error:
        raise VideoError(f"{file}: cannot be read ({error})") from error
    if image is None:
        raise VideoError(f"{file}: {'cannot be decoded' if len(encoded) else 'is empty (0 bytes)'}")
    return image[..., ::-1]


def _natural(file: Path) -> tuple[int, str]:
    """By the last number in the name, so that 10.jpg follows 9.jpg."""
    numbers = re.findall(r"\d+", file.stem)
    return (int(numbers[-1]) if numbers else -1, file.name)


def _batched(clips: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    while batch := list(itertools.islice(clips, size)):
        yield np.stack(batch)
