"""Convolution, normalization and dropout over (B, T, H, W, C); padding and epsilon as PyTorch has them.

Full and factorized convolutions share one interface, so that a residual block does not know which one it holds.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

FORMULATIONS = ("auto", "direct", "folded")

# He initialization over the fan-out, as in torchvision's video networks.
kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


_formulation = contextvars.ContextVar("formulation", default="auto")


@contextlib.contextmanager
def use_formulation(name: str) -> Iterator[None]:
    """Makes every convolution traced inside use one of `FORMULATIONS`, for comparisons.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in FORMULATIONS:
        raise ValueError(f"formulation={name!r}: known: {', '.join(FORMULATIONS)}")
    token = _formulation.set(name)
    try:
        yield
    finally:
        _formulation.reset(token)


class InitKeys:
    """Stands in for `nnx.Rngs` while a network is built: the same keys, without a variable's update for each of them.

    Under a trace such an update takes 25 ms, and a network of 152 layers asks for 400 keys.
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
        """Moves the stream on past the keys that were used."""
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


def half_padding(window: Triple) -> Pads:
    """Half the window on both sides, as PyTorch networks pad."""
    time, height, width = window[0] // 2, window[1] // 2, window[2] // 2
    return (time, time), (height, height), (width, width)


def max_pool(x: jax.Array, window: Triple, strides: Triple, padding: Pads | None = None) -> jax.Array:
    """Largest value of each window over (B, T, H, W, C); None pads half the window."""
    pads = half_padding(window) if padding is None else padding  # nnx annotates padding as str only
    return nnx.max_pool(x, window, strides, pads)  # pyright: ignore[reportArgumentType]


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple | Pads, groups: int = 1) -> jax.Array:
    """Convolves over time, height and width; the one place that chooses how.

    XLA's 3D convolution is slow on CPUs, where 2D convolutions over folded axes ("folded") give the same values in less
    time; accelerators run the 3D convolution as it is ("direct"). `use_formulation` overrides the choice.

    Args:
      x: (B, T, H, W, C_in).
      kernel: (kt, kh, kw, C_in / groups, C_out), of the same dtype.
      strides: (time, height, width).
      padding: zeros on both sides of (time, height, width), or (before, after) of each.
      groups: of channels that do not see each other.

    Returns:
      (B, T', H', W', C_out).
    """
    pads = [(p, p) if isinstance(p, int) else p for p in padding]
    formulation = _formulation.get()
    if formulation == "auto":
        formulation = "folded" if jax.default_backend() == "cpu" else "direct"
    if formulation == "direct":
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), feature_group_count=groups
        )

    def spatial(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = _conv2d(x.reshape(-1, *x.shape[2:]), kernel, strides[1:], pads[1:], groups)
        return y.reshape(*x.shape[:2], *y.shape[1:])

    if kernel.shape[0] == 1 and pads[0] == (0, 0):
        return spatial(x[:, :: strides[0]], kernel[0])
    if kernel.shape[1:3] == (1, 1) and pads[1:] == [(0, 0), (0, 0)]:
        return _temporal(x[:, :, :: strides[1], :: strides[2]], kernel[:, 0], strides[0], pads[0], groups)
    # The full kernel: the sum over its time taps of a 2D convolution of the frames that the tap sees.
    x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    taps = kernel.shape[0]
    span = (x.shape[1] - taps) // strides[0] * strides[0] + 1
    frames = [lax.slice_in_dim(x, tap, tap + span, strides[0], axis=1) for tap in range(taps)]
    return sum(
        (spatial(seen, kernel[tap]) for tap, seen in enumerate(frames[1:], start=1)),
        start=spatial(frames[0], kernel[0]),
    )


def _temporal(x: jax.Array, kernel: jax.Array, stride: int, pads: tuple[int, int], groups: int) -> jax.Array:
    b, t, h, w, c = x.shape
    y = _conv2d(x.reshape(b, t, h * w, c), kernel, (stride, 1), [pads, (0, 0)], groups)
    return y.reshape(b, y.shape[1], h, w, y.shape[3])


def _conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: list, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


class Conv(nnx.Module):
    """A 3D convolution without bias.

    Args:
      in_channels, out_channels: widths.
      kernel_size, strides: (time, height, width).
      padding: on both sides of (time, height, width); None pads half the kernel, "SAME" as TensorFlow does.
      groups: of channels that do not see each other.
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
