"""The one network class of the study: a stem, four residual stages and a head.

R2D, f-R2D, R3D, MCx, rMCx, R(2+1)D (Tran et al. 2018, arXiv:1711.11248) and R(2+3)D are values of `VideoResNetSpec`,
listed in `registry.py`; nothing here knows their names.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.models.convolution import max_pool
from r23d_jax.models.layers import BatchNorm, Conv
from r23d_jax.models.network import Triple, VideoNetwork

# What a stage's 3x3x3 convolution is made of. The last two are those of CSN (Tran et al. 2019, arXiv:1904.02811), for
# bottlenecks only: a depthwise 3x3x3, alone ("ir_csn") or after a 1x1x1 and BN ("ip_csn").
CONVOLUTIONS = ("2d", "3d", "2plus1d", "2plus3d", "ir_csn", "ip_csn")
STEMS = ("1x7x7", "3x7x7", "Lx7x7", "factorized")
MID_PLANES = ("per_conv", "per_block")


@dataclasses.dataclass(frozen=True)
class VideoResNetSpec:
    """Everything that tells one backbone from another.

    Attributes:
      convolutions: kind of each of the four stages.
      layers: residual blocks in each stage.
      bottleneck: 1x1x1, 3x3x3, 1x1x1 blocks with four times the width out, instead of two 3x3x3.
      stem: "1x7x7", "3x7x7", "Lx7x7" (as long as the clip, no padding in time: collapses it), or "factorized"
        (1x7x7 -> stem_mid_channels -> BN -> ReLU -> stem_time_kernel x1x1).
      stem_mid_channels: 45 in the paper, torchvision and VMZ; 83 in mmaction2; 110, with a time kernel of 7, in
        3D-ResNets.
      stem_time_kernel: frames, for the factorized stem.
      stem_pool: max-pool after the stem; "" is none, "2d" 1x3x3 / (1, 2, 2), "3d" 3x3x3 / (2, 2, 2).
      widths: of the four stages, before the bottleneck's factor of four.
      mid_planes: "per_conv" (paper, VMZ: the formula for every convolution from its own widths) or "per_block"
        (torchvision: once per block, from the block's input and width).
      factorized_shortcut: shortcuts are 1x1x1 -> BN -> ReLU -> 1x1x1 with the formula's width (mmaction2).
      final_relu: False leaves the last block's sum as it is (the published 2D-3D layout).
      bn_epsilon, bn_momentum: Flax convention; momentum 0.9 is PyTorch's 0.1.
      mid_bn_epsilon: of the BN inside factorized convolutions; 0 is `bn_epsilon` (mmaction2 has another).
      block_dropout: inside every residual block, after the first ReLU (the published code has 0.3).
    """

    convolutions: tuple[str, str, str, str]
    layers: tuple[int, int, int, int]
    bottleneck: bool = False
    stem: str = "3x7x7"
    stem_mid_channels: int = 45
    stem_time_kernel: int = 3
    stem_pool: str = ""
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    mid_planes: str = "per_conv"
    factorized_shortcut: bool = False
    final_relu: bool = True
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    mid_bn_epsilon: float = 0.0
    block_dropout: float = 0.0

    @property
    def expansion(self) -> int:
        """How many times a stage's width its blocks give out."""
        return 4 if self.bottleneck else 1

    @property
    def out_channels(self) -> int:
        """Channels of the last feature map."""
        return self.widths[3] * self.expansion


def factorized_width(in_channels: int, out_channels: int, kind: str) -> int:
    """Channels between the two convolutions of a factorized 3x3x3, so that the pair is as large as the full one.

    "2plus1d" (1x3x3 then 3x1x1; Tran et al. 2018, section 3.5): mid * (9 * in + 3 * out) = 27 * in * out.
    "2plus3d" (1x3x3 then 3x3x3; ours): mid * (9 * in + 27 * out) = 27 * in * out. Both are rounded down.

    Args:
      in_channels: entering the pair.
      out_channels: leaving it.
      kind: "2plus1d" or "2plus3d".

    Returns:
      The width, at least 1.
    """
    taps = 3 if kind == "2plus1d" else 27
    return max(1, 27 * in_channels * out_channels // (9 * in_channels + taps * out_channels))


class FactorizedConv(nnx.Module):
    """1x3x3 -> BN -> ReLU -> 3x1x1 ("2plus1d") or 3x3x3 ("2plus3d")."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        second_kernel: Triple,
        strides: Triple,
        spec: VideoResNetSpec,
        *,
        first_kernel: Triple = (1, 3, 3),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        time, height, width = strides
        self.spatial = Conv(in_channels, mid_channels, first_kernel, (1, height, width), dtype=dtype, rngs=rngs)
        epsilon = spec.mid_bn_epsilon or spec.bn_epsilon
        self.norm = BatchNorm(mid_channels, epsilon=epsilon, momentum=spec.bn_momentum, rngs=rngs)
        self.temporal = Conv(mid_channels, out_channels, second_kernel, (time, 1, 1), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.temporal(nnx.relu(self.norm(self.spatial(x))))


class ChannelSeparatedConv(nnx.Module):
    """Depthwise 3x3x3, after 1x1x1 -> BN where `interactions` are to be preserved; CSN's way."""

    def __init__(
        self,
        channels: int,
        strides: Triple,
        interactions: bool,
        spec: VideoResNetSpec,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.pointwise = Conv(channels, channels, (1, 1, 1), dtype=dtype, rngs=rngs) if interactions else None
        self.norm = (
            BatchNorm(channels, epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, rngs=rngs) if interactions else None
        )
        self.depthwise = Conv(channels, channels, (3, 3, 3), strides, groups=channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.pointwise is not None and self.norm is not None:
            x = self.norm(self.pointwise(x))
        return self.depthwise(x)


StageConv = Conv | FactorizedConv | ChannelSeparatedConv


def _stage_conv(
    kind: str,
    in_channels: int,
    out_channels: int,
    mid_channels: int,
    strides: Triple,
    spec: VideoResNetSpec,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> StageConv:
    """A stage's 3x3x3 convolution, of the kind that the stage asks for."""
    if kind in ("ir_csn", "ip_csn"):
        return ChannelSeparatedConv(out_channels, strides, kind == "ip_csn", spec, dtype=dtype, rngs=rngs)
    if kind in ("2d", "3d"):
        kernel = (1, 3, 3) if kind == "2d" else (3, 3, 3)
        return Conv(in_channels, out_channels, kernel, strides, dtype=dtype, rngs=rngs)
    second = (3, 1, 1) if kind == "2plus1d" else (3, 3, 3)
    return FactorizedConv(in_channels, mid_channels, out_channels, second, strides, spec, dtype=dtype, rngs=rngs)


class Shortcut(nnx.Module):
    """1x1x1 convolution and BN, where a block changes width or size. The convolution may be a factorized one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        strides: Triple,
        spec: VideoResNetSpec,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if spec.factorized_shortcut:  # the formula of `factorized_width` with a 3x1x1 volume
            mid = 3 * in_channels * out_channels // (in_channels + 3 * out_channels)
            one = (1, 1, 1)
            self.conv = FactorizedConv(
                in_channels, mid, out_channels, one, strides, spec, first_kernel=one, dtype=dtype, rngs=rngs
            )
        else:
            self.conv = Conv(in_channels, out_channels, (1, 1, 1), strides, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_channels, epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class ResidualBlock(nnx.Module):
    """A basic or bottleneck block.

    Args:
      in_channels: entering.
      width: the stage's width; `width * spec.expansion` channels leave.
      kind: of its 3x3x3 convolutions.
      strides: of the first 3x3x3 convolution and the shortcut.
      relu: whether a ReLU follows the sum.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        kind: str,
        strides: Triple,
        relu: bool,
        spec: VideoResNetSpec,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        out_channels = width * spec.expansion
        mid_of_block = factorized_width(in_channels, width, kind)

        def conv(entering: int, strides: Triple) -> StageConv:
            mid = mid_of_block if spec.mid_planes == "per_block" else factorized_width(entering, width, kind)
            return _stage_conv(kind, entering, width, mid, strides, spec, dtype, rngs)

        def norm(channels: int) -> BatchNorm:
            return BatchNorm(channels, epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, rngs=rngs)

        if spec.bottleneck:
            self.conv1 = Conv(in_channels, width, (1, 1, 1), dtype=dtype, rngs=rngs)
            self.norm1 = norm(width)
            self.conv2 = conv(width, strides)
            self.norm2 = norm(width)
            self.conv3 = Conv(width, out_channels, (1, 1, 1), dtype=dtype, rngs=rngs)
            self.norm3 = norm(out_channels)
        else:
            self.conv1 = conv(in_channels, strides)
            self.norm1 = norm(width)
            self.conv2 = conv(width, (1, 1, 1))
            self.norm2 = norm(width)
            self.conv3 = self.norm3 = None
        changes = in_channels != out_channels or strides != (1, 1, 1)
        self.shortcut = Shortcut(in_channels, out_channels, strides, spec, dtype=dtype, rngs=rngs) if changes else None
        self.dropout = nnx.Dropout(spec.block_dropout)
        self.relu = relu

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', width * expansion)."""
        y = self.dropout(nnx.relu(self.norm1(self.conv1(x))), rngs=rngs)
        y = self.norm2(self.conv2(y))
        if self.conv3 is not None and self.norm3 is not None:
            y = self.norm3(self.conv3(nnx.relu(y)))
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return nnx.relu(y) if self.relu else y


class Stem(nnx.Module):
    """7x7 in space, strided by two; then BN, ReLU and, where the spec asks for it, a max-pool."""

    def __init__(self, in_channels: int, num_frames: int, spec: VideoResNetSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, strides = spec.widths[0], (1, 2, 2)
        if spec.stem == "factorized":
            self.conv = FactorizedConv(
                in_channels,
                spec.stem_mid_channels,
                width,
                (spec.stem_time_kernel, 1, 1),
                strides,
                spec,
                first_kernel=(1, 7, 7),
                dtype=dtype,
                rngs=rngs,
            )
        elif spec.stem == "Lx7x7":
            self.conv = Conv(in_channels, width, (num_frames, 7, 7), strides, (0, 3, 3), dtype=dtype, rngs=rngs)
        else:
            kernel = (1, 7, 7) if spec.stem == "1x7x7" else (3, 7, 7)
            self.conv = Conv(in_channels, width, kernel, strides, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, rngs=rngs)
        self.pool = spec.stem_pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, T', H', W', widths[0])."""
        x = nnx.relu(self.norm(self.conv(x)))
        if not self.pool:
            return x
        if self.pool == "2d":
            return max_pool(x, (1, 3, 3), (1, 2, 2))
        return max_pool(x, (3, 3, 3), (2, 2, 2))


class Stage(nnx.Module):
    """Residual blocks of one width; the first may halve the size: space always, time where convolutions see it."""

    def __init__(self, index: int, in_channels: int, spec: VideoResNetSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kind, width = spec.convolutions[index], spec.widths[index]
        halve = (1, 1, 1) if index == 0 else (1, 2, 2) if kind == "2d" else (2, 2, 2)
        blocks = []
        for i in range(spec.layers[index]):
            is_last = index == 3 and i == spec.layers[index] - 1
            blocks.append(
                ResidualBlock(
                    in_channels,
                    width,
                    kind,
                    halve if i == 0 else (1, 1, 1),
                    spec.final_relu or not is_last,
                    spec,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            in_channels = width * spec.expansion
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        for block in self.blocks:
            x = block(x, rngs)
        return x


class VideoResNet(VideoNetwork):
    """A stem, four stages of residual blocks and a head, over clips (B, T, H, W, C).

    Args:
      spec: the backbone.
      head: a module called on the last feature map.
      in_channels: of the clip.
      num_frames: of the clip; sets the kernel of an "Lx7x7" stem, otherwise any length will do.
      dtype: of the computation; parameters, BN and logits stay float32.
      remat: recompute each stage in the backward pass instead of keeping its activations.
      rngs: `params` initializes.
    """

    def __init__(
        self,
        spec: VideoResNetSpec,
        head: nnx.Module,
        *,
        in_channels: int = 3,
        num_frames: int = 16,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        entering = [spec.widths[0], *(w * spec.expansion for w in spec.widths[:3])]
        super().__init__(
            spec,
            Stem(in_channels, num_frames, spec, dtype=dtype, rngs=rngs),
            [Stage(i, entering[i], spec, dtype=dtype, rngs=rngs) for i in range(4)],
            head,
            in_channels=in_channels,
            num_frames=num_frames if spec.stem == "Lx7x7" else 0,
            remat=remat,
        )


def feature_grid(spec: VideoResNetSpec, num_frames: int, size: int) -> tuple[int, int, int]:
    """(time, height, width) of the last feature map for a square clip."""

    def halved(length: int) -> int:
        return (length + 1) // 2

    time = 1 if spec.stem == "Lx7x7" else num_frames
    side = halved(size)
    if spec.stem_pool:
        side = halved(side)
        time = halved(time) if spec.stem_pool == "3d" else time
    for kind in spec.convolutions[1:]:
        side = halved(side)
        time = time if kind == "2d" else halved(time)
    return time, side, side
