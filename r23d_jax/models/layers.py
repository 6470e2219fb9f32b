"""Convolution, normalization and dropout over (B, T, H, W, C); padding and epsilon as PyTorch has them.

Full and factorized convolutions share one interface, so that a residual block does not know which one it holds.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.models.convolution import conv3d
from r23d_jax.models.network import Pads, Triple

# He initialization over the fan-out, as in torchvision's video networks.
kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class InitKeys:
    """Replaces `nnx.Rngs` while a network is built: the same keys, without updating a variable for each of them.

    Under a trace such an update takes 25 ms, and a network of 152 layers draws 400 keys.
    """

    def __init__(self, rngs: nnx.Rngs):
        self._stream = rngs.params
        self._key, self._start, self._used = self._stream.key[...], self._stream.count[...], 0

    def params(self) -> jax.Array:
        """The next key of the stream."""
        key = jax.random.fold_in(self._key, self._start + np.uint32(self._used))
        self._used += 1
        return key

    def close(self) -> None:
        """Advances the stream past the keys that were used."""
        self._stream.count[...] += np.uint32(self._used)


def same_padding(size: tuple[int, ...], window: tuple[int, ...], strides: Triple) -> Pads:
    """Zeros before and after (time, height, width) as TensorFlow's SAME puts them: the odd one goes after.

    Args:
      size: (time, height, width) of the input.
      window, strides: of the convolution or pool.
    """
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, window, strides, strict=True)]
    before, after = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (before[0], after[0]), (before[1], after[1]), (before[2], after[2])


class Conv(nnx.Module):
    """A 3D convolution without bias.

    Args:
      in_channels, out_channels: widths.
      kernel_size, strides: (time, height, width).
      padding: on both sides of (time, height, width); None pads half the kernel, "SAME" as TensorFlow does.
      groups: number of groups of channels that do not mix.
      dtype: of the computation; the kernel itself is float32.
      rngs: `params` initializes the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        strides: Triple = (1, 1, 1),
        padding: Triple | Literal["SAME"] | None = None,
        *,
        groups: int = 1,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.strides, self.groups, self.dtype = strides, groups, dtype
        self.padding = padding or (kernel_size[0] // 2, kernel_size[1] // 2, kernel_size[2] // 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', C_out)."""
        kernel = self.kernel[...].astype(self.dtype)
        pads = self.padding
        if isinstance(pads, str):
            pads = same_padding(x.shape[1:4], kernel.shape[:3], self.strides)
        return conv3d(x.astype(self.dtype), kernel, self.strides, pads, self.groups)


class BatchNorm(nnx.Module):
    """Batch normalization with float32 statistics and arithmetic, whatever the dtype of its input.

    `momentum` is Flax's and Caffe2's (0.9 keeps 90 % of the old value); PyTorch calls the same 0.1. The running
    variance is the biased one, where PyTorch stores the unbiased: they differ by n / (n - 1), n = B*T*H*W.
    """

    def __init__(self, channels: int, *, epsilon: float, momentum: float, use_scale: bool = True, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(channels, epsilon=epsilon, momentum=momentum, use_scale=use_scale, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) of the same dtype."""
        return self.norm(x.astype(jnp.float32)).astype(x.dtype)
