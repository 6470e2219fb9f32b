"""A trained network as one object: clips, frames or video files in, logits or class probabilities out."""

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from r23d_jax.checkpoint.checkpoint import LoadedModel, load_checkpoint
from r23d_jax.checkpoint.read import read_network, refuse_image_network
from r23d_jax.config import Config, UserError, with_preprocessing
from r23d_jax.data.find.video_names import named_video
from r23d_jax.data.read.views import predicted_from
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime.mirror import weights_at
from r23d_jax.weights import saved
from r23d_jax.weights.download import to_stderr
from r23d_jax.weights.pretrained import PREFIX
from r23d_jax.weights.state_dicts import describe

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

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes model.safetensors, config.json and a model card; `from_pretrained` and every command read them.

        The card has the figures that the run measured for this checkpoint, its data, protocol, command and versions.

        Raises:
          HubError: if huggingface_hub, which writes the card, is missing.
          WriteError: if the folder cannot be written.
        """
        from r23d_jax.evaluation.card import model_card

        described = describe(self.model, self.config.model, self.class_names, self.preprocessing, self.config.eval)
        videos = self.videos + self.init_videos
        saved.write(Path(folder), self.model, described | ({"videos": videos} if videos else {}), model_card(self))

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to `owner/name` of the Hugging Face Hub; returns its address.

        Args:
          repo: is made if it is missing.
          private: whether only its owner may see a repository that is made.

        Raises:
          HubError: if huggingface_hub is missing, or the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return saved.upload(Path(folder), repo, private)

    @functools.cached_property
    def predictor(self) -> "Predictor":
        """Scores videos; compiled once."""
        from r23d_jax.evaluation import single  # reads videos, which needs more packages than the network

        return single.Predictor(self.model, self.preprocessing, predicted_from(self.config.eval))


def load_model(path: Path | str, which: str = "best") -> TrainedModel:
    """A trained network with everything that using it needs.

    Args:
      path: a run's folder, its `checkpoints` folder, one checkpoint, a folder from `save_pretrained`, a file of weights
        of any code base, the URL of one of these in an object store, or a name of `list_pretrained`.
      which: of a run's checkpoints, "best" by video top-1 (the newest, if none was evaluated) or "latest".

    Raises:
      UserError: if there is nothing of that name, or it cannot be read.
    """
    path = weights_at(str(path))
    if path.is_dir() and not saved.is_saved(path):
        return TrainedModel(**vars(load_checkpoint(path, which)))
    found = read_network(path, refuse_image_network(path), log=to_stderr)
    for note in found.notes if path.is_file() else ():
        to_stderr(f"{path}: {note}")
    cfg = Config(model=found.config, eval=found.views)
    cfg.data = with_preprocessing(cfg.data, found.preprocessing)
    class_names = found.class_names or tuple(f"class_{k}" for k in range(found.num_classes))
    known = {"videos": found.videos, "init_videos": found.init_videos}
    return TrainedModel(found.model, class_names, found.preprocessing, cfg, step=0, metrics={}, path=path, **known)


def load_pretrained(name: str) -> TrainedModel:
    """The network with weights that others have published; downloads them if the cache lacks them.

    The cache is the folder that the environment variable R23D_CACHE names, or the user's own cache folder. Every file
    in it is checked before it is read.

    Args:
      name: a key of `list_pretrained()`.

    Raises:
      ConfigError: for an unknown name, with the nearest known ones.
      DownloadError: if a file cannot be had, or is not what its publisher describes; says what to do by hand.
      ConversionError: if torch or TensorFlow is needed to read it and missing.
    """
    return load_model(f"{PREFIX}{name.removeprefix(PREFIX)}")


def from_pretrained(folder_or_repo: Path | str, revision: str | None = None) -> TrainedModel:
    """The network in a folder from `save_pretrained`, or in a repository of the Hugging Face Hub.

    Reads a safetensors file and JSON only: nothing that is stored there is run. A folder needs no huggingface_hub.

    Args:
      folder_or_repo: a folder, or `owner/name`, which is downloaded into the cache.
      revision: branch, tag or commit of a repository.

    Raises:
      HubError: if the repository cannot be had, or huggingface_hub is missing.
      ConversionError: if the folder lacks a file, or its files do not fit each other.
    """
    folder = Path(folder_or_repo)
    if not folder.is_dir():
        folder = saved.download(str(folder_or_repo), revision)
    elif not saved.is_saved(folder):
        raise UserError(f"{folder}: has no {saved.WEIGHTS} and {saved.CONFIG}; a run's folder is read by load_model")
    return load_model(folder)
