"""Stems, blocks and shortcuts of residual networks, each against the same layers called one by one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.config import ConfigError
from r23d_jax.models.factorized import CONVOLUTIONS, FactorizedConv, Place, factorized_width
from r23d_jax.models.network import Triple
from r23d_jax.models.registry import model_spec
from r23d_jax.models.video_resnet import ResidualBlock, Stage, Stem, VideoResNetSpec

PLAIN = VideoResNetSpec(("3d",) * 4, widths=(4, 6, 8, 10))  # type: ignore[arg-type]


def place(entering: int, leaving: int, strides: Triple, spec: VideoResNetSpec, dtype: Any = jnp.float32) -> Place:
    return Place(entering, leaving, strides, spec, dtype, nnx.Rngs(0))


def clip(channels: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 6, 5, channels)), jnp.float32)


def randomized(module: Any) -> Any:
    """In evaluation mode, with statistics and BN values as after training."""
    rng = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        if path[-1] != "kernel":
            variable[...] = rng.uniform(0.5, 1.5, variable.shape).astype(np.float32)
    module.eval()
    return module


def assert_same(module: Any, by_hand: Any, x: jax.Array) -> jax.Array:
    ours, want = jax.jit(lambda module, x: (module(x), by_hand(module, x)))(module, x)
    np.testing.assert_allclose(ours, want, atol=1e-5)
    return ours


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2)])
def test_a_basic_block(strides: Triple, relu: bool) -> None:
    leaving = 4 if strides == (1, 1, 1) else 6
    block = randomized(ResidualBlock(place(4, leaving, strides, PLAIN), leaving, "3d", relu))

    def by_hand(block: Any, x: jax.Array) -> jax.Array:
        y = block.norm2(block.conv2(nnx.relu(block.norm1(block.conv1(x)))))
        y = y + (x if block.shortcut is None else block.shortcut.norm(block.shortcut.conv(x)))
        return nnx.relu(y) if relu else y

    y = assert_same(block, by_hand, clip(4))
    assert y.shape == ((2, 4, 6, 5, 4) if strides == (1, 1, 1) else (2, 2, 3, 3, 6))
    assert (np.asarray(y).min() >= 0) == relu and (block.shortcut is None) == (strides == (1, 1, 1))
    assert block.conv1.strides == strides and block.conv2.strides == (1, 1, 1)
    assert block.conv1.kernel.shape == (3, 3, 3, 4, leaving) and block.conv2.kernel.shape == (3, 3, 3, leaving, leaving)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.slow
def test_a_skipped_block_is_its_shortcut_for_some_clips_and_scaled_for_the_others(bottleneck: bool) -> None:
    """Each clip is skipped or kept whole; in evaluation the block is what it is without."""
    spec = dataclasses.replace(PLAIN, bottleneck=bottleneck)
    own = place(4, 12, (2, 2, 2), spec)
    width = 3 if bottleneck else 12
    block, plain = (ResidualBlock(own, width, "3d", relu=False, skipped=skipped) for skipped in (0.5, 0.0))
    nnx.update(plain, nnx.state(block, nnx.Param))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 4, 6, 5, 4)), jnp.float32)
    run = jax.jit(lambda block, x, key: block(x, nnx.Rngs(dropout=key)))
    short: Any = block.shortcut
    for module in (block, plain):
        module.train()
    whole, shortcut = plain(x), jax.jit(lambda short, x: short(x))(short, x)
    kept = []
    for found, sum_, alone in zip(run(block, x, jax.random.key(0)), whole, shortcut, strict=True):
        kept.append(not np.allclose(found, alone, atol=1e-5))
        np.testing.assert_allclose(found, alone + 2 * (sum_ - alone) * kept[-1], atol=2e-4)
    assert 3 <= sum(kept) <= 13
    for module in (block, plain):
        module.eval()
    nnx.update(plain, nnx.state(block, nnx.BatchStat))
    np.testing.assert_array_equal(run(block, x, jax.random.key(0)), run(plain, x, jax.random.key(0)))


def test_the_probability_of_a_skip_rises_linearly_to_the_last_block() -> None:
    spec = dataclasses.replace(PLAIN, layers=(1, 2, 1, 1), stochastic_depth=0.4)
    entering = (4, 4, 6, 8)
    stages = [
        nnx.eval_shape(lambda i=i: Stage(i, entering[i], spec, dtype=jnp.float32, rngs=nnx.Rngs(0))) for i in range(4)
    ]
    rates = [block.stochastic_depth.rate for stage in stages for block in stage.blocks]  # type: ignore[union-attr]
    np.testing.assert_allclose(rates, [0.08, 0.16, 0.24, 0.32, 0.4])


@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2)])
def test_a_bottleneck_is_strided_in_the_middle(strides: Triple) -> None:
    spec = dataclasses.replace(PLAIN, bottleneck=True)
    block = randomized(ResidualBlock(place(4, 12, strides, spec), 3, "3d", relu=True))

    def by_hand(block: Any, x: jax.Array) -> jax.Array:
        y = nnx.relu(block.norm1(block.conv1(x)))
        y = block.norm3(block.conv3(nnx.relu(block.norm2(block.conv2(y)))))
        return nnx.relu(y + block.shortcut.norm(block.shortcut.conv(x)))

    assert_same(block, by_hand, clip(4))
    convolutions = [block.conv1, block.conv2, block.conv3, block.shortcut.conv]
    assert [layer.strides for layer in convolutions] == [(1, 1, 1), strides, (1, 1, 1), strides]
    assert [layer.kernel.shape[:3] for layer in convolutions] == [(1, 1, 1), (3, 3, 3), (1, 1, 1), (1, 1, 1)]
    assert [layer.kernel.shape[3:] for layer in convolutions] == [(4, 3), (3, 3), (3, 12), (4, 12)]


def test_a_shortcut_stands_where_the_width_or_a_stride_changes() -> None:
    for entering, strides, wanted in ((4, (1, 1, 1), False), (6, (1, 1, 1), True), (4, (2, 1, 1), True)):
        block = nnx.eval_shape(
            lambda e=entering, s=strides: ResidualBlock(place(e, 4, s, PLAIN), 4, "3d", relu=True)  # type: ignore[misc]
        )
        assert (block.shortcut is not None) == wanted


@pytest.mark.parametrize(("kind", "second"), [("2plus1d", (3, 1, 1)), ("2plus3d", (3, 3, 3))])
@pytest.mark.parametrize("mid_planes", ["per_conv", "per_block"])
def test_a_pair_is_strided_in_space_and_then_in_time(kind: str, second: Triple, mid_planes: str) -> None:
    """Its width comes from its own input, or from its block's in torchvision's style."""
    spec = dataclasses.replace(PLAIN, mid_planes=mid_planes, mid_bn_epsilon=0.25)
    block = nnx.eval_shape(lambda: ResidualBlock(place(4, 10, (2, 2, 2), spec), 10, kind, relu=True))
    for conv, entering, strides in ((block.conv1, 4, (2, 2, 2)), (block.conv2, 10, (1, 1, 1))):
        mid = factorized_width(entering if mid_planes == "per_conv" else 4, 10, second)
        assert conv.spatial.kernel.shape == (1, 3, 3, entering, mid)  # type: ignore[union-attr]
        assert conv.temporal.kernel.shape == (*second, mid, 10)  # type: ignore[union-attr]
        assert conv.spatial.strides == (1, *strides[1:]) and conv.temporal.strides == (strides[0], 1, 1)  # type: ignore[union-attr]
        assert conv.norm.norm.epsilon == 0.25  # type: ignore[union-attr]
    assert block.norm1.norm.epsilon == 1e-5 and block.norm1.norm.momentum == 0.9
    pair = randomized(FactorizedConv(place(4, 6, (2, 1, 2), spec), (1, 3, 3), second, 5))
    assert_same(pair, lambda pair, x: pair.temporal(nnx.relu(pair.norm(pair.spatial(x)))), clip(4))


def test_the_epsilon_inside_pairs_is_the_networks_unless_it_has_its_own() -> None:
    spec = dataclasses.replace(PLAIN, bn_epsilon=0.125, bn_momentum=0.75)
    norm = place(4, 6, (1, 1, 1), spec).norm(6).norm
    assert (norm.epsilon, norm.momentum, norm.num_features) == (0.125, 0.75, 6)
    assert place(4, 6, (1, 1, 1), spec).norm(6, 0.5).norm.epsilon == 0.5


@pytest.mark.parametrize("interactions", [False, True])
def test_channel_separated_convolutions(interactions: bool) -> None:
    spec = dataclasses.replace(PLAIN, convolutions=("ip_csn",) * 4, bottleneck=True)
    own = place(6, 6, (2, 2, 2), spec, jnp.bfloat16)
    conv: Any = randomized(CONVOLUTIONS["ip_csn" if interactions else "ir_csn"].build(own, 6))
    assert conv.depthwise.kernel.shape == (3, 3, 3, 1, 6) and conv.depthwise.groups == 6
    assert conv.depthwise.strides == (2, 2, 2) and conv.depthwise.dtype == jnp.bfloat16
    assert (conv.pointwise is not None) == (conv.norm is not None) == interactions
    if interactions:
        assert conv.pointwise.kernel.shape == (1, 1, 1, 6, 6) and conv.pointwise.strides == (1, 1, 1)
        x = clip(6).astype(jnp.bfloat16)
        want = conv.depthwise(conv.norm(conv.pointwise(x)))
        # BN's scale is in the kernel here, which bfloat16 rounds
        np.testing.assert_allclose(conv(x).astype(np.float32), want.astype(np.float32), rtol=0.02, atol=0.01)


def test_a_factorized_shortcut_has_the_formulas_width() -> None:
    spec = dataclasses.replace(model_spec("r2plus1d_mmaction_10"), widths=(4, 6, 8, 10), mid_bn_epsilon=0.5)  # type: ignore[call-arg]
    block: Any = nnx.eval_shape(lambda: ResidualBlock(place(4, 6, (2, 2, 2), spec), 6, "2plus1d", relu=True))  # type: ignore[arg-type]
    shortcut = block.shortcut.conv
    mid = 3 * 4 * 6 // (4 + 3 * 6)
    assert (shortcut.spatial.kernel.shape, shortcut.temporal.kernel.shape) == ((1, 1, 1, 4, mid), (1, 1, 1, mid, 6))
    assert (shortcut.spatial.strides, shortcut.temporal.strides) == ((1, 2, 2), (2, 1, 1))


@pytest.mark.parametrize(
    ("stem", "kernels"),
    [
        ("1x7x7", [(1, 7, 7)]),
        ("3x7x7", [(3, 7, 7)]),
        ("Lx7x7", [(4, 7, 7)]),
        ("motion", [(3, 7, 7)]),
        ("factorized", [(1, 7, 7), (5, 1, 1)]),
    ],
)
@pytest.mark.parametrize("pool", ["none", "2d", "3d"])
def test_stems(stem: str, kernels: list[Triple], pool: str) -> None:
    spec = dataclasses.replace(PLAIN, stem=stem, stem_pool=pool, stem_time_kernel=5, stem_mid_channels=7)
    part: Any = randomized(Stem(3, 4, spec, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    parts = [part.conv.spatial, part.conv.temporal] if stem == "factorized" else [part.conv]
    assert [layer.kernel.shape[:3] for layer in parts] == kernels
    assert [layer.kernel.shape[3:] for layer in parts] == ([(3, 7), (7, 4)] if stem == "factorized" else [(3, 4)])
    assert parts[0].strides == (1, 2, 2) and parts[-1].kernel.shape[-1] == 4
    windows = {"none": ((1, 1, 1), (1, 1, 1)), "2d": ((1, 3, 3), (1, 2, 2)), "3d": ((3, 3, 3), (2, 2, 2))}

    def by_hand(part: Any, x: jax.Array) -> jax.Array:
        x, (window, strides) = nnx.relu(part.norm(part.conv(x))), windows[pool]
        pads = [(0, 0), *((k // 2, k // 2) for k in window), (0, 0)]
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), pads)

    y = assert_same(part, by_hand, clip(3))
    assert y.shape[1] == {"Lx7x7": 1}.get(stem, 2 if pool == "3d" else 4)


def test_a_motion_stem_is_blind_to_what_is_still() -> None:
    stem: Any = Stem(3, 4, dataclasses.replace(PLAIN, stem="motion"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    stem.conv.kernel[...] += 1.0  # whatever is learned
    still = jnp.repeat(clip(3)[:, :1], 4, 1)
    moving = still.at[:, 2, 1:4, 1:4].add(1.0)
    np.testing.assert_allclose(stem.conv(still), 0.0, atol=1e-5)  # in the first and the last frame too
    assert [bool(jnp.abs(frame).max() > 0.1) for frame in stem.conv(moving)[0]] == [False, True, True, True]
    plain: Any = Stem(3, 4, dataclasses.replace(PLAIN, stem="3x7x7"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    plain.conv.kernel[...] -= plain.conv.kernel[...].mean(0, keepdims=True)
    np.testing.assert_allclose(stem.conv(moving)[:, 1:3], plain.conv(moving)[:, 1:3], atol=1e-4)


def test_the_first_block_of_every_later_stage_halves() -> None:
    spec = dataclasses.replace(PLAIN, convolutions=("2d", "2d", "3d", "3d"), layers=(2, 3, 1, 2), final_relu=False)
    entering = (4, 4, 6, 8)
    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    for index in range(4):
        stage = nnx.eval_shape(
            lambda index=index: Stage(index, entering[index], spec, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        )
        blocks: Any = list(stage.blocks)
        assert len(blocks) == spec.layers[index]
        assert [block.conv1.strides for block in blocks] == [strides[index], *[(1, 1, 1)] * (len(blocks) - 1)]
        widths = [entering[index], *[spec.widths[index]] * len(blocks)]
        assert [block.conv1.kernel.shape[3:] for block in blocks] == list(zip(widths, widths[1:], strict=False))
        assert [block.relu for block in blocks] == [True] * (len(blocks) - 1) + [index != 3]
        assert {block.conv2.dtype for block in blocks} == {jnp.bfloat16}
        assert blocks[0].conv1.kernel.shape[0] == (1 if index < 2 else 3)
    with_relu = dataclasses.replace(spec, final_relu=True)
    last = nnx.eval_shape(lambda: Stage(3, 8, with_relu, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert [block.relu for block in last.blocks] == [True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (4, 6)}, "model.widths=(4, 6): must have four values, one for each stage"),
        ({"layers": (1,)}, "model.layers=(1,): must have four values, one for each stage"),
        (
            {"convolutions": ("2d", "2d", "2d", "ip_csn")},
            "model.convolutions='ip_csn': needs bottleneck=True, so 50 layers or more",
        ),
    ],
)
def test_what_a_spec_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(PLAIN, **fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("field", ["convolutions", "stem", "stem_pool", "mid_planes"])
def test_a_spec_names_the_field_of_an_unknown_name(field: str) -> None:
    value = ("3d", "3d", "3d", "nothing") if field == "convolutions" else "nothing"
    with pytest.raises(ConfigError, match=rf"^model\.{field}='nothing': unknown; "):
        dataclasses.replace(PLAIN, **{field: value})
