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

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, M, D), (B, N, D) -> (B, M, D)."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.query(queries)), split(self.key(tokens)), split(self.value(tokens))
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, head: dict[str, Any]):
        super().__init__()
        hidden = round(head["mlp_ratio"] * dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, head["num_heads"])
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(head["transformer_dropout"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y))
        y = self.dropout(functional.gelu(self.linear1(self.norm2(x))))
        return x + self.dropout(self.linear2(y))


class ViTHead(nn.Module):
    """CLS and the tokens through transformer blocks; CLS is classified."""

    def __init__(self, channels: int, num_classes: int, head: dict[str, Any]):
        super().__init__()
        dim = head["hidden_dim"] or channels
        self.tokenizer = Tokenizer(channels, head)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, head) for _ in range(head["num_layers"])))
        self.norm, self.dropout = nn.LayerNorm(dim, eps=1e-6), nn.Dropout(head["dropout"])
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, num_classes)."""
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.tokenizer(x)], dim=1)
        return self.classifier(self.dropout(self.norm(self.blocks(tokens)[:, 0])))


class AttentionPoolHead(nn.Module):
    """A learned query attends to the tokens; then a residual MLP."""

    def __init__(self, channels: int, num_classes: int, head: dict[str, Any]):
        super().__init__()
        dim = head["hidden_dim"] or channels
        hidden = round(head["mlp_ratio"] * dim)
        self.tokenizer, self.token_norm = Tokenizer(channels, head), nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.attention, self.norm = Attention(dim, head["num_heads"]), nn.LayerNorm(dim, eps=1e-6)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout, self.classifier = nn.Dropout(head["dropout"]), nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, num_classes)."""
        tokens = self.token_norm(self.tokenizer(x))
        y = self.attention(self.query.expand(x.shape[0], -1, -1), tokens)
        y = y + self.linear2(functional.gelu(self.linear1(self.norm(y))))
        return self.classifier(self.dropout(y[:, 0]))


HEADS = {"vit": ViTHead, "attention_pool": AttentionPoolHead}
