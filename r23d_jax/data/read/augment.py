"""Where a clip is cut out of its frames, and how its pixels are then changed: stateless TensorFlow operations.

A window is (4,) int32: top, left, height, width, in pixels of the frame on disk. "Scale the short side to 136, then
crop 112 x 112" becomes one window of 112/136 of the short side. Only that part is decoded, and it is resized once. A
window is rounded to whole source pixels. The window of a frame smaller than `short_side` is enlarged.

To add a crop, add a row to `WINDOWS` and its name to the config's CROPS. To add an augmentation, add a field to
`DataConfig` and a row of the same name to `AUGMENTATIONS`, here and in `models/augment.py`, which does the same inside
the compiled step.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from r23d_jax.config import FLOW_ZERO, DataConfig, look_up
from r23d_jax.data.read.sampling import fold_in, pick, uniform

_ASPECT = (3 / 4, 4 / 3)  # random_resized: least and greatest width / height
_TRIES = 10
WINDOW_DRAWS = 2 + 2 * _TRIES  # uniform numbers that a training window may take, whatever the kind


def training_window(cfg: DataConfig, draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The window of a training clip: (4,) int32, by `cfg.crop`, a key of `WINDOWS`.

    Args:
      draws: (WINDOW_DRAWS,) float32 in [0, 1).
      height, width: () int32, pixels.
    """
    return look_up(WINDOWS, cfg.crop, "config.data.crop")(cfg, draws, height, width)


def eval_window(cfg: DataConfig, crops: int, crop: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The window of an evaluation view: (4,) int32, a square of `crop_size` if the short side is `short_side`.

    Args:
      crops: a key of `EVAL_CROPS`.
      crop: () int32, 0 .. crops - 1.
      height, width: () int32, pixels.
    """
    side = _crop_side(cfg, height, width)
    corner = look_up(EVAL_CROPS, crops, "config.eval.crops")(crop, height - side, width - side)
    return tf.concat([corner, [side, side]], 0)


def is_mirrored(crops: int, crop: tf.Tensor) -> tf.Tensor:
    """() bool, whether an evaluation crop is mirrored: the second five of ten are."""
    return crop >= 5 if crops == 10 else tf.constant(False)


def canvas_size(cfg: DataConfig) -> tuple[int, int]:
    """Height and width that hold every training window of a frame whose short side is `short_side`.

    A tall window of `random_resized` may be higher: then the host resizes it.
    """
    side = look_up(CANVAS_SIDES, cfg.crop, "config.data.crop")(cfg)
    return side, math.ceil(side * _ASPECT[1]) if cfg.crop == "random_resized" else side


def draw_numbers(cfg: DataConfig, key: tf.Tensor) -> dict[str, tf.Tensor]:
    """The numbers of all augmentations whose field in `cfg` is neither 0 nor False, in the order of `AUGMENTATIONS`.

    Each draws from `key`, the clip's (2,) int64, and from its own name alone, so its numbers stay the same when others
    are switched on.
    """
    return {
        name: augmentation.draw(cfg, fold_in(key, zlib.crc32(name.encode())))
        for name, augmentation in AUGMENTATIONS.items()
        if getattr(cfg, name)
    }


def augment_clip(numbers: dict[str, tf.Tensor], clip: tf.Tensor) -> tf.Tensor:
    """Applies the augmentations whose numbers are given, in their order; returns (t, s, s, c) uint8.

    Args:
      numbers: of `draw_numbers`.
      clip: (t, s, s, c) uint8, or float32 in 0..255. Colors are rounded once, after all changes of them: an earlier
        rounding would be magnified by contrast, and a device that rounds a tie to the other side would differ visibly.
    """
    for name, drawn in numbers.items():
        augmentation = AUGMENTATIONS[name]
        clip = augmentation.change(drawn, tf.cast(clip, tf.float32) if augmentation.colors else to_uint8(clip))
    return to_uint8(clip)


def changes_colors(cfg: DataConfig) -> bool:
    """Whether an augmentation of `cfg` works on float32."""
    return any(augmentation.colors and getattr(cfg, name) for name, augmentation in AUGMENTATIONS.items())


def jitter_colors(factors: tf.Tensor, video: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast and saturation, in this order and by the same amounts in all frames of a clip.

    Args:
      factors: (3,) float32.
      video: (t, h, w, 3) float32, 0..255, as is the result.
    """
    video = tf.clip_by_value(video * factors[0], 0.0, 255.0)
    # One mean for the clip: a mean per frame would make the picture flicker when something bright appears.
    video = _blend(video, tf.reduce_mean(_gray(video)), factors[1])
    return _blend(video, _gray(video), factors[2])


def turn_hues(matrix: tf.Tensor, video: tf.Tensor) -> tf.Tensor:
    """Mixes the colors of (t, h, w, 3) float32 in 0..255 by a (3, 3) matrix, that of `_draw_hue`."""
    return tf.clip_by_value(tf.tensordot(video, matrix, 1), 0.0, 255.0)


def remove_colors(yes: tf.Tensor, video: tf.Tensor) -> tf.Tensor:
    """Makes (t, h, w, 3) float32 gray, in three equal channels, if `yes`, () bool."""
    return tf.cond(yes, lambda: tf.broadcast_to(_gray(video), tf.shape(video)), lambda: video)


def to_uint8(video: tf.Tensor) -> tf.Tensor:
    """Rounds float32 pixels in 0..255 to the nearest uint8. Bilinear filters never leave that range."""
    return video if video.dtype == tf.uint8 else tf.cast(video + 0.5, tf.uint8)


def mirror(video: tf.Tensor, yes: tf.Tensor) -> tf.Tensor:
    """Mirrors (t, h, w, c) uint8 left to right if `yes`, () bool. Flow has two channels, and its x changes sign."""

    def mirrored() -> tf.Tensor:
        # As one tall picture: for (rows, w, 3) TensorFlow moves whole pixels, which is 2.4 times as fast.
        high = tf.reshape(video, (-1, *video.shape[2:]))
        turned = tf.ensure_shape(tf.reshape(tf.reverse(high, [1]), tf.shape(video)), video.shape)
        if video.shape[-1] != 2:
            return turned
        opposite = tf.cast(tf.minimum(2 * FLOW_ZERO - tf.cast(turned[..., :1], tf.int32), 255), tf.uint8)
        return tf.concat([opposite, turned[..., 1:]], -1)

    return tf.cond(yes, mirrored, lambda: video)


def _crop_side(cfg: DataConfig, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    short = tf.minimum(height, width)
    side = tf.cast(tf.round(tf.cast(short, tf.float32) * (cfg.crop_size / cfg.short_side)), tf.int32)
    return tf.clip_by_value(side, 1, short)


def _random_window(
    draws: tf.Tensor, window_height: tf.Tensor, window_width: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> tf.Tensor:
    top = pick(draws[0], height - window_height + 1)
    left = pick(draws[1], width - window_width + 1)
    return tf.stack([top, left, window_height, window_width])


def _multi_scale(cfg: DataConfig, draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    scale = tf.gather(tf.constant(cfg.crop_scales, tf.float32), pick(draws[2], tf.constant(len(cfg.crop_scales))))
    side = tf.maximum(tf.cast(scale * tf.cast(tf.minimum(height, width), tf.float32), tf.int32), 1)
    return _random_window(draws, side, side, height, width)


def _random(cfg: DataConfig, draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    side = _crop_side(cfg, height, width)
    return _random_window(draws, side, side, height, width)


def _random_resized(cfg: DataConfig, draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    low, high = cfg.crop_area
    wide, tall = tf.cast(width, tf.float32), tf.cast(height, tf.float32)
    area = wide * tall * (low + draws[2 : 2 + _TRIES] * (high - low))
    log_low, log_high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspect = tf.exp(log_low + draws[2 + _TRIES :] * (log_high - log_low))
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = tf.argmax(tf.cast(fits, tf.int32), output_type=tf.int32)
    found = _random_window(draws, heights[first], widths[first], height, width)

    # The largest centered window whose shape is allowed
    least_width = tf.cast(tf.round(tall * _ASPECT[1]), tf.int32)
    least_height = tf.cast(tf.round(wide / _ASPECT[0]), tf.int32)
    window_width, window_height = tf.minimum(width, least_width), tf.minimum(height, least_height)
    fallback = tf.stack([(height - window_height) // 2, (width - window_width) // 2, window_height, window_width])
    return tf.where(tf.reduce_any(fits), found, fallback)


# config.data.crop -> (config, draws, height, width) -> window
WINDOWS: dict[str, Callable[[DataConfig, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    # A square of one of `crop_scales` times the short side, anywhere. This is the published code's
    # MultiScaleRandomCrop; the scale to `short_side` before it cancels out.
    "multi_scale": _multi_scale,
    # `crop_area` of the frame, width / height log-uniform in [3/4, 4/3], anywhere; ten tries, then the largest window
    # of an allowed shape in the center (Szegedy et al. 2015, arXiv:1409.4842, section 6).
    "random_resized": _random_resized,
    # A square that is `crop_size` when the short side is `short_side`, anywhere.
    "random": _random,
    # The same square, in the center.
    "center": lambda cfg, draws, height, width: eval_window(cfg, 1, tf.constant(0), height, width),
}


# config.data.crop -> config -> longest side of a window of a frame whose short side is `short_side`, but for its shape
CANVAS_SIDES: dict[str, Callable[[DataConfig], int]] = {
    # a larger window is resized to the crop, which must fit too
    "multi_scale": lambda cfg: max(cfg.crop_size, math.ceil(max(cfg.crop_scales) * cfg.short_side)),
    "random_resized": lambda cfg: max(cfg.crop_size, cfg.short_side),
    "random": lambda cfg: cfg.crop_size,
    "center": lambda cfg: cfg.crop_size,
}


def _three_crops(crop: tf.Tensor, down: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    along_width = tf.stack([down // 2, crop * right // 2])
    along_height = tf.stack([crop * down // 2, right // 2])
    return tf.where(right >= down, along_width, along_height)


def _ten_crops(crop: tf.Tensor, down: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    top = tf.stack([0, 0, down, down, down // 2])
    left = tf.stack([0, right, 0, right, right // 2])
    return tf.stack([top[tf.math.floormod(crop, 5)], left[tf.math.floormod(crop, 5)]])


# config.eval.crops -> (crop, largest top, largest left) -> top, left
EVAL_CROPS: dict[int, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    1: lambda crop, down, right: tf.stack([down // 2, right // 2]),  # the center
    3: _three_crops,  # the two ends and the middle of the long side, in the middle of the short side
    10: _ten_crops,  # top left, top right, bottom left, bottom right, center, and then the same five, to be mirrored
}


class Augmentation(NamedTuple):
    """A change of a whole clip, in two halves: what is drawn, and what is done with it."""

    draw: Callable[[DataConfig, tf.Tensor], tf.Tensor]  # config, key of its own -> numbers
    change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # numbers, (t, s, s, c) -> (t, s, s, c)
    colors: bool  # it works on float32 in 0..255; False: it moves pixels and works on uint8, after those


def _draw_factors(cfg: DataConfig, key: tf.Tensor) -> tf.Tensor:
    """(3,) float32, uniform in [max(0, 1 - strength), 1 + strength]."""
    low = max(0.0, 1.0 - cfg.color_jitter)
    return low + uniform(key, 3) * (1.0 + cfg.color_jitter - low)


# Luma and the two axes of color (YIQ, as NTSC has them), from red, green and blue
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _draw_hue(cfg: DataConfig, key: tf.Tensor) -> tf.Tensor:
    """(3, 3) float32 for colors on its left: turns them in the YIQ plane by up to `hue_jitter` turns; keeps luma."""
    angle = 2 * math.pi * cfg.hue_jitter * (2 * uniform(key, 1)[0] - 1)
    cos, sin, zero, one = tf.cos(angle), tf.sin(angle), tf.constant(0.0), tf.constant(1.0)
    turn = tf.stack([[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]])
    to_yiq, from_yiq = (tf.constant(matrix.T, tf.float32) for matrix in (_YIQ, np.linalg.inv(_YIQ)))
    return to_yiq @ tf.transpose(turn) @ from_yiq


# By field of DataConfig
AUGMENTATIONS: dict[str, Augmentation] = {
    "color_jitter": Augmentation(_draw_factors, jitter_colors, colors=True),
    "hue_jitter": Augmentation(_draw_hue, turn_hues, colors=True),
    # as in MoSI's recipes (Huang et al. 2021, arXiv:2104.00240), with 0.3
    "random_gray": Augmentation(lambda cfg, key: uniform(key, 1)[0] < cfg.random_gray, remove_colors, colors=True),
    "flip": Augmentation(lambda cfg, key: uniform(key, 1)[0] < 0.5, lambda yes, clip: mirror(clip, yes), colors=False),
}


def _gray(video: tf.Tensor) -> tf.Tensor:
    return tf.tensordot(video, tf.constant([0.299, 0.587, 0.114]), 1)[..., None]


def _blend(video: tf.Tensor, other: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(other + (video - other) * factor, 0.0, 255.0)
