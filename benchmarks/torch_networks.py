"""The networks to time r23d_jax against, in plain torch: torchvision's r3d_18 and r2plus1d_18, and R(2+3)D-18 + ViT.

They are those of the definition that `export --definition` writes.
"""

from typing import Any

from r23d_jax.weights import torch_definition

_VIT = {"kind": "vit", "tokens": "space_time", "num_layers": 1, "num_heads": 8, "hidden_dim": 0, "mlp_ratio": 4.0}
_VIT |= {"dropout": 0.5, "transformer_dropout": 0.1, "token_keep": 1.0}
_VIT |= {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual": False}
_R2PLUS3D = {
    "convolutions": ("2d", "2d", "3d", "3d"),
    "stem": "1x7x7",
    "stem_pool": "2d",
    "widths": (64, 128, 256, 256),
}
FIELDS: dict[str, dict[str, Any]] = {
    "r3d_18": {"convolutions": ("3d",) * 4},
    "r2plus1d_18": {"convolutions": ("2plus1d",) * 4, "stem": "factorized", "mid_planes": "per_block"},
    "r2plus3d_18+vit": _R2PLUS3D | {"final_relu": False, "head": _VIT},
}


def make_network(name: str, num_frames: int, size: int, num_classes: int = 101) -> torch_definition.Network:
    """The peer of a row of `steps.NETWORKS`."""
    fields = FIELDS[name] | {"backbone": "resnet", "num_classes": num_classes}
    if "head" in fields:
        side = -(-size // 32)
        fields["head"] = fields["head"] | {"grid": (-(-num_frames // 4), side, side)}
    return torch_definition.build(fields)
