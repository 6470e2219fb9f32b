"""The network as a whole: shapes, modes, clear refusals, and equality with torchvision's networks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.config import ConfigError, HeadConfig, ModelConfig
from r23d_jax.models.convolution import use_formulation
from r23d_jax.models.functional import split_model
from r23d_jax.models.registry import FAMILIES, model_config, names_of
from r23d_jax.models.video_resnet import VideoResNetSpec

SMALL = (4, 6, 8, 8)


def small(name: str = "r2plus3d_10", **fields) -> models.VideoNetwork:
    fields = {"num_classes": 5, "num_frames": 4, "crop_size": 32, "widths": SMALL, "rngs": nnx.Rngs(0)} | fields
    return models.create_model(name, **fields)


def clip(frames: int = 4, size: int = 32, batch: int = 2, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, frames, size, size, 3))


@pytest.mark.parametrize(
    "name",
    [
        *(names_of(family)[0] for family, spec in FAMILIES.items() if spec.depths),
        "r3d_50",
        "r2plus1d_50",
        "r2plus3d_50",
    ],
)
def test_every_family_maps_a_clip_to_float32_logits(name: str) -> None:
    model = nnx.eval_shape(lambda: small(name))
    graph, state = nnx.split(model)
    model.eval()
    logits = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, clip())
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize("head", ["avgpool", "attention_pool", "vit"])
def test_bfloat16_keeps_float32_parameters_and_logits(head: str) -> None:
    network, params, batch_stats = split_model(
        nnx.eval_shape(lambda: small(head=HeadConfig(kind=head, num_heads=2), dtype=jnp.bfloat16))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {jnp.dtype("float32")}
    logits, stats = jax.eval_shape(network.apply_train, params, batch_stats, clip(), jax.random.key(0))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_remat_changes_neither_loss_gradient_nor_statistics() -> None:
    def run(remat: bool) -> tuple:
        network, params, batch_stats = split_model(
            small("r2d_10", remat=remat, block_dropout=0.3, stochastic_depth=0.4)
        )

        def loss(params: dict) -> tuple:
            logits, stats = network.apply_train(params, batch_stats, clip(), jax.random.key(1))
            return jnp.sum(logits**2), stats

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(False), run(True))


@pytest.mark.parametrize("field", ["block_dropout", pytest.param("stochastic_depth", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_dropout_follows_the_key_and_is_off_in_evaluation(field: str) -> None:
    rates: dict[str, Any] = {field: 0.5}
    network, params, batch_stats = split_model(small(**rates))
    train = jax.jit(lambda key: network.apply_train(params, batch_stats, clip(), key)[0])
    first, again, other = train(jax.random.key(0)), train(jax.random.key(0)), train(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    model = network.build(params, batch_stats)
    np.testing.assert_array_equal(model(clip()), model(clip()))


@pytest.mark.parametrize(
    ("name", "strides", "steps"),
    [
        ("r2plus3d_10", (1, 2, 1), 8),
        ("r2plus3d_10", (1, 1, 1), 16),
        ("r2plus3d_10", (1, 2, 2), 4),
        ("r2plus1d_10", (2, 2, 1), 4),
        ("r3d_50", (1, 1, 2), 8),
        ("r2plus1d_mmaction_10", (1, 2, 1), 8),
        ("r3d_hara_a_10", (1, 1, 1), 8),  # its stem pools time
    ],
)
def test_temporal_strides_keep_steps_and_weights(name: str, strides: tuple[int, ...], steps: int) -> None:
    head = HeadConfig(kind="vit", num_heads=2, tokens="time")
    own, varied = (
        nnx.eval_shape(lambda fields=fields: small(name, num_frames=16, head=head, **fields))
        for fields in ({}, {"temporal_strides": strides})
    )
    positions: Any = varied.head
    assert positions.tokenizer.positions.shape[:3] == (steps, 1, 1)
    varied.eval()
    graph, state = nnx.split(varied)
    features = jax.eval_shape(lambda state, x: nnx.merge(graph, state).features(x), state, clip(16))
    assert features.shape[1:4] == varied.spec.feature_grid(16, 32) and features.shape[1] == steps
    shapes = [jax.tree.map(jnp.shape, split_model(model)[1]) for model in (own, varied)]
    for part in ("stem", "stages"):
        assert shapes[0][part] == shapes[1][part]


@pytest.mark.slow
def test_strides_of_the_family_change_nothing() -> None:
    own, same = small(), small(temporal_strides=(1, 2, 2))
    np.testing.assert_array_equal(own(clip(), nnx.Rngs(dropout=0)), same(clip(), nnx.Rngs(dropout=0)))


def test_final_relu_is_a_field() -> None:
    features = jax.jit(lambda model, x: model.features(x))
    with_relu, without = small("rmc4_10"), small("r2plus3d_10")
    assert features(with_relu, clip()).min() == 0
    assert features(without, clip()).min() < 0


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (jnp.zeros((2, 4, 32, 32, 1)), r"shape \(2, 4, 32, 32, 1\); expected \(B, T, H, W, 3\), channels last"),
        (jnp.zeros((2, 3, 4, 32, 32)), r"expected \(B, T, H, W, 3\), channels last"),
        (jnp.zeros((4, 32, 32, 3)), r"expected \(B, T, H, W, 3\)"),
        (jnp.zeros((2, 4, 32, 32, 3), jnp.uint8), r"video is uint8; expected float32, see .*prepare_video"),
    ],
)
def test_wrong_clips_are_refused(video: jax.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: small()(video))


def test_a_factorized_shortcut_has_a_channel_between() -> None:
    model = nnx.eval_shape(lambda: small("r2plus1d_mmaction_10", widths=(1, 2, 4, 8)))
    assert nnx.eval_shape(lambda m: m(clip()), model).shape[0] == clip().shape[0]


def test_r2d_refuses_clips_shorter_than_its_stem() -> None:
    with pytest.raises(ValueError, match="this network reads clips of 4 frames; got 3"):
        nnx.eval_shape(lambda: small("r2d_10")(clip(frames=3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("r2plus1d18", "model 'r2plus1d18' is unknown; did you mean r2plus1d_18"),
        ("r2plus1d_19", "model 'r2plus1d_19' is unknown; did you mean r2plus1d_1"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"convolutions": ("2d", "2plus1", "3d", "3d")},
            r"model\.convolutions='2plus1': unknown; did you mean 2plus1d",
        ),
        ({"convolutions": ("3d",) * 3}, r"model\.convolutions=\('3d', '3d', '3d'\): must have four values"),
        ({"convolutions": ("ir_csn",) * 4}, r"model\.convolutions='ir_csn': needs bottleneck=True"),
        ({"layers": (2, 2)}, r"model\.layers=\(2, 2\): must have four values"),
        ({"temporal_strides": (1, 2)}, r"model\.temporal_strides=\(1, 2\): must be \(\) or three values, each 1 or 2"),
        ({"temporal_strides": (1, 2, 3)}, r"model\.temporal_strides=\(1, 2, 3\): must be \(\) or three values"),
        (
            {"temporal_strides": (2, 2, 2), "convolutions": ("2d", "2d", "3d", "3d")},
            r"model\.temporal_strides=\(2, 2, 2\): stage 2 does not convolve time, so its stride must be 1",
        ),
        ({"stem": "1x7"}, r"model\.stem='1x7': unknown; did you mean 1x7x7"),
        ({"stem_pool": "4d"}, r"model\.stem_pool='4d': unknown; did you mean .*3d"),
        ({"shortcut": "zeros"}, r"model\.shortcut='zeros': unknown; known: projection, factorized, padded"),
        (
            {"shortcut": "padded", "widths": (64, 32, 64, 128)},
            r"model\.widths=\(64, 32, 64, 128\): must not fall, because this family's shortcuts add channels",
        ),
        ({"mid_planes": "per_stage"}, r"model\.mid_planes='per_stage': unknown; known: per_conv, per_block"),
    ],
)
def test_a_spec_refuses_names_that_no_table_has(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoResNetSpec(**(dict[str, Any](convolutions=("3d",) * 4) | fields))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("r3d_18", {"widths": (4, 6)}, r"model\.widths=\(4, 6\): must have four values"),
        ("r3d_18", {"stem_pool": "4d"}, r"model\.stem_pool='4d': unknown"),
        ("r3d_18", {"stem": "5x7x7"}, r"model\.stem='5x7x7': unknown"),
        (
            "r2plus1d_18",
            {"stem": "motion"},
            r"model\.stem='motion': this family's is 'factorized', and a factorized stem",
        ),
        ("r3d_18", {"stem": "factorized"}, r"model\.stem='factorized': this family's is '3x7x7', and a factorized"),
        ("i3d", {"stem_pool": "2d", "widths": ()}, r"model\.stem_pool='2d': this family has no such choice"),
        ("i3d", {"widths": SMALL}, r"model\.widths=\(4, 6, 8, 8\): this family has no such choice"),
    ],
)
def test_choices_that_a_family_does_not_have(name: str, fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, **fields)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (ModelConfig(family="r2plus1"), r"config\.model\.family='r2plus1': unknown; did you mean r2plus1d"),
        (
            ModelConfig(family="r3d", depth=20),
            r"config\.model\.depth=20: r3d comes with 10, 18, 34, 50, 101, 152, 200 lay",
        ),
        (
            ModelConfig(family="ir_csn", depth=18),
            r"config\.model\.depth=18: ir_csn comes with 50, 101, 152, 200 layers",
        ),
    ],
)
def test_a_config_of_an_unknown_network(cfg: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.model_name(cfg)


def test_every_listed_name_is_known() -> None:
    names = models.list_models()
    assert [models.model_name(model_config(name)) for name in names] == names
    assert models.model_name(ModelConfig(family="i3d", depth=18)) == "i3d"
    assert "r2plus1d_18" in names and "r2plus3d_34" in names and len(names) == len(set(names))
    assert all(models.model_spec(name) for name in names)


@pytest.mark.parametrize(
    ("form", "kind", "stem", "pool"),
    [("padded", "2plus1d", "factorized", "none"), ("paired", "2plus1d", "factorized", "none"),
     ("paired", "2d", "motion", "2d")],
)  # fmt: skip
def test_other_channels_train_to_the_same_parameters(form: str, kind: str, stem: str, pool: str) -> None:
    """Twenty steps of a stem and a stage: inner widths of 45 and 18 as 48 and 24 or 90 and 36, or pairs of frames."""
    spec = VideoResNetSpec(
        (kind, kind, kind, kind), layers=(1, 1, 1, 1), widths=(8, 8, 8, 8), stem=stem, stem_pool=pool
    )
    first, (stage, *_) = spec.parts(3, 4, jnp.float32, nnx.Rngs(0))
    graph, params, rest = nnx.split(nnx.List([first, stage]), nnx.Param, ...)
    video, side = clip(size=16), 4 if pool == "2d" else 8
    target = jax.random.normal(jax.random.key(1), (2, 4, side, side, 8))

    def train(form: str) -> tuple[nnx.State, nnx.State]:
        def loss(params: nnx.State, rest: nnx.State) -> tuple[jax.Array, nnx.State]:
            stem, stage = layers = nnx.merge(graph, params, rest, copy=True)
            return jnp.mean((stage(stem(video)) - target) ** 2), nnx.state(layers, nnx.Not(nnx.Param))

        @jax.jit
        def step(params: nnx.State, rest: nnx.State) -> tuple[nnx.State, nnx.State]:
            gradients, rest = jax.grad(loss, has_aux=True)(params, rest)
            return jax.tree.map(lambda value, slope: value - 0.1 * slope, params, gradients), rest

        trained, statistics = params, rest
        with use_formulation(form):
            for _ in range(20):
                trained, statistics = step(trained, statistics)
        return trained, statistics

    plain, other = train("direct"), train(form)
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), plain, (params, rest))
    assert min(jax.tree.leaves(moved)) > 5e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), plain, other)


# Of a stem with a max-pool: how many of the first three layers, the stem and two stages, compute on pairs of frames
PAIRS = {
    "pairs to the second stage": ({}, 4, 3),
    "the motion stem": ({"stem": "motion"}, 4, 3),
    "two blocks a stage": ({"layers": (2, 2, 1, 1)}, 4, 3),
    "time in the second stage": ({"convolutions": ("2d", "3d", "3d", "3d"), "temporal_strides": (1, 1, 1)}, 4, 2),
    "time in the first stage": ({"convolutions": ("3d", "2d", "2d", "2d")}, 4, 1),
    "shortcuts without parameters": ({"shortcut": "padded", "widths": (40, 70, 70, 70)}, 4, 2),
    "factorized shortcuts": ({"shortcut": "factorized"}, 4, 2),
    "stochastic depth": ({"stochastic_depth": 0.5}, 4, 3),
    "factorized convolutions": ({"convolutions": ("2plus3d",) * 4}, 4, 1),
    "dropout in blocks": ({"block_dropout": 0.5}, 4, 1),
    "an odd number of frames": ({}, 5, 0),
    "a pool over time": ({"stem_pool": "3d"}, 4, 0),
    "a factorized stem": ({"stem": "factorized"}, 4, 0),
    "a stem as long as the clip": ({"stem": "Lx7x7"}, 4, 0),
    "bottlenecks": ({"bottleneck": True}, 4, 1),
}


def with_pairs(case: str) -> tuple[VideoResNetSpec, int, int]:
    changes, frames, paired = PAIRS[case]
    kinds = ("2d", "2d", "3d", "3d")
    spec = VideoResNetSpec(kinds, layers=(1, 1, 1, 1), widths=(40, 70, 6, 6), stem_pool="2d")
    return dataclasses.replace(spec, **changes), frames, paired


@pytest.mark.parametrize("case", PAIRS)
def test_what_computes_on_pairs_of_frames(case: str) -> None:
    spec, frames, paired = with_pairs(case)
    stem, stages = nnx.eval_shape(lambda: spec.parts(3, frames, jnp.bfloat16, nnx.Rngs(0)))
    graph, state = nnx.split(nnx.List([stem, *stages[:2]]))

    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        stem, *stages = nnx.merge(graph, state)
        x = stem(x)
        for stage in stages:
            x = stage(x, nnx.Rngs(dropout=1), remat=True)
        return x

    shapes = "bf16[2,2,8,8,80] = conv", "bf16[2,2,4,4,80] = conv", "bf16[2,2,2,2,140] = conv"
    for form, wanted in (("paired", paired), ("direct", 0)):
        with use_formulation(form):
            video = jax.ShapeDtypeStruct((2, frames, 16, 16, 3), jnp.bfloat16)
            program = str(jax.make_jaxpr(lambda state, x: run(state, x))(state, video))
        assert [shape in program for shape in shapes] == [number < wanted for number in range(3)]


QUICK_PAIRS, SLOW_PAIRS = ("the motion stem",), ("bottlenecks",)


@pytest.mark.parametrize(
    ("case", "evaluated"),
    [
        ("pairs to the second stage", True),
        *((case, False) for case in QUICK_PAIRS),
        *(pytest.param(case, False, marks=pytest.mark.slow) for case in SLOW_PAIRS),
        *(pytest.param(case, False, marks=pytest.mark.long) for case in PAIRS if case not in QUICK_PAIRS + SLOW_PAIRS),
    ],
)
def test_pairs_of_frames_change_no_value(case: str, evaluated: bool) -> None:
    spec, frames, _ = with_pairs(case)
    with jax.enable_x64(True):
        stem, stages = spec.parts(3, frames, jnp.float64, nnx.Rngs(0))
        layers = nnx.List([stem, *stages[:2]])
        layers.eval() if evaluated else layers.train()
        graph, params, rest = nnx.split(layers, nnx.Param, ...)
        params, rest = jax.tree.map(
            lambda value: 1.1 * value.astype(float) + 0.1 if value.dtype == jnp.float32 else value, (params, rest)
        )
        video = jax.random.normal(jax.random.key(0), (2, frames, 16, 16, 3), jnp.float64)

        def loss(params: nnx.State, video: jax.Array) -> tuple[jax.Array, tuple]:
            x, layers = video, nnx.merge(graph, params, rest, copy=True)
            stem, *stages = layers
            x = stem(x)
            for stage in stages:
                x = stage(x, nnx.Rngs(dropout=1))
            return jnp.sum(jnp.sin(jnp.arange(x.size).reshape(x.shape)) * x), (x, nnx.state(layers, nnx.BatchStat))

        def run(form: str) -> tuple:
            with use_formulation(form):
                return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, video)

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), run("paired"), run("direct")
        )
