"""Convolutions of fewer, wider places: blocks of pixels, or all frames that a kernel sees, as the channels of one."""

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
