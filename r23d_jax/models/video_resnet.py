"""Residual networks over clips: a stem and four residual stages.

R2D, f-R2D, R3D, MCx, rMCx, R(2+1)D (Tran et al. 2018, arXiv:1711.11248) and R(2+3)D are values of `VideoResNetSpec`,
listed in `registry.py`. Its fields name keys of `CONVOLUTIONS` and `MID_PLANES` (factorized.py), `STEMS`, `POOLS` and
`SHORTCUTS`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.config import STEM_KINDS, STEM_POOLS, ConfigError, look_up
from r23d_jax.models.blocks import pair_frames, single_frames
from r23d_jax.models.convolution import chosen_form, in_frame_pairs, in_pairs, max_pool
from r23d_jax.models.factorized import CONVOLUTIONS, MID_PLANES, FactorizedConv, Place, StageConv
from r23d_jax.models.layers import Conv
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
        if self.shortcut == "padded" and any(after < before for before, after in itertools.pairwise(self.widths)):
            raise ConfigError(
                f"model.widths={self.widths!r}: must not fall, because this family's shortcuts add channels"
            )

    @property
    def depths(self) -> tuple[int, ...]:
        only_bottlenecks = any(CONVOLUTIONS[kind].bottleneck_only for kind in self.convolutions)
        return tuple(depth for depth in DEPTHS if depth >= 50 or not only_bottlenecks)

    def vary(self, choices: Mapping[str, Any]) -> Self:
        varied = super().vary(choices)
        if varied.stem != self.stem and "factorized" in (varied.stem, self.stem):
            raise ConfigError(
                f"model.stem={varied.stem!r}: this family's is {self.stem!r}, and a factorized stem and a plain one "
                "cannot be exchanged, because code of others has no names for such weights; leave it at ''"
            )
        return varied

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

    @property
    def stem_pairs_frames(self) -> bool:
        """Whether the stem may compute on pairs of frames (`in_frame_pairs`): its max-pool sees one frame at a time."""
        return self.stem_pool == "2d" and self.stem not in ("factorized", "Lx7x7")

    def stage_pairs_frames(self, index: int) -> bool:
        """Whether a stage, 0 to 3, may do so too: no block up to it looks along time, or has what pairs would change.

        Dropout draws numbers in the shape of what it drops. Shortcuts other than projections are not made for pairs.
        """
        plain = {*self.convolutions[: index + 1]} == {"2d"} and not self.bottleneck and not self.block_dropout
        return self.stem_pairs_frames and plain and (index == 0 or self.shortcut == "projection")

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
        mid = max(1, 3 * entering * leaving // (entering + 3 * leaving))  # the formula with a volume of 3x1x1
        self.conv = FactorizedConv(place, one, one, mid) if factorized else place.conv(one)
        self.norm = place.norm(leaving)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm.after(self.conv, x)


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
      pairs_frames: whether it may compute on pairs of frames.
    """

    def __init__(
        self, whole: Place, width: int, kind: str, relu: bool, skipped: float = 0.0, pairs_frames: bool = False
    ):
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
        self.pairs_frames = pairs_frames

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', width * expansion)."""
        paired = self.pairs_frames and x.shape[1] % 2 == 0 and _fit_in_pairs(x.shape[4])
        with in_pairs(self.conv3 is None):  # not in bottlenecks, some of whose convolutions have groups
            with in_frame_pairs(paired):
                x = pair_frames(x) if paired else x
                y = self.dropout(nnx.relu(self.norm1.after(self.conv1, x)), rngs=rngs)
                x = x if self.shortcut is None else self.shortcut(x)
            if paired and not _fit_in_pairs(self.norm1.channels):
                x, y, paired = single_frames(x), single_frames(y), False
            with in_frame_pairs(paired):
                y = self.norm2.after(self.conv2, y)
            if self.conv3 is not None and self.norm3 is not None:
                y = self.norm3.after(self.conv3, nnx.relu(y))
            y = self.stochastic_depth(y, rngs=rngs) + x
            y = nnx.relu(y) if self.relu else y
            return single_frames(y) if paired else y


def _fit_in_pairs(channels: int) -> bool:
    """Whether the form moves at least the channels of two frames together."""
    return 2 * channels <= chosen_form().lanes


class MotionConv(Conv):
    """3x7x7 less its mean over time, so that the network sees nothing of what stands still.

    Before the first frame and after the last one it sees these again, because zeros there would look like motion.
    """

    def __init__(self, place: Place):
        how = {"dtype": place.dtype, "rngs": place.rngs}
        super().__init__(place.in_channels, place.out_channels, (3, 7, 7), place.strides, (0, 3, 3), **how)

    def values(self) -> jax.Array:
        return self.kernel[...] - self.kernel[...].mean(0, keepdims=True)

    def __call__(self, x: jax.Array, out_channels: int = 0, scale: jax.Array | None = None) -> jax.Array:
        return super().__call__(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)), "edge"), out_channels, scale)


# The second argument is the clip's number of frames.
STEMS: dict[str, Callable[[Place, int], StageConv]] = {
    "1x7x7": lambda place, _: place.conv((1, 7, 7)),
    "3x7x7": lambda place, _: place.conv((3, 7, 7)),
    "7x7x7": lambda place, _: place.conv((7, 7, 7)),
    "motion": lambda place, _: MotionConv(place),
    # as long as the clip and without padding in time, so its output has one frame
    "Lx7x7": lambda place, num_frames: place.conv((num_frames, 7, 7), (0, 3, 3)),
    # 1x7x7 -> BN -> ReLU -> stem_time_kernel x 1 x 1
    "factorized": lambda place, _: FactorizedConv(
        place, (1, 7, 7), (place.spec.stem_time_kernel, 1, 1), place.spec.stem_mid_channels
    ),
}


assert ("", *STEMS) == STEM_KINDS


class Stem(nnx.Module):
    """7x7 in space, strided by two; then BN, ReLU and the spec's max-pool."""

    def __init__(self, in_channels: int, num_frames: int, spec: VideoResNetSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        place = Place(in_channels, spec.widths[0], (1, 2, 2), spec, dtype, rngs)
        self.conv = STEMS[spec.stem](place, num_frames)
        self.norm = place.norm(spec.widths[0])
        self.pool, self.pairs_frames = POOLS[spec.stem_pool], spec.stem_pairs_frames

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, T', H', W', widths[0])."""
        window, strides = self.pool
        pooled = window != (1, 1, 1)
        paired = self.pairs_frames and x.shape[1] % 2 == 0 and _fit_in_pairs(self.norm.channels)
        # A max-pool reads single columns, which a convolution that makes pairs of frames returns too.
        with in_pairs(paired or not pooled), in_frame_pairs(paired):
            x = nnx.relu(self.norm.after(self.conv, x))
        x = max_pool(x, window, strides) if pooled else x
        return single_frames(x) if paired else x


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
            blocks.append(ResidualBlock(place, width, kind, relu, skipped, spec.stage_pairs_frames(index)))
            in_channels = place.out_channels
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, remat: bool = False) -> jax.Array:
        for block in self.blocks:
            x = recomputed(block, x, rngs) if remat else block(x, rngs)
        return x
