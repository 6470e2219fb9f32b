"""Max-pooling, whose gradient takes a form of its own on CPUs: XLA's takes ten times as long there."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from r23d_jax.models.convolution import Pads, Triple, chosen_formulation


def half_padding(window: Triple) -> Pads:
    """Half the window on both sides, as PyTorch networks pad."""
    time, height, width = window[0] // 2, window[1] // 2, window[2] // 2
    return (time, time), (height, height), (width, width)


def max_pool(x: jax.Array, window: Triple, strides: Triple, padding: Pads | None = None) -> jax.Array:
    """Largest value of each window over (B, T, H, W, C); None pads half the window.

    Of several largest values the first one gets the gradient, as in PyTorch. On CPUs it has no forward-mode derivative.
    """
    pads = half_padding(window) if padding is None else padding
    plain = functools.partial(_plain, window=window, strides=strides, pads=pads)
    if chosen_formulation() != "folded":
        return plain(x)

    @jax.custom_vjp
    def run(x: jax.Array) -> jax.Array:
        return plain(x)

    def save(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _with_positions(x, window, strides, pads)

    def pull_back(position: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
        return (_to_positions(position, dy, (x.shape[1], x.shape[2], x.shape[3]), window, strides, pads),)

    run.defvjp(save, pull_back)
    return run(x)


def _plain(x: jax.Array, window: Triple, strides: Triple, pads: Pads) -> jax.Array:
    return nnx.max_pool(x, window, strides, pads)  # pyright: ignore[reportArgumentType]  it is annotated as str only


def _with_positions(x: jax.Array, window: Triple, strides: Triple, pads: Pads) -> tuple[jax.Array, jax.Array]:
    """The largest value of each window, and which of its places holds it, int16."""
    x = lax.pad(
        x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0))
    )
    counts = [(size - w) // s + 1 for size, w, s in zip(x.shape[1:4], window, strides, strict=True)]

    def seen(place: tuple[int, ...]) -> jax.Array:
        ends = [p + (count - 1) * s + 1 for p, count, s in zip(place, counts, strides, strict=True)]
        return lax.slice(x, (0, *place, 0), (x.shape[0], *ends, x.shape[4]), (1, *strides, 1))

    first, *others = _places(window)
    best = seen(first)
    position = jnp.zeros(best.shape, jnp.int16)
    for number, place in enumerate(others, start=1):
        value = seen(place)
        position = jnp.where(value > best, jnp.int16(number), position)
        best = jnp.maximum(best, value)
    return best, position


def _to_positions(
    position: jax.Array, dy: jax.Array, size: Triple, window: Triple, strides: Triple, pads: Pads
) -> jax.Array:
    """Adds each value of `dy` (B, T', H', W', C) where its window found it, in (B, *size, C)."""
    zero = jnp.zeros((), dy.dtype)
    padded = [n + before + after for n, (before, after) in zip(size, pads, strict=True)]
    total = None
    for number, place in enumerate(_places(window)):
        spread = [
            (p, n - p - (count - 1) * s - 1, s - 1)
            for p, n, count, s in zip(place, padded, dy.shape[1:4], strides, strict=True)
        ]
        part = lax.pad(jnp.where(position == number, dy, zero), zero, ((0, 0, 0), *spread, (0, 0, 0)))
        total = part if total is None else total + part
    assert total is not None
    cut = tuple(slice(before, before + n) for n, (before, _) in zip(size, pads, strict=True))
    return total[(slice(None), *cut)]


def _places(window: Triple) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, window)))
