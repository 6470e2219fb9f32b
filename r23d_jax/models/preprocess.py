"""From the bytes of a clip to what a network reads, on the device and inside the compiled step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from r23d_jax.config import Preprocessing


def prepare_video(video: UInt8[Array, "b t h w c"], pre: Preprocessing) -> Float[Array, "b t2 h w c"]:
    """Casts, scales and normalizes a batch of clips.

    With `pre.input == "rgb_diff"` the clip has one frame more than the network reads. The differences of neighboring
    frames are divided by the standard deviation; their mean is about zero already.

    Args:
      video: (B, pre.read_frames, H, W, C) uint8.
      pre: mean and standard deviation, of pixels in [0, 1], or in 0..255 with `byte_range`.

    Returns:
      (B, pre.num_frames, H, W, C) float32.

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
    if pre.input == "rgb_diff":
        return (pixels[:, 1:] - pixels[:, :-1]) / std
    mean = jax.lax.expand_dims(jnp.asarray(pre.mean, jnp.float32), (0, 1, 2, 3))
    return (pixels - mean) / std
