"""Cuts, resizes and changes clips inside the compiled step, as `data/read/augment.py` does on the host.

The host draws the numbers, so a clip is the same wherever it is computed, up to one level of a byte by rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r23d_jax.config import FLOW_ZERO, Preprocessing

_EXACT = jax.lax.Precision.HIGHEST  # tensor cores would round to ten bits, and pixels have eight


def finish_clips(batch: dict[str, jax.Array], pre: Preprocessing) -> dict[str, jax.Array]:
    """Makes the rows of a batch whose clips the host has only decoded.

    Args:
      batch: "video" (N, T, H, W, C) uint8, of which "window" says what is used: what is around it does not matter. And
        (N, K, ...) arrays of K rows a clip: "window" (N, K, 4) int32, top, left, height and width; numbers under names
        of `AUGMENTATIONS`; and others. More frames may be in "video_1", "video_2" and so on. A batch without "window"
        is returned as it is.
      pre: size of the crop, and whether it is filtered.

    Returns:
      "video" (N * K, T, S, S, C) uint8, and the others as (N * K, ...).
    """
    if "window" not in batch:
        return batch
    batch = dict(batch)
    frames = [batch.pop("video")]
    while (more := f"video_{len(frames)}") in batch:
        frames.append(batch.pop(more))
    canvas, window = jnp.concatenate(frames, axis=1).astype(jnp.float32), batch["window"]
    height, width = canvas.shape[2:4]
    rows = _resizing(window[..., 0], window[..., 2], height, pre)
    columns = _resizing(window[..., 1], window[..., 3], width, pre)
    # A resize is linear, so two matrix products do it, which is what accelerators are good at. Gathers are slow there.
    video = jnp.einsum("nkih,nthwc->nktiwc", rows, canvas, precision=_EXACT)
    video = jnp.einsum("nkjw,nktiwc->nktijc", columns, video, precision=_EXACT)
    video = video.reshape(-1, *video.shape[2:])
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items() if name != "window"}
    for name, change in AUGMENTATIONS.items():
        if name in flat:
            video = change(flat.pop(name), video)
    return flat | {"video": _rounded(video).astype(jnp.uint8)}


def _resizing(
    first: Int[Array, "n k"], count: Int[Array, "n k"], length: int, pre: Preprocessing
) -> Float[Array, "n k s length"]:
    """The weights of every pixel along one axis in every pixel of the crop: a triangle around its place in the window.

    Its radius is one source pixel, which is bilinear interpolation, and wider with `antialias`.
    """
    step = (jnp.maximum(count, 1) / pre.crop_size)[..., None, None]
    radius = jnp.maximum(step, 1.0) if pre.antialias else jnp.ones_like(step)
    place = (jax.lax.expand_dims(jnp.arange(pre.crop_size) + 0.5, (0, 1, 3))) * step
    pixel = jax.lax.expand_dims(jnp.arange(length), (0, 1, 2)) - first[..., None, None]
    weights = jnp.maximum(1 - jnp.abs(pixel + 0.5 - place) / radius, 0.0)
    weights = jnp.where((pixel >= 0) & (pixel < count[..., None, None]), weights, 0.0)
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)  # a row of padding has no window


def _rounded(video: jax.Array) -> jax.Array:
    """To the nearest level, halves up, as a byte would hold it."""
    return jnp.floor(video + 0.5)


def _jitter_colors(factors: Float[Array, "b 3"], video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    brightness, contrast, saturation = (jax.lax.expand_dims(factor, (1, 2, 3, 4)) for factor in factors.T)
    video = jnp.clip(video * brightness, 0.0, 255.0)
    video = _blend(video, _gray(video).mean((1, 2, 3, 4), keepdims=True), contrast)
    return _blend(video, _gray(video), saturation)


def _turn_hues(matrix: Float[Array, "b 3 3"], video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    return jnp.clip(jnp.einsum("bthwc,bcd->bthwd", video, matrix, precision=_EXACT), 0.0, 255.0)


def _remove_colors(yes: Bool[Array, " b"], video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    return jnp.where(jax.lax.expand_dims(yes, (1, 2, 3, 4)), jnp.broadcast_to(_gray(video), video.shape), video)


def _gray(video: jax.Array) -> jax.Array:
    return 0.299 * video[..., :1] + 0.587 * video[..., 1:2] + 0.114 * video[..., 2:]


def _blend(video: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(other + (video - other) * factor, 0.0, 255.0)


def _mirror(yes: Bool[Array, " b"], video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    video = _rounded(video)
    turned = video[:, :, :, ::-1]
    if video.shape[-1] == 2:  # optical flow, whose x changes sign
        turned = jnp.concatenate([jnp.minimum(2 * FLOW_ZERO - turned[..., :1], 255.0), turned[..., 1:]], -1)
    return jnp.where(jax.lax.expand_dims(yes, (1, 2, 3, 4)), turned, video)


# Field of DataConfig -> (numbers, (B, T, S, S, C) float32 in 0..255) -> the same shape. The numbers, and the order, are
# those of the table in data/read/augment.py.
AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "color_jitter": _jitter_colors,
    "hue_jitter": _turn_hues,
    "random_gray": _remove_colors,
    "flip": _mirror,
}
