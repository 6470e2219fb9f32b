"""What turns the last feature map (B, T, H, W, C) into logits: average pool, attention pool, or a vision transformer.
Or nothing, which leaves the feature map.

The ViT head reads tokens of the feature map and a CLS token through pre-LN transformer blocks (Dosovitskiy et al. 2021,
arXiv:2010.11929). On a 3D CNN the literature's best is one layer of eight heads over one token per time step (Kalfaoglu
et al. 2020, arXiv:2008.01232).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from r23d_jax.config import HEADS, TOKENS, ConfigError, HeadConfig, nearest

Grid = tuple[int, int, int]

token_init = nnx.initializers.truncated_normal(0.02)


class AvgPoolHead(nnx.Module):
    """Mean over time and space, dropout, linear.

    Args:
      channels: of the feature map.
      num_classes: logits.
      cfg: `dropout` is read.
      window: (time, height, width). Where it is not (1, 1, 1), the mean is one of the means of all such windows, so
        that places at the border count less; I3D and S3D are defined so. A smaller feature map is one window.
    """

    def __init__(self, channels: int, num_classes: int, cfg: HeadConfig, *, window: Grid = (1, 1, 1), rngs: nnx.Rngs):
        self.window = window
        self.dropout = nnx.Dropout(cfg.dropout)
        self.classifier = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> (B, num_classes) float32."""
        x = x.astype(jnp.float32)
        if self.window == (1, 1, 1):
            pooled = jnp.mean(x, axis=(1, 2, 3))
        else:
            weights = [_window_weights(n, size) for n, size in zip(x.shape[1:4], self.window, strict=True)]
            pooled = jnp.einsum("bthwc,t,h,w->bc", x, *weights)
        return self.classifier(self.dropout(pooled, rngs=rngs))


def _window_weights(length: int, window: int) -> np.ndarray:
    """How much each of `length` places counts in the mean of the means of all windows of neighbours."""
    window = min(window, length)
    counts = np.convolve(np.ones(length - window + 1), np.ones(window))
    return (counts / counts.sum()).astype(np.float32)


class NoHead(nnx.Module):
    """Leaves the feature map as it is."""

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> same."""
        del rngs
        return x


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); exact GELU."""

    def __init__(self, dim: int, cfg: HeadConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            cfg.num_heads, dim, dtype=dtype, decode=False, deterministic=True, keep_rngs=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        hidden = round(cfg.mlp_ratio * dim)
        self.linear1 = nnx.Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(cfg.transformer_dropout)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, N, D) float32 -> same."""
        x = x + self.dropout(self.attention(self.norm1(x)), rngs=rngs)
        y = nnx.gelu(self.linear1(self.norm2(x)), approximate=False)
        return x + self.dropout(self.linear2(self.dropout(y, rngs=rngs)), rngs=rngs)


class Tokenizer(nnx.Module):
    """The feature map as tokens with learned positions.

    Args:
      channels: of the feature map.
      grid: (time, height, width) of the feature map that positions are learned for.
      cfg: `tokens` is "space_time" (every place) or "time" (the mean over space, one per time step).
    """

    def __init__(self, channels: int, grid: Grid, cfg: HeadConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim = cfg.hidden_dim or channels
        self.per_place = cfg.tokens == "space_time"
        self.projection = nnx.Linear(channels, dim, dtype=dtype, rngs=rngs) if cfg.hidden_dim else None
        grid = grid if self.per_place else (grid[0], 1, 1)
        self.positions = nnx.Param(token_init(rngs.params(), (*grid, dim), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, N, D) float32; positions are interpolated where the grid is another one."""
        if not self.per_place:
            x = jnp.mean(x.astype(jnp.float32), axis=(2, 3), keepdims=True)
        if self.projection is not None:
            x = self.projection(x)
        x = (
            x.astype(jnp.float32)
            + interpolate_positions(self.positions[...], (x.shape[1], x.shape[2], x.shape[3]))[None]
        )
        return x.reshape(x.shape[0], -1, x.shape[-1])


def interpolate_positions(positions: jax.Array, grid: Grid) -> jax.Array:
    """Learned positions (T, H, W, D) for another clip length or crop, (T', H', W', D), by linear interpolation."""
    if positions.shape[:3] == tuple(grid):
        return positions
    return jax.image.resize(positions, (*grid, positions.shape[-1]), "linear")


class ViTHead(nnx.Module):
    """CLS and the tokens through transformer blocks; CLS is normalized, dropped out and classified."""

    def __init__(
        self, channels: int, num_classes: int, grid: Grid, cfg: HeadConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        dim = cfg.hidden_dim or channels
        self.tokenizer = Tokenizer(channels, grid, cfg, dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(token_init(rngs.params(), (1, 1, dim), jnp.float32))
        self.blocks = nnx.List([TransformerBlock(dim, cfg, dtype=dtype, rngs=rngs) for _ in range(cfg.num_layers)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.token_keep = TokenDrop(cfg.token_keep)
        self.dropout = nnx.Dropout(cfg.dropout)
        self.classifier = nnx.Linear(dim, num_classes, kernel_init=token_init, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> (B, num_classes) float32."""
        tokens = self.token_keep(self.tokenizer(x), rngs)
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, tokens.shape[-1]))
        tokens = jnp.concatenate([cls, tokens], axis=1)
        for block in self.blocks:
            tokens = block(tokens, rngs)
        return self.classifier(self.dropout(self.norm(tokens[:, 0]), rngs=rngs))


class TokenDrop(nnx.Module):
    """While training, keeps a random subset of round(keep * N) tokens, another one for every clip."""

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

    def __init__(
        self, channels: int, num_classes: int, grid: Grid, cfg: HeadConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        dim = cfg.hidden_dim or channels
        self.tokenizer = Tokenizer(channels, grid, cfg, dtype=dtype, rngs=rngs)
        self.token_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.query = nnx.Param(token_init(rngs.params(), (1, 1, dim), jnp.float32))
        self.attention = nnx.MultiHeadAttention(
            cfg.num_heads, dim, dtype=dtype, decode=False, deterministic=True, keep_rngs=False, rngs=rngs
        )
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        hidden = round(cfg.mlp_ratio * dim)
        self.linear1 = nnx.Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.token_keep = TokenDrop(cfg.token_keep)
        self.dropout = nnx.Dropout(cfg.dropout)
        self.classifier = nnx.Linear(dim, num_classes, kernel_init=token_init, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, T, H, W, C) -> (B, num_classes) float32."""
        tokens = self.token_norm(self.token_keep(self.tokenizer(x), rngs))
        query = jnp.broadcast_to(self.query[...], (x.shape[0], 1, tokens.shape[-1]))
        y = self.attention(query, tokens)
        y = y + self.linear2(nnx.gelu(self.linear1(self.norm(y)), approximate=False))
        return self.classifier(self.dropout(y[:, 0], rngs=rngs))


def make_head(
    channels: int,
    num_classes: int,
    grid: Grid,
    cfg: HeadConfig,
    *,
    window: Grid = (1, 1, 1),
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The head that `cfg` asks for.

    Args:
      channels: of the backbone's last feature map.
      num_classes: logits.
      grid: (time, height, width) of that feature map at the clip size to be trained on.
      cfg: the head's config; its kind may also be "none", which leaves the feature map.
      window: of the average pool, see `AvgPoolHead`.
      dtype: of the computation.
      rngs: `params` initializes.

    Raises:
      ConfigError: for an unknown kind or tokens, or heads that do not divide the width.
    """
    if cfg.kind == "none":
        return NoHead()
    if cfg.kind not in HEADS:
        raise ConfigError(f"head {cfg.kind!r} is unknown; {nearest(cfg.kind, HEADS)}")
    if cfg.kind == "avgpool":
        return AvgPoolHead(channels, num_classes, cfg, window=window, rngs=rngs)
    if cfg.tokens not in TOKENS:
        raise ConfigError(f"head tokens {cfg.tokens!r} are unknown; {nearest(cfg.tokens, TOKENS)}")
    dim = cfg.hidden_dim or channels
    if dim % cfg.num_heads:
        raise ConfigError(f"model.head.num_heads={cfg.num_heads}: must divide the head's width of {dim}")
    kind = ViTHead if cfg.kind == "vit" else AttentionPoolHead
    return kind(channels, num_classes, grid, cfg, dtype=dtype, rngs=rngs)
