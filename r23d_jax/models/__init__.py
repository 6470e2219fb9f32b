"""Architectures only: layers, the networks, heads, and their registry."""

from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import build_model, create_model, list_models, model_name, model_spec

__all__ = ["VideoNetwork", "build_model", "create_model", "list_models", "model_name", "model_spec"]
