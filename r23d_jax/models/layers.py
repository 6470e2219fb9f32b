"""Convolution, normalization and dropout over (B, T, H, W, C); padding and epsilon as PyTorch has them.

Full and factorized convolutions share one interface, so that a residual block does not know which one it holds.
"""

from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from r23d_jax.models.blocks import pair_making_kernel, pair_reading_kernel
from r23d_jax.models.convolution import conv3d, frame_pairs, widened
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

    def values(self) -> jax.Array:
        """The kernel to convolve with."""
        return self.kernel[...]

    def __call__(self, x: jax.Array, out_channels: int = 0, scale: jax.Array | None = None) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', C_out), or more than C_out channels, of which the last are zeros.

        x may have more channels than the kernel too; they count for nothing. `scale` (C_out,) multiplies the channels
        that leave; None means ones.

        Inside `in_frame_pairs` it returns pairs of frames. x then has single ones, or pairs for a kernel of one frame.
        """
        kernel = self.values()
        if scale is not None:
            kernel = kernel * lax.broadcast_to_rank(scale, kernel.ndim)
        pads, strides, paired = self.padding, self.strides, frame_pairs()
        if isinstance(pads, str):
            pads = same_padding(x.shape[1:4], kernel.shape[:3], strides)
        if paired and x.shape[-1] == kernel.shape[3]:
            assert self.groups == strides[0] == 1
            kernel, strides = pair_making_kernel(kernel), (2, *strides[1:])
        elif paired:
            assert self.groups == kernel.shape[0] == 1
            kernel = pair_reading_kernel(kernel)
        kernel = kernel.astype(self.dtype)
        if self.groups == 1 and not paired:
            kernel = widened(widened(kernel, 3, x.shape[-1]), 4, out_channels or kernel.shape[4])
        return conv3d(x.astype(self.dtype), kernel, strides, pads, self.groups)


class ScaledConv(Protocol):
    """A convolution, or several of which the last can multiply the channels that leave it."""

    def __call__(self, x: jax.Array, *, scale: jax.Array | None = None) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', C_out)."""
        ...


class BatchNorm(nnx.Module):
    """Batch normalization with statistics and, but for `after`, arithmetic in at least float32, whatever its input is.

    `momentum` is Flax's and Caffe2's (0.9 keeps 90 % of the old value); PyTorch calls the same 0.1. The running
    variance is the biased one, where PyTorch stores the unbiased: they differ by n / (n - 1), n = B*T*H*W.
    """

    def __init__(self, channels: int, *, epsilon: float, momentum: float, use_scale: bool = True, rngs: nnx.Rngs):
        self.channels = channels
        self.norm = nnx.BatchNorm(channels, epsilon=epsilon, momentum=momentum, use_scale=use_scale, rngs=rngs)

    def after(self, conv: ScaledConv, x: jax.Array) -> jax.Array:
        """BN of conv(x): (B, T, H, W, C_in) -> (B, T', H', W', C), or more channels, of which the last are zeros.

        With running statistics, BN is a scale and a bias. The scale goes into the kernel. What is left after the
        convolution is the bias, of the dtype of conv(x). cuDNN adds it before it writes: one pass over memory less.
        """
        if not self.norm.use_running_average:
            return self(conv(x))
        factor, bias = self._scale_and_bias()
        y = conv(x, scale=factor)
        return y + lax.broadcast_to_rank(_for_channels(bias, y.shape[-1]).astype(y.dtype), y.ndim)

    def _scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """(C,) float32 each: what BN with running statistics multiplies by, and then adds."""
        norm = self.norm
        assert norm.bias is not None
        factor = lax.rsqrt(norm.var[...] + norm.epsilon)
        factor = factor if norm.scale is None else factor * norm.scale[...]
        return factor, norm.bias[...] - norm.mean[...] * factor

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) of the same dtype; channels of zeros after its own stay zeros.

        Inside `in_frame_pairs` x has 2 * C channels, and the statistics are of both frames.
        """
        norm, size = self.norm, x.shape[-1]
        if norm.use_running_average:
            factor, bias = (_for_channels(value, size) for value in self._scale_and_bias())
            return _shift_and_scale(x, jnp.zeros(size), factor, bias)
        scale = jnp.ones(self.channels) if norm.scale is None else norm.scale[...]
        assert norm.bias is not None
        own = size // 2 if frame_pairs() else size
        scale, bias = widened(scale, 0, own), widened(norm.bias[...], 0, own)
        normalized: Any = _normalize(norm.epsilon, x, scale, bias)
        y, mean, variance = normalized
        for running, new in ((norm.mean, mean), (norm.var, variance)):
            running[...] = norm.momentum * running[...] + (1 - norm.momentum) * new[: self.channels]
        return y


def _for_channels(value: jax.Array, channels: int) -> jax.Array:
    """Spreads one value per channel (C,) over `channels`: once more for the second frame of a pair, else with zeros."""
    return jnp.tile(value, channels // value.size) if frame_pairs() else widened(value, 0, channels)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _shift_and_scale(x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) * factor + bias, as x's dtype; all but x are (C,)."""
    mean, factor, bias = (lax.broadcast_to_rank(value, x.ndim) for value in (mean, factor, bias))
    return ((_at_least_float32(x) - mean) * factor + bias).astype(x.dtype)


def _normalize_plainly(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x with the mean and the deviation of `bias` and `scale` (C,); and the mean and biased variance that it had.

    x has C channels, or those of several frames beside each other.
    """
    return _normalize_forward(epsilon, x, scale, bias)[0]


def _normalize_forward(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple]:
    axes, frames, wide = tuple(range(x.ndim - 1)), x.shape[-1] // scale.size, _at_least_float32(x)
    mean, square = (_over_frames(jnp.mean(v, axes), frames) / frames for v in (wide, wide * wide))
    variance = jnp.maximum(0.0, square - mean * mean)
    inverse = lax.rsqrt(variance + epsilon)
    y = _shift_and_scale(x, *(jnp.tile(v, frames) for v in (mean, scale * inverse, bias)))
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalize_backward(epsilon: float, saved: tuple, gradients: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The statistics are for the running ones, which no loss depends on, so their gradients are not read."""
    del epsilon
    x, scale, mean, inverse = saved
    axes, frames, count = tuple(range(x.ndim - 1)), x.shape[-1] // scale.size, x.size // scale.size

    def spread(value: jax.Array) -> jax.Array:
        return lax.broadcast_to_rank(jnp.tile(value, frames), x.ndim)

    dy, moved = _at_least_float32(gradients[0]), _at_least_float32(x) - spread(mean)
    dbias = _over_frames(jnp.sum(dy, axes), frames)
    dscale = _over_frames(jnp.sum(dy * moved, axes), frames) * inverse
    factor = scale * inverse
    shift, slope = (spread(v * factor / count) for v in (dbias, dscale * inverse))
    return (spread(factor) * dy - shift - moved * slope).astype(x.dtype), dscale, dbias


def _over_frames(values: jax.Array, frames: int) -> jax.Array:
    """Sums the values that frames beside each other have of each channel, (frames * C,) -> (C,)."""
    return values if frames == 1 else values.reshape(frames, -1).sum(0)


# With a gradient of its own, which reads x and dy twice and writes dx. The one that jax derives also writes dy as the
# ReLU after this leaves it, and reads it again for a third sum: 1.2 times as many bytes.
_normalize = jax.custom_vjp(_normalize_plainly, nondiff_argnums=(0,))
_normalize.defvjp(_normalize_forward, _normalize_backward)
