"""The forms of a convolution have the same values and gradients, to the last digits of float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax.models.convolution import (
    FORMS,
    chosen_form,
    compiled_for,
    conv3d,
    half_padding,
    in_pairs,
    use_formulation,
)
from r23d_jax.models.layers import same_padding
from r23d_jax.models.network import Pads, Triple

KERNELS = [(1, 7, 7), (3, 7, 7), (1, 3, 3), (3, 1, 1), (7, 1, 1), (3, 3, 3), (1, 1, 1), (2, 2, 2)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1), (3, 3, 3)]


def compare(x: np.ndarray, kernel: np.ndarray, strides: Triple, pads: Pads, groups: int = 1) -> None:
    """Compares all forms with the direct one, in one program."""

    def run(x: jax.Array, kernel: jax.Array) -> dict[str, tuple]:
        def loss(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = conv3d(x, kernel, strides, pads, groups)
            return jnp.sum(jnp.sin(y)), y

        found = {}
        for name in FORMS:
            with use_formulation(name), in_pairs():
                (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
            found[name] = (y, *gradients)
        return found

    with jax.enable_x64(True):
        found = jax.jit(run)(x, kernel)
    wanted = found.pop("direct")
    for values in found.values():
        for direct, other in zip(wanted, values, strict=True):
            assert direct.shape == other.shape and other.dtype == jnp.float64
            np.testing.assert_allclose(other, direct, rtol=0, atol=1e-12 * max(1.0, float(np.abs(direct).max())))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_forms_agree_in_value_and_gradients(kernel: Triple, strides: Triple) -> None:
    compare(draw(2, 6, 9, 8, 5), draw(*kernel, 5, 4, seed=1), strides, half_padding(kernel))


@pytest.mark.slow
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel[1] > 1])
def test_forms_agree_on_a_clip(kernel: Triple, strides: Triple) -> None:
    """Its three channels have forms of their own, except in a convolution of time alone."""
    compare(draw(2, 6, 9, 8, 3), draw(*kernel, 3, 4, seed=1), strides, half_padding(kernel))


@pytest.mark.parametrize("size", [(6, 9, 8), (7, 8, 9)])
@pytest.mark.parametrize(
    ("kernel", "strides"), [((3, 3, 3), (2, 2, 2)), ((7, 7, 7), (2, 2, 2)), ((1, 3, 3), (1, 2, 2))]
)
def test_forms_agree_where_padding_is_uneven(kernel: Triple, strides: Triple, size: Triple) -> None:
    compare(draw(1, *size, 5), draw(*kernel, 5, 4, seed=1), strides, same_padding(size, kernel, strides))


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1)])
def test_forms_agree_in_groups(kernel: Triple, strides: Triple) -> None:
    compare(draw(2, 6, 9, 8, 6), draw(*kernel, 1, 6, seed=1), strides, half_padding(kernel), groups=6)


@pytest.mark.parametrize(("entering", "leaving"), [(5, 4), (3, 70), pytest.param(70, 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("kernel", [(1, 7, 7), (1, 3, 3), (3, 1, 1), (1, 1, 1), (1, 2, 2)])
def test_pairs_of_columns_agree_in_value_and_gradients(
    kernel: Triple, strides: Triple, entering: int, leaving: int
) -> None:
    compare(draw(1, 3, 4, 8, entering), draw(*kernel, entering, leaving, seed=1), strides, half_padding(kernel))


def test_pairs_are_taken_only_where_they_are_wanted() -> None:
    x, kernel = np.zeros((1, 4, 8, 8, 64), np.float32), np.zeros((1, 3, 3, 64, 64), np.float32)
    run = lambda x, kernel: conv3d(x, kernel, (1, 1, 1), (0, 1, 1))  # noqa: E731
    with use_formulation("paired"):
        assert "128]" not in str(jax.make_jaxpr(run)(x, kernel))
        with in_pairs():
            assert "f32[1,4,8,4,128]" in str(jax.make_jaxpr(lambda x, kernel: run(x, kernel))(x, kernel))


def test_unknown_formulation() -> None:
    with pytest.raises(ValueError, match="formulation='fast': known: auto, direct, folded, padded, blocked, paired"):
        with use_formulation("fast"):
            pass


def test_the_form_is_that_of_the_platform_that_is_compiled_for() -> None:
    """Whatever the default backend is, and unless a form is asked for."""
    for platform, name in {"cpu": "folded", "gpu": "blocked", "tpu": "paired", "new": "direct"}.items():
        with compiled_for(platform):
            assert chosen_form() is FORMS[name]
            with use_formulation("padded"):
                assert chosen_form() is FORMS["padded"]
    assert chosen_form() is FORMS["folded"]
