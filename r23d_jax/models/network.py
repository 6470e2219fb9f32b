"""Every network is a stem, four stages and a head, built from a frozen `Spec`."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from r23d_jax.config import ConfigError

Triple = tuple[int, int, int]  # (time, height, width)
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (before, after) of time, height and width


@dataclasses.dataclass(frozen=True)
class Spec(abc.ABC):
    """Everything that distinguishes one backbone from another. Each kind of network subclasses it.

    Attributes:
      family: its row of the registry; "" for a spec made by hand.
      bn_epsilon, bn_momentum: Flax convention; momentum 0.9 is PyTorch's 0.1.
      depths: the family's depths; () if it has one size, so its name has no number.
      bottleneck, block_count: whether its residual blocks have three convolutions, and how many blocks there are.
      out_channels: width of the last feature map.
      head_window: the average-pool head's, see `heads.AvgPoolHead`.
      image_network: the image network whose kernels can be inflated to its own: "resnet", "googlenet" or "".
      fixed_length: whether it reads clips of one length only, because its stem's kernel is as long as the clip.
    """

    family: str = dataclasses.field(default="", compare=False, kw_only=True)
    bn_epsilon: float = dataclasses.field(default=1e-5, kw_only=True)
    bn_momentum: float = dataclasses.field(default=0.9, kw_only=True)
    # Defaults that a subclass may override; without annotations, so that dataclasses does not make fields of them
    depths = ()
    bottleneck = fixed_length = False
    block_count = out_channels = 0
    head_window = (1, 1, 1)
    image_network = ""

    def at_depth(self, depth: int) -> Self:
        """The same family at one of its `depths`; a family of one size returns itself."""
        del depth
        return self

    def vary(self, choices: Mapping[str, Any]) -> Self:
        """This backbone with other values of some fields; empty values keep its own.

        Raises:
          ConfigError: for a field that it does not have, or a value that the field cannot take.
        """
        known = {field.name for field in dataclasses.fields(self)}
        chosen = {name: value for name, value in choices.items() if value}
        for name, value in chosen.items():
            if name not in known:
                raise ConfigError(f"model.{name}={value!r}: this family has no such choice; leave it at its default")
        return dataclasses.replace(self, **chosen)

    def changes(self, other: "Spec") -> dict[str, tuple[Any, Any]]:
        """Fields in which another spec differs: name -> (here, there); {} if it is of another class."""
        if type(self) is not type(other):
            return {}
        names = [field.name for field in dataclasses.fields(self) if field.compare]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @abc.abstractmethod
    def feature_grid(self, num_frames: int, size: int) -> Triple:
        """(time, height, width) of the last feature map for a square clip."""

    @abc.abstractmethod
    def parts(
        self, in_channels: int, num_frames: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> tuple[nnx.Module, list[nnx.Module]]:
        """The stem and the four stages, with random weights."""

    def build(
        self, head: nnx.Module, *, in_channels: int, num_frames: int, dtype: DTypeLike, remat: bool, rngs: nnx.Rngs
    ) -> "VideoNetwork":
        """The network with random weights; see `registry.create_model` for the arguments."""
        stem, stages = self.parts(in_channels, num_frames, dtype, rngs)
        only = num_frames if self.fixed_length else 0
        return VideoNetwork(self, stem, stages, head, in_channels=in_channels, num_frames=only, remat=remat)


class VideoNetwork(nnx.Module):
    """A stem, four stages and a head, called on clips (B, T, H, W, C); `Spec.build` makes one.

    Args:
      spec: describes the backbone.
      stem, stages, head: the parts, in the order in which a clip passes them.
      in_channels: of the clip.
      num_frames: the only clip length it accepts; 0 for any.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        spec: Spec,
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
            x = stage(x, rngs, self.remat)  # type: ignore[operator]
        return x

    def __call__(self, video: Float[Array, "b t h w c"], rngs: nnx.Rngs | None = None) -> Float[Array, "b num_classes"]:
        """Float32 logits, or without a head the last feature map. In training, `rngs` needs a `dropout` stream."""
        return self.head(self.features(video, rngs), rngs).astype(jnp.float32)  # type: ignore[operator]


def recomputed(block: Any, x: jax.Array, *rngs: nnx.Rngs | None) -> jax.Array:
    """Calls a block whose activations the backward pass recomputes."""
    return nnx.remat(_call)(block, x, *rngs)


def _call(block: Any, x: jax.Array, *rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, *rngs)
