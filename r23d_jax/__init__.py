"""Video action recognition in JAX/Flax: R(2+3)D and the whole R(2+1)D family.

    model = r23d_jax.create_model("r2plus3d_18", num_classes=101, head="vit", rngs=nnx.Rngs(0))
    model = r23d_jax.load_model("runs/r23d")
    model = r23d_jax.load_pretrained("r2plus1d_18.kinetics400")

All are called on (B, T, H, W, C) float32 and return (B, num_classes) float32 logits. Loaded ones take uint8 clips
too, and `model.predict("video.mp4")` returns probabilities by class name. `r23d_jax.predict(model, "video.mp4")` also
says what happens when in a long video.
"""

import importlib
from typing import TYPE_CHECKING, Any

from r23d_jax.runtime import backend
from r23d_jax.version import __version__  # noqa: F401

if TYPE_CHECKING:
    from r23d_jax.checkpoint.checkpoint import load_checkpoint
    from r23d_jax.evaluation.answer import predict
    from r23d_jax.evaluation.trained import from_pretrained, load_model, load_pretrained
    from r23d_jax.models.registry import create_model, list_models
    from r23d_jax.weights.inflate import inflate
    from r23d_jax.weights.pretrained import list_pretrained
    from r23d_jax.weights.state_dicts import from_torch, to_torch
    from r23d_jax.weights.tensorflow_checkpoint import read_tensorflow

__all__ = [
    "create_model",
    "from_pretrained",
    "from_torch",
    "inflate",
    "list_models",
    "list_pretrained",
    "load_checkpoint",
    "load_model",
    "load_pretrained",
    "predict",
    "read_tensorflow",
    "to_torch",
]

# Imported on first use, so that `import r23d_jax` is quick and needs no jax.
_HOMES = {
    "create_model": "r23d_jax.models.registry",
    "from_pretrained": "r23d_jax.evaluation.trained",
    "from_torch": "r23d_jax.weights.state_dicts",
    "inflate": "r23d_jax.weights.inflate",
    "list_models": "r23d_jax.models.registry",
    "list_pretrained": "r23d_jax.weights.pretrained",
    "load_checkpoint": "r23d_jax.checkpoint.checkpoint",
    "load_model": "r23d_jax.evaluation.trained",
    "load_pretrained": "r23d_jax.evaluation.trained",
    "predict": "r23d_jax.evaluation.answer",
    "read_tensorflow": "r23d_jax.weights.tensorflow_checkpoint",
    "to_torch": "r23d_jax.weights.state_dicts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'r23d_jax' has no attribute {name!r}; public: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    backend.avoid_cuda_errors()
    return value
