"""The CPU's form of convolution; values and gradients equal the direct form's.

XLA's 3D convolution is slow on CPUs, so 2D convolutions over folded axes replace it. The forward pass, the gradient of
the input and that of the kernel each have their own fastest arrangement. docs/performance.md has the measurements.
Nothing here has a forward-mode derivative.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from r23d_jax.models.blocks import frames_in_one, in_blocks
from r23d_jax.models.network import Pads, Triple

Convolution = Callable[[jax.Array, jax.Array], jax.Array]  # of x and kernel

CLIP_CHANNELS = 3  # a convolution of at most three is a stem's: frames are stacked, its input needs no gradient


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    """`convolution.conv3d` as 2D convolutions over folded axes."""
    time, height, width = pads
    if kernel.shape[0] == 1 and time == (0, 0):
        return _spatial(x[:, :: strides[0]], kernel[0], strides[1:], (height, width), groups)
    if kernel.shape[1:3] == (1, 1) and height == width == (0, 0):
        return _temporal(x[:, :, :: strides[1], :: strides[2]], kernel[:, 0], strides[0], time, groups)
    return _full(x, kernel, strides, pads, groups)


def _with_gradients(forward: Convolution, input_form: Convolution, kernel_form: Convolution) -> Convolution:
    """`forward`, with the gradients of two other forms of the same convolution."""

    @jax.custom_vjp
    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return forward(x, kernel)

    def save(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return forward(x, kernel), (x, kernel)

    def pull_back(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = saved
        (dx,) = jax.vjp(lambda x: input_form(x, kernel), x)[1](dy)
        (dkernel,) = jax.vjp(lambda kernel: kernel_form(x, kernel), kernel)[1](dy)
        return dx, dkernel

    run.defvjp(save, pull_back)
    return run


def _held(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x, as an array in memory.

    For a kernel's gradient XLA transposes x, and on a CPU it recomputes x element by element meanwhile. XLA drops
    `optimization_barrier` before it fuses, but fuses nothing into a branch, so x passes through one. The other branch
    is taken if the kernel is NaN; the gradient may then be NaN too. Without this copy a training step of r2plus1d_18 in
    float32 takes 2.1 times as long for 4 clips of 16 x 112 x 112, and 1.2 times for 2 clips of 8 x 56 x 56.
    """
    lost = jnp.isnan(lax.stop_gradient(kernel).ravel()[0])
    return lax.cond(lost, lambda x: jnp.full_like(x, jnp.nan), lambda x: x, x)


def _conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: tuple, groups: int = 1) -> jax.Array:
    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    return _with_gradients(plain, plain, lambda x, kernel: plain(_held(x, kernel), kernel))(x, kernel)


def _spatial(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: tuple, groups: int) -> jax.Array:
    """One image per frame; kernel (kh, kw, C_in / groups, C_out)."""
    plain = functools.partial(_conv2d, strides=strides, pads=pads, groups=groups)
    images = x.reshape(-1, *x.shape[2:])
    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        y = _conv2d(images[:, :: strides[0], :: strides[1]], kernel, (1, 1), pads, groups)
    elif max(strides) == 1 or groups > 1 or kernel.shape[2] <= CLIP_CHANNELS:
        y = plain(images, kernel)
    else:
        in_blocks = functools.partial(_conv2d_in_blocks, strides=strides, pads=pads)
        y = _with_gradients(plain, in_blocks, plain)(images, kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _temporal(x: jax.Array, kernel: jax.Array, stride: int, pads: tuple[int, int], groups: int) -> jax.Array:
    """One image per clip, of time and all places; kernel (kt, 1, C_in / groups, C_out)."""
    b, t, h, w, c = x.shape
    strides, pads2 = (stride, 1), (pads, (0, 0))
    plain = functools.partial(_conv2d, strides=strides, pads=pads2, groups=groups)
    images = x.reshape(b, t, h * w, c)
    if stride == 1 or groups > 1:
        y = plain(images, kernel)
    else:
        in_blocks = functools.partial(_conv2d_in_blocks, strides=strides, pads=pads2)
        y = _with_gradients(plain, in_blocks, in_blocks)(images, kernel)
    return y.reshape(b, y.shape[1], h, w, y.shape[3])


def _full(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    """2D convolutions of the frames that each time tap sees, in one of three arrangements."""
    taps, stride = kernel.shape[0], strides[0]

    def frames(x: jax.Array, tap: int, count: int) -> jax.Array:
        return lax.slice_in_dim(x, tap, tap + (count - 1) * stride + 1, stride, axis=1)

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))

    def seen(x: jax.Array) -> list[jax.Array]:
        x = padded(x)
        count = (x.shape[1] - taps) // stride + 1
        return [frames(x, tap, count) for tap in range(taps)]

    def summed(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The sum of a convolution for each tap."""
        parts = (_spatial(part, kernel[tap], strides[1:], pads[1:], groups) for tap, part in enumerate(seen(x)))
        return functools.reduce(jnp.add, parts)

    def inputs_stacked(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """One convolution of as many times the input channels."""
        stacked, wide = frames_in_one(padded(x), kernel, stride)
        return _spatial(stacked, wide, strides[1:], pads[1:], 1)

    def outputs_stacked(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """One convolution to as many times the output channels, which are summed where they belong."""
        y = _spatial(x, jnp.concatenate(list(kernel), axis=-1), strides[1:], pads[1:], 1)
        y = padded(y)
        count, width = (y.shape[1] - taps) // stride + 1, kernel.shape[-1]
        return functools.reduce(
            jnp.add, (frames(y[..., tap * width : (tap + 1) * width], tap, count) for tap in range(taps))
        )

    if groups > 1:
        return summed(x, kernel)
    if x.shape[-1] <= CLIP_CHANNELS:
        return inputs_stacked(x, kernel)
    if max(strides) > 1:
        return summed(x, kernel)
    return _with_gradients(summed, inputs_stacked, outputs_stacked)(x, kernel)


def _conv2d_in_blocks(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: tuple) -> jax.Array:
    """A strided 2D convolution as an unstrided one of blocks of pixels."""
    return _conv2d(*in_blocks(x, kernel, strides, pads), (1, 1), ((0, 0), (0, 0)))
