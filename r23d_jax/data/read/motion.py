"""Clips of pseudo-motion: a window slides over one picture (MoSI, Huang et al. 2021, arXiv:2104.00240).

The host draws all numbers. It makes the clips too, or leaves that to `models/motion.py`, which does the same inside the
compiled step. Both move the window by whole pixels, so nothing is interpolated.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from r23d_jax.config import DataConfig, preprocessing
from r23d_jax.config.motion import MOTIONS, motion_side, velocities
from r23d_jax.data.read import augment
from r23d_jax.data.read.sampling import fold_in, pick, uniform

_MOTION, _COLORS = 0, 1  # folded into a picture's key
_DRAWS = 8  # numbers that the motion of a clip takes


def labels_of(cfg: DataConfig) -> list[int]:
    """The classes of the `repeats` clips of one picture: each equally often."""
    return [clip % len(MOTIONS) for clip in range(cfg.repeats)]


def picture_config(cfg: DataConfig) -> DataConfig:
    """The config of reading the one picture of a clip: (1, side, side, 3), without augmentations."""
    side = motion_side(cfg, preprocessing(cfg).read_frames)
    off = dict.fromkeys(augment.AUGMENTATIONS, False)
    return dataclasses.replace(
        cfg, **off, num_frames=1, input="rgb", sampling="random", crop_size=side, repeats=1, motion=type(cfg.motion)()
    )


def moving_clips(
    cfg: DataConfig, picture: tf.Tensor, key: tf.Tensor, labels: Sequence[int | tf.Tensor], on_device: bool
) -> dict[str, tf.Tensor]:
    """Clips of one picture: "video" (k, t, s, s, 3) uint8.

    For the device: "video" (1, side, side, 3), the picture, and the numbers "motion" (k, 9) int32 and "colors"
    (k, f, 3) float32; see `draw_motion` and `draw_colors`.

    Args:
      cfg: t = its read_frames, s = its crop_size; `color_jitter` and `motion` are read too.
      picture: (1, side, side, 3) uint8, with the side of `motion_side`.
      key: (2,) int64, of the picture.
      labels: k rows of `MOTIONS`.
      on_device: leave the rest to `models.motion.move_pictures`.
    """
    numbers = {"motion": draw_motion(cfg, fold_in(key, _MOTION), labels)}
    if cfg.color_jitter or cfg.motion.gray:
        numbers["colors"] = draw_colors(cfg, fold_in(key, _COLORS), len(labels))
    if on_device:
        return {"video": picture, **numbers}
    length, size = preprocessing(cfg).read_frames, cfg.crop_size
    video = _slide(picture[0], numbers["motion"], length, size)
    if "colors" in numbers:
        video = _change_colors(numbers["colors"], video)
    return {"video": _freeze(numbers["motion"], video)}


def draw_motion(cfg: DataConfig, key: tf.Tensor, labels: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """How the window of each clip moves: (k, 9) int32.

    Columns: top and left of the first window in the picture; pixels down and to the right a frame; top, left, height
    and width of the box in the window that moves; the frame that the rest shows all the time.
    """
    length, size = preprocessing(cfg).read_frames, cfg.crop_size
    draws = tf.reshape(uniform(key, len(labels) * _DRAWS), (-1, _DRAWS))
    velocity = tf.gather(tf.constant(velocities(cfg.motion.speeds), tf.int32), tf.stack(labels))
    travel = velocity * (length - 1)
    free = motion_side(cfg, length) - size - tf.abs(travel)
    start = pick(draws[:, :2], free + 1) - tf.minimum(travel, 0)
    low, high = cfg.motion.box
    box = tf.cast(tf.round(size * (low + (high - low) * draws[:, 2:4])), tf.int32)
    box = tf.where(draws[:, 6:7] < cfg.motion.frozen, tf.maximum(box, 1), size)
    corner = pick(draws[:, 4:6], size - box + 1)
    shown = pick(draws[:, 7:8], tf.constant(length))
    return tf.concat([start, velocity, corner, box, shown], 1)


def draw_colors(cfg: DataConfig, key: tf.Tensor, clips: int) -> tf.Tensor:
    """Factors of brightness, contrast and saturation, (clips, f, 3) float32: f = t to change each frame, 1 the clip."""
    groups = preprocessing(cfg).read_frames if cfg.motion.colors == "frame" else 1
    draws = tf.reshape(uniform(key, 4 * clips * groups), (4, clips, groups))
    low = max(0.0, 1.0 - cfg.color_jitter)
    brightness, contrast, saturation = tf.unstack(low + draws[:3] * (1.0 + cfg.color_jitter - low))
    has_color = tf.cast(draws[3] >= cfg.motion.gray, tf.float32)
    return tf.stack([brightness, contrast, saturation * has_color], -1)


def _slide(picture: tf.Tensor, motion: tf.Tensor, length: int, size: int) -> tf.Tensor:
    """(side, side, 3), (k, 9) -> (k, length, size, size, 3)."""
    clips = []
    for row in tf.unstack(motion):
        places = row[:2] + tf.range(length)[:, None] * row[2:4]
        corners = (tf.unstack(place) for place in tf.unstack(places, length))
        clips.append(tf.stack([picture[top : top + size, left : left + size] for top, left in corners]))
    return tf.ensure_shape(tf.stack(clips), (len(clips), length, size, size, 3))


def _change_colors(colors: tf.Tensor, video: tf.Tensor) -> tf.Tensor:
    factors = tf.reshape(colors, (-1, 3))
    frames = tf.reshape(tf.cast(video, tf.float32), (factors.shape[0], -1, *video.shape[2:]))
    changed = tf.vectorized_map(lambda each: augment.jitter_colors(*each), (factors, frames))
    return tf.reshape(augment.to_uint8(changed), video.shape)


def _freeze(motion: tf.Tensor, video: tf.Tensor) -> tf.Tensor:
    """Shows one frame outside each clip's box."""
    places = tf.range(video.shape[2])
    corner, box, shown = motion[:, 4:6, None], motion[:, 6:8, None], motion[:, 8]
    rows, columns = tf.unstack((places >= corner) & (places < corner + box), axis=1)  # (k, s) each
    moves = (rows[:, :, None] & columns[:, None, :])[:, None, :, :, None]
    return tf.where(moves, video, tf.gather(video, shown, batch_dims=1)[:, None])
