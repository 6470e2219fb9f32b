"""Views: which clips and crops of every video are scored."""

import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from r23d_jax.config import DataConfig, EvalConfig, Preprocessing, look_up
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.find.picture_header import claimed_size

_THREADS = 16
LEAST_CLIPS = 10  # a training may evaluate one clip per video to save time, which says little about a long video


@dataclasses.dataclass(frozen=True)
class Views:
    """One row per view of a video, V rows, sorted by video, then clip (by start), then crop.

    The crops of a clip are adjacent, so that a reader can decode it once for all of them.
    """

    video: np.ndarray  # (V,) int32, row of the video in the index
    start: np.ndarray  # (V,) int32, first frame of the clip; one that runs past the end wraps around to frame 0
    crop: np.ndarray  # (V,) int32, 0 .. crops-1; see `augment.EVAL_CROPS`

    def __len__(self) -> int:
        return len(self.video)


def video_strides(index: VideoIndex, cfg: DataConfig) -> np.ndarray:
    """Frames from one frame of a clip to the next, (N,) float64: with `frame_seconds` a fraction that follows the rate.

    The rates are known then, because `sources.open_index` refuses videos without one.
    """
    if not cfg.frame_seconds:
        return np.full(len(index), cfg.frame_stride, np.float64)
    assert index.rates is not None, "the index of a config with frame_seconds has rates"
    return cfg.frame_seconds * index.rates


def clip_steps(length: int, stride: float) -> np.ndarray:
    """(length,) int64: 0, `stride`, 2 `stride`, ..., each rounded to the nearest frame, halves up."""
    return np.floor(np.arange(length) * float(stride) + 0.5).astype(np.int64)


def make_views(num_frames: np.ndarray, pre: Preprocessing, cfg: EvalConfig, strides: np.ndarray | None = None) -> Views:
    """Lays views over videos.

    `dense` samples the video every `stride` frames, from frame 0, and cuts that into runs of `num_frames`; a last
    partial run is dropped, and a video too short for one run gives one clip, padded by looping. With 16 frames and
    stride 1 this is the published code's test protocol (41,497 clips over the 3,783 test videos of UCF101 split 1).

    `uniform` places `num_clips` starts evenly from 0 to the last start at which a whole clip fits, both included and
    rounded to the nearest frame; a single clip is taken from the middle. A video with fewer starts than clips repeats
    some of them, and one shorter than a clip repeats its looped clip, so that every video has the same weight in the
    clip accuracy. 10-clip results are reported this way in Tran et al. 2018, arXiv:1711.11248, section 4.

    Args:
      num_frames: (N,) frames per video.
      pre: length and stride of a clip.
      strides: (N,) float64, frames from one of a clip to the next; `pre.frame_stride` by default.

    Returns:
      At least one view of every video. A video without frames gets one too, so that its reader can report it as broken.
    """
    lengths = np.maximum(np.asarray(num_frames, np.int64), 1)
    strides = np.full(len(lengths), pre.frame_stride, np.float64) if strides is None else strides
    # frames from the first to the last one read
    span = np.floor((pre.read_frames - 1) * strides + 0.5).astype(np.int64) + 1
    runs = pre.num_frames * strides
    video, start = look_up(VIEWS, cfg.views, "config.eval.views")(lengths, span, runs, cfg)
    return Views(
        video=np.repeat(video, cfg.crops).astype(np.int32),
        start=np.repeat(start, cfg.crops).astype(np.int32),
        crop=np.tile(np.arange(cfg.crops, dtype=np.int32), len(video)),
    )


def predicted_from(views: EvalConfig) -> EvalConfig:
    """The clips to predict from: those of an evaluation, but at least `LEAST_CLIPS`."""
    return dataclasses.replace(views, num_clips=max(views.num_clips, LEAST_CLIPS))


def largest_frame(index: VideoIndex) -> tuple[int, int]:
    """The greatest height and the greatest width of the videos, in pixels of a picture; zeros if none can be read.

    The first readable frame of each video is looked at, but not decoded.
    """

    def size(video: int) -> tuple[int, int]:
        for frame in range(int(index.num_frames[video])):
            with contextlib.suppress(OSError):
                if found := claimed_size(index.frames.read(video, frame)):
                    return found
        return 0, 0

    with ThreadPoolExecutor(_THREADS) as pool:
        height, width = np.max([(0, 0), *pool.map(size, range(len(index)))], 0).tolist()
    return height, width


def _dense(lengths: np.ndarray, span: np.ndarray, runs: np.ndarray, cfg: EvalConfig) -> tuple[np.ndarray, np.ndarray]:
    del cfg
    video, k = _ragged_range(np.maximum((lengths - span) // runs + 1, 1).astype(np.int64))
    return video, np.floor(k * runs[video] + 0.5).astype(np.int64)


def _uniform(lengths: np.ndarray, span: np.ndarray, runs: np.ndarray, cfg: EvalConfig) -> tuple[np.ndarray, np.ndarray]:
    del runs
    video, k = _ragged_range(np.full(len(lengths), cfg.num_clips))
    last = np.maximum(lengths - span, 0)[video]
    # round(k * last / gaps), halves up, in whole numbers; a single clip sits at round(1 * last / 2)
    k, gaps = (k, cfg.num_clips - 1) if cfg.num_clips > 1 else (k + 1, 2)
    return video, (2 * k * last + gaps) // (2 * gaps)


# config.eval.views -> (of each video: its frames, those that a clip spans, those from one clip to the next; config)
# -> video and start of every clip
VIEWS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, EvalConfig], tuple[np.ndarray, np.ndarray]]] = {
    "dense": _dense,
    "uniform": _uniform,
}


def _ragged_range(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2, 3) -> rows (0, 0, 1, 1, 1) and numbers within a row (0, 1, 0, 1, 2)."""
    rows = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return rows, np.arange(len(rows)) - first[rows]
