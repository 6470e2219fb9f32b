"""A max-pool whose gradient is neither a scatter nor a search.

XLA's own gradient of a max-pool takes ten times as long on a CPU. On a GPU it is a search for the places of the maxima
and a scatter to them. Nothing here has a forward-mode derivative.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from r23d_jax.models.network import Pads, Triple


def max_pool(x: jax.Array, window: Triple, strides: Triple, pads: Pads, *, by_phase: bool = False) -> jax.Array:
    """`convolution.max_pool` whose forward pass remembers where each maximum was, for the gradient.

    `by_phase` chooses the arrangement of the gradient that is faster on a GPU.
    """
    to_positions = _to_positions_by_phase if by_phase else _to_positions

    @jax.custom_vjp
    def run(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))

    def save(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _with_positions(x, window, strides, pads)

    def pull_back(position: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
        return (to_positions(position, dy, (x.shape[1], x.shape[2], x.shape[3]), window, strides, pads),)

    run.defvjp(save, pull_back)
    return run(x)


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


def _to_positions_by_phase(
    position: jax.Array, dy: jax.Array, size: Triple, window: Triple, strides: Triple, pads: Pads
) -> jax.Array:
    """`_to_positions`, where places that are a stride apart are computed together, and interleaved at the end.

    With a window of 3 x 3 and strides of 2, a place is then compared with the one, two or four windows that cover it,
    not with nine, which a GPU would spend most of the time on. A CPU spends more on the interleaving.
    """
    zero, counts = jnp.zeros((), dy.dtype), dy.shape[1:4]
    blocks = [-(-(n + sum(pad)) // s) for n, pad, s in zip(size, pads, strides, strict=True)]
    totals: dict[tuple[int, ...], jax.Array] = {}
    for number, place in enumerate(_places(window)):
        shifts, phase = zip(*(divmod(p, s) for p, s in zip(place, strides, strict=True)), strict=True)
        spread = [(shift, n - shift - count, 0) for shift, n, count in zip(shifts, blocks, counts, strict=True)]
        part = lax.pad(jnp.where(position == number, dy, zero), zero, ((0, 0, 0), *spread, (0, 0, 0)))
        totals[phase] = totals[phase] + part if phase in totals else part
    nothing = jnp.zeros((dy.shape[0], *blocks, dy.shape[4]), dy.dtype)  # where strides are longer than the window
    whole = jnp.stack([totals.get(phase, nothing) for phase in _places(strides)])
    whole = whole.reshape(*strides, dy.shape[0], *blocks, dy.shape[4]).transpose(3, 4, 0, 5, 1, 6, 2, 7)
    whole = whole.reshape(dy.shape[0], *(n * s for n, s in zip(blocks, strides, strict=True)), dy.shape[4])
    cut = tuple(slice(before, before + n) for n, (before, _) in zip(size, pads, strict=True))
    return whole[(slice(None), *cut)]


def _places(window: Triple) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, window)))
