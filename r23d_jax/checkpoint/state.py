"""The training state: a frozen dataclass of plain nested dicts, created on the mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from r23d_jax.models.functional import initializer_options
from r23d_jax.runtime import parallel

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to continue, except its config."""

    step: jax.Array  # () int32, steps done
    params: Tree  # trained values
    batch_stats: Tree  # BN's running statistics
    opt_state: Any  # the optimizer's
    ema: Tree  # moving average of `params`, or {}

    @property
    def eval_params(self) -> Tree:
        """The parameters to evaluate and publish: the moving average if there is one."""
        return self.ema or self.params


def create_state(
    initialize: Callable[[], tuple[Tree, Tree]], tx: optax.GradientTransformation, ema_decay: float, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """The state before the first step, created on its devices, and the sharding of each of its leaves.

    Args:
      initialize: gives parameters and BN statistics; traced.
      ema_decay: 0 for no moving average.
    """
    build = functools.partial(_build, initialize, tx, ema_decay)  # one object, which jax traces once
    shardings = parallel.state_shardings(jax.eval_shape(build), mesh)
    return jax.jit(build, out_shardings=shardings, compiler_options=initializer_options())(), shardings


def abstract_state(
    initialize: Callable[[], tuple[Tree, Tree]], tx: optax.GradientTransformation, ema_decay: float, mesh: Mesh
) -> TrainState:
    """The shapes and shardings of `create_state`, whose devices need not exist."""
    shapes = jax.eval_shape(functools.partial(_build, initialize, tx, ema_decay))
    shardings = parallel.state_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def _build(
    initialize: Callable[[], tuple[Tree, Tree]], tx: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    params, batch_stats = initialize()
    ema = jax.tree.map(jnp.copy, params) if ema_decay else {}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)
