"""Max-pooling has the same values and gradients in all forms, also where several values are the largest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax.models.convolution import FORMS, half_padding, max_pool, use_formulation
from r23d_jax.models.layers import same_padding
from r23d_jax.models.network import Triple

POOLS = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]
SHAPE = (2, 5, 9, 8, 3)


def draw(ties: bool) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    return np.maximum(np.round(values), 0) if ties else values


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("window", "strides"), POOLS)
def test_forms_agree(window: Triple, strides: Triple, same: bool, ties: bool) -> None:
    pads = same_padding(SHAPE[1:4], window, strides) if same else half_padding(window)

    def run(name: str) -> tuple[jax.Array, jax.Array]:
        def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = max_pool(x, window, strides, pads)
            return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape))), y

        with use_formulation(name):
            (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(draw(ties))
        return y, gradient

    for name in FORMS:
        for direct, other in zip(run("direct"), run(name), strict=True):
            np.testing.assert_allclose(other, direct, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("window", "strides"), POOLS)
def test_pooling_equals_torch(window: Triple, strides: Triple, ties: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    x = torch.tensor(draw(ties).transpose(0, 4, 1, 2, 3), requires_grad=True)
    theirs = torch.nn.functional.max_pool3d(x, window, strides, tuple(size // 2 for size in window))
    total = theirs.sin().sum()
    total.backward()
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(max_pool(x, window, strides))))(draw(ties))
    np.testing.assert_allclose(y, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy().transpose(0, 2, 3, 4, 1), atol=1e-5)
