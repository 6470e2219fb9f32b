"""Architectures only: layers, the residual networks, heads, and their registry."""

from r23d_jax.models.registry import create_model, list_models, model_spec
from r23d_jax.models.video_resnet import VideoResNet, VideoResNetSpec

__all__ = ["VideoResNet", "VideoResNetSpec", "create_model", "list_models", "model_spec"]
