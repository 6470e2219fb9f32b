"""A network as a torch state dict, and a network from one."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax.config import ConfigError, ModelConfig, Preprocessing, from_dict
from r23d_jax.models.functional import HasNetwork, bare, flatten, split_model
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import build_model, model_config, model_name
from r23d_jax.weights import files, layouts
from r23d_jax.weights.layouts import Layout
from r23d_jax.weights.matching import Found, find, fit, table_of
from r23d_jax.weights.sources import SOURCES, source_of
from r23d_jax.weights.tables import ConversionError, Table

Weights = Mapping[str, Any] | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Converted:
    """A network made of foreign weights, and what is known of it.

    Attributes:
      model: in evaluation mode.
      config: that builds it.
      num_classes: of its logits; 0 if it has none and returns its last feature map.
      source: a key of `sources.SOURCES`.
      class_names: of the logits; () where the weights do not say.
      preprocessing: what the network was trained with, as far as its source says.
      notes: what the user should know besides.
      origin: what it was read from, in words.
      assumed: whether the preprocessing is only what such networks usually have.
    """

    model: VideoNetwork
    config: ModelConfig
    num_classes: int
    source: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    origin: str = ""
    assumed: bool = True

    @property
    def name(self) -> str:
        """Of the network, in the registry."""
        return model_name(self.config)


def to_torch(model: VideoNetwork | HasNetwork, source: str | None = None) -> dict[str, np.ndarray]:
    """All values of a network as a torch state dict of numpy arrays.

    The names are those of the code base that the network is from, so that its own class takes them with
    `load_state_dict`, as they are: torchvision for `r3d_18`, `mc3_18`, `r2plus1d_tv_18` and `s3d`, VMZ for `r2plus1d_*`
    and `*_csn_*`, pytorch-i3d for `i3d`, and so on; torchvision's style where there is none. Heads that no code base
    has keep our names. BN's epsilon is no part of a state dict and must be set in the torch network.

    Args:
      model: a network; left in evaluation mode.
      source: another code base's names, a key of `weights.sources.SOURCES`.

    Returns:
      float32 arrays, and an int64 zero per BN layer, which torch counts batches with.

    Raises:
      ConversionError: if `source` is unknown or has no names for this network.
    """
    model = bare(model)
    table, layout = table_of(model, source or source_of(model))
    _, params, batch_stats = split_model(model)
    return rename(table, layout, params, batch_stats)


def rename(table: Table, layout: Layout, *trees: layouts.Tree) -> dict[str, np.ndarray]:
    """The leaves of our trees (values, or gradients of them) under the names and in the shapes of a layout."""
    leaves = {path: leaf for tree in trees for path, leaf in flatten(tree).items()}
    state = {
        entry.name: np.ascontiguousarray(layouts.encode(entry.path, np.asarray(leaves[entry.path]), layout))
        for entry in table.entries
        if entry.path in leaves
    }
    state |= {name: np.ones(shape, np.float32) for name, shape in table.gammas}
    return state | {name: np.zeros((), np.int64) for name in table.counters}


def from_torch(
    weights: Weights, model: VideoNetwork | HasNetwork | str | None = None, source: str | None = None
) -> VideoNetwork:
    """A network with the values of a torch state dict.

    Args:
      weights: numpy arrays or torch tensors by name, or a file of them: .pth, .pt, .pth.tar (a state dict or a training
        checkpoint), .safetensors. `module.` prefixes are removed. `r23d_jax.read_tensorflow` reads DeepMind's I3D.
      model: the network to fill (its own values are lost), or the name of one; None finds the network from names and
        shapes.
      source: the code base, where it cannot be told from the names; a key of `weights.sources.SOURCES`.

    Returns:
      The network in evaluation mode. A source without classifier gives one that returns its last feature map,
      (B, T, H, W, C) float32.

    Raises:
      ConversionError: if the file cannot be read, names or shapes do not fit, or no known network has them.
    """
    if model is None or isinstance(model, str):
        return convert(weights, model, source).model
    model, (arrays, _) = bare(model), read_arrays(weights)
    table, layout, fitting = fit(arrays, model, source)
    return _filled(model, table, layout, fitting)


def convert(
    weights: Weights, name: str | None = None, source: str | None = None, meta: Mapping[str, Any] | None = None
) -> Converted:
    """`from_torch` with all that is known of the network; see there for arguments and errors.

    `meta` is what a file said besides, where `weights` are its arrays.
    """
    arrays, read_meta = read_arrays(weights)
    meta = meta or read_meta
    if "config" in meta:  # our own file says what it is
        cfg, preprocessing, class_names = _read_meta(meta)
        if name not in (None, model_name(cfg)):
            raise ConversionError(f"these weights are {model_name(cfg)}, not {name}")
        model = nnx.eval_shape(
            lambda: build_model(
                cfg,
                num_classes=len(class_names),
                num_frames=preprocessing.num_frames,
                crop_size=preprocessing.crop_size,
                rngs=nnx.Rngs(0),
            )
        )
        table, layout, fitting = fit(arrays, model)
        filled = _filled(model, table, layout, fitting)
        title, own = SOURCES["r23d_jax"].title, "r23d_jax"
        return Converted(filled, cfg, len(class_names), own, class_names, preprocessing, origin=title, assumed=False)
    found = find(arrays, name, source)
    return Converted(
        model=_filled(found.model, found.table, found.candidate.layout, found.arrays),
        config=_config(found),
        num_classes=found.num_classes,
        source=found.source,
        class_names=tuple(meta.get("class_names", ())),
        preprocessing=_preprocessing(found),
        notes=found.notes,
        origin=SOURCES[found.source].title,
    )


def _read_meta(meta: Mapping[str, Any]) -> tuple[ModelConfig, Preprocessing, tuple[str, ...]]:
    """What our own files say besides the values."""
    try:
        cfg, preprocessing = from_dict(meta["config"], ModelConfig), from_dict(meta["preprocessing"], Preprocessing)
        class_names = tuple(meta["class_names"])
    except (KeyError, TypeError, ConfigError) as error:
        raise ConversionError(f"what the file says of its network cannot be used ({error})") from None
    return cfg, preprocessing, tuple(map(str, class_names))


def count_parameters(model: VideoNetwork) -> int:
    """Trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(split_model(model)[1]))


def _config(found: Found) -> ModelConfig:
    cfg = model_config(found.candidate.name)
    cfg = dataclasses.replace(cfg, in_channels=found.model.in_channels, **dict(found.candidate.fields))
    cfg.head.kind = "avgpool" if found.num_classes else "none"
    return cfg


def _preprocessing(found: Found) -> Preprocessing:
    preprocessing = SOURCES[found.source].preprocessing
    channels = found.model.in_channels
    if channels == 3:
        return preprocessing
    return dataclasses.replace(preprocessing, mean=(0.5,) * channels, std=(0.5,) * channels)  # flow in [-1, 1]


def read_arrays(weights: Weights) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Numpy arrays by name without `module.` prefixes, and what else a file says."""
    if isinstance(weights, (str, os.PathLike)):
        read, meta = files.read(weights)
    else:
        read, meta = weights, {}
    where = weights if isinstance(weights, (str, os.PathLike)) else "weights"
    if not read:
        raise ConversionError(f"{where}: holds no values")
    arrays = {str(name).removeprefix("module."): files.as_numpy(value) for name, value in read.items()}
    wrong = [name for name, value in arrays.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if wrong:
        raise ConversionError(
            f"{where}: {len(wrong)} of {len(arrays)} tensors hold values that are not numbers (NaN or infinite), e.g. "
            f"{wrong[0]}: the training that wrote them diverged; take an earlier file of it"
        )
    return arrays, meta


def _filled(model: VideoNetwork, table: Table, layout: Layout, arrays: Mapping[str, np.ndarray]) -> VideoNetwork:
    network, params, batch_stats = split_model(model)
    names = {entry.path: entry.name for entry in table.entries}

    def value(path: tuple, leaf: Any) -> jax.Array:
        keys = tuple(entry.key for entry in path)
        return jnp.asarray(layouts.decode(keys, arrays[names[keys]], leaf, layout))

    return network.build(jax.tree.map_with_path(value, params), jax.tree.map_with_path(value, batch_stats))
