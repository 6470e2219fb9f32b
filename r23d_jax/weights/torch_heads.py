"""The transformer heads in PyTorch, which follow torch_definition.py in the file that `export --definition` writes."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Tokenizer(nn.Module):
    """The feature map as tokens with learned positions, interpolated for other sizes."""

    def __init__(self, channels: int, head: dict[str, Any]):
        super().__init__()
        dim = head["hidden_dim"] or channels
        self.over_time = head["tokens"] == "time"
        self.projection = nn.Linear(channels, dim) if head["hidden_dim"] else nn.Identity()
        self.positions = nn.Parameter(torch.randn(*head["grid"], dim) * 0.02)
        self.keep = head["token_keep"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, N, D)."""
        x = x.permute(0, 2, 3, 4, 1)
        x = self.projection(x.mean((2, 3), keepdim=True) if self.over_time else x)
        tokens = (x + resize(self.positions, x.shape[1:4])).flatten(1, 3)
        if not self.training or self.keep == 1.0:
            return tokens
        order = torch.rand(tokens.shape[:2], device=x.device).argsort(1)
        order = order[:, : max(1, round(self.keep * tokens.shape[1]))]
        return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


def resize(positions: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """(T, H, W, D) -> (T', H', W', D), linearly; smoothed where it shrinks."""
    for axis, size in enumerate(grid):
        old = positions.shape[axis]
        if old == size:
            continue
        places = (torch.arange(size, device=positions.device) + 0.5) * old / size - 0.5
        distances = (places[:, None] - torch.arange(old, device=positions.device)).abs() / max(old / size, 1.0)
        weights = (1 - distances).clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True)
        positions = torch.tensordot(weights, positions, ([1], [axis])).movedim(0, axis)  # type: ignore[arg-type]
    return positions


class Attention(nn.Module):
    """Scaled dot products of queries with the tokens."""

    def __init__(self, dim: int, head: dict[str, Any]):
        super().__init__()
        self.num_heads, self.drop = head["num_heads"], head["attention_dropout"]
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, M, D), (B, N, D) -> (B, M, D)."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.query(queries)),
            split(self.key(tokens)),
            split(self.value(tokens)),
            dropout_p=self.drop if self.training else 0.0,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, head: dict[str, Any]):
        super().__init__()
        hidden = round(head["mlp_ratio"] * dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, head)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(head["transformer_dropout"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y))
        y = self.dropout(functional.gelu(self.linear1(self.norm2(x))))
        return x + self.dropout(self.linear2(y))


class Residual(nn.Module):
    """The mean of all places and, times a scale per channel that starts at zero, the transformer's output."""

    def __init__(self, channels: int, head: dict[str, Any]):
        super().__init__()
        self.projection = nn.Linear(head["hidden_dim"], channels) if head["hidden_dim"] else nn.Identity()
        self.layer_scale = nn.Parameter(torch.zeros(1, channels))

    def forward(self, mean: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B, C), (B, D) -> (B, C)."""
        return mean + self.layer_scale * self.projection(y)


class TokenHead(nn.Module):
    """What the heads below have in common: tokens, and a classifier of `pool(x)`, or of the mean and that."""

    def __init__(self, channels: int, num_classes: int, head: dict[str, Any]):
        super().__init__()
        self.tokenizer, self.drop = Tokenizer(channels, head), nn.Dropout(head["embedding_dropout"])
        self.residual = Residual(channels, head) if head["residual"] else None
        self.dropout = nn.Dropout(head["dropout"])
        width = channels if head["residual"] else head["hidden_dim"] or channels
        self.classifier = nn.Linear(width, num_classes)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) and its mean (B, C) -> (B, num_classes)."""
        y = self.pool(x)
        return self.classifier(self.dropout(y if self.residual is None else self.residual(mean, y)))


class ViTHead(TokenHead):
    """CLS and the tokens through transformer blocks; CLS is classified."""

    def __init__(self, channels: int, num_classes: int, head: dict[str, Any]):
        super().__init__(channels, num_classes, head)
        dim = head["hidden_dim"] or channels
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, head) for _ in range(head["num_layers"])))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.tokenizer(x)], dim=1)
        return self.norm(self.blocks(self.drop(tokens))[:, 0])


class AttentionPoolHead(TokenHead):
    """A learned query attends to the tokens; then a residual MLP."""

    def __init__(self, channels: int, num_classes: int, head: dict[str, Any]):
        super().__init__(channels, num_classes, head)
        dim = head["hidden_dim"] or channels
        hidden = round(head["mlp_ratio"] * dim)
        self.token_norm = nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.attention, self.norm = Attention(dim, head), nn.LayerNorm(dim, eps=1e-6)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.token_norm(self.drop(self.tokenizer(x)))
        y = self.attention(self.query.expand(x.shape[0], -1, -1), tokens)
        return (y + self.linear2(functional.gelu(self.linear1(self.norm(y)))))[:, 0]


HEADS = {"vit": ViTHead, "attention_pool": AttentionPoolHead}
