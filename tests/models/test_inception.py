"""The parts of an Inception: gates, branches, separable units and pools, each against plain numpy and lax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.models import inception
from r23d_jax.models.inception import Gate, InceptionSpec, Mixed, Shared, Stage, Stem

S3D = InceptionSpec(separable=True, same_padding=False, bn_scale=True)


def shared(spec: InceptionSpec, dtype: Any = jnp.float32) -> Shared:
    return Shared(spec, dtype, nnx.Rngs(0))


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_a_gate_weighs_channels_by_their_mean_over_the_clip() -> None:
    gate: Any = Gate(4, shared(S3D))
    x = draw(2, 3, 2, 5, 4)
    gate.fc.bias[...] = jnp.asarray([0.5, -1.0, 2.0, 0.0])
    mean = np.asarray(x).mean((1, 2, 3))
    weight = 1 / (1 + np.exp(-(mean @ np.array(gate.fc.kernel[...]) + np.array(gate.fc.bias[...]))))
    np.testing.assert_allclose(gate(x), np.asarray(x) * weight[:, None, None, None], atol=1e-5)
    assert Gate(4, shared(S3D, jnp.bfloat16))(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("gated", [False, True])
def test_four_branches_side_by_side(gated: bool) -> None:
    spec = InceptionSpec(separable=gated, gated=gated, bn_scale=True)
    block = Mixed(8, (2, 3, 4, 5, 6, 7), shared(spec))
    block.eval()
    x = draw(2, 3, 4, 4, 8)

    def branches(block: Mixed, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        pads = ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))
        pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 3, 1), (1,) * 5, pads)
        parts = [
            block.branch0(x),
            block.branch1[1](block.branch1[0](x)),
            block.branch2[1](block.branch2[0](x)),
            block.branch3(pooled),
        ]
        return block(x), [gate(part) for gate, part in zip(block.gates, parts, strict=True)] if gated else parts

    whole, parts = jax.jit(branches)(block, x)
    assert [part.shape[-1] for part in parts] == [2, 4, 6, 7] and len(block.gates) == 4 * gated
    np.testing.assert_allclose(whole, jnp.concatenate(parts, -1), atol=1e-6)
    assert np.asarray(whole).min() >= 0
    kernels = [unit.conv.kernel.shape for unit in (block.branch1[0], block.branch2[0], block.branch3)]  # type: ignore[union-attr]
    assert kernels == [(1, 1, 1, 8, 3), (1, 1, 1, 8, 5), (1, 1, 1, 8, 7)]
    full: Any = block.branch2[1]
    if gated:
        assert full.spatial.conv.kernel.shape == (1, 3, 3, 5, 6) and full.temporal.conv.kernel.shape == (3, 1, 1, 6, 6)
    else:
        assert full.conv.kernel.shape == (3, 3, 3, 5, 6)


def test_a_unit_is_a_convolution_bn_and_relu_with_the_specs_constants() -> None:
    for spec in (InceptionSpec(), S3D):
        unit: Any = inception._unit(3, 4, 7, 2, shared(spec, jnp.bfloat16))
        parts = (unit.spatial, unit.temporal) if spec.separable else (unit,)
        wanted = [(1, 2, 2), (2, 1, 1)] if spec.separable else [(2, 2, 2)]
        assert [part.conv.strides for part in parts] == wanted
        for part in parts:
            norm = part.norm.norm
            assert (norm.epsilon, norm.momentum, norm.scale is None) == (1e-3, 0.999, not spec.bn_scale)
            assert part.conv.dtype == jnp.bfloat16
            even = tuple(size // 2 for size in part.conv.kernel.shape[:3])
            assert part.conv.padding == ("SAME" if spec.same_padding else even)
        y = unit(draw(1, 4, 9, 9, 3).astype(jnp.bfloat16))
        assert y.shape == (1, 2, 5, 5, 4) and y.dtype == jnp.bfloat16 and y.min() >= 0
    point: Any = inception._unit(3, 4, 1, 1, shared(S3D))
    assert point.conv.kernel.shape == (1, 1, 1, 3, 4)  # 1x1x1 is not separated


@pytest.mark.slow
@pytest.mark.parametrize("spec", [InceptionSpec(), InceptionSpec(separable=True, gated=True, same_padding=False)])
def test_stem_and_stages_halve_what_the_pools_halve(spec: InceptionSpec) -> None:
    """Of 18 frames of 65 pixels: SAME rounds up, and the last pool of S3D, which has no padding, rounds down."""

    def shapes() -> list[tuple[int, ...]]:
        own = shared(spec)
        x, found = jnp.zeros((1, 18, 65, 65, 3)), []
        for part in (Stem(3, own), *(Stage(index, own) for index in range(4))):
            x = part(x)
            found.append(x.shape[1:])
        return [jnp.zeros(shape) for shape in found]  # type: ignore[return-value]

    found = [leaf.shape for leaf in jax.eval_shape(shapes)]  # type: ignore[attr-defined]
    last = (3, 3) if spec.same_padding else (2, 2)
    assert found == [
        (9, 17, 17, 64), (9, 9, 9, 192), (5, 5, 5, 480), (last[0], last[1], last[1], 832),
        (last[0], last[1], last[1], 1024),
    ]  # fmt: skip
    assert spec.feature_grid(18, 65) == (last[0], last[1], last[1])


def test_gates_of_a_stage_come_after_conv2_and_inside_the_blocks() -> None:
    gated = InceptionSpec(separable=True, gated=True)
    first, second = (nnx.eval_shape(lambda index=index: Stage(index, shared(gated))) for index in (0, 1))
    assert [type(block).__name__ for block in first.blocks] == ["Unit", "SeparableUnit", "Gate"]
    assert [type(block).__name__ for block in second.blocks] == ["Mixed", "Mixed"]
    plain = nnx.eval_shape(lambda: Stage(0, shared(InceptionSpec())))
    assert [type(block).__name__ for block in plain.blocks] == ["Unit", "Unit"]


@pytest.mark.parametrize("same", [False, True])
def test_pools_pad_as_their_authors_do(same: bool) -> None:
    spec, x = InceptionSpec(same_padding=same), draw(1, 5, 6, 7, 2)
    for index, (window, strides) in enumerate(inception._POOLS):
        pads = (
            "SAME" if same else [(0, 0), *((0, 0) if window == (2, 2, 2) else (k // 2, k // 2) for k in window), (0, 0)]
        )
        want = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), pads)
        np.testing.assert_array_equal(inception._pool(x, index, spec), want)
