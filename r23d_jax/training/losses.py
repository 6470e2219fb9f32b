"""Masked cross-entropy with soft targets, masked accuracy, and mixup."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


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


def mixup(
    key: jax.Array, video: Float[Array, "b t h w c"], targets: Float[Array, "b c"], alpha: float
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b c"]]:
    """Mixes every clip with the clip at the mirrored position in the batch (Zhang et al. 2018).

    The whole batch shares one weight from Beta(alpha, alpha). The order of a batch is random already, so `batch[::-1]`
    pairs clips at random without a gather over devices.
    """
    weight = jax.random.beta(key, alpha, alpha)
    return weight * video + (1 - weight) * video[::-1], weight * targets + (1 - weight) * targets[::-1]
