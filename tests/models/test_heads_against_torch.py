"""Heads against torch networks with the same values: logits and every gradient, with every option, in training too.

Dropout is compared exactly: the torch networks draw their masks from the same keys, in the order of their own layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.config import HeadConfig
from r23d_jax.models.heads import HeadPlace, interpolate_positions, make_head
from r23d_jax.models.network import Triple

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
pytestmark = pytest.mark.parity

CHANNELS, CLASSES, GRID = 12, 5, (2, 3, 2)
PLAIN = HeadConfig(kind="vit", num_heads=2, num_layers=2, dropout=0.0, transformer_dropout=0.0)
OPTIONS = {
    "plain": {},
    "one layer": {"num_layers": 1},
    "time": {"tokens": "time"},
    "width": {"hidden_dim": 8, "num_heads": 4},
    "wide mlp": {"mlp_ratio": 2.5},
    "dropout": {"dropout": 0.4},
    "transformer dropout": {"transformer_dropout": 0.3},
    "fewer tokens": {"token_keep": 0.4},
    "embedding dropout": {"embedding_dropout": 0.3},
    "attention dropout": {"attention_dropout": 0.4},
    "residual": {"residual": True, "dropout": 0.4},
    "residual, width": {"residual": True, "hidden_dim": 8, "tokens": "time"},
    "everything": {
        "tokens": "time",
        "hidden_dim": 6,
        "num_layers": 3,
        "dropout": 0.2,
        "transformer_dropout": 0.5,
        "token_keep": 0.5,
        "embedding_dropout": 0.2,
        "attention_dropout": 0.3,
        "residual": True,
    },
}


class Drop(torch.nn.Module):
    """Dropout whose masks come from jax's keys."""

    def __init__(self, rate: float, keys: nnx.Rngs | None):
        super().__init__()
        self.rate, self.keys = rate, keys

    def forward(self, x: Any) -> Any:
        if self.keys is None or self.rate == 0.0:
            return x
        kept = jax.random.bernoulli(self.keys.dropout(), 1 - self.rate, tuple(x.shape))
        return x * torch.tensor(np.array(kept)) / (1 - self.rate)


class Tokens(torch.nn.Module):
    """Projected places of the feature map (B, T, H, W, C), and their positions; a share of them in training."""

    def __init__(self, cfg: HeadConfig, keys: nnx.Rngs | None):
        super().__init__()
        dim = cfg.hidden_dim or CHANNELS
        grid = GRID if cfg.tokens == "space_time" else (GRID[0], 1, 1)
        self.cfg, self.keys = cfg, keys
        self.projection = torch.nn.Linear(CHANNELS, dim) if cfg.hidden_dim else torch.nn.Identity()
        self.positions = torch.nn.Parameter(torch.zeros(*grid, dim))

    def forward(self, x: Any) -> Any:
        if self.cfg.tokens == "time":
            x = x.mean((2, 3), keepdim=True)
        x = (self.projection(x) + self.positions).flatten(1, 3)
        if self.keys is None or self.cfg.token_keep == 1.0:
            return x
        draws = np.array(jax.random.uniform(self.keys.dropout(), tuple(x.shape[:2])))
        kept = torch.tensor(np.argsort(draws, axis=1)[:, : max(1, round(self.cfg.token_keep * x.shape[1]))])
        return torch.take_along_dim(x, kept[..., None], 1)


class DroppedAttention(torch.nn.MultiheadAttention):
    """The same, with dropout of the attention weights, whose masks torch's own could not take from elsewhere."""

    def __init__(self, dim: int, cfg: HeadConfig, keys: nnx.Rngs):
        super().__init__(dim, cfg.num_heads, batch_first=True)
        self.drop = Drop(cfg.attention_dropout, keys)

    def forward(self, query: Any, key: Any, value: Any, **_: Any) -> Any:
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            torch.nn.functional.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in projections
        )
        weights = self.drop((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), None


def attention(dim: int, cfg: HeadConfig, keys: nnx.Rngs | None) -> Any:
    if keys is not None and cfg.attention_dropout:
        return DroppedAttention(dim, cfg, keys)
    return torch.nn.MultiheadAttention(dim, cfg.num_heads, batch_first=True)


class Residual(torch.nn.Module):
    """mean + scale * output, the latter projected back to the mean's width."""

    def __init__(self, cfg: HeadConfig):
        super().__init__()
        self.projection = torch.nn.Linear(cfg.hidden_dim, CHANNELS) if cfg.hidden_dim else torch.nn.Identity()
        self.layer_scale = torch.nn.Parameter(torch.zeros(1, CHANNELS))

    def forward(self, x: Any, y: Any) -> Any:
        return x.mean((1, 2, 3)) + self.layer_scale * self.projection(y)


class ViT(torch.nn.Module):
    """CLS and the tokens through torch's own pre-LN encoder layers; CLS is normalized and classified."""

    def __init__(self, cfg: HeadConfig, keys: nnx.Rngs | None):
        super().__init__()
        dim = cfg.hidden_dim or CHANNELS
        self.tokenizer = Tokens(cfg, keys)
        self.cls = torch.nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = torch.nn.ModuleList(encoder_layer(dim, cfg, keys) for _ in range(cfg.num_layers))
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.embedding_dropout, self.dropout = Drop(cfg.embedding_dropout, keys), Drop(cfg.dropout, keys)
        self.residual = Residual(cfg) if cfg.residual else None
        self.classifier = torch.nn.Linear(CHANNELS if cfg.residual else dim, CLASSES)

    def forward(self, x: Any) -> Any:
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), self.tokenizer(x)], 1)
        tokens = self.embedding_dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        y = self.norm(tokens[:, 0])
        return self.classifier(self.dropout(self.residual(x, y) if self.residual else y))


def encoder_layer(dim: int, cfg: HeadConfig, keys: nnx.Rngs | None) -> Any:
    layer = torch.nn.TransformerEncoderLayer(
        dim,
        cfg.num_heads,
        round(cfg.mlp_ratio * dim),
        dropout=0.0,
        activation="gelu",
        norm_first=True,
        batch_first=True,
        layer_norm_eps=1e-6,
    )
    layer.self_attn = attention(dim, cfg, keys)
    layer.dropout1, layer.dropout, layer.dropout2 = (Drop(cfg.transformer_dropout, keys) for _ in range(3))
    return layer


class AttentionPool(torch.nn.Module):
    """A query attends to the normalized tokens; then a residual MLP on its normalized value, and the classifier."""

    def __init__(self, cfg: HeadConfig, keys: nnx.Rngs | None):
        super().__init__()
        dim = cfg.hidden_dim or CHANNELS
        hidden = round(cfg.mlp_ratio * dim)
        self.tokenizer = Tokens(cfg, keys)
        self.token_norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.query = torch.nn.Parameter(torch.zeros(1, 1, dim))
        self.self_attn = attention(dim, cfg, keys)
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.linear1, self.linear2 = torch.nn.Linear(dim, hidden), torch.nn.Linear(hidden, dim)
        self.embedding_dropout, self.dropout = Drop(cfg.embedding_dropout, keys), Drop(cfg.dropout, keys)
        self.residual = Residual(cfg) if cfg.residual else None
        self.classifier = torch.nn.Linear(CHANNELS if cfg.residual else dim, CLASSES)

    def forward(self, x: Any) -> Any:
        tokens = self.token_norm(self.embedding_dropout(self.tokenizer(x)))
        y, _ = self.self_attn(self.query.expand(len(x), -1, -1), tokens, tokens)
        y = (y + self.linear2(torch.nn.functional.gelu(self.linear1(self.norm(y)))))[:, 0]
        return self.classifier(self.dropout(self.residual(x, y) if self.residual else y))


def under_torch_names(tree: Any) -> dict[str, np.ndarray]:
    """The values of a head, or their gradients, as the torch networks above name and shape them."""
    named, projections = {}, {}
    for path, variable in nnx.to_flat_state(tree):
        value, name = np.array(variable[...]), ".".join(map(str, path))
        if "attention" not in name:
            value = value.T if name.endswith("kernel") else value
            named[name.replace(".kernel", ".weight").replace(".scale", ".weight")] = value
            continue
        module, part, leaf = name.rsplit(".", 2)
        module = module.replace("attention", "self_attn")
        if part == "out":
            leaf, value = ("weight", value.reshape(-1, value.shape[-1]).T) if leaf == "kernel" else (leaf, value)
            named[f"{module}.out_proj.{leaf}"] = value
        else:
            value = value.reshape(value.shape[0], -1).T if leaf == "kernel" else value.ravel()
            projections[module, leaf, part] = value
    for module, leaf in {key[:2] for key in projections}:
        parts = [projections[module, leaf, part] for part in ("query", "key", "value")]
        named[f"{module}.in_proj_{'weight' if leaf == 'kernel' else 'bias'}"] = np.concatenate(parts)
    return named


def build(cfg: HeadConfig) -> Any:
    """A head with random values everywhere, biases and scales included."""
    head: Any = make_head(HeadPlace(CHANNELS, CLASSES, GRID, (1, 1, 1), jnp.float32, nnx.Rngs(0)), cfg)
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(head, nnx.Param)):
        value = rng.standard_normal(variable.shape) * (0.4 if path[-1] == "kernel" else 0.7)
        variable[...] = (value + (path[-1] == "scale")).astype(np.float32)
    return head


@pytest.mark.parametrize(
    ("options", "training"),
    [
        pytest.param(options, training, marks=pytest.mark.long if not training and number else [])
        for number, options in enumerate(OPTIONS)
        for training in (True, False)
    ],
)
@pytest.mark.parametrize(("kind", "peer"), [("vit", ViT), ("attention_pool", AttentionPool)])
def test_logits_and_gradients_equal_torch(kind: str, peer: Any, options: str, training: bool) -> None:
    cfg = HeadConfig(**vars(PLAIN) | {"kind": kind} | OPTIONS[options])
    head, key = build(cfg), jax.random.key(7)
    head.train() if training else head.eval()
    theirs = peer(cfg, nnx.Rngs(dropout=key) if training else None)
    values = under_torch_names(nnx.state(head, nnx.Param))
    theirs.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    x = np.random.default_rng(1).standard_normal((3, *GRID, CHANNELS)).astype(np.float32)

    graph, params, rest = nnx.split(head, nnx.Param, ...)

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> Any:
            logits = nnx.merge(graph, params, rest)(x, nnx.Rngs(dropout=key) if training else None)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    (gradients, x_gradient), logits = run(params, x)
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs_logits = theirs(theirs_x)
    theirs_logits.sin().sum().backward()

    np.testing.assert_allclose(logits, theirs_logits.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(x_gradient, theirs_x.grad.numpy(), atol=5e-5)
    ours = under_torch_names(gradients)
    assert ours.keys() == {name for name, _ in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), atol=1e-4, err_msg=name)
    assert np.abs(theirs_x.grad.numpy()).max() > 1e-2


@pytest.mark.parametrize("window", [(2, 2, 3), (1, 4, 4), (5, 1, 2)])
def test_the_average_pool_is_the_mean_of_the_means_of_all_windows(window: Triple) -> None:
    """A window that is longer than the feature map is as long as it."""
    place = HeadPlace(CHANNELS, CLASSES, (3, 4, 5), window, jnp.float32, nnx.Rngs(0))
    head: Any = make_head(place, HeadConfig(kind="avgpool", dropout=0.0))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, CHANNELS)).astype(np.float32)
    size = tuple(min(w, n) for w, n in zip(window, (3, 4, 5), strict=True))
    pooled = torch.nn.functional.avg_pool3d(torch.tensor(x.transpose(0, 4, 1, 2, 3)), size, stride=1).mean((2, 3, 4))
    want = pooled.numpy() @ np.array(head.classifier.kernel[...])
    np.testing.assert_allclose(head(jnp.asarray(x)), want, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 3, 2), (2, 5, 7), (3, 4, 4)])
def test_positions_grow_as_torch_interpolates(grid: Triple) -> None:
    positions = np.random.default_rng(0).standard_normal((*GRID, 6)).astype(np.float32)
    tensor = torch.tensor(positions.transpose(3, 0, 1, 2)[None])
    want = torch.nn.functional.interpolate(tensor, grid, mode="trilinear", align_corners=False)[0]
    got = interpolate_positions(jnp.asarray(positions), grid)
    np.testing.assert_allclose(got, want.numpy().transpose(1, 2, 3, 0), atol=1e-5)
