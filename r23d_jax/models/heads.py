"""Heads turn the last feature map (B, T, H, W, C) into logits: average pool, attention pool, or a vision transformer.

The ViT head runs tokens of the feature map and a CLS token through pre-LN transformer blocks (Dosovitskiy et al. 2021,
arXiv:2010.11929). On a 3D CNN the literature's best is one layer of eight heads over one token per time step (Kalfaoglu
et al. 2020, arXiv:2008.01232). With `residual`, the ViT head and the attention pool start as the average pool.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax import config
from r23d_jax.config import ConfigError, HeadConfig, look_up
from r23d_jax.models.network import Triple

# Axes of (B, T, H, W, C) that are averaged before each remaining place becomes a token
TOKENS = {"space_time": (), "time": (2, 3)}
assert tuple(TOKENS) == config.TOKENS

token_init = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class HeadPlace:
    """What a head is built for."""

    channels: int  # width of the backbone's last feature map
    num_classes: int  # number of logits
    grid: Triple  # (time, height, width) of that feature map at the training clip size
    window: Triple  # the average pool's, see `AvgPoolHead`
    dtype: DTypeLike  # of the computation
    rngs: nnx.Rngs  # `params` initializes

    def width(self, cfg: HeadConfig) -> int:
        """The tokens' width; raises ConfigError if the attention heads do not divide it."""
        width = cfg.hidden_dim or self.channels
        if width % cfg.num_heads:
            raise ConfigError(f"model.head.num_heads={cfg.num_heads}: must divide the head's width of {width}")
        return width


class AvgPoolHead(nnx.Module):
    """Mean over time and space, dropout, linear; reads `cfg.dropout`.

    I3D and S3D have a `place.window` (time, height, width) other than (1, 1, 1). They take the mean of the means of all
    such windows, so places at the border count less. A smaller feature map is one window.
    """

    def __init__(self, place: HeadPlace, cfg: HeadConfig):
        self.window = place.window
        self.dropout = nnx.Dropout(cfg.dropout)
        self.classifier = nnx.Linear(place.channels, place.num_classes, rngs=place.rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> (B, num_classes) float32."""
        return self.classifier(self.dropout(_average(x, self.window), rngs=rngs))


def _average(x: jax.Array, window: Triple) -> jax.Array:
    """(B, T, H, W, C) -> (B, C) float32."""
    x = x.astype(jnp.float32)
    if window == (1, 1, 1):
        return jnp.mean(x, axis=(1, 2, 3))
    weights = [_window_weights(n, size) for n, size in zip(x.shape[1:4], window, strict=True)]
    return jnp.einsum("bthwc,t,h,w->bc", x, *weights)


def _window_weights(length: int, window: int) -> np.ndarray:
    """The weight of each of `length` places in the mean of the means of all windows."""
    window = min(window, length)
    counts = np.convolve(np.ones(length - window + 1), np.ones(window))
    return (counts / counts.sum()).astype(np.float32)


class NoHead(nnx.Module):
    """Leaves the feature map as it is."""

    def __init__(self, place: HeadPlace, cfg: HeadConfig):
        del place, cfg

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> same."""
        del rngs
        return x


def _attention(dim: int, cfg: HeadConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(
        cfg.num_heads,
        dim,
        dtype=dtype,
        dropout_rate=cfg.attention_dropout,
        broadcast_dropout=False,  # a mask for every clip and head
        decode=False,
        deterministic=True,
        keep_rngs=False,
        rngs=rngs,
    )


def _mlp_width(dim: int, cfg: HeadConfig) -> int:
    width = round(cfg.mlp_ratio * dim)
    if width < 1:
        raise ConfigError(f"model.head.mlp_ratio={cfg.mlp_ratio:g}: leaves no channel of {dim}; at least {1 / dim:g}")
    return width


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); exact GELU."""

    def __init__(self, dim: int, cfg: HeadConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.attention = _attention(dim, cfg, dtype, rngs)
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        hidden = _mlp_width(dim, cfg)
        self.linear1 = nnx.Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(cfg.transformer_dropout)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, N, D) float32 -> same."""
        x = x + self.dropout(self.attention(self.norm1(x), rngs=rngs), rngs=rngs)
        y = nnx.gelu(self.linear1(self.norm2(x)), approximate=False)
        return x + self.dropout(self.linear2(self.dropout(y, rngs=rngs)), rngs=rngs)


class Tokenizer(nnx.Module):
    """The feature map as tokens with learned positions: one for each place that `cfg.tokens` leaves, see `TOKENS`."""

    def __init__(self, place: HeadPlace, cfg: HeadConfig):
        dim = cfg.hidden_dim or place.channels
        self.averaged = look_up(TOKENS, cfg.tokens, "model.head.tokens")
        self.projection = (
            nnx.Linear(place.channels, dim, dtype=place.dtype, rngs=place.rngs) if cfg.hidden_dim else None
        )
        grid = (1 if axis in self.averaged else size for axis, size in enumerate(place.grid, start=1))
        self.positions = nnx.Param(token_init(place.rngs.params(), (*grid, dim), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, N, D) float32; positions are interpolated if the grid differs."""
        if self.averaged:
            x = jnp.mean(x.astype(jnp.float32), axis=self.averaged, keepdims=True)
        if self.projection is not None:
            x = self.projection(x)
        positions = interpolate_positions(self.positions[...], (x.shape[1], x.shape[2], x.shape[3]))
        x = x.astype(jnp.float32) + positions[None]
        return x.reshape(x.shape[0], -1, x.shape[-1])


def interpolate_positions(positions: jax.Array, grid: Triple) -> jax.Array:
    """Resizes learned positions (T, H, W, D) linearly to another clip length or crop, (T', H', W', D)."""
    if positions.shape[:3] == tuple(grid):
        return positions
    return jax.image.resize(positions, (*grid, positions.shape[-1]), "linear")


class Residual(nnx.Module):
    """Adds a transformer's output to the average pool, so that a head starts as one and can only add to it.

    mean + scale * y, where `layer_scale` has a value per channel and starts at zero (Bachlechner et al. 2020,
    arXiv:2003.04887; per channel as in Touvron et al. 2021, arXiv:2103.17239). An output of `cfg.hidden_dim` is
    projected to the mean's width first.
    """

    def __init__(self, place: HeadPlace, cfg: HeadConfig):
        self.window = place.window
        self.projection = nnx.Linear(cfg.hidden_dim, place.channels, rngs=place.rngs) if cfg.hidden_dim else None
        self.layer_scale = nnx.Param(jnp.zeros((1, place.channels)))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The feature map (B, T, H, W, C) and the output (B, D) -> (B, C) float32."""
        y = y.astype(jnp.float32)
        y = y if self.projection is None else self.projection(y)
        return _average(x, self.window) + self.layer_scale[...] * y


def _residual_and_classifier(place: HeadPlace, cfg: HeadConfig) -> tuple[Residual | None, nnx.Linear]:
    if cfg.residual:  # the classifier is the average pool's
        return Residual(place, cfg), nnx.Linear(place.channels, place.num_classes, rngs=place.rngs)
    return None, nnx.Linear(place.width(cfg), place.num_classes, kernel_init=token_init, rngs=place.rngs)


class ViTHead(nnx.Module):
    """Runs CLS and the tokens through transformer blocks; CLS is normalized, dropped out and classified."""

    def __init__(self, place: HeadPlace, cfg: HeadConfig):
        dim, dtype, rngs = place.width(cfg), place.dtype, place.rngs
        self.tokenizer = Tokenizer(place, cfg)
        self.cls = nnx.Param(token_init(rngs.params(), (1, 1, dim), jnp.float32))
        self.blocks = nnx.List([TransformerBlock(dim, cfg, dtype=dtype, rngs=rngs) for _ in range(cfg.num_layers)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.token_keep = TokenDrop(cfg.token_keep)
        self.embedding_dropout = nnx.Dropout(cfg.embedding_dropout)
        self.dropout = nnx.Dropout(cfg.dropout)
        self.residual, self.classifier = _residual_and_classifier(place, cfg)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> (B, num_classes) float32."""
        tokens = self.token_keep(self.tokenizer(x), rngs)
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, tokens.shape[-1]))
        tokens = self.embedding_dropout(jnp.concatenate([cls, tokens], axis=1), rngs=rngs)
        for block in self.blocks:
            tokens = block(tokens, rngs)
        y = self.norm(tokens[:, 0])
        return self.classifier(self.dropout(y if self.residual is None else self.residual(x, y), rngs=rngs))


class TokenDrop(nnx.Module):
    """While training, keeps round(keep * N) random tokens of every clip."""

    def __init__(self, keep: float):
        self.keep = keep
        self.deterministic = False  # set by train() and eval()

    def __call__(self, tokens: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, N, D) -> (B, N', D)."""
        if self.deterministic or self.keep == 1.0:
            return tokens
        if rngs is None:
            raise ValueError(
                "dropping tokens needs a key: call the model with rngs=nnx.Rngs(dropout=key), or model.eval()"
            )
        count = max(1, round(self.keep * tokens.shape[1]))
        order = jnp.argsort(jax.random.uniform(rngs.dropout(), tokens.shape[:2]), axis=1)[:, :count]
        return jnp.take_along_axis(tokens, order[..., None], axis=1)


class AttentionPoolHead(nnx.Module):
    """One learned query attends to the tokens; then a residual MLP, dropout, linear (the MAP head of big_vision)."""

    def __init__(self, place: HeadPlace, cfg: HeadConfig):
        dim, dtype, rngs = place.width(cfg), place.dtype, place.rngs
        self.tokenizer = Tokenizer(place, cfg)
        self.token_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.query = nnx.Param(token_init(rngs.params(), (1, 1, dim), jnp.float32))
        self.attention = _attention(dim, cfg, dtype, rngs)
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        hidden = _mlp_width(dim, cfg)
        self.linear1 = nnx.Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.token_keep = TokenDrop(cfg.token_keep)
        self.embedding_dropout = nnx.Dropout(cfg.embedding_dropout)
        self.dropout = nnx.Dropout(cfg.dropout)
        self.residual, self.classifier = _residual_and_classifier(place, cfg)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> (B, num_classes) float32."""
        tokens = self.token_keep(self.tokenizer(x), rngs)
        tokens = self.token_norm(self.embedding_dropout(tokens, rngs=rngs))
        query = jnp.broadcast_to(self.query[...], (x.shape[0], 1, tokens.shape[-1]))
        y = self.attention(query, tokens, rngs=rngs)
        y = (y + self.linear2(nnx.gelu(self.linear1(self.norm(y)), approximate=False)))[:, 0]
        return self.classifier(self.dropout(y if self.residual is None else self.residual(x, y), rngs=rngs))


# A config cannot have "none", because a run trains a classifier.
HEADS: dict[str, Callable[[HeadPlace, HeadConfig], nnx.Module]] = {
    "avgpool": AvgPoolHead,
    "vit": ViTHead,
    "attention_pool": AttentionPoolHead,
    "none": NoHead,
}
assert tuple(HEADS) == (*config.HEADS, "none")


def make_head(place: HeadPlace, cfg: HeadConfig) -> nnx.Module:
    """The head that `cfg` asks for.

    Raises:
      ConfigError: for an unknown kind or tokens, or attention heads that do not divide the width.
    """
    return look_up(HEADS, cfg.kind, "model.head.kind")(place, cfg)
