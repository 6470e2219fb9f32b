"""Heads: tokens kept and dropped, positions for another grid, refusals, and the transformer block against torch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.config import HEADS, ConfigError, HeadConfig
from r23d_jax.models.heads import HeadPlace, TokenDrop, TransformerBlock, interpolate_positions, make_head
from r23d_jax.models.network import Triple
from r23d_jax.models.registry import FAMILIES, names_of


def place(grid: Triple) -> HeadPlace:
    """Of eight channels, for five classes."""
    return HeadPlace(8, 5, grid, (1, 1, 1), jnp.float32, nnx.Rngs(0))


def abstract(head: HeadConfig, **fields) -> models.VideoNetwork:
    fields = {"num_classes": 5, "num_frames": 8, "crop_size": 32, "widths": (4, 6, 8, 8)} | fields
    return nnx.eval_shape(lambda: models.create_model("r2plus3d_10", head=head, rngs=nnx.Rngs(0), **fields))


@pytest.mark.parametrize("tokens", ["space_time", "time"])
@pytest.mark.parametrize("kind", ["vit", "attention_pool"])
def test_positions_are_learned_per_token(kind: str, tokens: str) -> None:
    """Of 8 frames of 64 pixels, R(2+3)D leaves 2 x 2 x 2."""
    head: Any = abstract(HeadConfig(kind=kind, tokens=tokens, num_heads=2), crop_size=64).head
    grid = (2, 2, 2) if tokens == "space_time" else (2, 1, 1)
    assert head.tokenizer.positions.shape == (*grid, 8)


RESIDUAL = [
    HeadConfig(kind=kind, tokens=tokens, hidden_dim=hidden, num_heads=2, residual=True)
    for kind in ("vit", "attention_pool")
    for tokens in ("space_time", "time")
    for hidden in (0, 6)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "window"),
    [
        *((cfg, (1, 1, 1)) for cfg in RESIDUAL),
        *((cfg, (2, 2, 1)) for cfg in RESIDUAL if not cfg.hidden_dim),
    ],
    ids=lambda value: f"{value.kind}, {value.tokens}, {value.hidden_dim}" if isinstance(value, HeadConfig) else None,
)
def test_a_residual_head_starts_as_the_average_pool(cfg: HeadConfig, window: Triple) -> None:
    """With its classifier the logits are the same bits; the scale learns at once, and then the transformer does."""
    where = HeadPlace(8, 5, (2, 3, 2), window, jnp.float32, nnx.Rngs(0))
    head: Any = make_head(where, cfg)
    pool: Any = make_head(where, dataclasses.replace(cfg, kind="avgpool"))
    for module in (head, pool):
        module.eval()
    nnx.update(head.classifier, nnx.state(pool.classifier))
    x = jax.random.normal(jax.random.key(0), (4, 2, 3, 2, 8))
    np.testing.assert_array_equal(head(x), pool(x))

    graph, params, rest = nnx.split(head, nnx.Param, ...)
    loss = lambda params: jnp.sum(jnp.sin(3 * nnx.merge(graph, params, rest)(x)))  # noqa: E731
    size = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    first = gradient(params)
    assert size(first["residual"]["layer_scale"]) > 1e-3 and size(first["tokenizer"]) == 0.0
    params = jax.tree.map(lambda value, slope: value - 0.1 * slope, params, first)
    assert size(params["residual"]["layer_scale"]) > 1e-4 and size(gradient(params)["tokenizer"]) > 1e-6
    assert not np.allclose(nnx.merge(graph, params, rest)(x), head(x), atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "attention_pool"])
def test_a_residual_head_adds_a_scale_per_channel_and_a_projection_back(kind: str) -> None:
    def count(**fields: Any) -> int:
        made = nnx.eval_shape(lambda: make_head(place((2, 2, 2)), HeadConfig(kind=kind, num_heads=2, **fields)))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))

    assert count(residual=True) == count() + 8
    wider = (6 + 1) * 8 + (8 - 6) * 5  # the projection, and a classifier of eight channels instead of six
    assert count(residual=True, hidden_dim=6) == count(hidden_dim=6) + 8 + wider


@pytest.mark.parametrize("kind", HEADS)
def test_a_network_reads_longer_and_larger_clips_than_it_was_made_for(kind: str) -> None:
    model = abstract(HeadConfig(kind=kind, num_heads=2, hidden_dim=16 if kind == "vit" else 0))
    graph, state = nnx.split(model)
    read = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    for shape in ((1, 8, 32, 32, 3), (3, 16, 48, 80, 3)):
        model.eval()
        graph, state = nnx.split(model)
        assert jax.eval_shape(read, state, jnp.zeros(shape)).shape == (shape[0], 5)


def traced(module: nnx.Module, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What an abstract module makes of its input, in evaluation mode."""
    module.eval()
    graph, state = nnx.split(module)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, x)


def on_backbone(name: str, kind: str) -> models.VideoNetwork:
    head = HeadConfig(kind=kind, num_heads=2)
    return nnx.eval_shape(
        lambda: models.create_model(name, num_classes=5, head=head, num_frames=16, crop_size=64, rngs=nnx.Rngs(0))
    )


@functools.cache
def feature_map(name: str) -> jax.ShapeDtypeStruct:
    return traced(on_backbone(name, "none"), jax.ShapeDtypeStruct((2, 16, 64, 64, 3), jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", [names_of(family)[0] for family in FAMILIES])
def test_every_head_on_every_network(name: str, kind: str) -> None:
    """On the feature map of the backbone, which all heads share."""
    logits = traced(on_backbone(name, kind).head, feature_map(name))
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)


def test_interpolated_positions() -> None:
    positions = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    assert interpolate_positions(positions, (2, 3, 3)) is positions
    constant = interpolate_positions(jnp.full((2, 3, 3, 4), 1.5), (4, 5, 7))
    np.testing.assert_allclose(constant, np.full((4, 5, 7, 4), 1.5), rtol=1e-6)
    ramp = jnp.arange(2.0).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(interpolate_positions(ramp, (4, 1, 1)).ravel(), [0, 0.25, 0.75, 1], atol=1e-6)


def test_tokens_are_dropped_in_training_only() -> None:
    tokens = jnp.broadcast_to(jnp.arange(20.0)[None, :, None], (3, 20, 2))
    drop = TokenDrop(0.35)
    kept = np.asarray(drop(tokens, nnx.Rngs(dropout=0)))[..., 0]
    assert kept.shape == (3, 7)
    assert all(len(set(row)) == 7 and set(row) <= set(range(20)) for row in kept.tolist())
    assert len({tuple(sorted(row)) for row in kept.tolist()}) == 3  # another subset for every clip
    with pytest.raises(ValueError) as caught:
        drop(tokens)
    assert str(caught.value) == (
        "dropping tokens needs a key: call the model with rngs=nnx.Rngs(dropout=key), or model.eval()"
    )
    drop.deterministic = True
    assert drop(tokens) is tokens


@pytest.mark.parametrize("kind", ["vit", "attention_pool"])
def test_heads_drop_tokens_while_training_only(kind: str) -> None:
    """Without any other dropout, two keys differ in the tokens they keep."""
    cfg = HeadConfig(kind=kind, num_heads=2, dropout=0.0, transformer_dropout=0.0, token_keep=0.5)
    head: Any = make_head(place((2, 2, 2)), cfg)
    x = 100 * jax.random.normal(jax.random.key(0), (2, 2, 2, 2, 8))
    read = jax.jit(lambda head, x, key: head(x, nnx.Rngs(dropout=key)))
    assert not np.allclose(read(head, x, jax.random.key(0)), read(head, x, jax.random.key(1)), atol=1e-4)
    with pytest.raises(ValueError, match="dropping tokens needs a key"):
        head(x)
    head.eval()
    np.testing.assert_array_equal(read(head, x, jax.random.key(0)), read(head, x, jax.random.key(1)))


def test_the_class_token_is_what_a_vit_head_classifies() -> None:
    """Blocks that add nothing leave CLS as it was, whatever the clip shows; every other token shows the clip."""
    cfg = HeadConfig(kind="vit", num_heads=2, num_layers=2)
    head: Any = make_head(place((2, 2, 2)), cfg)
    head.eval()
    for block in head.blocks:
        for layer in (block.attention.out, block.linear2):
            layer.kernel[...], layer.bias[...] = jnp.zeros_like(layer.kernel[...]), jnp.zeros_like(layer.bias[...])
    logits = head(jax.random.normal(jax.random.key(0), (2, 2, 2, 2, 8)))
    wanted = head.classifier(head.norm(head.cls[...]))[0]
    np.testing.assert_allclose(logits, np.broadcast_to(wanted, (2, 5)), rtol=1e-5, atol=1e-7)
    assert np.abs(wanted).max() > 1e-3


def test_one_token_is_kept_at_least() -> None:
    tokens = jnp.arange(5.0)[None, :, None]
    assert TokenDrop(0.01)(tokens, nnx.Rngs(dropout=0)).shape == (1, 1, 1)
    assert TokenDrop(0.5)(tokens, nnx.Rngs(dropout=0)).shape == (1, 2, 1)
    assert TokenDrop(1.0)(tokens) is tokens


def products(jaxpr: Any) -> list[str]:
    """The dtype of the first factor of every matrix product of a program."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(str(equation.invars[0].aval.dtype))
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            found += products(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize(("kind", "count"), [("vit", 1 + 2 * 8), ("attention_pool", 1 + 8)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_everything_but_the_classifier_is_computed_in_the_dtype(
    kind: str, count: int, dtype: Any, residual: bool
) -> None:
    """The projection; per layer the query, key, value, two products of attention, its output and the MLP's two.

    A residual head's projection back is part of the classifier here.
    """
    cfg = HeadConfig(kind=kind, num_heads=2, num_layers=2, hidden_dim=6, residual=residual)
    head: Any = make_head(HeadPlace(8, 5, (2, 2, 2), (1, 1, 1), dtype, nnx.Rngs(0)), cfg)
    head.eval()
    program = jax.make_jaxpr(lambda x: head(x))(jnp.zeros((2, 2, 2, 2, 8), dtype))
    assert products(program.jaxpr) == [jnp.dtype(dtype).name] * count + ["float32"] * (1 + residual)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(head, nnx.Param))} == {jnp.dtype("float32")}


def test_the_average_pool_sums_in_float32_and_drops_before_the_classifier() -> None:
    head: Any = make_head(place((2, 2, 2)), HeadConfig(kind="avgpool", dropout=0.25))
    x = jnp.asarray(1 + 1e-2 * np.random.default_rng(0).standard_normal((3, 2, 2, 2, 8)), jnp.bfloat16)
    pooled = np.asarray(x, np.float32).mean((1, 2, 3))
    kept = np.array(jax.random.bernoulli(nnx.Rngs(dropout=5).dropout(), 0.75, pooled.shape))
    kernel = np.array(head.classifier.kernel[...])
    np.testing.assert_allclose(head(x, nnx.Rngs(dropout=5)), pooled * kept / 0.75 @ kernel, atol=1e-5)
    head.eval()
    np.testing.assert_allclose(head(x), pooled @ kernel, atol=1e-5)


def test_tokens_of_time_steps_are_averaged_in_float32() -> None:
    tokenizer: Any = make_head(place((2, 2, 2)), HeadConfig(kind="vit", num_heads=2, tokens="time")).tokenizer  # type: ignore[union-attr]
    x = jnp.asarray(1 + 1e-2 * np.random.default_rng(0).standard_normal((3, 2, 2, 2, 8)), jnp.bfloat16)
    want = np.asarray(x, np.float32).mean((2, 3)) + np.array(tokenizer.positions[...]).reshape(2, 8)
    np.testing.assert_allclose(tokenizer(x), want, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "attention_pool"])
def test_tokens_and_the_classifier_begin_small_and_all_differently(kind: str) -> None:
    """A normal of 0.02, cut at twice that, so 0.0176 is left; layers inside keep flax's own initialization."""
    cfg = HeadConfig(kind=kind, num_heads=2, num_layers=2)
    head: Any = make_head(HeadPlace(64, 500, (4, 5, 5), (1, 1, 1), jnp.float32, nnx.Rngs(0)), cfg)
    single = head.cls if kind == "vit" else head.query
    assert single.shape == (1, 1, 64) and head.tokenizer.positions.shape == (4, 5, 5, 64)
    for value, slack in ((single, 0.006), (head.tokenizer.positions, 0.001), (head.classifier.kernel, 0.001)):
        assert abs(float(jnp.std(value[...])) - 0.0176) < slack and value[...].dtype == jnp.float32
    flat = [np.array(leaf).ravel()[:8].tobytes() for leaf in jax.tree.leaves(nnx.state(head, nnx.Param))]
    random = [values for values in flat if np.std(np.frombuffer(values, np.float32)) > 0]
    assert len(set(random)) == len(random) >= 9
    inner = head.blocks[0].linear1 if kind == "vit" else head.linear1
    assert inner.kernel.shape == (64, 256) and abs(float(jnp.std(inner.kernel[...])) - 1 / 8) < 0.01  # lecun


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HeadConfig(kind="vitt"), r"model\.head\.kind='vitt': unknown; did you mean vit"),
        (HeadConfig(kind="vit", tokens="space"), r"model\.head\.tokens='space': unknown; .*space_time"),
        (HeadConfig(kind="vit", num_heads=3), r"model\.head\.num_heads=3: must divide the head's width of 8$"),
        (
            HeadConfig(kind="attention_pool", num_heads=8, hidden_dim=12),
            r"model\.head\.num_heads=8: must divide the head's width of 12$",
        ),
        (
            HeadConfig(kind="vit", num_heads=2, mlp_ratio=0.01),
            r"model\.head\.mlp_ratio=0\.01: leaves no channel of 8; at least 0\.125$",
        ),
    ],
)
def test_refusals(head: HeadConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        make_head(place((2, 1, 1)), head)


@pytest.mark.parity
def test_transformer_block_equals_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    dim, heads = 8, 2
    ours: Any = TransformerBlock(dim, HeadConfig(num_heads=heads, mlp_ratio=4.0), dtype=jnp.float32, rngs=nnx.Rngs(0))
    theirs = torch.nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", norm_first=True, batch_first=True, layer_norm_eps=1e-6
    ).eval()
    ours.eval()
    rng = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(ours, nnx.Param)):  # at the start biases are 0 and scales 1
        if path[-1] in ("bias", "scale"):
            variable[...] = rng.uniform(0.5, 1.5, variable.shape).astype(np.float32)
    attention = ours.attention
    projections = (attention.query, attention.key, attention.value)
    weight = np.concatenate([np.array(p.kernel[...]).reshape(dim, dim).T for p in projections])
    values = {
        "norm1.weight": np.array(ours.norm1.scale[...]),
        "norm1.bias": np.array(ours.norm1.bias[...]),
        "norm2.weight": np.array(ours.norm2.scale[...]),
        "norm2.bias": np.array(ours.norm2.bias[...]),
        "self_attn.in_proj_weight": weight,
        "self_attn.in_proj_bias": np.concatenate([np.array(p.bias[...]).ravel() for p in projections]),
        "self_attn.out_proj.weight": np.array(attention.out.kernel[...]).reshape(dim, dim).T,
        "self_attn.out_proj.bias": np.array(attention.out.bias[...]),
        "linear1.weight": np.array(ours.linear1.kernel[...]).T,
        "linear1.bias": np.array(ours.linear1.bias[...]),
        "linear2.weight": np.array(ours.linear2.kernel[...]).T,
        "linear2.bias": np.array(ours.linear2.bias[...]),
    }
    theirs.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    x = np.random.default_rng(0).standard_normal((3, 5, dim)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(ours, x), want, atol=2e-5)
