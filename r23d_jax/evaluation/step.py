"""The compiled forward pass that evaluation and prediction share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r23d_jax.config import Preprocessing
from r23d_jax.models.augment import finish_clips
from r23d_jax.models.convolution import compiled_for
from r23d_jax.models.functional import Network
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import parallel

# (params, batch_stats, batch) -> logits (B, C) float32, view (B,) int32, mask (B,) float32
EvalStep = Callable[[Any, Any, dict[str, jax.Array]], tuple[jax.Array, jax.Array, jax.Array]]


def make_eval_step(network: Network, pre: Preprocessing, mesh: Mesh) -> EvalStep:
    """The compiled forward pass. Reuse it, so that all evaluations of a run share one compilation.

    Every device gets all scores, with the view that each row belongs to. Every host therefore sees the scores of all
    hosts without a second exchange.
    """

    @compiled_for(parallel.platform(mesh))
    def step(params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch = finish_clips(batch, pre)
        logits = network.apply_eval(params, batch_stats, prepare_video(batch["video"], pre))
        return logits.astype(jnp.float32), batch["view"], batch["mask"]

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, out_shardings=whole, compiler_options=parallel.compiler_options(mesh))
