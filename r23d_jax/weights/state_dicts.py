"""A network as a torch state dict, and a network from one."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax.config import (
    NO_FLOW,
    ConfigError,
    DataConfig,
    EvalConfig,
    Flow,
    ModelConfig,
    Preprocessing,
    from_dict,
    validate,
)
from r23d_jax.models.functional import HasNetwork, bare, flatten, split_model, values
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import build_model, model_config, model_name
from r23d_jax.weights import files, layouts
from r23d_jax.weights.files import FORMAT, Content
from r23d_jax.weights.kinetics import kinetics400
from r23d_jax.weights.matching import Found, find, fit, table_of
from r23d_jax.weights.sources import SOURCES, source_of
from r23d_jax.weights.tables import ConversionError, Table

Weights = Mapping[str, Any] | str | os.PathLike | Content
# The fields of our own descriptions; a file of another program may have a `config` of its own
_OWN = ("config", "class_names", "preprocessing")
_VIEWS = ("views", "num_clips", "crops")  # fields of `EvalConfig` in them; the others belong to a machine or a run


@dataclasses.dataclass(frozen=True)
class Converted:
    """A network made from foreign weights, and what is known about it.

    Attributes:
      model: in evaluation mode.
      config: that builds it.
      num_classes: of its logits; 0 if it has none and returns its last feature map.
      source: a key of `sources.SOURCES`.
      class_names: of the logits; () if unknown.
      preprocessing: that the network was trained with, as far as its source says.
      notes: for the user.
      origin: where it was read from, in words.
      assumed: whether the preprocessing is only the usual one of such networks.
      views: that its run was evaluated on; all clips of a video if the source does not say.
      data: of its run; None if there was no run of r23d_jax, or its data are not known.
      videos: that it was trained on, as `trained_videos.digests`; "" if they are not known.
      init_videos: likewise, those of the weights that its training started from.
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
    views: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    data: DataConfig | None = None
    videos: str = ""
    init_videos: str = ""

    @property
    def name(self) -> str:
        """The network's name in the registry."""
        return model_name(self.config)


def to_torch(model: VideoNetwork | HasNetwork, source: str | None = None) -> dict[str, Any]:
    """All values of a network as a state dict for `load_state_dict`: torch tensors, or numpy arrays without torch.

    The names are those of the network's code base, so that its own class accepts them: torchvision for `r3d_18`,
    `mc3_18`, `r2plus1d_tv_18` and `s3d`, VMZ for `r2plus1d_*` and `*_csn_*`, pytorch-i3d for `i3d`, and so on;
    torchvision's style if there is none. Heads that no code base has keep our names. BN's epsilon is not part of a
    state dict and must be set in the torch network.

    Args:
      model: a network; left in evaluation mode.
      source: another code base's names, a key of `weights.sources.SOURCES`.

    Returns:
      float32 values, and an int64 zero per BN layer, torch's count of batches.

    Raises:
      ConversionError: if `source` is unknown or has no names for this network.
    """
    arrays = to_arrays(model, source)
    try:
        import torch
    except ImportError:
        return arrays
    return {name: torch.tensor(value) for name, value in arrays.items()}


def to_arrays(model: VideoNetwork | HasNetwork, source: str | None = None) -> dict[str, np.ndarray]:
    """`to_torch` in numpy arrays."""
    model = bare(model)
    return rename(table_of(model, source or source_of(model)), *values(model))


def rename(table: Table, *trees: layouts.Tree) -> dict[str, np.ndarray]:
    """The leaves of our trees (values, or gradients of them) under the names and in the shapes of a table."""
    leaves = {path: leaf for tree in trees for path, leaf in flatten(tree).items()}
    state = {
        entry.name: np.ascontiguousarray(layouts.encode(entry.path, np.asarray(leaves[entry.path]), table.layout))
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
      weights: numpy arrays or torch tensors by name, or a file of them: .safetensors, or .pth, .pt, .pth.tar, .ckpt,
        .pyth (a state dict or a training checkpoint). Prefixes such as `module.` are removed.
        `r23d_jax.read_tensorflow` reads DeepMind's I3D.
      model: the network to fill (its own values are lost), or the name of one; None finds the network from names and
        shapes.
      source: the code base, if the names do not tell; a key of `weights.sources.SOURCES`.

    Returns:
      The network in evaluation mode. A source without classifier gives one that returns its last feature map,
      (B, T, H, W, C) float32.

    Raises:
      ConversionError: if the file cannot be read, names or shapes do not fit, or no known network has them.
    """
    if model is None or isinstance(model, str):
        return convert(weights, model, source).model
    return _filled(fit(read_arrays(weights).arrays, bare(model), source))


def convert(weights: Weights, name: str | None = None, source: str | None = None) -> Converted:
    """`from_torch` with all that is known about the network; see there for arguments and errors."""
    arrays, meta, notes = read_arrays(weights)
    videos = ""
    if meta.get("format") == FORMAT or ("family" in _mapping(meta.get("config")) and meta.keys() >= set(_OWN)):
        cfg, preprocessing, class_names, views = _read_meta(meta)
        videos = str(meta.get("videos", ""))
        if name not in (None, model_name(cfg)):
            raise ConversionError(f"these weights are {model_name(cfg)}, not {name}")
        frames, size, count = preprocessing.num_frames, preprocessing.crop_size, len(class_names)
        model = nnx.eval_shape(
            lambda: build_model(cfg, num_classes=count, num_frames=frames, crop_size=size, rngs=nnx.Rngs(0))
        )
        try:
            found, origin = fit(arrays, model), "an export of r23d_jax, names of "
        except ConversionError as error:
            raise ConversionError("\n".join((str(error), *notes))) from None
    else:
        found, origin = find(arrays, name, source), ""
        cfg, preprocessing, views = _config(found), _preprocessing(found), EvalConfig()
        class_names = _class_names(meta.get("class_names"), found.num_classes)
        if not class_names and found.num_classes == 400 and SOURCES[found.source].kinetics400:
            class_names = kinetics400()
            notes = (*notes, "its 400 classes are taken as those of Kinetics-400, in alphabetical order")
    return Converted(
        model=_filled(found),
        config=cfg,
        num_classes=found.num_classes or len(class_names),
        source=found.source,
        class_names=class_names,
        preprocessing=preprocessing,
        notes=(*notes, *found.notes),
        origin=origin + SOURCES[found.source].title,
        assumed=not origin,
        views=views,
        videos=videos,
    )


def describe(
    model: VideoNetwork,
    cfg: ModelConfig,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    views: EvalConfig,
) -> dict[str, Any]:
    """The description of a network in JSON values, for a file of its weights; `convert` reads it."""
    return {
        "format": FORMAT,
        "model": model_name(cfg),
        "head": cfg.head.kind,
        "bn_epsilon": model.spec.bn_epsilon,
        "class_names": list(class_names),
        "preprocessing": dataclasses.asdict(preprocessing),
        "config": dataclasses.asdict(cfg),
        "eval": describe_views(views),
    }


def describe_views(views: EvalConfig) -> dict[str, Any]:
    """The clips and crops of an evaluation in JSON values."""
    return {name: getattr(views, name) for name in _VIEWS}


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _read_meta(meta: Mapping[str, Any]) -> tuple[ModelConfig, Preprocessing, tuple[str, ...], EvalConfig]:
    """The description of its network in one of our own files."""
    try:
        cfg, preprocessing = from_dict(meta["config"], ModelConfig), from_dict(meta["preprocessing"], Preprocessing)
        class_names = tuple(meta["class_names"])
        views = validate(from_dict(meta.get("eval", {}), EvalConfig))  # earlier versions wrote none
    except (KeyError, TypeError, ConfigError) as error:
        raise ConversionError(f"the file's description of its network cannot be used ({error})") from None
    return cfg, preprocessing, tuple(map(str, class_names)), views


def _class_names(names: Any, num_classes: int) -> tuple[str, ...]:
    """The class names in another program's file; () if it has none."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return ()
    if names and len(names) != num_classes:
        raise ConversionError(
            f"the file's class_names has {len(names)} names, and the weights have {num_classes} classes: correct "
            "class_names in the file, or remove it"
        )
    return tuple(names)


def count_parameters(model: VideoNetwork) -> int:
    """Number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(values(model)[0]))


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
    kind = "flow" if channels == 2 else preprocessing.input
    # As kinetics-i3d's README says; how others computed their flow is not known
    is_i3d = kind == "flow" and found.source.startswith("i3d")
    flow = Flow("tvl1", 20.0, preprocessing.short_side) if is_i3d else NO_FLOW
    return dataclasses.replace(preprocessing, input=kind, mean=(0.5,) * channels, std=(0.5,) * channels, flow=flow)


def read_arrays(weights: Weights) -> Content:
    """Finite numpy arrays by name, and what else a file says."""
    if isinstance(weights, Content):
        return weights
    is_file = isinstance(weights, (str, os.PathLike))
    content, where = (files.read(weights), weights) if is_file else (Content(dict(weights), {}), "weights")
    if not content.arrays:
        raise ConversionError(f"{where}: holds no values")
    arrays = {}
    for name, value in content.arrays.items():
        try:
            arrays[str(name)] = files.as_numpy(value)
        except (TypeError, NotImplementedError, RuntimeError) as error:
            raise ConversionError(
                f"{where}: {name} is no plain tensor, but quantized, sparse or empty ({type(error).__name__}: {error});"
                " save a state dict of floats"
            ) from None
    wrong = [name for name, value in arrays.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if wrong:
        raise ConversionError(
            f"{where}: {len(wrong)} of {len(arrays)} tensors hold values that are not numbers (NaN or infinite), e.g. "
            f"{wrong[0]}: the training that wrote them diverged; take an earlier file of it"
        )
    return content._replace(arrays=arrays)


def _filled(found: Found) -> VideoNetwork:
    network, params, batch_stats = split_model(found.model)
    names = {entry.path: entry.name for entry in found.table.entries}

    def value(path: tuple, leaf: Any) -> jax.Array:
        keys = tuple(entry.key for entry in path)
        return jnp.asarray(layouts.decode(keys, found.arrays[names[keys]], leaf, found.table.layout))

    return network.build(jax.tree.map_with_path(value, params), jax.tree.map_with_path(value, batch_stats))
