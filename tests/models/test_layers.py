"""Convolution and BN against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.models.layers import BatchNorm, Conv, InitKeys, same_padding

KERNELS = [(1, 7, 7), (3, 7, 7), (1, 3, 3), (3, 1, 1), (7, 1, 1), (3, 3, 3), (1, 1, 1)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)]


def draw(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(6, 9, 8), (4, 8, 8)])  # odd and even: SAME padding would differ on one of them
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_convolution_equals_torch(kernel: tuple, strides: tuple, size: tuple) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    layer = Conv(3, 4, kernel, strides, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = draw(2, *size, 3)
    # In float64, which torch computes itself: on some CPUs oneDNN, which has float32, leaves parts of the gradient of a
    # 7x1x1 kernel with a stride of two frames unwritten (torch 2.13: values of 1e28).
    theirs_x = torch.tensor(x.transpose(0, 4, 1, 2, 3), dtype=torch.float64, requires_grad=True)
    kernel_values = np.array(layer.kernel[...]).transpose(4, 3, 0, 1, 2)
    theirs_w = torch.tensor(kernel_values, dtype=torch.float64, requires_grad=True)
    theirs = torch.nn.functional.conv3d(theirs_x, theirs_w, stride=strides, padding=tuple(k // 2 for k in kernel))
    theirs.sin().sum().backward()

    graph, state = nnx.split(layer)
    loss = lambda state, x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))  # noqa: E731
    ours_w, ours_x = jax.grad(loss, argnums=(0, 1))(state, x)
    np.testing.assert_allclose(layer(jnp.asarray(x)), theirs.detach().numpy().transpose(0, 2, 3, 4, 1), atol=1e-5)
    np.testing.assert_allclose(ours_x, theirs_x.grad.numpy().transpose(0, 2, 3, 4, 1), atol=1e-5)
    kernel_grad = theirs_w.grad.numpy().transpose(2, 3, 4, 1, 0)
    np.testing.assert_allclose(ours_w.kernel[...], kernel_grad, atol=1e-5 * max(1.0, float(np.abs(kernel_grad).max())))


@pytest.mark.parity
def test_batch_norm_equals_torch_but_for_the_unbiased_variance() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    ours = BatchNorm(5, epsilon=1e-3, momentum=0.9, rngs=nnx.Rngs(0))
    theirs = torch.nn.BatchNorm3d(5, eps=1e-3, momentum=0.1)
    x = draw(2, 3, 4, 4, 5) * 2 + 1
    graph, state = nnx.split(ours)
    loss = lambda state, x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))  # noqa: E731
    gradients, dx = jax.grad(loss, argnums=(0, 1))(state, jnp.asarray(x))
    y = ours(jnp.asarray(x))
    theirs_x = torch.tensor(x.transpose(0, 4, 1, 2, 3), requires_grad=True)
    theirs_y = theirs(theirs_x)
    theirs_y.sin().sum().backward()
    np.testing.assert_allclose(y, theirs_y.detach().numpy().transpose(0, 2, 3, 4, 1), atol=1e-5)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy().transpose(0, 2, 3, 4, 1), atol=1e-5)
    np.testing.assert_allclose(gradients.norm.scale[...], theirs.weight.grad.numpy(), atol=1e-4)  # sums of 96 values
    np.testing.assert_allclose(gradients.norm.bias[...], theirs.bias.grad.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.norm.mean[...], theirs.running_mean.numpy(), atol=1e-6)
    n = x.size // 5
    unbiased = 0.9 + (ours.norm.var[...] - 0.9) * n / (n - 1)
    np.testing.assert_allclose(unbiased, theirs.running_var.numpy(), atol=1e-5)


def test_batch_norm_keeps_float32_statistics_for_bfloat16_input() -> None:
    norm = BatchNorm(4, epsilon=1e-5, momentum=0.9, rngs=nnx.Rngs(0))
    x = draw(2, 4, 4, 4, 4)
    y = norm(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and norm.norm.mean[...].dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(norm.norm.mean[...], 0.1 * rounded.mean(axis=(0, 1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kernel", [(7, 7, 7), (1, 3, 3), (2, 2, 2), (3, 1, 4)])
@pytest.mark.parametrize("size", [(6, 9, 8), (1, 2, 5)])
def test_same_padding_is_xlas(size: tuple, kernel: tuple, strides: tuple) -> None:
    assert list(same_padding(size, kernel, strides)) == list(jax.lax.padtype_to_pads(size, kernel, strides, "SAME"))
    with pytest.raises(ValueError, match="zip"):
        same_padding(size, kernel, (1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", ["SAME", (0, 2, 1), None])
@pytest.mark.parametrize("groups", [1, 3])
def test_padding_and_groups(padding: tuple | str | None, groups: int) -> None:
    layer = Conv(6, 9, (3, 4, 3), (2, 1, 2), padding, groups=groups, dtype=jnp.float32, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    x, kernel = jnp.asarray(draw(2, 5, 6, 7, 6)), layer.kernel[...]
    assert kernel.shape == (3, 4, 3, 6 // groups, 9) and kernel.dtype == jnp.float32
    pads = {"SAME": "SAME", None: [(1, 1), (2, 2), (1, 1)]}.get(padding, [(0, 0), (2, 2), (1, 1)])  # type: ignore[arg-type]
    axes = ("NDHWC", "DHWIO", "NDHWC")
    want = jax.lax.conv_general_dilated(x, kernel, (2, 1, 2), pads, dimension_numbers=axes, feature_group_count=groups)
    np.testing.assert_allclose(layer(x), want, atol=1e-4)


def test_a_convolution_is_computed_in_its_dtype_and_keeps_a_float32_kernel() -> None:
    layer = Conv(3, 4, (1, 3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert (layer.strides, layer.padding, layer.groups) == ((1, 1, 1), (0, 1, 1), 1)
    assert layer(jnp.zeros((1, 2, 4, 4, 3))).dtype == jnp.bfloat16 and layer.kernel[...].dtype == jnp.float32
    wide = Conv(8, 64, (3, 3, 3), dtype=jnp.float32, rngs=nnx.Rngs(0)).kernel[...]
    np.testing.assert_allclose(np.std(wide), (2 / (27 * 64)) ** 0.5, rtol=0.02)  # He et al. over the fan-out
    np.testing.assert_allclose(np.abs(wide).max() / np.std(wide), 4, atol=0.8)  # normal, not cut off


def test_batch_norm_with_and_without_gamma() -> None:
    norm = BatchNorm(3, epsilon=0.5, momentum=0.75, use_scale=False, rngs=nnx.Rngs(0))
    assert norm.norm.scale is None and BatchNorm(3, epsilon=0.5, momentum=0.75, rngs=nnx.Rngs(0)).norm.scale is not None
    x = draw(2, 3, 4, 4, 3) + 2
    mean, var = x.mean((0, 1, 2, 3)), x.var((0, 1, 2, 3))
    np.testing.assert_allclose(norm(jnp.asarray(x)), (x - mean) / np.sqrt(var + 0.5), atol=1e-5)
    np.testing.assert_allclose(norm.norm.mean[...], 0.25 * mean, atol=1e-6)
    np.testing.assert_allclose(norm.norm.var[...], 0.75 + 0.25 * var, atol=1e-5)


def test_keys_for_initialization_are_those_of_the_stream() -> None:
    rngs, same = nnx.Rngs(4), nnx.Rngs(4)
    rngs.params()
    same.params()
    keys = InitKeys(rngs)
    for _ in range(3):
        np.testing.assert_array_equal(jax.random.key_data(keys.params()), jax.random.key_data(same.params()))
    assert int(rngs.params.count[...]) == 1
    keys.close()
    assert int(rngs.params.count[...]) == 4
    np.testing.assert_array_equal(jax.random.key_data(rngs.params()), jax.random.key_data(same.params()))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_channels_of_zeros_stay_zeros_and_count_for_nothing(training: bool) -> None:
    """Convolution -> BN -> convolution, computed at a larger width between the two."""

    def run(width: int) -> tuple:
        first = Conv(3, 5, (1, 3, 3), dtype=jnp.float32, rngs=nnx.Rngs(0))
        norm = BatchNorm(5, epsilon=1e-5, momentum=0.9, rngs=nnx.Rngs(1))
        last = Conv(5, 4, (3, 1, 1), dtype=jnp.float32, rngs=nnx.Rngs(2))
        assert norm.norm.bias is not None
        norm.norm.mean[...], norm.norm.bias[...] = jnp.arange(5.0), jnp.ones(5)
        layers = nnx.List([first, norm, last])
        layers.train() if training else layers.eval()

        def loss(layers: nnx.List, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            between = layers[1](layers[0](x, width))
            y = layers[2](between)
            return jnp.sum(jnp.sin(y)), (y, between)

        (_, (y, between)), gradients = nnx.value_and_grad(loss, has_aux=True, argnums=(0, 1))(
            layers, draw(2, 3, 4, 4, 3)
        )
        assert between.shape[-1] == width and not np.any(between[..., 5:])
        return y, gradients, nnx.state(layers, nnx.BatchStat)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(5), run(8))


@pytest.mark.parametrize("wide", [0, 8])
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_after_a_convolution_is_batch_norm_of_it(training: bool, use_scale: bool, wide: int) -> None:
    conv = Conv(3, 5, (3, 3, 3), dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm = BatchNorm(5, epsilon=1e-3, momentum=0.9, use_scale=use_scale, rngs=nnx.Rngs(0))
    assert norm.norm.bias is not None
    if norm.norm.scale is not None:
        norm.norm.scale[...] = draw(5, seed=1)
    norm.norm.bias[...], norm.norm.mean[...], norm.norm.var[...] = (
        draw(5, seed=2),
        draw(5, seed=3),
        draw(5, seed=4) ** 2,
    )
    (norm.train if training else norm.eval)()
    x = jnp.asarray(draw(2, 4, 6, 6, 3))
    other = nnx.clone(norm)
    want, got = norm(conv(x, wide)), other.after(functools.partial(conv, out_channels=wide), x)
    assert got.shape == (2, 4, 6, 6, wide or 5) and not got[..., 5:].any()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(other), nnx.state(norm))


def test_in_bfloat16_a_scale_in_the_kernel_is_as_exact_as_one_after_it() -> None:
    """Against float32, over many values; the mean is far from zero, so that the bias has to cancel most of it."""
    norm = BatchNorm(64, epsilon=1e-5, momentum=0.9, rngs=nnx.Rngs(0))
    convs = [Conv(32, 64, (3, 3, 3), dtype=dtype, rngs=nnx.Rngs(0)) for dtype in (jnp.float32, jnp.bfloat16)]
    x = jnp.asarray(draw(2, 4, 8, 8, 32)) + 3
    y = convs[0](x)
    norm.norm.mean[...], norm.norm.var[...] = y.mean((0, 1, 2, 3)), y.var((0, 1, 2, 3))
    assert norm.norm.scale is not None
    norm.norm.scale[...] = draw(64, seed=1)
    norm.eval()
    exact = norm(y)
    errors = [np.abs(value.astype(np.float32) - exact).mean() for value in (norm(convs[1](x)), norm.after(convs[1], x))]
    assert errors[1] < 1.25 * errors[0]
