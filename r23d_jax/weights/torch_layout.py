"""Our parameter trees as torch state dicts and back, under torchvision's names for video ResNets.

torchvision stores convolutions as (out, in, t, h, w) and linear layers as (out, in), and calls BN's values weight,
bias, running_mean and running_var. Average-pool heads are called `fc`; other heads, which torchvision does not have,
keep our names with torch's shapes. Names and layout: torchvision/models/video/resnet.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax.config import UserError
from r23d_jax.models.functional import split_model
from r23d_jax.models.registry import create_model, list_models, model_spec
from r23d_jax.models.video_resnet import VideoResNet

Tree = dict[str, Any]

# Our path -> torchvision's prefix. A factorized convolution is a Sequential of spatial, BN, ReLU, temporal.
_RENAME = tuple(
    (re.compile(pattern), prefix)
    for pattern, prefix in (
        (r"stem/conv/kernel", "stem.0"),
        (r"stem/conv/spatial/kernel", "stem.0"),
        (r"stem/conv/norm/norm/\w+", "stem.1"),
        (r"stem/conv/temporal/kernel", "stem.3"),
        (r"stem/norm/norm/\w+", "stem.{after_stem}"),
        (r"stages/(\d+)/blocks/(\d+)/conv(\d)/kernel", "layer{stage}.{block}.conv{conv}.0"),
        (r"stages/(\d+)/blocks/(\d+)/conv(\d)/spatial/kernel", "layer{stage}.{block}.conv{conv}.0.0"),
        (r"stages/(\d+)/blocks/(\d+)/conv(\d)/norm/norm/\w+", "layer{stage}.{block}.conv{conv}.0.1"),
        (r"stages/(\d+)/blocks/(\d+)/conv(\d)/temporal/kernel", "layer{stage}.{block}.conv{conv}.0.3"),
        (r"stages/(\d+)/blocks/(\d+)/norm(\d)/norm/\w+", "layer{stage}.{block}.conv{conv}.1"),
        (r"stages/(\d+)/blocks/(\d+)/shortcut/conv/kernel", "layer{stage}.{block}.downsample.0"),
        (r"stages/(\d+)/blocks/(\d+)/shortcut/norm/norm/\w+", "layer{stage}.{block}.downsample.1"),
    )
)
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"  # torch's own count of training batches; nothing computes with it


class ConversionError(UserError, ValueError):
    """Weights do not fit the network; the message lists every name that is missing, left over or of another shape."""


def to_torch(model: VideoResNet) -> dict[str, np.ndarray]:
    """All values of a network as a torch state dict of numpy arrays.

    For `r3d_*`, `mc3_*` and `r2plus1d_tv_*` with an average-pool head it is torchvision's own state dict, and
    `load_state_dict` takes it as it is. torchvision's r2plus1d has BN epsilon 1e-5; other epsilons are not part of a
    state dict and must be set in the torch network.

    Args:
      model: a network; left in evaluation mode.

    Returns:
      float32 arrays, and an int64 zero per BN layer, which torch counts batches with.
    """
    _, params, batch_stats = split_model(model)
    state: dict[str, np.ndarray] = {}
    for path, leaf in (*_flatten(params), *_flatten(batch_stats)):
        name = _torch_name(path, params)
        state[name] = np.ascontiguousarray(_to_layout(path, np.asarray(leaf)))
        if name.endswith(".running_var"):
            state[name.removesuffix("running_var") + _COUNTER] = np.zeros((), np.int64)
    return state


def from_torch(state: Mapping[str, Any], model: VideoResNet | str | None = None) -> VideoResNet:
    """A network with the values of a torch state dict.

    Args:
      state: numpy arrays or torch tensors by name, as `to_torch` gives or torchvision has; `module.` prefixes are
        removed.
      model: the network to fill (its own values are lost), or the name of one; None finds the name from the shapes.

    Returns:
      The network in evaluation mode.

    Raises:
      ConversionError: if names or shapes do not fit, or no network of the registry has them.
    """
    arrays = {name.removeprefix("module."): _numpy(value) for name, value in state.items()}
    arrays = {name: value for name, value in arrays.items() if not name.endswith(_COUNTER)}
    if not isinstance(model, VideoResNet):
        name = model or _find_name(arrays)
        model = _abstract(name, arrays)
    network, params, batch_stats = split_model(model)
    problems = _differences(_shapes(params, batch_stats), arrays)
    if problems:
        shown = "\n  ".join(problems[:12]) + (f"\n  and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise ConversionError(f"the weights do not fit this network:\n  {shown}")

    def filled(tree: Tree) -> Tree:
        return jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(_from_layout(_names(path), arrays[_torch_name(_names(path), params)], leaf)),
            tree,
        )

    return network.build(filled(params), filled(batch_stats))


# -- names -------------------------------------------------------------------------------------------------------------


def _torch_name(path: tuple[str, ...], params: Tree) -> str:
    leaf = _LEAF.get(path[-1], "")
    if path[0] == "head":
        if path[1] == "classifier" and set(params["head"]) == {"classifier"}:
            return f"fc.{leaf}"
        return ".".join(path[:-1] + (leaf or path[-1],))
    joined = "/".join(path)
    for pattern, prefix in _RENAME:
        match = pattern.fullmatch(joined)
        if match:
            numbers = [*match.groups(), "", "", ""]
            factorized_stem = "spatial" in params["stem"]["conv"]
            fields = {"stage": int(numbers[0] or 0) + 1, "block": numbers[1], "conv": numbers[2]}
            return prefix.format(**fields, after_stem=4 if factorized_stem else 1) + f".{leaf}"
    raise AssertionError(f"no torch name for {joined}")


def _to_layout(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if "attention" in path and path[-2] in ("query", "key", "value"):  # (dim, heads, size) or (heads, size)
        return value.reshape(value.shape[0], -1).T if path[-1] == "kernel" else value.ravel()
    if "attention" in path and path[-2] == "out" and path[-1] == "kernel":  # (heads, size, dim)
        return value.reshape(-1, value.shape[-1]).T
    if path[-1] != "kernel":
        return value
    return value.transpose(4, 3, 0, 1, 2) if value.ndim == 5 else value.T


def _from_layout(path: tuple[str, ...], value: np.ndarray, like: Any) -> np.ndarray:
    value = value.astype(np.float32)
    if path[-1] == "kernel":
        value = value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else value.T
    return value.reshape(like.shape)


# -- which network -----------------------------------------------------------------------------------------------------


def _find_name(arrays: Mapping[str, np.ndarray]) -> str:
    """The network of the registry that has exactly these names and shapes."""
    fewest: tuple[int, str] | None = None
    for name in _candidates(arrays):
        _, params, batch_stats = split_model(_abstract(name, arrays))
        count = len(_differences(_shapes(params, batch_stats), arrays))
        if not count:
            return name
        if fewest is None or count < fewest[0]:
            fewest = (count, name)
    hint = f" The nearest is {fewest[1]}, which differs in {fewest[0]} names or shapes." if fewest else ""
    raise ConversionError(f"no network has exactly these weights; name the one you mean.{hint}")


def _candidates(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Networks with as many blocks per stage; torchvision's own families first, because some networks share shapes."""
    blocks = len({match.group() for name in arrays if (match := re.match(r"layer\d+\.\d+\.", name))})
    bottleneck = any(".conv3." in name for name in arrays)

    def fits(name: str) -> bool:
        spec = model_spec(name)
        return sum(spec.layers) == blocks and spec.bottleneck == bottleneck

    names = [name for name in list_models() if fits(name)]
    return sorted(names, key=lambda name: not name.startswith(("r3d_", "mc3_", "r2plus1d_")))


def _abstract(name: str, arrays: Mapping[str, np.ndarray]) -> VideoResNet:
    if "fc.weight" not in arrays:
        raise ConversionError("there is no fc.weight: give the network these weights are for, not only its name")
    num_classes = len(arrays["fc.weight"])
    return nnx.eval_shape(lambda: create_model(name, num_classes=num_classes, rngs=nnx.Rngs(0)))


def _shapes(params: Tree, batch_stats: Tree) -> dict[str, tuple[int, ...]]:
    """Torch's names and shapes of a network."""
    shapes = {}
    for path, leaf in (*_flatten(params), *_flatten(batch_stats)):
        empty = np.broadcast_to(np.zeros((), np.float32), leaf.shape)
        shapes[_torch_name(path, params)] = _to_layout(path, empty).shape
    return shapes


def _differences(wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> list[str]:
    problems = [f"{name}: missing" for name in wanted if name not in arrays]
    problems += [f"{name}: not in this network" for name in arrays if name not in wanted]
    problems += [
        f"{name}: {list(arrays[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    return problems


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().float() if hasattr(value, "detach") else value)


def _flatten(tree: Tree) -> list[tuple[tuple[str, ...], Any]]:
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)
