"""The 3x3x3 convolutions of residual networks: full, factorized as (2+1)D and (2+3)D, and channel-separated."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.models.convolution import chosen_form
from r23d_jax.models.layers import BatchNorm, Conv
from r23d_jax.models.network import Triple


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
    spec: Any  # the VideoResNetSpec, whose file imports this one
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

    def __call__(self, x: jax.Array, *, scale: jax.Array | None = None) -> jax.Array:
        wide = functools.partial(self.spatial, out_channels=chosen_form().inner(self.norm.channels))
        return self.temporal(nnx.relu(self.norm.after(wide, x)), scale=scale)


class ChannelSeparatedConv(nnx.Module):
    """CSN's depthwise 3x3x3, preceded by 1x1x1 -> BN if channel `interactions` are preserved."""

    def __init__(self, place: Place, *, interactions: bool):
        channels, how = place.out_channels, {"dtype": place.dtype, "rngs": place.rngs}
        self.pointwise = Conv(channels, channels, (1, 1, 1), **how) if interactions else None
        self.norm = place.norm(channels) if interactions else None
        self.depthwise = Conv(channels, channels, (3, 3, 3), place.strides, groups=channels, **how)

    def __call__(self, x: jax.Array, *, scale: jax.Array | None = None) -> jax.Array:
        if self.pointwise is not None and self.norm is not None:
            x = self.norm.after(self.pointwise, x)
        return self.depthwise(x, scale=scale)


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
