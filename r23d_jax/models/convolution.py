"""The 3D convolution, in the form that is fastest on the backend at hand; all forms give the same values and gradients.

Accelerators run it as it is ("direct"). On CPUs XLA's 3D convolution is slow, and 2D convolutions over folded axes
("folded") take its place. Which form is fastest there differs between the forward pass, the gradient of the input and
that of the kernel, so each has its own; docs/performance.md has the measurements. "padded" is for experiments on
tensor cores: the direct form with channels filled up with zeros to a multiple of eight.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Convolution = Callable[[jax.Array, jax.Array], jax.Array]  # of x and kernel

FORMULATIONS = ("auto", "direct", "folded", "padded")
CLIP_CHANNELS = 3  # a convolution of so few is a stem's: its frames are stacked, its input needs no gradient

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


def chosen_formulation() -> str:
    """What "auto" means here, or what `use_formulation` asks for."""
    name = _formulation.get()
    if name == "auto":
        return "folded" if jax.default_backend() == "cpu" else "direct"
    return name


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple | Pads, groups: int = 1) -> jax.Array:
    """Convolves over time, height and width; the one place that chooses how. `use_formulation` overrides the choice.

    The folded form has gradients of its own and no forward-mode derivative.

    Args:
      x: (B, T, H, W, C_in).
      kernel: (kt, kh, kw, C_in / groups, C_out), of the same dtype.
      strides: (time, height, width).
      padding: zeros on both sides of (time, height, width), or (before, after) of each.
      groups: of channels that do not see each other.

    Returns:
      (B, T', H', W', C_out).
    """
    time, height, width = ((p, p) if isinstance(p, int) else p for p in padding)
    formulation = chosen_formulation()
    if formulation == "direct" or (formulation == "padded" and groups > 1):
        return _direct(x, kernel, strides, (time, height, width), groups)
    if formulation == "padded":
        entering, leaving = -kernel.shape[3] % 8, -kernel.shape[4] % 8
        wide = jnp.pad(kernel, (*[(0, 0)] * 3, (0, entering), (0, leaving)))
        y = _direct(jnp.pad(x, (*[(0, 0)] * 4, (0, entering))), wide, strides, (time, height, width), 1)
        return y[..., : kernel.shape[4]]
    if kernel.shape[0] == 1 and time == (0, 0):
        return _spatial(x[:, :: strides[0]], kernel[0], strides[1:], (height, width), groups)
    if kernel.shape[1:3] == (1, 1) and height == width == (0, 0):
        return _temporal(x[:, :, :: strides[1], :: strides[2]], kernel[:, 0], strides[0], time, groups)
    return _full(x, kernel, strides, (time, height, width), groups)


def _direct(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), feature_group_count=groups
    )


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
    """x, as an array that lies in memory.

    For a kernel's gradient XLA transposes x, and on a CPU it computes x anew while it does so, which takes five times
    as long as to transpose what is there. It drops `optimization_barrier` before it fuses, but fuses nothing into a
    branch. The other branch is taken where the kernel is NaN, and its gradient may then be.
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

    def seen(x: jax.Array) -> list[jax.Array]:
        x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
        count = (x.shape[1] - taps) // stride + 1
        return [frames(x, tap, count) for tap in range(taps)]

    def summed(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The sum of a convolution for each tap."""
        parts = (_spatial(part, kernel[tap], strides[1:], pads[1:], groups) for tap, part in enumerate(seen(x)))
        return functools.reduce(jnp.add, parts)

    def inputs_stacked(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """One convolution of as many times the input channels."""
        stacked = jnp.concatenate(seen(x), axis=-1)
        wide = jnp.concatenate(list(kernel), axis=-2)
        return _spatial(stacked, wide, strides[1:], pads[1:], 1)

    def outputs_stacked(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """One convolution to as many times the output channels, which are summed where they belong."""
        y = _spatial(x, jnp.concatenate(list(kernel), axis=-1), strides[1:], pads[1:], 1)
        y = jnp.pad(y, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
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
    """A strided 2D convolution as an unstrided one of blocks of pixels, whose channels are those of all their pixels.

    Args:
      x: (B, H, W, C_in).
      kernel: (kh, kw, C_in, C_out).
      strides: (sh, sw), the size of a block.
      pads: (before, after) of height and width.
    """
    (sh, sw), (kh, kw, c, out) = strides, kernel.shape
    rows, columns = -(-kh // sh), -(-kw // sw)  # of blocks in the kernel
    sizes = [size + sum(pad) for size, pad in zip(x.shape[1:3], pads, strict=True)]
    high, wide = (sizes[0] - kh) // sh + rows, (sizes[1] - kw) // sw + columns  # blocks that are seen
    after = [n * s - size - pad[0] for n, s, size, pad in zip((high, wide), (sh, sw), x.shape[1:3], pads, strict=True)]
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (pads[0][0], after[0], 0), (pads[1][0], after[1], 0), (0, 0, 0)))
    x = x.reshape(-1, high, sh, wide, sw, c).swapaxes(2, 3).reshape(-1, high, wide, sh * sw * c)
    kernel = jnp.pad(kernel, ((0, rows * sh - kh), (0, columns * sw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(rows, sh, columns, sw, c, out).swapaxes(1, 2).reshape(rows, columns, sh * sw * c, out)
    return _conv2d(x, kernel, (1, 1), ((0, 0), (0, 0)))
