"""Convolution, normalization and dropout over (B, T, H, W, C); padding and epsilon as PyTorch has them.

Full and factorized convolutions share one interface, so that a residual block does not know which one it holds.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

Triple = tuple[int, int, int]

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


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple) -> jax.Array:
    """Convolves over time, height and width; the one place that chooses how.

    XLA's 3D convolution is slow on CPUs, where 2D convolutions over folded axes ("folded") give the same values in less
    time; accelerators run the 3D convolution as it is ("direct"). `use_formulation` overrides the choice.

    Args:
      x: (B, T, H, W, C_in).
      kernel: (kt, kh, kw, C_in, C_out), of the same dtype.
      strides: (time, height, width).
      padding: zeros on both sides of (time, height, width), as PyTorch pads.

    Returns:
      (B, T', H', W', C_out).
    """
    formulation = _formulation.get()
    if formulation == "auto":
        formulation = "folded" if jax.default_backend() == "cpu" else "direct"
    if formulation == "direct":
        return lax.conv_general_dilated(
            x, kernel, strides, [(p, p) for p in padding], dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    if kernel.shape[0] == 1 and padding[0] == 0:
        return _spatial(x[:, :: strides[0]], kernel[0], strides, padding)
    if kernel.shape[1:3] == (1, 1) and padding[1:] == (0, 0):
        return _temporal(x[:, :, :: strides[1], :: strides[2]], kernel[:, 0], strides, padding)
    # The full kernel: the sum over its time taps of a 2D convolution of the frames that the tap sees.
    x = jnp.pad(x, ((0, 0), (padding[0], padding[0]), (0, 0), (0, 0), (0, 0)))
    taps = kernel.shape[0]
    span = (x.shape[1] - taps) // strides[0] * strides[0] + 1
    frames = [lax.slice_in_dim(x, tap, tap + span, strides[0], axis=1) for tap in range(taps)]
    return sum(
        (_spatial(seen, kernel[tap], strides, padding) for tap, seen in enumerate(frames[1:], start=1)),
        start=_spatial(frames[0], kernel[0], strides, padding),
    )


def _spatial(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple) -> jax.Array:
    y = _conv2d(x.reshape(-1, *x.shape[2:]), kernel, strides[1:], padding[1:])
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _temporal(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple) -> jax.Array:
    b, t, h, w, c = x.shape
    y = _conv2d(x.reshape(b, t, h * w, c), kernel, (strides[0], 1), (padding[0], 0))
    return y.reshape(b, y.shape[1], h, w, y.shape[3])


def _conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: tuple[int, int]) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, [(p, p) for p in padding], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv(nnx.Module):
    """A 3D convolution without bias.

    Args:
      in_channels, out_channels: widths.
      kernel_size, strides: (time, height, width).
      padding: on both sides of (time, height, width); None pads half the kernel.
      dtype: of the computation; the kernel itself is float32.
      rngs: `params` initializes the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        strides: Triple = (1, 1, 1),
        padding: Triple | None = None,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*kernel_size, in_channels, out_channels), jnp.float32))
        self.strides = strides
        self.padding = padding or (kernel_size[0] // 2, kernel_size[1] // 2, kernel_size[2] // 2)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C_in) -> (B, T', H', W', C_out)."""
        return conv3d(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.strides, self.padding)


class BatchNorm(nnx.Module):
    """Batch normalization with float32 statistics and arithmetic, whatever the dtype of its input.

    `momentum` is Flax's and Caffe2's (0.9 keeps 90 % of the old value); PyTorch calls the same 0.1. The running
    variance is the biased one, where PyTorch stores the unbiased: they differ by n / (n - 1), n = B*T*H*W.
    """

    def __init__(self, channels: int, *, epsilon: float, momentum: float, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(channels, epsilon=epsilon, momentum=momentum, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) of the same dtype."""
        return self.norm(x.astype(jnp.float32)).astype(x.dtype)
