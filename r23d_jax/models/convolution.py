"""The 3D convolution and the max-pool, in the form that is fastest on the backend; all forms give the same values.

"direct" is XLA's own convolution. "folded" is the CPU's (`cpu.py`). "padded" is for experiments on tensor cores: the
direct form with zero channels added up to a multiple of eight.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from r23d_jax.models import cpu
from r23d_jax.models.network import Pads, Triple


def _conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), feature_group_count=groups
    )


def _padded_conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads, groups: int) -> jax.Array:
    if groups > 1:
        return _conv3d(x, kernel, strides, pads, groups)
    entering, leaving = -kernel.shape[3] % 8, -kernel.shape[4] % 8
    wide = jnp.pad(kernel, (*[(0, 0)] * 3, (0, entering), (0, leaving)))
    y = _conv3d(jnp.pad(x, (*[(0, 0)] * 4, (0, entering))), wide, strides, pads, 1)
    return y[..., : kernel.shape[4]]


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to compute both operations; arguments as in `conv3d` and `max_pool`, with (before, after) pads."""

    conv3d: Callable[[jax.Array, jax.Array, Triple, Pads, int], jax.Array]
    max_pool: Callable[..., jax.Array]  # nnx.max_pool is annotated as if pads were names only


FORMS = {
    "direct": Form(_conv3d, nnx.max_pool),
    "folded": Form(cpu.conv3d, cpu.max_pool),
    "padded": Form(_padded_conv3d, nnx.max_pool),
}
FORMULATIONS = ("auto", *FORMS)

_formulation = contextvars.ContextVar("formulation", default="auto")


@contextlib.contextmanager
def use_formulation(name: str) -> Iterator[None]:
    """Makes every operation traced inside use one of `FORMULATIONS`, for comparisons.

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


def chosen_form() -> Form:
    """The form that `use_formulation` asks for; "auto" means the CPU's on CPUs and the direct one elsewhere."""
    name = _formulation.get()
    if name == "auto":
        name = "folded" if jax.default_backend() == "cpu" else "direct"
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
