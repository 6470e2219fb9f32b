"""Residual networks over clips: a stem and four residual stages.

R2D, f-R2D, R3D, MCx, rMCx, R(2+1)D (Tran et al. 2018, arXiv:1711.11248) and R(2+3)D are values of `VideoResNetSpec`,
listed in `registry.py`. Its fields name keys of `CONVOLUTIONS`, `STEMS`, `POOLS`, `MID_PLANES` and
`SHORTCUTS`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.config import STEM_POOLS, ConfigError, look_up
from r23d_jax.models.convolution import chosen_form, max_pool
from r23d_jax.models.layers import BatchNorm, Conv
from r23d_jax.models.network import Spec, Triple, recomputed

# Residual blocks per stage; bottlenecks from 50 layers on (He et al. 2016).
DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


@dataclasses.dataclass(frozen=True)
class VideoResNetSpec(Spec):
    """A residual network."""

    convolutions: tuple[str, str, str, str]  # one key of `CONVOLUTIONS` per stage
    layers: tuple[int, int, int, int] = DEPTHS[18]  # residual blocks in each stage
    bottleneck: bool = False  # blocks are 1x1x1, 3x3x3, 1x1x1 with four times the width out, instead of two 3x3x3
    stem: str = "3x7x7"  # a key of `STEMS`
    # 45 in the paper, torchvision and VMZ; 83 in mmaction2; 110, with a time kernel of 7, in 3D-ResNets
    stem_mid_channels: int = 45
    stem_time_kernel: int = 3  # frames seen by the factorized stem
    stem_pool: str = "none"  # max-pool after the stem, a key of `POOLS`
    # of the four stages, before the bottleneck's factor of four
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    mid_planes: str = "per_conv"  # a key of `MID_PLANES`
    shortcut: str = "projection"  # of blocks that change width or size, a key of `SHORTCUTS`
    final_relu: bool = True  # False omits the ReLU after the last block's sum (the published 2D-3D layout)
    # of the BN inside factorized convolutions; 0 means `bn_epsilon` (mmaction2 has another)
    mid_bn_epsilon: float = 0.0
    block_dropout: float = 0.0  # inside every residual block, after the first ReLU (the published code has 0.3)
    # probability of leaving only the shortcut of the last residual block, for each clip of a training batch. Block l of
    # L has l / L of it (Huang et al. 2016, arXiv:1603.09382, section 3).
    stochastic_depth: float = 0.0
    # of stages 2, 3 and 4, 1 or 2 each; () halves time in each that convolves it. Others leave more time steps to the
    # head, as in TCLR (Dave et al. 2021, arXiv:2101.07974), and keep the weights.
    temporal_strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("convolutions", "layers", "widths"):
            value = getattr(self, name)
            if len(value) != 4:
                raise ConfigError(f"model.{name}={value!r}: must have four values, one for each stage")
        for kind in self.convolutions:
            if look_up(CONVOLUTIONS, kind, "model.convolutions").bottleneck_only and not self.bottleneck:
                raise ConfigError(f"model.convolutions={kind!r}: needs bottleneck=True, so 50 layers or more")
        strides = self.temporal_strides
        if strides and (len(strides) != 3 or not {*strides} <= {1, 2}):
            raise ConfigError(f"model.temporal_strides={strides!r}: must be () or three values, each 1 or 2")
        for stage, stride in enumerate(strides, start=2):
            if stride > CONVOLUTIONS[self.convolutions[stage - 1]].strides[0]:
                raise ConfigError(
                    f"model.temporal_strides={strides!r}: stage {stage} does not convolve time, so its stride must be 1"
                )
        look_up(STEMS, self.stem, "model.stem")
        look_up(POOLS, self.stem_pool, "model.stem_pool")
        look_up(MID_PLANES, self.mid_planes, "model.mid_planes")
        look_up(SHORTCUTS, self.shortcut, "model.shortcut")

    @property
    def depths(self) -> tuple[int, ...]:
        only_bottlenecks = any(CONVOLUTIONS[kind].bottleneck_only for kind in self.convolutions)
        return tuple(depth for depth in DEPTHS if depth >= 50 or not only_bottlenecks)

    def at_depth(self, depth: int) -> "VideoResNetSpec":
        return dataclasses.replace(self, layers=DEPTHS[depth], bottleneck=depth >= 50)

    @property
    def block_count(self) -> int:
        return sum(self.layers)

    @property
    def expansion(self) -> int:
        """Output channels of a block, in multiples of its stage's width."""
        return 4 if self.bottleneck else 1

    @property
    def out_channels(self) -> int:
        return self.widths[3] * self.expansion

    @property
    def image_network(self) -> str:
        return "resnet" if self.stem != "factorized" and {*self.convolutions} <= {"2d", "3d"} else ""

    @property
    def fixed_length(self) -> bool:
        return self.stem == "Lx7x7"

    def strides(self, index: int) -> Triple:
        """Of the first block of a stage, 0 to 3."""
        if index == 0:
            return 1, 1, 1
        own = CONVOLUTIONS[self.convolutions[index]].strides
        return (self.temporal_strides[index - 1], *own[1:]) if self.temporal_strides else own

    def feature_grid(self, num_frames: int, size: int) -> Triple:
        strides = [(1, 2, 2), POOLS[self.stem_pool][1], *(self.strides(index) for index in range(4))]
        time, side = 1 if self.fixed_length else num_frames, size
        for along_time, _, along_side in strides:
            time, side = -(-time // along_time), -(-side // along_side)
        return time, side, side

    def parts(
        self, in_channels: int, num_frames: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> tuple[nnx.Module, list[nnx.Module]]:
        stem = Stem(in_channels, num_frames, self, dtype=dtype, rngs=rngs)
        entering = [self.widths[0], *(width * self.expansion for width in self.widths[:3])]
        return stem, [Stage(i, entering[i], self, dtype=dtype, rngs=rngs) for i in range(4)]


def factorized_width(in_channels: int, out_channels: int, second_kernel: Triple) -> int:
    """Channels between the two convolutions of a factorized 3x3x3, so that the pair is as large as the full one.

    R(2+1)D has 1x3x3 then 3x1x1 (Tran et al. 2018, section 3.5): mid * (9 * in + 3 * out) = 27 * in * out. R(2+3)D has
    1x3x3 then 3x3x3 (this project's): mid * (9 * in + 27 * out) = 27 * in * out. Both are rounded down.

    Args:
      in_channels: entering the pair.
      out_channels: leaving it.
      second_kernel: (3, 1, 1) or (3, 3, 3).

    Returns:
      The width, at least 1.
    """
    taps = math.prod(second_kernel)
    return max(1, 27 * in_channels * out_channels // (9 * in_channels + taps * out_channels))


@dataclasses.dataclass(frozen=True)
class Place:
    """What a convolution needs: its channels and strides, and what all convolutions of a network share."""

    in_channels: int
    out_channels: int
    strides: Triple
    spec: VideoResNetSpec
    dtype: DTypeLike
    rngs: nnx.Rngs

    def conv(self, kernel: Triple, padding: Triple | None = None) -> Conv:
        """A plain convolution with these channels and strides."""
        return Conv(
            self.in_channels, self.out_channels, kernel, self.strides, padding, dtype=self.dtype, rngs=self.rngs
        )

    def norm(self, channels: int, epsilon: float = 0.0) -> BatchNorm:
        """BN; epsilon 0 means the network's."""
        return BatchNorm(
            channels, epsilon=epsilon or self.spec.bn_epsilon, momentum=self.spec.bn_momentum, rngs=self.rngs
        )


class FactorizedConv(nnx.Module):
    """1x3x3 -> BN -> ReLU -> 3x1x1 ("2plus1d") or 3x3x3 ("2plus3d"); a stem and a shortcut have other kernels."""

    def __init__(self, place: Place, first_kernel: Triple, second_kernel: Triple, mid_channels: int):
        time, height, width = place.strides
        first = dataclasses.replace(place, out_channels=mid_channels, strides=(1, height, width))
        second = dataclasses.replace(place, in_channels=mid_channels, strides=(time, 1, 1))
        self.spatial = first.conv(first_kernel)
        self.norm = place.norm(mid_channels, place.spec.mid_bn_epsilon)
        self.temporal = second.conv(second_kernel)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = chosen_form().inner(self.norm.channels)
        return self.temporal(nnx.relu(self.norm(self.spatial(x, wide))))


class ChannelSeparatedConv(nnx.Module):
    """CSN's depthwise 3x3x3, preceded by 1x1x1 -> BN if channel `interactions` are preserved."""

    def __init__(self, place: Place, *, interactions: bool):
        channels, how = place.out_channels, {"dtype": place.dtype, "rngs": place.rngs}
        self.pointwise = Conv(channels, channels, (1, 1, 1), **how) if interactions else None
        self.norm = place.norm(channels) if interactions else None
        self.depthwise = Conv(channels, channels, (3, 3, 3), place.strides, groups=channels, **how)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.pointwise is not None and self.norm is not None:
            x = self.norm(self.pointwise(x))
        return self.depthwise(x)


StageConv = Conv | FactorizedConv | ChannelSeparatedConv


def _factorized(second_kernel: Triple) -> Callable[[Place, int], FactorizedConv]:
    def build(place: Place, counted: int) -> FactorizedConv:
        mid_channels = factorized_width(counted, place.out_channels, second_kernel)
        return FactorizedConv(place, (1, 3, 3), second_kernel, mid_channels)

    return build


@dataclasses.dataclass(frozen=True)
class ConvolutionKind:
    """How a stage's 3x3x3 convolution is built.

    Attributes:
      build: builds one; its second argument is the input width for the mid-plane formula.
      strides: of the first block of a stage that halves the size; time is halved only by convolutions over time.
      bottleneck_only: whether it keeps the number of channels, so that only bottlenecks can use it.
    """

    build: Callable[[Place, int], StageConv]
    strides: Triple = (2, 2, 2)
    bottleneck_only: bool = False


CONVOLUTIONS = {
    "2d": ConvolutionKind(lambda place, _: place.conv((1, 3, 3)), strides=(1, 2, 2)),
    "3d": ConvolutionKind(lambda place, _: place.conv((3, 3, 3))),
    "2plus1d": ConvolutionKind(_factorized((3, 1, 1))),
    "2plus3d": ConvolutionKind(_factorized((3, 3, 3))),
    # CSN's (Tran et al. 2019, arXiv:1904.02811): a depthwise 3x3x3, alone or after a 1x1x1 and BN
    "ir_csn": ConvolutionKind(lambda place, _: ChannelSeparatedConv(place, interactions=False), bottleneck_only=True),
    "ip_csn": ConvolutionKind(lambda place, _: ChannelSeparatedConv(place, interactions=True), bottleneck_only=True),
}
# The input width for the mid-plane formula, from the input widths of the convolution and of its block
MID_PLANES: dict[str, Callable[[int, int], int]] = {
    "per_conv": lambda convolution, block: convolution,  # paper, VMZ: every convolution from its own widths
    "per_block": lambda convolution, block: block,  # torchvision: once per block
}
# Max-pool after the stem: window and strides.
POOLS: dict[str, tuple[Triple, Triple]] = {
    "none": ((1, 1, 1), (1, 1, 1)),
    "2d": ((1, 3, 3), (1, 2, 2)),
    "3d": ((3, 3, 3), (2, 2, 2)),
}
assert ("", *POOLS) == STEM_POOLS  # "" keeps the family's


class Shortcut(nnx.Module):
    """1x1x1 convolution, possibly factorized, and BN."""

    def __init__(self, place: Place, *, factorized: bool):
        one, entering, leaving = (1, 1, 1), place.in_channels, place.out_channels
        mid = 3 * entering * leaving // (entering + 3 * leaving)  # the formula with a volume of 3x1x1
        self.conv = FactorizedConv(place, one, one, mid) if factorized else place.conv(one)
        self.norm = place.norm(leaving)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class PaddedShortcut(nnx.Module):
    """Every stride-th value, and zeros for the channels that are added: no parameters (He et al. 2016, option A)."""

    def __init__(self, place: Place):
        self.strides, self.added = place.strides, place.out_channels - place.in_channels

    def __call__(self, x: jax.Array) -> jax.Array:
        time, height, width = self.strides
        return jnp.pad(x[:, ::time, ::height, ::width], (*[(0, 0)] * 4, (0, self.added)))


# For blocks that change width or size
SHORTCUTS: dict[str, Callable[[Place], nnx.Module]] = {
    "projection": lambda place: Shortcut(place, factorized=False),
    "factorized": lambda place: Shortcut(place, factorized=True),  # 1x1x1 -> BN -> ReLU -> 1x1x1 (mmaction2)
    "padded": PaddedShortcut,  # 3D-ResNets of 2018, up to 34 layers
}


class ResidualBlock(nnx.Module):
    """A basic or bottleneck block.

    Args:
      whole: the block's channels, and the strides of its first 3x3x3 convolution and its shortcut.
      width: of the stage; `whole.out_channels` is `width * spec.expansion`.
      kind: of its 3x3x3 convolutions.
      relu: whether a ReLU follows the sum.
      skipped: probability of leaving only the shortcut of a clip while training.
    """

    def __init__(self, whole: Place, width: int, kind: str, relu: bool, skipped: float = 0.0):
        spec, in_channels, out_channels, strides = whole.spec, whole.in_channels, whole.out_channels, whole.strides
        how = {"dtype": whole.dtype, "rngs": whole.rngs}

        def conv(entering: int, strides: Triple) -> StageConv:
            place = dataclasses.replace(whole, in_channels=entering, out_channels=width, strides=strides)
            return CONVOLUTIONS[kind].build(place, MID_PLANES[spec.mid_planes](entering, in_channels))

        if spec.bottleneck:
            self.conv1 = Conv(in_channels, width, (1, 1, 1), **how)
            self.norm1 = whole.norm(width)
            self.conv2 = conv(width, strides)
            self.norm2 = whole.norm(width)
            self.conv3 = Conv(width, out_channels, (1, 1, 1), **how)
            self.norm3 = whole.norm(out_channels)
        else:
            self.conv1 = conv(in_channels, strides)
            self.norm1 = whole.norm(width)
            self.conv2 = conv(width, (1, 1, 1))
            self.norm2 = whole.norm(width)
            self.conv3 = self.norm3 = None
        changes = in_channels != out_channels or strides != (1, 1, 1)
        self.shortcut = SHORTCUTS[spec.shortcut](whole) if changes else None
        self.dropout = nnx.Dropout(spec.block_dropout)
        self.stochastic_depth = nnx.Dropout(skipped, broadcast_dims=(1, 2, 3, 4))
        self.relu = relu

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', width * expansion)."""
        y = self.dropout(nnx.relu(self.norm1(self.conv1(x))), rngs=rngs)
        y = self.norm2(self.conv2(y))
        if self.conv3 is not None and self.norm3 is not None:
            y = self.norm3(self.conv3(nnx.relu(y)))
        y = self.stochastic_depth(y, rngs=rngs) + (x if self.shortcut is None else self.shortcut(x))
        return nnx.relu(y) if self.relu else y


# The second argument is the clip's number of frames.
STEMS: dict[str, Callable[[Place, int], StageConv]] = {
    "1x7x7": lambda place, _: place.conv((1, 7, 7)),
    "3x7x7": lambda place, _: place.conv((3, 7, 7)),
    "7x7x7": lambda place, _: place.conv((7, 7, 7)),
    # as long as the clip and without padding in time, so its output has one frame
    "Lx7x7": lambda place, num_frames: place.conv((num_frames, 7, 7), (0, 3, 3)),
    # 1x7x7 -> BN -> ReLU -> stem_time_kernel x 1 x 1
    "factorized": lambda place, _: FactorizedConv(
        place, (1, 7, 7), (place.spec.stem_time_kernel, 1, 1), place.spec.stem_mid_channels
    ),
}


class Stem(nnx.Module):
    """7x7 in space, strided by two; then BN, ReLU and the spec's max-pool."""

    def __init__(self, in_channels: int, num_frames: int, spec: VideoResNetSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        place = Place(in_channels, spec.widths[0], (1, 2, 2), spec, dtype, rngs)
        self.conv = STEMS[spec.stem](place, num_frames)
        self.norm = place.norm(spec.widths[0])
        self.pool = POOLS[spec.stem_pool]

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, T', H', W', widths[0])."""
        x = nnx.relu(self.norm(self.conv(x)))
        window, strides = self.pool
        return x if window == (1, 1, 1) else max_pool(x, window, strides)


class Stage(nnx.Module):
    """Residual blocks of one width; except in stage 1, the first block halves space, and time if it convolves it."""

    def __init__(self, index: int, in_channels: int, spec: VideoResNetSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kind, width = spec.convolutions[index], spec.widths[index]
        first = spec.strides(index)
        blocks = []
        before = sum(spec.layers[:index])
        for i in range(spec.layers[index]):
            is_last = index == 3 and i == spec.layers[index] - 1
            strides, relu = first if i == 0 else (1, 1, 1), spec.final_relu or not is_last
            place = Place(in_channels, width * spec.expansion, strides, spec, dtype, rngs)
            skipped = spec.stochastic_depth * (before + i + 1) / spec.block_count
            blocks.append(ResidualBlock(place, width, kind, relu, skipped))
            in_channels = place.out_channels
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, remat: bool = False) -> jax.Array:
        for block in self.blocks:
            x = recomputed(block, x, rngs) if remat else block(x, rngs)
        return x
