"""The order of videos, and which frames make a clip: stateless TensorFlow operations.

Everything random is a pure function of (seed, epoch, video), so a run resumes from its step alone, and a host reads
only its own part. A clip longer than its video wraps around: frame i is frame i modulo the number of frames. The step
from the last frame to the first is then a jump in the picture (and in a frame difference), once per lap.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from r23d_jax.config import DataConfig, look_up, preprocessing

_random = tf.random.experimental  # pyright: ignore[reportAttributeAccessIssue]
Stride = float | tf.Tensor  # frames from one of a clip to the next, () float64; may be a fraction
_STRIDE = 1  # the key of the change of pace, from that of the frames
_ALGORITHM = "auto_select"  # Philox on a processor. Asked for by name, the same numbers take six times the operations.


def epoch_order(seed: int, epoch: tf.Tensor, position: tf.Tensor, num_videos: int) -> tf.Tensor:
    """The row of the video at a position of an epoch, all () int64: a permutation by (seed, epoch) alone."""
    key = tf.stack([tf.constant(seed, tf.int64), epoch])
    last = tf.constant(num_videos - 1, tf.int64)  # max_index is included
    return tf.ensure_shape(_random.index_shuffle(position, seed=key, max_index=last), ())


def windowed_order(seed: int, epoch: int, shard: np.ndarray, window: int) -> np.ndarray:
    """The rows of an epoch, (N,) int64: shards in random order, and the videos of each `window` of them mixed.

    Depends on the arguments alone. NumPy keeps the raw bits of a generator the same in all versions, but not what it
    makes of them.

    Args:
      epoch: from 0.
      shard: (N,) of integers, the shard of each video.
      window: shards.
    """
    numbers, shard = np.unique(shard, return_inverse=True)
    key = np.array([seed % 2**64, epoch], np.uint64)
    draws = np.random.Philox(key=key).random_raw(len(numbers) + len(shard))
    place = np.argsort(np.argsort(draws[: len(numbers)], kind="stable"))
    return np.lexsort((draws[len(numbers) :], place[shard] // window))


def sample_key(seed: int, epoch: tf.Tensor, video: tf.Tensor) -> tf.Tensor:
    """(2,) int64 key of everything random about one video in one epoch."""
    return fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), video)


def fold_in(key: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """A new (2,) int64 key for each number."""
    return _random.stateless_fold_in(key, tf.cast(number, tf.int64), alg=_ALGORITHM)


def uniform(key: tf.Tensor, count: int) -> tf.Tensor:
    """(count,) float32 in [0, 1)."""
    return tf.random.stateless_uniform([count], key, alg=_ALGORITHM)


def training_frames(cfg: DataConfig, key: tf.Tensor, num_frames: tf.Tensor, stride: Stride | None = None) -> tf.Tensor:
    """The frames of a training clip: (read_frames,) int32, each in 0 .. num_frames - 1.

    Args:
      cfg: its `sampling` is a key of `SAMPLING`.
      key: (2,) int64.
      num_frames: () int32, frames in the video.
      stride: frames from one to the next; `cfg.frame_stride` by default. With `cfg.stride_jitter` j it is multiplied
        by a number between 1 / (1 + j) and 1 + j, uniform in its logarithm.
    """
    stride = cfg.frame_stride if stride is None else stride
    if cfg.stride_jitter:
        power = tf.cast(2 * uniform(fold_in(key, _STRIDE), 1)[0] - 1, tf.float64)
        stride = tf.convert_to_tensor(stride, tf.float64) * tf.pow(
            tf.constant(1 + cfg.stride_jitter, tf.float64), power
        )
    return look_up(SAMPLING, cfg.sampling, "config.data.sampling")(cfg, key, num_frames, stride)


def consecutive_frames(start: tf.Tensor, num_frames: tf.Tensor, *, length: int, stride: Stride) -> tf.Tensor:
    """(length,) int32: `start`, `start + stride`, ..., wrapping around at the end of the video."""
    return _wrap_around(tf.cast(start, tf.int64) + _steps(length, stride), num_frames)


def _steps(length: int, stride: Stride) -> tf.Tensor:
    """(length,) int64: 0, `stride`, 2 `stride`, ..., each rounded to the nearest frame, halves up."""
    places = tf.range(length, dtype=tf.float64) * tf.convert_to_tensor(stride, tf.float64)
    return tf.cast(tf.floor(places + 0.5), tf.int64)


def _random_clip(cfg: DataConfig, key: tf.Tensor, num_frames: tf.Tensor, stride: Stride) -> tf.Tensor:
    length = preprocessing(cfg).read_frames
    start = random_start(uniform(key, 1)[0], num_frames, length=length, stride=stride)
    return consecutive_frames(start, num_frames, length=length, stride=stride)


def random_start(draw: tf.Tensor, num_frames: tf.Tensor, *, length: int, stride: Stride) -> tf.Tensor:
    """() int32, uniform over the starts at which the whole clip fits; 0 if it fits nowhere.

    Args:
      draw: () float32 in [0, 1).
      num_frames: () int32, frames in the video.
      length: frames in the clip.
      stride: frames from one to the next.
    """
    span = _steps(length, stride)[-1] + 1
    return pick(draw, tf.cast(tf.maximum(tf.cast(num_frames, tf.int64) - span, 0) + 1, tf.int32))


def _segments(cfg: DataConfig, key: tf.Tensor, num_frames: tf.Tensor, stride: Stride) -> tf.Tensor:
    length = preprocessing(cfg).read_frames
    return segment_frames(uniform(key, cfg.num_segments), num_frames, length=length, stride=stride)


def segment_frames(draws: tf.Tensor, num_frames: tf.Tensor, *, length: int, stride: Stride) -> tf.Tensor:
    """Cuts the video into equal parts and takes a run of consecutive frames at random from each.

    Part k is frames [k * n // s, (k + 1) * n // s). A run that is longer than its part starts at the part's beginning
    and continues into the next one. With one frame per part this is the sampling of Wang et al. 2016, arXiv:1608.00859.

    Args:
      draws: (s,) float32 in [0, 1), one per segment; s divides length.
      num_frames: () int32, n.
      length: frames in the clip, all segments together.
      stride: frames from one to the next within a run.

    Returns:
      (length,) int32.
    """
    segments = draws.shape[0]
    assert segments is not None, "one draw per segment"
    run = length // segments
    parts, count = tf.range(segments, dtype=tf.int64), tf.cast(num_frames, tf.int64)
    first, end = parts * count // segments, (parts + 1) * count // segments
    steps = _steps(run, stride)
    span = steps[-1] + 1
    start = first + tf.cast(pick(draws, tf.cast(tf.maximum(end - first - span, 0) + 1, tf.int32)), tf.int64)
    return _wrap_around(tf.reshape(start[:, None] + steps[None, :], [length]), num_frames)


# config.data.sampling -> (config, key, frames in the video, stride) -> the frames of a training clip
SAMPLING: dict[str, Callable[[DataConfig, tf.Tensor, tf.Tensor, Stride], tf.Tensor]] = {
    "random": _random_clip,
    "segments": _segments,
}


def _wrap_around(frames: tf.Tensor, num_frames: tf.Tensor) -> tf.Tensor:
    """Frames (t,) int64, which cannot overflow at any stride -> int32, modulo the number of frames."""
    # A video without frames has no frame 0 either; reading it fails and is reported like any other broken video.
    return tf.cast(tf.math.floormod(frames, tf.cast(tf.maximum(num_frames, 1), tf.int64)), tf.int32)


def pick(draw: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """An int32 in [0, count) for a float32 draw in [0, 1), uniform up to 2**24."""
    # the product may round up to `count`
    return tf.minimum(tf.cast(draw * tf.cast(count, tf.float32), tf.int32), count - 1)
