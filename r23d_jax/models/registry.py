"""The networks by name: `<family>_<depth>`, e.g. `r2plus1d_18`. A family is a row of a table, not a class."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.config import ConfigError, HeadConfig, nearest
from r23d_jax.models.heads import make_head
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
    # The published 2D-then-3D layout (DPC's ResNet2d3d, Han et al. 2019): two 2D stages, two 3D ones, 256 wide.
    "r2plus3d": _family(
        _mixed("2d", "3d", 4), stem="1x7x7", stem_pool="2d", widths=(64, 128, 256, 256), final_relu=False
    ),
    # Ours: every 3x3x3 convolution of R3D as 1x3x3 then 3x3x3, of the same parameter count; R3D's stem.
    "conv2plus3d": _family(_mixed("2plus3d", "2plus3d", 2)),
}


def list_models() -> list[str]:
    """Every name that `create_model` knows."""
    return [f"{family}_{depth}" for family in FAMILIES for depth in DEPTHS]


def model_spec(name: str) -> VideoResNetSpec:
    """The backbone behind a name.

    Raises:
      ConfigError: for an unknown name, with the nearest known ones.
    """
    family, _, depth = name.rpartition("_")
    if family not in FAMILIES or not depth.isdigit() or int(depth) not in DEPTHS:
        raise ConfigError(f"model {name!r} is unknown; {nearest(name, list_models())}")
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
    block_dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> VideoResNet:
    """Builds a network with random weights, in training mode.

    Args:
      name: one of `list_models()`.
      num_classes: logits.
      head: "avgpool", "vit", "attention_pool", or a `HeadConfig`. A name alone has no dropout before the classifier.
      num_frames: of the clips; heads learn positions for it and interpolate them elsewhere. Fixed for `r2d`.
      crop_size: pixels, likewise.
      in_channels: of the clips.
      widths: of the four stages; () keeps the family's.
      block_dropout: inside every residual block.
      dtype: of the computation: float32 or bfloat16. Parameters, BN arithmetic and logits are float32.
      remat: recompute each stage in the backward pass.
      rngs: `params` initializes.

    Returns:
      A module called on (B, T, H, W, C) float32 that returns (B, num_classes) float32 logits.

    Raises:
      ConfigError: for an unknown name or an impossible head.
    """
    spec = dataclasses.replace(model_spec(name), block_dropout=block_dropout)
    if widths:
        if len(widths) != 4:
            raise ConfigError(f"model.widths={widths!r}: must be () or four widths")
        spec = dataclasses.replace(spec, widths=tuple(widths))
    cfg = HeadConfig(kind=head, dropout=0.0) if isinstance(head, str) else head
    grid = feature_grid(spec, num_frames, crop_size)
    built_head = make_head(spec.out_channels, num_classes, grid, cfg, dtype=dtype, rngs=rngs)
    return VideoResNet(
        spec, built_head, in_channels=in_channels, num_frames=num_frames, dtype=dtype, remat=remat, rngs=rngs
    )
