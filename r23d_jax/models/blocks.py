"""Convolutions of fewer, wider places: blocks of pixels, or several frames, as the channels of one."""

import jax
import jax.numpy as jnp
from jax import lax


def in_blocks(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, jax.Array]:
    """What to convolve, without strides and padding, for the strided and padded convolution of `x` with `kernel`.

    Args:
      x: (B, *size, C_in).
      kernel: (*window, C_in, C_out).
      strides: along each axis of `size`: the size of a block.
      pads: zeros (before, after) of each axis of `size`.

    Returns:
      x as (B, *blocks, prod(strides) * C_in), and the kernel to match.
    """
    sizes, window, axes = x.shape[1:-1], kernel.shape[:-2], range(len(strides))
    rows = [-(-k // s) for k, s in zip(window, strides, strict=True)]  # blocks of the kernel
    seen = [(n + sum(pad) - k) // s + row for n, pad, k, s, row in zip(sizes, pads, window, strides, rows, strict=True)]
    after = [count * s - n - pad[0] for count, s, n, pad in zip(seen, strides, sizes, pads, strict=True)]
    edges = ((0, 0, 0), *((pad[0], end, 0) for pad, end in zip(pads, after, strict=True)), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    x = x.reshape(-1, *(n for pair in zip(seen, strides, strict=True) for n in pair), x.shape[-1])
    x = x.transpose(0, *(1 + 2 * i for i in axes), *(2 + 2 * i for i in axes), x.ndim - 1)
    kernel = jnp.pad(
        kernel, [*((0, row * s - k) for row, s, k in zip(rows, strides, window, strict=True)), (0, 0), (0, 0)]
    )
    kernel = kernel.reshape(*(n for pair in zip(rows, strides, strict=True) for n in pair), *kernel.shape[-2:])
    kernel = kernel.transpose(*(2 * i for i in axes), *(1 + 2 * i for i in axes), kernel.ndim - 2, kernel.ndim - 1)
    return x.reshape(x.shape[0], *seen, -1), kernel.reshape(*rows, -1, kernel.shape[-1])


def block_kernel(kernel: jax.Array, stride: int, made: int, pad: int) -> tuple[jax.Array, int]:
    """A kernel that makes `made` columns of every block of `made * stride` columns, which are channels for it.

    Args:
      kernel: (kt, kh, kw, C_in, C_out).
      stride: of the columns.
      pad: columns of zeros before the first one.

    Returns:
      (kt, kh, blocks, made * stride * C_in, made * C_out), and how many blocks of zeros come before the first one.
    """
    height, width, entering, leaving = kernel.shape[1:]
    block = made * stride
    before = -(-pad // block)
    blocks = before + (stride * (made - 1) + width - 1 - pad) // block + 1
    shifts = [block * before - pad + stride * column for column in range(made)]
    wide = [
        jnp.pad(kernel, ((0, 0), (0, 0), (shift, block * blocks - width - shift), (0, 0), (0, 0))) for shift in shifts
    ]
    return jnp.stack(wide, axis=4).reshape(-1, height, blocks, block * entering, made * leaving), before


def pair_frames(x: jax.Array) -> jax.Array:
    """(B, T, H, W, C) -> (B, T / 2, H, W, 2 * C): the channels of two frames beside each other. T is even."""
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames // 2, 2, height, width, channels).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(batch, frames // 2, height, width, 2 * channels)


def single_frames(x: jax.Array) -> jax.Array:
    """The inverse of `pair_frames`; a compiler leaves both out where one follows the other."""
    batch, pairs, height, width, channels = x.shape
    x = x.reshape(batch, pairs, height, width, 2, channels // 2).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(batch, 2 * pairs, height, width, channels // 2)


def pair_making_kernel(kernel: jax.Array) -> jax.Array:
    """A kernel that makes a pair of frames wherever it stands, for twice the stride in time.

    (kt, kh, kw, C_in, C_out) -> (kt + 1, kh, kw, C_in, 2 * C_out).
    """
    rest = ((0, 0),) * 4
    return jnp.concatenate([jnp.pad(kernel, ((0, 1), *rest)), jnp.pad(kernel, ((1, 0), *rest))], axis=4)


def pair_reading_kernel(kernel: jax.Array) -> jax.Array:
    """A kernel of one frame that does the same to both frames of a pair.

    (1, kh, kw, C_in, C_out) -> (1, kh, kw, 2 * C_in, 2 * C_out).
    """
    entering, rest = kernel.shape[3], ((0, 0),) * 3
    first = jnp.pad(kernel, (*rest, (0, entering), (0, 0)))
    return jnp.concatenate([first, jnp.pad(kernel, (*rest, (entering, 0), (0, 0)))], axis=4)


def frames_in_one(x: jax.Array, kernel: jax.Array, stride: int = 1) -> tuple[jax.Array, jax.Array]:
    """What to convolve over (height, width), for the convolution of `x` with `kernel` that has no padding in time.

    Args:
      x: (B, T, H, W, C_in).
      kernel: (kt, kh, kw, C_in, C_out).
      stride: in time.

    Returns:
      x as (B, T', H, W, kt * C_in), and the kernel as (kh, kw, kt * C_in, C_out).
    """
    taps = kernel.shape[0]
    count = (x.shape[1] - taps) // stride + 1
    seen = [lax.slice_in_dim(x, tap, tap + (count - 1) * stride + 1, stride, axis=1) for tap in range(taps)]
    return jnp.concatenate(seen, axis=-1), jnp.concatenate(list(kernel), axis=-2)
