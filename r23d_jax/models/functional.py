"""A module as a pure function of plain nested dicts, which is what a jitted step, an optimizer and a checkpoint want.

The dicts have string keys only (the index of a list is written "0", "1", ...), so Orbax returns them unchanged.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import nnx

from r23d_jax.models.network import VideoNetwork

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """The structure of a module without its values; made by `split_model`.

    The values are `params` (trained) and `batch_stats` (BN's running statistics). Merging happens during tracing, so it
    costs nothing in a compiled step.
    """

    train_graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    template: nnx.State  # shapes of all values

    def apply_train(self, params: Tree, batch_stats: Tree, video: jax.Array, key: jax.Array) -> tuple[jax.Array, Tree]:
        """Training mode: batch statistics, dropout.

        Args:
          params, batch_stats: the values.
          video: (B, T, H, W, C) float32.
          key: for dropout.

        Returns:
          (B, num_classes) float32 logits, and the new running statistics.
        """
        model = self._merge(self.train_graph, params, batch_stats)
        logits = model(video, nnx.Rngs(dropout=key))
        return logits, _plain(nnx.state(model, nnx.BatchStat))

    def apply_eval(self, params: Tree, batch_stats: Tree, video: jax.Array) -> jax.Array:
        """Evaluation mode: running statistics, no dropout. (B, T, H, W, C) float32 -> (B, num_classes) float32."""
        return self._merge(self.eval_graph, params, batch_stats)(video)

    def build(self, params: Tree, batch_stats: Tree) -> Any:
        """The module with these values, in evaluation mode."""
        return self._merge(self.eval_graph, params, batch_stats)

    def _merge(self, graph: nnx.GraphDef, params: Tree, batch_stats: Tree) -> Any:
        found = {**flatten(params), **flatten(batch_stats)}
        flat = [(path, var.replace(found[_names(path)])) for path, var in nnx.to_flat_state(self.template)]
        return nnx.merge(graph, nnx.from_flat_state(flat), copy=True)


class HasNetwork(Protocol):
    """An object with a network, e.g. from `r23d_jax.load_model`."""

    @property
    def model(self) -> VideoNetwork:
        """The network."""
        ...


def bare(model: VideoNetwork | HasNetwork) -> VideoNetwork:
    """The network itself."""
    return model if isinstance(model, VideoNetwork) else model.model


def split_model(model: VideoNetwork | HasNetwork, frozen: tuple[str, ...] = ()) -> tuple[Network, Tree, Tree]:
    """Takes a module apart.

    Args:
      model: a network; after `nnx.eval_shape` it gives shapes instead of values.
      frozen: parts ("stem", "stage1" .. "stage4") that stay in evaluation mode while the rest is trained, so that their
        BN keeps its statistics.

    Returns:
      Its structure, its parameters, and its BN statistics. The module itself is left in evaluation mode.
    """
    model = bare(model)
    model.train()
    for part in frozen:
        (model.stem if part == "stem" else model.stages[int(part.removeprefix("stage")) - 1]).eval()
    train_graph = nnx.graphdef(model)
    model.eval()
    eval_graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    state = nnx.merge_state(params, batch_stats)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return Network(train_graph, eval_graph, template), _plain(params), _plain(batch_stats)


def values(model: VideoNetwork | HasNetwork) -> tuple[Tree, Tree]:
    """The parameters and BN statistics of a module, as `split_model` gives them in three times as long."""
    params, batch_stats = nnx.state(bare(model), nnx.Param, nnx.BatchStat)
    return _plain(params), _plain(batch_stats)


def initialize(make_model: Callable[[], VideoNetwork]) -> VideoNetwork:
    """The network that `make_model` builds, in evaluation mode; one compiled program draws all random values."""
    network, _, _ = split_model(nnx.eval_shape(make_model))
    draw = jax.jit(lambda: values(make_model()), compiler_options=initializer_options())
    return network.build(*draw())


def initializer_options() -> dict[str, str]:
    """For a program of a hundred random draws that runs once: on a CPU, optimizing it would take most of the time."""
    return {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else {}


def _plain(state: nnx.State) -> Tree:
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(state):
        node = tree
        *parents, leaf = _names(path)
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = variable.get_value()
    return tree


def flatten(tree: Tree) -> dict[tuple[str, ...], Any]:
    """Every leaf of nested dicts by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(part) for part in path)
