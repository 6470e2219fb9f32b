"""The networks by name: `<family>_<depth>`, e.g. `r2plus1d_18`, or the family alone if it has one size: `i3d`."""

import dataclasses
import itertools
import typing

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.config import ConfigError, HeadConfig, ModelConfig, look_up, nearest
from r23d_jax.models.heads import HeadPlace, make_head
from r23d_jax.models.inception import InceptionSpec
from r23d_jax.models.layers import InitKeys
from r23d_jax.models.network import Spec, VideoNetwork
from r23d_jax.models.video_resnet import DEPTHS, VideoResNetSpec


def _mixed(first: str, second: str, switch: int) -> tuple[str, str, str, str]:
    """Convolutions of the stages: `first` before conv group `switch` (conv2 is the first stage), then `second`."""
    kinds = [first if group < switch else second for group in range(2, 6)]
    return kinds[0], kinds[1], kinds[2], kinds[3]


def _all(kind: str) -> tuple[str, str, str, str]:
    return kind, kind, kind, kind


# Tran et al. 2018 (arXiv:1711.11248), section 3, unless noted. MCx: 3D before group x, 2D from x on; rMCx: reversed.
FAMILIES: dict[str, Spec] = {
    "r2d": VideoResNetSpec(_all("2d"), stem="Lx7x7"),
    "f_r2d": VideoResNetSpec(_all("2d"), stem="1x7x7"),
    "r3d": VideoResNetSpec(_all("3d")),
    **{f"mc{x}": VideoResNetSpec(_mixed("3d", "2d", x)) for x in (2, 3, 4, 5)},
    **{f"rmc{x}": VideoResNetSpec(_mixed("2d", "3d", x), stem="1x7x7") for x in (2, 3, 4, 5)},
    # The paper's and VMZ's: mid-planes for every convolution from its own widths, Caffe2's epsilon.
    "r2plus1d": VideoResNetSpec(_all("2plus1d"), stem="factorized", bn_epsilon=1e-3),
    # torchvision's: mid-planes once per block.
    "r2plus1d_tv": VideoResNetSpec(_all("2plus1d"), stem="factorized", mid_planes="per_block"),
    # mmaction2's: the formula for the stem too, factorized shortcuts, and another epsilon inside the pairs.
    "r2plus1d_mmaction": VideoResNetSpec(
        _all("2plus1d"),
        stem="factorized",
        stem_mid_channels=83,
        stem_pool="2d",
        shortcut="factorized",
        bn_epsilon=1e-3,
        mid_bn_epsilon=1e-5,
    ),
    # 3D-ResNets' (K. Hara): a stem of seven frames, pooled over time as well.
    "r2plus1d_hara": VideoResNetSpec(
        _all("2plus1d"), stem="factorized", stem_mid_channels=110, stem_time_kernel=7, stem_pool="3d"
    ),
    # 3D-ResNets' R3D; `_a` has the shortcuts without parameters of its networks of 2018 with 18 and 34 layers.
    "r3d_hara": VideoResNetSpec(_all("3d"), stem="7x7x7", stem_pool="3d"),
    "r3d_hara_a": VideoResNetSpec(_all("3d"), stem="7x7x7", stem_pool="3d", shortcut="padded"),
    # Channel-separated networks (Tran et al. 2019, arXiv:1904.02811), bottlenecks only; VMZ's layout and epsilon.
    "ir_csn": VideoResNetSpec(_all("ir_csn"), DEPTHS[50], True, stem_pool="2d", bn_epsilon=1e-3),
    "ip_csn": VideoResNetSpec(_all("ip_csn"), DEPTHS[50], True, stem_pool="2d", bn_epsilon=1e-3),
    # The published 2D-then-3D layout (DPC's ResNet2d3d, Han et al. 2019): two 2D stages, two 3D ones, 256 wide.
    "r2plus3d": VideoResNetSpec(
        _mixed("2d", "3d", 4), stem="1x7x7", stem_pool="2d", widths=(64, 128, 256, 256), final_relu=False
    ),
    # This project's: R3D with each 3x3x3 convolution as 1x3x3 then 3x3x3, of the same parameter count.
    "conv2plus3d": VideoResNetSpec(_all("2plus3d")),
    # Carreira & Zisserman 2017 as DeepMind published it, its torch ports, and Xie et al. 2018 as torchvision has it.
    # S3D-G adds the gates of its authors' code. (Their paper counts 11.56M parameters, which no reading gives.)
    "i3d": InceptionSpec(),
    "i3d_gamma": InceptionSpec(bn_scale=True),
    "s3d": InceptionSpec(separable=True, same_padding=False, bn_scale=True),
    "s3d_g": InceptionSpec(separable=True, gated=True, same_padding=False, bn_scale=True),
}
FAMILIES = {name: dataclasses.replace(spec, family=name) for name, spec in FAMILIES.items()}


def names_of(family: str) -> list[str]:
    """The names of a family's networks."""
    return [f"{family}_{depth}" for depth in FAMILIES[family].depths] or [family]


def list_models() -> list[str]:
    """Every name that `create_model` knows."""
    return [name for family in FAMILIES for name in names_of(family)]


def model_spec(name: str) -> Spec:
    """The backbone behind a name; raises ConfigError, with the nearest known ones, for an unknown name."""
    if name not in list_models():
        raise ConfigError(f"model {name!r} is unknown; {nearest(name, list_models())}")
    if name in FAMILIES:
        return FAMILIES[name]
    family, _, depth = name.rpartition("_")
    return FAMILIES[family].at_depth(int(depth))


def model_name(cfg: ModelConfig) -> str:
    """The name of the network that a config describes, e.g. `r2plus3d_18` or `i3d`.

    Raises:
      ConfigError: if there is no such family, or not at this depth; names the field.
    """
    depths = look_up(FAMILIES, cfg.family, "config.model.family").depths
    if depths and cfg.depth not in depths:
        raise ConfigError(
            f"config.model.depth={cfg.depth}: {cfg.family} comes with {', '.join(map(str, depths))} layers"
        )
    return f"{cfg.family}_{cfg.depth}" if depths else cfg.family


def model_config(name: str) -> ModelConfig:
    """The config group that builds a network, with an average-pool head without dropout."""
    cfg = ModelConfig(family=model_spec(name).family, head=HeadConfig(kind="avgpool", dropout=0.0))
    if name != cfg.family:
        cfg.depth = int(name.removeprefix(f"{cfg.family}_"))
    return cfg


def create_model(
    name: str,
    *,
    num_classes: int,
    head: str | HeadConfig = "avgpool",
    num_frames: int = 16,
    crop_size: int = 112,
    in_channels: int = 3,
    widths: tuple[int, ...] = (),
    stem: str = "",
    stem_pool: str = "",
    block_dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    temporal_strides: tuple[int, ...] = (),
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> VideoNetwork:
    """Builds a network with random weights, in training mode.

    Args:
      name: one of `list_models()`.
      num_classes: number of logits.
      head: "avgpool", "vit", "attention_pool", "none" (the network returns its last feature map), or a `HeadConfig`. A
        name alone has no dropout before the classifier.
      num_frames, crop_size: of the clips; heads learn positions for this size and interpolate them for others. `r2d`
        reads only this length.
      in_channels: of the clips.
      widths: of the four stages; () keeps the family's.
      stem: first convolution, a key of `STEMS`; "" keeps the family's.
      stem_pool: max-pool after the stem, "none", "2d" (over space) or "3d"; "" keeps the family's.
      block_dropout: inside every residual block.
      stochastic_depth: probability of skipping the last residual block while training, see `VideoResNetSpec`.
      temporal_strides: of stages 2, 3 and 4; () keeps the family's.
      dtype: of the computation: float32 or bfloat16. Parameters, BN arithmetic and logits are float32.
      remat: recompute each block in the backward pass.
      rngs: its `params` stream initializes.

    Returns:
      A module called on (B, T, H, W, C) float32 that returns (B, num_classes) float32 logits.

    Raises:
      ConfigError: for an unknown name, an impossible head, a field that the family does not have, or clips that are too
        short or too small for the network.
    """
    choices = {"widths": tuple(widths), "stem": stem, "stem_pool": stem_pool, "block_dropout": block_dropout}
    spec = model_spec(name).vary(
        choices | {"stochastic_depth": stochastic_depth, "temporal_strides": tuple(temporal_strides)}
    )
    _refuse_small_clips(name, spec, num_frames, crop_size)
    keys = InitKeys(rngs)
    own = typing.cast(nnx.Rngs, keys)
    place = HeadPlace(
        spec.out_channels, num_classes, spec.feature_grid(num_frames, crop_size), spec.head_window, dtype, own
    )
    built = make_head(place, HeadConfig(kind=head, dropout=0.0) if isinstance(head, str) else head)
    model = spec.build(built, in_channels=in_channels, num_frames=num_frames, dtype=dtype, remat=remat, rngs=own)
    keys.close()
    return model


def _refuse_small_clips(name: str, spec: Spec, num_frames: int, crop_size: int) -> None:
    time, side, _ = spec.feature_grid(num_frames, crop_size)
    if time < 1:
        least = next(n for n in itertools.count(num_frames) if spec.feature_grid(n, crop_size)[0])
        raise ConfigError(f"config.data.num_frames={num_frames}: {name} needs clips of at least {least} frames")
    if side < 1:
        least = next(n for n in itertools.count(crop_size) if spec.feature_grid(num_frames, n)[1])
        raise ConfigError(f"config.data.crop_size={crop_size}: {name} needs crops of at least {least} pixels")


def build_model(
    cfg: ModelConfig,
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> VideoNetwork:
    """`create_model` for a config group."""
    return create_model(
        model_name(cfg),
        num_classes=num_classes,
        head=cfg.head,
        num_frames=num_frames,
        crop_size=crop_size,
        in_channels=cfg.in_channels,
        widths=cfg.widths,
        stem=cfg.stem,
        stem_pool=cfg.stem_pool,
        block_dropout=cfg.block_dropout,
        stochastic_depth=cfg.stochastic_depth,
        temporal_strides=cfg.temporal_strides,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )
