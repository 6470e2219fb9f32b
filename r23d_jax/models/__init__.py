"""Architectures only: layers, the residual networks, heads, and their registry."""

from r23d_jax.models.registry import create_model, list_models, model_spec

__all__ = ["create_model", "list_models", "model_spec"]
