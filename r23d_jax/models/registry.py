"""The networks by name: `<family>_<depth>`, e.g. `r2plus1d_18`, or the family alone where it has one depth: `i3d`.

A family is a row of a table, not a class.
"""

import dataclasses
import typing

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.config import FAMILIES_WITHOUT_DEPTH, STEM_POOLS, ConfigError, HeadConfig, ModelConfig, nearest
from r23d_jax.models.heads import make_head
from r23d_jax.models.inception import Inception, InceptionSpec, inception_grid
from r23d_jax.models.layers import InitKeys
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.video_resnet import VideoResNet, VideoResNetSpec, feature_grid

# Residual blocks per stage; bottlenecks from 50 layers on (He et al. 2016).
DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _mixed(first: str, second: str, switch: int) -> tuple[str, str, str, str]:
    """Kinds of the stages when conv groups before `switch` (conv1 is the stem, conv2 the first stage) are `first`."""
    kinds = [first if group < switch else second for group in range(2, 6)]
    return kinds[0], kinds[1], kinds[2], kinds[3]


def _family(convolutions: tuple[str, str, str, str], **fields) -> VideoResNetSpec:
    return VideoResNetSpec(convolutions, DEPTHS[18], **fields)


# Tran et al. 2018 (arXiv:1711.11248), section 3, unless said otherwise. MCx: groups from x on are 2D, the earlier ones
# 3D. rMCx: the reverse.
FAMILIES: dict[str, VideoResNetSpec] = {
    "r2d": _family(_mixed("2d", "2d", 2), stem="Lx7x7"),
    "f_r2d": _family(_mixed("2d", "2d", 2), stem="1x7x7"),
    "r3d": _family(_mixed("3d", "3d", 2)),
    **{f"mc{x}": _family(_mixed("3d", "2d", x)) for x in (2, 3, 4, 5)},
    **{f"rmc{x}": _family(_mixed("2d", "3d", x), stem="1x7x7") for x in (2, 3, 4, 5)},
    # The paper's and VMZ's: mid-planes for every convolution from its own widths, Caffe2's epsilon.
    "r2plus1d": _family(_mixed("2plus1d", "2plus1d", 2), stem="factorized", bn_epsilon=1e-3),
    # torchvision's: mid-planes once per block.
    "r2plus1d_tv": _family(_mixed("2plus1d", "2plus1d", 2), stem="factorized", mid_planes="per_block"),
    # mmaction2's: the formula for the stem too, shortcuts factorized, and another epsilon inside the pairs.
    "r2plus1d_mmaction": _family(
        _mixed("2plus1d", "2plus1d", 2),
        stem="factorized",
        stem_mid_channels=83,
        stem_pool="2d",
        factorized_shortcut=True,
        bn_epsilon=1e-3,
        mid_bn_epsilon=1e-5,
    ),
    # 3D-ResNets' (K. Hara): a stem of seven frames, pooled over time as well.
    "r2plus1d_hara": _family(
        _mixed("2plus1d", "2plus1d", 2), stem="factorized", stem_mid_channels=110, stem_time_kernel=7, stem_pool="3d"
    ),
    # Channel-separated networks (Tran et al. 2019, arXiv:1904.02811), bottlenecks only; VMZ's layout and epsilon.
    "ir_csn": _family(_mixed("ir_csn", "ir_csn", 2), stem_pool="2d", bn_epsilon=1e-3),
    "ip_csn": _family(_mixed("ip_csn", "ip_csn", 2), stem_pool="2d", bn_epsilon=1e-3),
    # The published 2D-then-3D layout (DPC's ResNet2d3d, Han et al. 2019): two 2D stages, two 3D ones, 256 wide.
    "r2plus3d": _family(
        _mixed("2d", "3d", 4), stem="1x7x7", stem_pool="2d", widths=(64, 128, 256, 256), final_relu=False
    ),
    # Ours: every 3x3x3 convolution of R3D as 1x3x3 then 3x3x3, of the same parameter count; R3D's stem.
    "conv2plus3d": _family(_mixed("2plus3d", "2plus3d", 2)),
}


# Carreira & Zisserman 2017 as DeepMind published it, its torch ports, and Xie et al. 2018 as torchvision has it;
# their S3D-G is that with the gates of their code. (The paper counts 11.56M parameters, which no reading of it gives.)
INCEPTIONS: dict[str, InceptionSpec] = {
    "i3d": InceptionSpec(),
    "i3d_gamma": InceptionSpec(bn_scale=True),
    "s3d": InceptionSpec(separable=True, same_padding=False, bn_scale=True),
    "s3d_g": InceptionSpec(separable=True, gated=True, same_padding=False, bn_scale=True),
}
assert tuple(INCEPTIONS) == FAMILIES_WITHOUT_DEPTH


def depths_of(family: str) -> tuple[int, ...]:
    """The depths that a residual family comes in."""
    only_bottlenecks = "csn" in FAMILIES[family].convolutions[0]
    return tuple(depth for depth in DEPTHS if depth >= 50 or not only_bottlenecks)


def list_models() -> list[str]:
    """Every name that `create_model` knows."""
    return [*(f"{family}_{depth}" for family in FAMILIES for depth in depths_of(family)), *INCEPTIONS]


def model_spec(name: str) -> VideoResNetSpec | InceptionSpec:
    """The backbone behind a name.

    Raises:
      ConfigError: for an unknown name, with the nearest known ones.
    """
    if name in INCEPTIONS:
        return INCEPTIONS[name]
    if name not in list_models():
        raise ConfigError(f"model {name!r} is unknown; {nearest(name, list_models())}")
    family, _, depth = name.rpartition("_")
    return dataclasses.replace(FAMILIES[family], layers=DEPTHS[int(depth)], bottleneck=int(depth) >= 50)


def create_model(
    name: str,
    *,
    num_classes: int,
    head: str | HeadConfig = "avgpool",
    num_frames: int = 16,
    crop_size: int = 112,
    in_channels: int = 3,
    widths: tuple[int, ...] = (),
    stem_pool: str = "",
    block_dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> VideoNetwork:
    """Builds a network with random weights, in training mode.

    Args:
      name: one of `list_models()`.
      num_classes: logits.
      head: "avgpool", "vit", "attention_pool", "none" (the network returns its last feature map), or a `HeadConfig`. A
        name alone has no dropout before the classifier.
      num_frames: of the clips; heads learn positions for it and interpolate them elsewhere. Fixed for `r2d`.
      crop_size: pixels, likewise.
      in_channels: of the clips.
      widths: of the four stages; () keeps the family's.
      stem_pool: max-pool after the stem, "none", "2d" (over space) or "3d"; "" keeps the family's.
      block_dropout: inside every residual block.
      dtype: of the computation: float32 or bfloat16. Parameters, BN arithmetic and logits are float32.
      remat: recompute each stage in the backward pass.
      rngs: `params` initializes.

    Returns:
      A module called on (B, T, H, W, C) float32 that returns (B, num_classes) float32 logits.

    Raises:
      ConfigError: for an unknown name, an impossible head, or a field that the family does not have.
    """
    keys = InitKeys(rngs)
    model = _create(
        model_spec(name),
        HeadConfig(kind=head, dropout=0.0) if isinstance(head, str) else head,
        num_classes=num_classes,
        num_frames=num_frames,
        crop_size=crop_size,
        in_channels=in_channels,
        choices={"widths": widths, "stem_pool": stem_pool, "block_dropout": block_dropout},
        dtype=dtype,
        remat=remat,
        rngs=typing.cast(nnx.Rngs, keys),
    )
    keys.close()
    return model


def _create(
    spec: VideoResNetSpec | InceptionSpec,
    head: HeadConfig,
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    in_channels: int,
    choices: dict[str, typing.Any],
    dtype: DTypeLike,
    remat: bool,
    rngs: nnx.Rngs,
) -> VideoNetwork:
    """`choices` are the fields of a spec that a user may set; empty values keep the family's."""
    if isinstance(spec, InceptionSpec):
        for field, value in choices.items():
            if value:
                raise ConfigError(f"model.{field}={value!r}: this family has no such choice; leave it at its default")
        grid = inception_grid(spec, num_frames, crop_size)
        built = make_head(spec.out_channels, num_classes, grid, head, window=spec.head_window, dtype=dtype, rngs=rngs)
        return Inception(spec, built, in_channels=in_channels, dtype=dtype, remat=remat, rngs=rngs)

    widths, pool = choices["widths"] or spec.widths, choices["stem_pool"]
    if len(widths) != 4:
        raise ConfigError(f"model.widths={widths!r}: must be () or four widths")
    if pool not in STEM_POOLS:
        raise ConfigError(f"model.stem_pool={pool!r}: unknown; {nearest(pool, STEM_POOLS[1:])}")
    spec = dataclasses.replace(
        spec,
        widths=tuple(widths),
        stem_pool=spec.stem_pool if not pool else "" if pool == "none" else pool,
        block_dropout=choices["block_dropout"],
    )
    grid = feature_grid(spec, num_frames, crop_size)
    built = make_head(spec.out_channels, num_classes, grid, head, dtype=dtype, rngs=rngs)
    return VideoResNet(spec, built, in_channels=in_channels, num_frames=num_frames, dtype=dtype, remat=remat, rngs=rngs)


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
        cfg.name,
        num_classes=num_classes,
        head=cfg.head,
        num_frames=num_frames,
        crop_size=crop_size,
        in_channels=cfg.in_channels,
        widths=cfg.widths,
        stem_pool=cfg.stem_pool,
        block_dropout=cfg.block_dropout,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )
