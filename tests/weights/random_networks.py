"""Networks with values as after training, without the training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax import models
from r23d_jax.models.functional import split_model


def trained(name: str, **fields: Any) -> models.VideoNetwork:
    """A network with random weights and random BN values, as after training."""
    fields = {"num_classes": 7, "num_frames": 4, "crop_size": 32} | fields
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **fields))
    network, params, batch_stats = split_model(model)
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        kind = path[-1].key
        if kind in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.standard_normal(leaf.shape) * (
                1.4 / np.sqrt(np.prod(leaf.shape[:-1])) if kind == "kernel" else 0.1
            )
        return jnp.asarray(value, jnp.float32)

    return network.build(jax.tree.map_with_path(draw, params), jax.tree.map_with_path(draw, batch_stats))


def as_image_network(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of a network of one-frame kernels as torchvision's 2D ResNets have it."""
    pairs = [("stem.0", "conv1"), ("stem.1", "bn1")]
    pairs += [(f".conv{k}.{j}", f".{new}{k}") for k in (1, 2) for j, new in ((0, "conv"), (1, "bn"))]
    flat = {}
    for name, value in state.items():
        for old, new in pairs:
            name = name.replace(old, new)
        flat[name] = np.ascontiguousarray(value[:, :, 0]) if value.ndim == 5 else value
    return flat
