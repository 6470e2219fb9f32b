"""What a network costs, counted from its shapes without running it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from r23d_jax.models.convolution import use_formulation
from r23d_jax.models.network import VideoNetwork


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a network."""

    name: str  # "stem", "stage1" .. "stage4", "head"
    shape: tuple[int, ...]  # of its output without the batch: (T, H, W, C), or (num_classes,) for the head
    parameters: int  # trained values in it
    # multiply-adds of its convolutions and matrix products for one clip; BN, ReLU and pooling do not count
    # (torchvision's convention)
    macs: int
    activations: int  # values written by those convolutions and products for one clip


def count_parts(make_model: Callable[[], VideoNetwork], video_shape: tuple[int, int, int, int]) -> list[Part]:
    """Counts every part of the network that `make_model` builds.

    Args:
      make_model: called abstractly, so its weights take no memory.
      video_shape: (T, H, W, C) of a clip.

    Returns:
      Stem, stages and head, in order.
    """
    model = nnx.eval_shape(make_model)
    model.eval()
    modules = [("stem", model.stem), *((f"stage{i + 1}", stage) for i, stage in enumerate(model.stages))]
    modules.append(("head", model.head))
    x = jax.ShapeDtypeStruct((1, *video_shape), jnp.float32)
    parts = []
    for name, module in modules:
        graph, state = nnx.split(module)

        def apply(state: Any, x: jax.Array, graph: nnx.GraphDef = graph) -> jax.Array:
            return nnx.merge(graph, state)(x)

        with use_formulation("direct"):
            jaxpr, x = jax.make_jaxpr(apply, return_shape=True)(state, x)
        macs, activations = _count(jaxpr.jaxpr)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
        parts.append(Part(name, x.shape[1:], parameters, macs, activations))
    return parts


def _count(jaxpr: core.Jaxpr) -> tuple[int, int]:
    """Multiply-adds, and values written, of all convolutions and products in a jaxpr and those inside it."""
    macs = activations = 0
    for eqn in jaxpr.eqns:
        size = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0  # pyright: ignore[reportAttributeAccessIssue]
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
            macs += size * math.prod(kernel) // kernel[out_axis]
            activations += size
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            macs += size * math.prod(lhs[axis] for axis in contracted)
            activations += size
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: isinstance(v, (core.Jaxpr, core.ClosedJaxpr))
        ):
            if isinstance(inner, core.ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, core.Jaxpr):
                inner_macs, inner_activations = _count(inner)
                macs, activations = macs + inner_macs, activations + inner_activations
    return macs, activations
