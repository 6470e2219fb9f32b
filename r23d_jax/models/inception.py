"""Inception over clips: I3D (Carreira & Zisserman 2017, arXiv:1705.07750) and S3D (Xie et al. 2018, arXiv:1712.04851).

Both are GoogLeNet with time: I3D has k x k x k convolutions, S3D has 1 x k x k -> BN -> ReLU -> k x 1 x 1 instead, and
S3D-G weighs its channels by what the whole clip shows. The stem ends with the first pool; stages one to four hold
Conv2, Mixed3, Mixed4 and Mixed5, and all but the last end with the pool that follows them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.models.convolution import max_pool
from r23d_jax.models.layers import BatchNorm, Conv, same_padding
from r23d_jax.models.network import Spec, Triple, recomputed

# Channels of branch 0; of branches 1 and 2, reduced and full; and of branch 3. One row per block of a stage.
_MIXED = {
    1: ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    2: (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    3: ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}
_ENTERING = (64, 192, 480, 832)
# Of the pool that ends the stem and each stage: window, strides.
_POOLS: tuple[tuple[Triple, Triple], ...] = (
    ((1, 3, 3), (1, 2, 2)),
    ((1, 3, 3), (1, 2, 2)),
    ((3, 3, 3), (2, 2, 2)),
    ((2, 2, 2), (2, 2, 2)),
)


@dataclasses.dataclass(frozen=True)
class InceptionSpec(Spec):
    """An Inception."""

    separable: bool = False  # S3D's pairs of convolutions instead of full ones
    # S3D-G's gates, where its authors' code has them: after Conv2 and after each branch of a Mixed block
    gated: bool = False
    same_padding: bool = True  # as TensorFlow pads; False pads half the window on both sides, as torchvision's S3D does
    bn_scale: bool = False  # whether BN has a gamma. DeepMind's I3D has none, its torch ports have one
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.999

    out_channels = 1024
    head_window = (2, 7, 7)  # the published head averages windows of this size, moved by one, before it averages time

    @property
    def image_network(self) -> str:
        return "googlenet" if self.bn_scale and not self.separable else ""

    def feature_grid(self, num_frames: int, size: int) -> Triple:
        time, side = -(-num_frames // 4), -(-size // 16)
        if self.same_padding:
            return -(-time // 2), -(-side // 2), -(-side // 2)
        return time // 2, side // 2, side // 2  # the last pool has no padding

    def parts(
        self, in_channels: int, num_frames: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> tuple[nnx.Module, list[nnx.Module]]:
        del num_frames  # any length will do
        shared = Shared(self, dtype, rngs)
        return Stem(in_channels, shared), [Stage(index, shared) for index in range(4)]


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all parts of a network are built with."""

    spec: InceptionSpec
    dtype: DTypeLike
    rngs: nnx.Rngs


class Unit(nnx.Module):
    """Convolution -> BN -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Triple, strides: Triple, shared: Shared):
        spec, rngs = shared.spec, shared.rngs
        padding = "SAME" if spec.same_padding else None
        self.conv = Conv(in_channels, out_channels, kernel_size, strides, padding, dtype=shared.dtype, rngs=rngs)
        self.norm = BatchNorm(
            out_channels, epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, use_scale=spec.bn_scale, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm.after(self.conv, x))


class SeparableUnit(nnx.Module):
    """1 x k x k unit, then k x 1 x 1 unit."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int, shared: Shared):
        self.spatial = Unit(in_channels, out_channels, (1, size, size), (1, stride, stride), shared)
        self.temporal = Unit(out_channels, out_channels, (size, 1, 1), (stride, 1, 1), shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.temporal(self.spatial(x))


def _unit(in_channels: int, out_channels: int, size: int, stride: int, shared: Shared) -> Unit | SeparableUnit:
    if shared.spec.separable and size > 1:
        return SeparableUnit(in_channels, out_channels, size, stride, shared)
    return Unit(in_channels, out_channels, (size, size, size), (stride, stride, stride), shared)


class Gate(nnx.Module):
    """Weighs channels by a sigmoid of their mean over the clip (Xie et al. 2018, section 5: feature gating)."""

    def __init__(self, channels: int, shared: Shared):
        self.fc = nnx.Linear(channels, channels, dtype=shared.dtype, rngs=shared.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> the same."""
        return x * nnx.sigmoid(self.fc(x.mean((1, 2, 3), keepdims=True)))


class Mixed(nnx.Module):
    """Four branches side by side: 1, 1 -> 3, 1 -> 3, and max-pool -> 1; each with its gate in S3D-G."""

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int, int, int], shared: Shared):
        def unit(entering: int, leaving: int, size: int) -> Unit | SeparableUnit:
            return _unit(entering, leaving, size, 1, shared)

        whole, reduced1, full1, reduced2, full2, pooled = channels
        self.branch0 = unit(in_channels, whole, 1)
        self.branch1 = nnx.List([unit(in_channels, reduced1, 1), unit(reduced1, full1, 3)])
        self.branch2 = nnx.List([unit(in_channels, reduced2, 1), unit(reduced2, full2, 3)])
        self.branch3 = unit(in_channels, pooled, 1)
        leaving = (whole, full1, full2, pooled) if shared.spec.gated else ()
        self.gates = nnx.List([Gate(width, shared) for width in leaving])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T, H, W, C_out)."""
        branch1 = self.branch1[1](self.branch1[0](x))
        branch2 = self.branch2[1](self.branch2[0](x))
        branch3 = self.branch3(max_pool(x, (3, 3, 3), (1, 1, 1)))
        branches = [self.branch0(x), branch1, branch2, branch3]
        if self.gates:
            branches = [gate(branch) for gate, branch in zip(self.gates, branches, strict=True)]
        return jnp.concatenate(branches, axis=-1)


class Stem(nnx.Module):
    """7 x 7 x 7, strided by two everywhere, and a pool over space."""

    def __init__(self, in_channels: int, shared: Shared):
        self.unit = _unit(in_channels, 64, 7, 2, shared)
        self.spec = shared.spec

    def __call__(self, x: jax.Array) -> jax.Array:
        return _pool(self.unit(x), 0, self.spec)


class Stage(nnx.Module):
    """Units or Mixed blocks on one size of feature map, and the pool that follows them."""

    def __init__(self, index: int, shared: Shared):
        channels = _ENTERING[index]
        blocks: list[nnx.Module] = []
        if index == 0:
            blocks = [_unit(64, 64, 1, 1, shared), _unit(64, 192, 3, 1, shared)]
            blocks += [Gate(192, shared)] if shared.spec.gated else []
        for row in _MIXED.get(index, ()):
            blocks.append(Mixed(channels, row, shared))
            channels = row[0] + row[2] + row[4] + row[5]
        self.blocks = nnx.List(blocks)
        self.index, self.spec = index, shared.spec

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, remat: bool = False) -> jax.Array:
        """(B, T, H, W, C) -> (B, T', H', W', C'); nothing in it is random."""
        del rngs
        for block in self.blocks:
            x = recomputed(block, x) if remat else block(x)
        return x if self.index == 3 else _pool(x, self.index + 1, self.spec)


def _pool(x: jax.Array, index: int, spec: InceptionSpec) -> jax.Array:
    window, strides = _POOLS[index]
    if spec.same_padding:
        return max_pool(x, window, strides, same_padding(x.shape[1:4], window, strides))
    none = ((0, 0), (0, 0), (0, 0))
    return max_pool(x, window, strides, none if window == (2, 2, 2) else None)
