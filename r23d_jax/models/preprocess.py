"""From the bytes of a clip to what a network reads, on the device and inside the compiled step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from r23d_jax.config import INPUTS, Preprocessing, look_up


def prepare_video(video: UInt8[Array, "b t h w c"], pre: Preprocessing) -> Float[Array, "b t2 h w c"]:
    """Casts, scales and normalizes a batch of clips.

    With `pre.input` "rgb_diff" or "rgb_and_diff" the clip has one frame more than the network reads. The difference of
    each frame from the one before is divided by the standard deviation; its mean is about zero already.
    "rgb_and_diff" has the three channels of the frame first, and then those of the difference.

    Args:
      video: (B, pre.read_frames, H, W, C) uint8.
      pre: mean and standard deviation, of pixels in [0, 1], or in 0..255 with `byte_range`.

    Returns:
      (B, pre.num_frames, H, W, C) float32; C is 6 for "rgb_and_diff", and else that of the video.

    Raises:
      ValueError: for another rank, dtype, number of frames or number of channels.
    """
    expected = (pre.read_frames, len(pre.mean))
    if video.ndim != 5 or video.dtype != jnp.uint8 or (video.shape[1], video.shape[4]) != expected:
        raise ValueError(
            f"video is {video.dtype} {video.shape}; expected uint8 (B, {pre.read_frames}, H, W, {len(pre.mean)}) "
            f"for {pre.num_frames} frames of {pre.input}"
        )
    pixels = video.astype(jnp.float32)
    if not pre.byte_range:
        pixels = pixels / 255.0
    std = jax.lax.expand_dims(jnp.asarray(pre.std, jnp.float32), (0, 1, 2, 3))
    mean = jax.lax.expand_dims(jnp.asarray(pre.mean, jnp.float32), (0, 1, 2, 3))
    if not look_up(INPUTS, pre.input, "config.data.input").extra_frames:
        return (pixels - mean) / std
    differences = (pixels[:, 1:] - pixels[:, :-1]) / std
    if pre.input == "rgb_diff":
        return differences
    return jnp.concatenate([(pixels[:, 1:] - mean) / std, differences], -1)
