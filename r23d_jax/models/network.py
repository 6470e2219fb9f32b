"""What every network here is: a stem, stages and a head, called on clips (B, T, H, W, C)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Triple = tuple[int, int, int]  # (time, height, width)
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (before, after) of time, height and width


class VideoNetwork(nnx.Module):
    """A stem, four stages and a head. `VideoResNet` and `Inception` build them; this class runs them.

    Args:
      spec: what was built, a frozen dataclass.
      stem, stages, head: the parts, in the order in which a clip passes them.
      in_channels: of the clip.
      num_frames: the only clip length that will do; 0 for any.
      remat: recompute each stage in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        spec: Any,
        stem: nnx.Module,
        stages: list[nnx.Module],
        head: nnx.Module,
        *,
        in_channels: int,
        num_frames: int = 0,
        remat: bool = False,
    ):
        self.spec, self.in_channels, self.num_frames, self.remat = spec, in_channels, num_frames, remat
        self.stem = stem
        self.stages = nnx.List(stages)
        self.head = head

    def features(
        self, video: Float[Array, "b t h w c"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t2 h2 w2 width"]:
        """The last feature map.

        Raises:
          ValueError: if the clip is not (B, T, H, W, C) of a floating dtype with the right number of channels.
        """
        if video.ndim != 5 or video.shape[-1] != self.in_channels:
            raise ValueError(f"video has shape {video.shape}; expected (B, T, H, W, {self.in_channels}), channels last")
        if self.num_frames and video.shape[1] != self.num_frames:
            raise ValueError(f"this network reads clips of {self.num_frames} frames; got {video.shape[1]}")
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(f"video is {video.dtype}; expected float32, see models.preprocess.prepare_video")
        x = self.stem(video)  # type: ignore[operator]
        for stage in self.stages:
            x = nnx.remat(_call)(stage, x, rngs) if self.remat else stage(x, rngs)
        return x

    def __call__(self, video: Float[Array, "b t h w c"], rngs: nnx.Rngs | None = None) -> Float[Array, "b num_classes"]:
        """Logits, float32; without a head, the last feature map. `rngs` needs a `dropout` stream while training."""
        return self.head(self.features(video, rngs), rngs).astype(jnp.float32)  # type: ignore[operator]


def _call(stage: Any, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return stage(x, rngs)
