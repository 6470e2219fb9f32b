"""Masked cross-entropy with soft targets, masked accuracy, and three ways to mix clips."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from r23d_jax.config import INPUTS, TrainConfig, look_up


def one_hot(label: Int[Array, " b"], num_classes: int, smoothing: float = 0.0) -> Float[Array, "b c"]:
    """Targets with `smoothing` divided evenly among all classes (Szegedy et al. 2016, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(label, num_classes), smoothing)


def cross_entropy(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"], mask: Float[Array, " b"]
) -> Float[Array, ""]:
    """Mean over the rows where `mask` is 1; 0 without such rows."""
    losses = optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def accuracy(logits: Float[Array, "b c"], label: Int[Array, " b"], mask: Float[Array, " b"]) -> Float[Array, ""]:
    """Fraction of the rows where `mask` is 1 whose largest logit is the label's."""
    correct = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
    return jnp.sum(correct * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def add_stills(
    key: jax.Array, video: Float[Array, "b t h w c"], largest: float, source: str
) -> Float[Array, "b t h w c"]:
    """Blends all frames of every clip with one frame of the clip at the mirrored position in the batch.

    The clip keeps its label, so rooms and clothes tell the class less and motion tells it more: background erasing
    (Wang et al. 2021, arXiv:2009.05769) with a frame of another video, as in StillMix (Li et al. 2023,
    arXiv:2211.12883). Each clip draws the weight of the still frame uniformly from 0 to `largest`, and a frame. In a
    batch of an odd number of videos that in the middle gets a frame of its own.

    Args:
      video: normalized clips.
      largest: weight of a still frame.
      source: what the clips are, a key of `INPUTS`. Differences between equal frames are zero.
    """
    weight_key, time_key = jax.random.split(key)
    count, length, channels = video.shape[0], video.shape[1], video.shape[-1]
    weight = jax.random.uniform(weight_key, (count, 1, 1, 1, 1), maxval=largest)
    place = jax.random.randint(time_key, (count, 1, 1, 1, 1), 0, length)
    pixels = jnp.arange(channels) < look_up(INPUTS, source, "config.data.input").pixel_channels
    # The frames are taken where their clips are, because devices then send each other these instead of the clips
    frames = jnp.take_along_axis(video, place[::-1], axis=1)[::-1]
    still = jnp.where(jax.lax.expand_dims(pixels, (0, 1, 2, 3)), frames, 0.0)
    return (1 - weight) * video + weight * still


def mixup(
    key: jax.Array, video: Float[Array, "b t h w c"], targets: Float[Array, "b c"], alpha: float
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b c"]]:
    """Mixes every clip with the clip at the mirrored position in the batch (Zhang et al. 2018).

    The whole batch shares one weight from Beta(alpha, alpha). The order of a batch is random already, so `batch[::-1]`
    pairs clips at random without a gather over devices. In a batch of an odd number of videos that in the middle stays
    as it is, with `data.repeats` all its clips.
    """
    weight = jax.random.beta(key, alpha, alpha)
    return weight * video + (1 - weight) * video[::-1], weight * targets + (1 - weight) * targets[::-1]


def cutmix(
    key: jax.Array, video: Float[Array, "b t h w c"], targets: Float[Array, "b c"], alpha: float
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b c"]]:
    """Replaces a box of every clip, in all frames, by that of the clip at the mirrored position in the batch.

    Yun et al. 2019, arXiv:1905.04899; a box over all frames is the best of VideoMix (Yun et al. 2020,
    arXiv:2012.03457). The whole batch shares the box: its share of the frame is drawn from Beta(alpha, alpha), its
    center anywhere, and what sticks out is cut off. Targets are mixed by the share of the pixels that remain.
    """
    height, width = video.shape[2:4]
    share_key, *center_keys = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

    def inside(center_key: jax.Array, length: int) -> jax.Array:
        half, center = side * length / 2, jax.random.uniform(center_key, maxval=length)
        return jnp.abs(jnp.arange(length) + 0.5 - center) < half

    rows, columns = (inside(*pair) for pair in zip(center_keys, (height, width), strict=True))
    box = rows[:, None] & columns[None, :]
    weight = 1 - jnp.mean(box)
    video = jnp.where(jax.lax.expand_dims(box, (0, 1, 4)), video[::-1], video)
    return video, weight * targets + (1 - weight) * targets[::-1]


def mix(
    key: jax.Array, video: Float[Array, "b t h w c"], targets: Float[Array, "b c"], cfg: TrainConfig
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b c"]]:
    """Mixes clips as `cfg.mixup` and `cfg.cutmix` say; with both, one of them, drawn with equal probability."""
    mixed, cut = (
        functools.partial(way, video=video, targets=targets, alpha=alpha)
        for way, alpha in ((mixup, cfg.mixup), (cutmix, cfg.cutmix))
    )
    if cfg.mixup and cfg.cutmix:
        # Split, because a number folded into the key gives the keys that the ways split it into.
        choice, key = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(choice), mixed, cut, key)
    return mixed(key) if cfg.mixup else cut(key) if cfg.cutmix else (video, targets)
