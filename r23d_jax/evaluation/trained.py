"""A trained network as one object: clips, frames or video files in, logits or class probabilities out."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from r23d_jax.checkpoint.checkpoint import LoadedModel, load_checkpoint
from r23d_jax.data.find.video_names import named_video
from r23d_jax.models.preprocess import prepare_video

if TYPE_CHECKING:
    from r23d_jax.evaluation.single import Predictor


class TrainedModel(LoadedModel):
    """A trained network with its class names and its preprocessing.

    `to_torch`, `from_torch` and `split_model` take it like a network; `.model` is the network itself.
    """

    def __call__(self, video: jax.Array | np.ndarray) -> jax.Array:
        """Logits of clips, (B, T, H, W, C) -> (B, num_classes) float32.

        float32 clips are preprocessed already. uint8 clips (B, preprocessing.read_frames, H, W, C) are normalized here;
        they are neither resized nor cropped.
        """
        video = jnp.asarray(video)
        return self.model(prepare_video(video, self.preprocessing) if video.dtype == jnp.uint8 else video)

    def predict(self, video: Path | str | np.ndarray) -> dict[str, float]:
        """Probabilities by class name, the highest first, averaged over clips as the command `predict` does.

        Args:
          video: a video file, a folder of numbered frames, or frames (T, H, W, 3) uint8 RGB of any number and size.

        Raises:
          VideoError: if it cannot be read.
        """
        shares = self.predictor(named_video(video) if isinstance(video, str) else video).probabilities
        order = np.argsort(-shares, kind="stable").tolist()
        return {self.class_names[k]: float(shares[k]) for k in order}

    @functools.cached_property
    def predictor(self) -> "Predictor":
        """Scores videos; compiled once."""
        from r23d_jax.evaluation import single  # reads videos, which needs more packages than the network

        return single.Predictor(self.model, self.preprocessing, single.clips_of(self.config.eval))


def load_model(path: Path | str, which: str = "best") -> TrainedModel:
    """The network of a checkpoint with everything that using it needs; see `load_checkpoint`."""
    return TrainedModel(**vars(load_checkpoint(path, which)))
