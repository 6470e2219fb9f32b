"""Makes clips of pseudo-motion inside the compiled step, as `data/read/motion.py` does on the host."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from r23d_jax.config import Preprocessing
from r23d_jax.models.augment import AUGMENTATIONS


def move_pictures(batch: dict[str, jax.Array], pre: Preprocessing) -> dict[str, jax.Array]:
    """Makes the clips of a batch of pictures.

    Args:
      batch: "video" (N, 1, side, side, 3) uint8 and (N, K, ...) arrays of K clips a picture: "motion" (N, K, 9) int32,
        "colors" (N, K, F, 3) float32 if colors change, and others. A batch without "motion" is returned as it is.
      pre: number of frames T and size S of a clip.

    Returns:
      "video" (N * K, T, S, S, 3) uint8, and the others as (N * K, ...).
    """
    if "motion" not in batch:
        return batch
    clips_of = jax.vmap(jax.vmap(lambda picture, row: _slide(picture, row, pre), in_axes=(None, 0)))
    video = clips_of(batch["video"][:, 0], batch["motion"])
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items() if name != "video"}
    video = video.reshape(-1, *video.shape[2:])
    motion, colors = flat.pop("motion"), flat.pop("colors", None)
    if colors is not None:
        video = _change_colors(colors, video)
    return flat | {"video": _freeze(motion, video)}


def _slide(
    picture: UInt8[Array, "side side 3"], motion: Int[Array, " 9"], pre: Preprocessing
) -> UInt8[Array, "t s s 3"]:
    def window(frame: jax.Array) -> jax.Array:
        top, left = motion[:2] + frame * motion[2:4]
        return jax.lax.dynamic_slice(picture, (top, left, 0), (pre.crop_size, pre.crop_size, 3))

    return jax.vmap(window)(jnp.arange(pre.read_frames))


def _change_colors(colors: Float[Array, "b f 3"], video: UInt8[Array, "b t s s 3"]) -> UInt8[Array, "b t s s 3"]:
    """Changes groups of T / F frames, as the augmentation changes a clip."""
    groups = video.reshape(colors.shape[0] * colors.shape[1], -1, *video.shape[2:]).astype(jnp.float32)
    changed = AUGMENTATIONS["color_jitter"](colors.reshape(-1, 3), groups)
    return jnp.floor(changed + 0.5).astype(jnp.uint8).reshape(video.shape)


def _freeze(motion: Int[Array, "b 9"], video: UInt8[Array, "b t s s 3"]) -> UInt8[Array, "b t s s 3"]:
    """Shows one frame outside each clip's box."""
    places = jnp.arange(video.shape[2])[None, None]
    corner, box = motion[:, 4:6, None], motion[:, 6:8, None]
    inside = (places >= corner) & (places < corner + box)  # (b, 2, s)
    moves = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None, :, :, None]
    shown = jnp.take_along_axis(video, jax.lax.expand_dims(motion[:, 8], (1, 2, 3, 4)), axis=1)
    return jnp.where(moves, video, shown)
