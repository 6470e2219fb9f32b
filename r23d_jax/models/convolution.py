"""The 3D convolution and the max-pool, in the form that is fastest on the platform; all forms give the same values."""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from r23d_jax.models import cpu, pooling
from r23d_jax.models.blocks import block_kernel, frames_in_one, in_blocks
from r23d_jax.models.network import Pads, Triple

ALIGNMENT = 8  # channels of two bytes that a GPU's tensor cores read at once; cuDNN pads other numbers at every use
LANES = 128  # channels that a TPU keeps together


def _conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), feature_group_count=groups
    )


def _padded_conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    """With channels of zeros, up to a multiple of `ALIGNMENT`."""
    if groups > 1:
        return _conv3d(x, kernel, strides, pads, groups)
    entering, leaving = kernel.shape[3:]
    wide = widened(widened(kernel, 3, aligned(entering)), 4, aligned(leaving))
    return _conv3d(widened(x, 4, aligned(entering)), wide, strides, pads, 1)[..., :leaving]


def _blocked_conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    """The padded form, in which a stem reads blocks of pixels of all frames that it sees as channels of one frame.

    Those are 12 of 16 channels of a frame, or 36 of 40 of three, instead of three of eight.
    """
    if groups == 1 and kernel.shape[3] < ALIGNMENT and max(strides) > 1:
        x, kernel = in_blocks(x, kernel, strides, pads)
        strides, pads = (1, 1, 1), ((0, 0), (0, 0), (0, 0))
        x, flat = frames_in_one(x, kernel)
        kernel = flat[None]
    return _padded_conv3d(x, kernel, strides, pads, groups)


def _paired_conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    """With pairs of columns as channels, where there are at most half as many channels as a TPU has lanes.

    It would fill the other lanes with zeros. A kernel for pairs holds zeros too, but a TPU has the time for these.
    Only inside `in_pairs`, because the arrays are moved where a convolution of pairs meets what reads single columns.
    """
    entering, leaving = kernel.shape[3:]
    # Columns from one block. In pairs of frames a strided one makes single columns, because a max-pool may come next.
    made = 2 if strides[2] == 1 or (leaving <= LANES // 2 and not frame_pairs()) else 1
    block = made * strides[2]
    columns = (x.shape[3] + sum(pads[2]) - kernel.shape[2]) // strides[2] + 1
    narrow = min(entering, leaving) <= LANES // 2 and groups == 1
    if not narrow or block == 1 or x.shape[3] % block or columns % made or not _pairs.get():
        return _conv3d(x, kernel, strides, pads, groups)
    kernel, before = block_kernel(kernel, strides[2], made, pads[2][0])
    x = x.reshape(*x.shape[:3], -1, block * entering)
    after = columns // made - x.shape[3] - before + kernel.shape[2] - 1
    y = _conv3d(x, kernel, (*strides[:2], 1), (*pads[:2], (before, after)), 1)
    return y.reshape(*y.shape[:3], columns, leaving)


def aligned(channels: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def widened(x: jax.Array, axis: int, size: int) -> jax.Array:
    """With zeros after what it has along an axis, so that it has `size`."""
    return jnp.pad(x, [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)])


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to compute both operations; arguments as in `conv3d` and `max_pool`, with (before, after) pads."""

    # conv3d, max_pool: the operations
    conv3d: Callable[[jax.Array, jax.Array, Triple, Pads, int], jax.Array]
    max_pool: Callable[..., jax.Array]  # nnx.max_pool is annotated as if pads were names only
    # the width to compute in for the channels between two convolutions
    inner: Callable[[int], int] = lambda channels: channels
    # channels that are moved together; where there are at most half as many, pairs of frames may fill them
    lanes: int = 0


_GPU_POOL = functools.partial(pooling.max_pool, by_phase=True)
FORMS = {
    "direct": Form(_conv3d, nnx.max_pool),
    "folded": Form(cpu.conv3d, pooling.max_pool),
    "padded": Form(_padded_conv3d, _GPU_POOL, aligned),
    "blocked": Form(_blocked_conv3d, _GPU_POOL, aligned),
    "paired": Form(_paired_conv3d, nnx.max_pool, lanes=LANES),
}
FORMULATIONS = ("auto", *FORMS)

FASTEST = {"cpu": "folded", "gpu": "blocked", "tpu": "paired"}  # by platform; elsewhere "direct"

_formulation = contextvars.ContextVar("formulation", default="auto")
_platform = contextvars.ContextVar("platform", default="")
_pairs = contextvars.ContextVar("pairs", default=False)
_frame_pairs = contextvars.ContextVar("frame_pairs", default=False)


@contextlib.contextmanager
def _inside(variable: contextvars.ContextVar, value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def use_formulation(name: str) -> Iterator[None]:
    """Makes every operation traced inside use one of `FORMULATIONS`, for comparisons; ValueError for another name."""
    if name not in FORMULATIONS:
        raise ValueError(f"formulation={name!r}: known: {', '.join(FORMULATIONS)}")
    with _inside(_formulation, name):
        yield


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Makes "auto" mean the form for this platform, e.g. "gpu", in what is traced inside.

    Without it "auto" means the form for jax's default backend, which is another one where a program is compiled for
    devices that are not there.
    """
    with _inside(_platform, platform):
        yield


@contextlib.contextmanager
def in_pairs(wanted: bool = True) -> Iterator[None]:
    """Lets the form for TPUs take pairs of columns as channels in what is traced inside."""
    with _inside(_pairs, wanted):
        yield


@contextlib.contextmanager
def in_frame_pairs(wanted: bool = True) -> Iterator[None]:
    """Makes `Conv` and `BatchNorm` compute on pairs of frames (`blocks.pair_frames`) in what is traced inside."""
    with _inside(_frame_pairs, wanted):
        yield


def frame_pairs() -> bool:
    """Whether this is inside `in_frame_pairs`."""
    return _frame_pairs.get()


def chosen_form() -> Form:
    """The form that `use_formulation` asks for, or the fastest one on the platform."""
    name = _formulation.get()
    if name == "auto":
        name = FASTEST.get(_platform.get() or jax.default_backend(), "direct")
    return FORMS[name]


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple | Pads, groups: int = 1) -> jax.Array:
    """Convolves over time, height and width.

    Args:
      x: (B, T, H, W, C_in).
      kernel: (kt, kh, kw, C_in / groups, C_out), of the same dtype.
      strides: (time, height, width).
      padding: zeros on both sides of (time, height, width), or (before, after) of each.
      groups: number of groups of channels that do not mix.

    Returns:
      (B, T', H', W', C_out).
    """
    time, height, width = ((p, p) if isinstance(p, int) else p for p in padding)
    return chosen_form().conv3d(x, kernel, strides, (time, height, width), groups)


def half_padding(window: Triple) -> Pads:
    """Half the window on both sides, as PyTorch networks pad."""
    time, height, width = window[0] // 2, window[1] // 2, window[2] // 2
    return (time, time), (height, height), (width, width)


def max_pool(x: jax.Array, window: Triple, strides: Triple, padding: Pads | None = None) -> jax.Array:
    """Largest value of each window over (B, T, H, W, C); None pads half the window.

    If several values are the largest, the first one gets the gradient, as in PyTorch.
    """
    return chosen_form().max_pool(x, window, strides, half_padding(window) if padding is None else padding)
