"""Class probabilities of one video, in memory that does not grow with its length."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r23d_jax.config import EvalConfig, Preprocessing
from r23d_jax.data.find.frame_folder import read_folder
from r23d_jax.data.make.video import VideoError, iter_frames
from r23d_jax.data.read import plain
from r23d_jax.data.read.views import make_views
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel

LEAST_CLIPS = 10  # a training may evaluate one clip per video to save time, which says little about a long video


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The scores of a video.

    Attributes:
      probabilities: (C,) float64, averaged over clips, as in `val/top1_video_softmax`.
      num_frames: frames in the video.
      num_clips: clips scored.
      seen: share of the video that the clips span, in (0, 1].
      note: numbered pictures in a folder that are not frames of the video, in words; "" if there are none.
    """

    probabilities: np.ndarray
    num_frames: int
    num_clips: int
    seen: float
    note: str = ""


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

        Raises:
          VideoError: if it cannot be read or decoded; the message names the file and the reason.
        """
        source = open_source(video, self._pre)
        num_frames = source.count()
        starts = make_views(np.array([num_frames]), self._pre, self._views).start
        clips = source.clips(starts)
        shares = []
        while batch := list(itertools.islice(clips, self._batch_size)):
            shares.append(self._score(np.stack(batch)))
        span = (self._pre.read_frames - 1) * self._pre.frame_stride + 1
        seen = len(np.unique((starts[:, None] + np.arange(span)) % num_frames)) / num_frames
        note = source.numbering.left_out if isinstance(source, FrameFolder) else ""
        return Prediction(np.concatenate(shares).mean(axis=0), num_frames, len(starts), seen, note)

    def _score(self, clips: np.ndarray) -> np.ndarray:
        """(n, t, h, w, c) uint8, n at most the batch size -> (n, C) float64 probabilities."""
        count, size = len(clips), self._batch_size
        padded = np.concatenate([clips, np.zeros((size - count, *clips.shape[1:]), np.uint8)])
        rows = {"video": padded, "view": np.arange(size, dtype=np.int32), "mask": np.ones(size, np.float32)}
        logits, _, _ = self._step(self._params, self._batch_stats, parallel.global_batch(rows, self._mesh))
        scores = np.asarray(logits)[:count].astype(np.float64)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def clips_of(views: EvalConfig) -> EvalConfig:
    """The clips to predict from: those of an evaluation, but at least `LEAST_CLIPS`."""
    return dataclasses.replace(views, num_clips=max(views.num_clips, LEAST_CLIPS))


def open_source(video: Path | np.ndarray, pre: Preprocessing) -> "FrameArray | FrameFolder | VideoFile":
    """An array or a folder is read as frames, anything else as a video file.

    Raises:
      VideoError: if an array or a folder holds no frames. A bad file is noticed when it is read.
    """
    if isinstance(video, np.ndarray):
        return FrameArray(video, pre)
    return FrameFolder(video, pre) if os.path.isdir(video) else VideoFile(video, pre)


class FrameArray:
    """A video as an array of frames, (T, H, W, C) uint8."""

    def __init__(self, video: np.ndarray, pre: Preprocessing):
        channels = len(pre.mean)
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != channels or not video.size:
            raise VideoError(f"frames are {video.dtype} {video.shape}; expected uint8 (T, H, W, {channels})")
        self._video, self._pre = video, pre

    def count(self) -> int:
        """Frames in the array."""
        return len(self._video)

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        """The same as `FrameFolder.clips`."""
        top, left, height, width = plain.center_window(self._pre, *self._video.shape[1:3])
        windows = self._video[:, top : top + height, left : left + width]
        for numbers in _clip_frames(starts, self.count(), self._pre):
            yield plain.resize(windows[numbers], self._pre.crop_size, self._pre.antialias)


class FrameFolder:
    """A video as a folder of numbered frames, chosen as in training (`frame_folder.read_folder`).

    Clips are decoded by the function that evaluation uses, or by OpenCV where TensorFlow is not installed.
    """

    def __init__(self, path: Path, pre: Preprocessing):
        numbering = read_folder(path)
        if isinstance(numbering, str):
            raise VideoError(f"{path}: {numbering}")
        self.numbering = numbering
        self._path, self._pre = path, pre

    def count(self) -> int:
        """Frames in the folder; a hole in their numbering counts as one that cannot be read."""
        return self.numbering.count

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        """Clips that begin at `starts`, (V,) rising, each (read_frames, crop_size, crop_size, 3) uint8.

        Raises:
          VideoError: if a frame cannot be read.
        """
        pre = self._pre
        for numbers in _clip_frames(starts, self.count(), pre).tolist():
            files = [self._path / self.numbering.name(number) for number in numbers]
            try:
                windows = _decode_windows([file.read_bytes() for file in files], pre)
            except (OSError, plain.PictureError) as error:
                raise VideoError(_frame_fault(files)) from error
            yield plain.resize(windows, pre.crop_size, pre.antialias)


class VideoFile:
    """A video file, decoded twice: to count its frames, and to cut its clips.

    Frame counts in headers are unreliable, and keeping all frames would take memory that grows with the video.
    """

    def __init__(self, path: Path, pre: Preprocessing):
        self._path, self._pre = path, pre
        self._count = 0

    def count(self) -> int:
        """Frames that can be decoded.

        Raises:
          VideoError: if the video cannot be decoded.
        """
        self._count = self._count or sum(1 for _ in iter_frames(self._path))
        return self._count

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        """The same as `FrameFolder.clips`. Keeps only the frames that later clips need.

        Raises:
          VideoError: if the video cannot be decoded.
        """
        wanted = _clip_frames(starts, self.count(), self._pre)
        complete = wanted.max(axis=1)  # the last frame of each clip
        # The first frame that this clip or a later one needs.
        earliest = np.append(np.minimum.accumulate(wanted.min(axis=1)[::-1])[::-1], self._count)
        needed = np.zeros(self._count, bool)
        needed[wanted] = True
        held: dict[int, np.ndarray] = {}
        row, window = 0, None
        for number, frame in enumerate(iter_frames(self._path)):
            if row == len(starts):
                return
            if number < self._count and needed[number]:
                if window is None:
                    window = plain.center_window(self._pre, *frame.shape[:2])
                top, left, height, width = window
                held[number] = frame[top : top + height, left : left + width].copy()
            while row < len(starts) and complete[row] <= number:
                clip = np.stack([held[k] for k in wanted[row].tolist()])
                yield plain.resize(clip, self._pre.crop_size, self._pre.antialias)
                row += 1
                held = {k: kept for k, kept in held.items() if k >= earliest[row]}
        if row < len(starts):
            raise VideoError(f"{self._path}: changed while it was being read; it had {self._count} frames")


def _clip_frames(starts: np.ndarray, num_frames: int, pre: Preprocessing) -> np.ndarray:
    """(V, read_frames) frame numbers; a clip that passes the end continues at frame 0."""
    return (starts[:, None] + np.arange(pre.read_frames)[None, :] * pre.frame_stride) % num_frames


def _decode_windows(contents: list[bytes], pre: Preprocessing) -> np.ndarray:
    def window_of(height: Any, width: Any) -> plain.Window:
        return plain.center_window(pre, int(height), int(width))

    try:
        import tensorflow as tf
    except ModuleNotFoundError:
        return plain.decode_windows(contents, window_of)
    from r23d_jax.data.read import decode

    try:
        tensors = [tf.constant(content) for content in contents]
        return decode.decode_windows(tensors, lambda height, width: tf.constant(window_of(height, width))).numpy()
    except tf.errors.OpError as error:
        raise plain.PictureError(str(error)) from error


def _frame_fault(files: list[Path]) -> str:
    """The first fault in the frames of a clip."""
    try:
        from r23d_jax.data.read.broken import examine_picture
    except ModuleNotFoundError:
        from r23d_jax.data.read.plain import examine_picture
    sizes = {}
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            return f"{file}: cannot be read ({error.strerror})"
        if not content:
            return f"{file}: is empty (0 bytes)"
        problem, size = examine_picture(content)
        if size is None:
            return f"{file}: {problem}"
        sizes[file] = size
    first = files[0]
    for file, size in sizes.items():
        if size != sizes[first]:
            return f"{file}: is {size[1]}x{size[0]}, unlike {first.name}, which is {sizes[first][1]}x{sizes[first][0]}"
    return f"{first.parent}: its frames cannot be decoded together"
