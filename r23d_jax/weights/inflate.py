"""Image networks as video networks: 2D kernels become 3D ones (Carreira & Zisserman 2017, section 2.4).

On a static clip the video network then gives the image network's output for one frame. "repeat" has the kernel, divided
by the number of time taps, at every tap, so this holds away from the clip's ends. "center" has it at the middle tap and
zeros elsewhere, so it holds everywhere. A motion stem, which sees nothing of a static clip, is always inflated by
"center": it takes away what all taps have in common.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r23d_jax.config import INFLATIONS, nearest
from r23d_jax.models.functional import split_model
from r23d_jax.models.network import VideoNetwork
from r23d_jax.weights import compare, layouts
from r23d_jax.weights.layouts import Layout
from r23d_jax.weights.matching import is_2d, unwrapped
from r23d_jax.weights.state_dicts import Weights, read_arrays
from r23d_jax.weights.tables import ConversionError, make_table, part_of

_AUXILIARY = ("aux1.", "aux2.")  # GoogLeNet's classifiers for training
# A distinctive name -> the image network's name in specs, its layout, and what it inflates to
_IMAGE_NETWORKS = {
    "conv1.conv.weight": (
        "googlenet",
        layouts.GOOGLENET,
        "GoogLeNet inflates to i3d_gamma only: its BN has a gamma, and its kernels are full",
    ),
    "conv1.weight": (
        "resnet",
        layouts.FLAT,
        "a 2D ResNet inflates to networks of full 2D and 3D convolutions only: r3d, mc, rmc, f_r2d, r2d, r2plus3d",
    ),
}


def inflate(weights: Weights, model: VideoNetwork, how: str = "repeat", skip: tuple[str, ...] = ()) -> VideoNetwork:
    """A video network with the weights of an image network.

    If clips do not have three channels (optical flow has two), each channel gets the mean over the three colors (Wang
    et al. 2016, arXiv:1608.00859, section 3.2). Of six channels (frames and their differences), the first three get
    the colors and the others zeros, so the network starts as that of the frames.

    Args:
      weights: of torchvision's resnet18, 34, 50, 101 or 152, or its googlenet; a state dict or a file of one.
      model: the network to fill, with full 2D and 3D convolutions: `r3d_*`, `mc*`, `rmc*`, `f_r2d_*`, `r2d_*`,
        `r2plus3d_*`, or `i3d_gamma` for googlenet. A head of another number of classes keeps its values.
      how: "repeat" or "center".
      skip: parts that keep their values: "stem", "stage1" .. "stage4", "head".

    Returns:
      The network in evaluation mode. torchvision's image networks pool after the stem; the video ResNets do so only
      with `stem_pool="2d"`. GoogLeNet's pools line up with I3D's only for sizes of 32 n - 1 pixels.

    Raises:
      ConversionError: if these are not such weights, or do not fit; lists every name.
    """
    return inflate_parts(weights, model, how, skip)[0]


def inflate_parts(
    weights: Weights, model: VideoNetwork, how: str = "repeat", skip: tuple[str, ...] = ()
) -> tuple[VideoNetwork, set[str]]:
    """`inflate`, and the parts that have values of the image network: "stem", "stage1" .. "stage4", perhaps "head"."""
    if how not in INFLATIONS:
        raise ConversionError(f"inflate={how!r}: unknown; {nearest(how, INFLATIONS)}")
    arrays = unwrapped(read_arrays(weights).arrays, _IMAGE_NETWORKS)
    layout = _layout(arrays, model)
    table = make_table(model, layout)
    classifier = (f"{layout.classifier}.weight", f"{layout.classifier}.bias")
    unused = set(table.counters)
    if any(table.shapes.get(name) != arrays[name].shape for name in classifier if name in arrays):
        unused |= set(classifier)
    arrays = {name: value for name, value in arrays.items() if name not in unused and not name.startswith(_AUXILIARY)}
    names, wanted = {}, {}
    for entry in table.entries:
        if part_of(entry.path) in skip or (entry.path[0] == "head" and entry.name not in arrays):
            arrays.pop(entry.name, None)
            continue
        names[entry.path] = entry.name
        wanted[entry.name] = list(_in_2d(entry.path, entry.shape))
    problems = compare.differences({name: list(value.shape) for name, value in arrays.items()}, wanted)
    if problems:
        raise ConversionError(
            "the image network does not fit this video network; inflate another, or leave parts as they are with "
            f"skip, in a config init_skip=('stage4',):\n{compare.listed(problems)}"
        )
    network, params, batch_stats = split_model(model)

    def value(path: tuple, leaf: Any) -> jax.Array:
        keys = tuple(entry.key for entry in path)
        if keys not in names:
            return leaf
        here = "center" if keys[0] == "stem" and sees_only_motion(model) else how
        return jnp.asarray(_inflated(keys, arrays[names[keys]], leaf, here, layout))

    filled = network.build(jax.tree.map_with_path(value, params), jax.tree.map_with_path(value, batch_stats))
    return filled, {part_of(path) for path in names}


def sees_only_motion(model: VideoNetwork) -> bool:
    """Whether the stem's kernels are taken less their mean over time."""
    return getattr(model.spec, "stem", "") == "motion"


def _layout(arrays: Mapping[str, np.ndarray], model: VideoNetwork) -> Layout:
    if not is_2d(arrays):
        raise ConversionError("these are not the weights of an image network: there is no 2D kernel among them")
    for telling, (kind, layout, fits) in _IMAGE_NETWORKS.items():
        if telling in arrays:
            if model.spec.image_network != kind:
                raise ConversionError(fits)
            return layout
    raise ConversionError(f"not torchvision's resnet or googlenet: it has {', '.join(list(arrays)[:3])}, ...")


def _in_2d(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The 2D shape of a 3D kernel (out, in, t, h, w); the stem's always has three input channels."""
    if len(shape) != 5:
        return shape
    return (shape[0], 3 if path[0] == "stem" else shape[1], *shape[3:])


def _inflated(path: tuple[str, ...], value: np.ndarray, like: Any, how: str, layout: Layout) -> np.ndarray:
    if value.ndim != 4:
        return layouts.decode(path, value, like, layout)
    kernel = value.astype(np.float32).transpose(2, 3, 1, 0)  # (h, w, in, out)
    taps, channels = like.shape[0], like.shape[3]
    if channels == 2 * kernel.shape[2]:
        kernel = np.concatenate([kernel, np.zeros_like(kernel)], axis=2)
    if kernel.shape[2] != channels:
        kernel = np.repeat(kernel.mean(axis=2, keepdims=True), channels, axis=2)
    if how == "repeat":
        return np.broadcast_to(kernel / taps, like.shape)
    inflated = np.zeros(like.shape, np.float32)
    inflated[taps // 2] = kernel
    return inflated
