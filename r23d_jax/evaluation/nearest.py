"""The training video that a network finds most alike to a test video."""

import dataclasses
from collections.abc import Callable

import numpy as np

from r23d_jax import config
from r23d_jax.config import Config
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.evaluation.features import Extractor, of_index
from r23d_jax.models.network import VideoNetwork


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """The nearest training videos of some test videos."""

    index: VideoIndex  # the training videos
    # name of a test video -> row of the nearest training video, and the cosine between their features
    of: dict[str, tuple[int, float]]

    def describe(self, name: str) -> str:
        """The nearest video, its class and how near it is; "" if there is none."""
        if name not in self.of:
            return ""
        row, similarity = self.of[name]
        return f"{self.index.names[row]}, {self.index.class_names[self.index.labels[row]]} ({similarity:.3f})"


def find_neighbors(
    model: VideoNetwork,
    train: VideoIndex,
    test: VideoIndex,
    rows: np.ndarray,
    cfg: Config,
    log: Callable[[str], None],
) -> Neighbors:
    """Compares the last feature map, averaged over time and space, of the clip in the middle of each video.

    All hosts must call this together.

    Args:
      train: the videos to search, all of which are read once.
      rows: (n,) rows of `test`.
      cfg: data and eval groups.
    """
    if not len(rows):  # no errors
        return Neighbors(train, {})
    extractor = Extractor(model, config.preprocessing(cfg.data), "stage4", False, cfg.eval.batch_size)
    # The evaluation has judged these videos already, and one is a large share of a few errors.
    judged = dataclasses.replace(cfg.data, max_broken_fraction=1.0)
    known = of_index(extractor, train, cfg.data, 1, log)
    asked = of_index(extractor, test.take(rows), judged, 1, log)
    if not len(known.video) or not len(asked.video):
        return Neighbors(train, {})
    lengths = (np.linalg.norm(part.values, axis=1, keepdims=True) for part in (asked, known))
    units = [part.values / np.maximum(length, 1e-12) for part, length in zip((asked, known), lengths, strict=True)]
    cosines = units[0] @ units[1].T
    names, nearest = test.names[rows[asked.video]].tolist(), known.video[cosines.argmax(axis=1)].tolist()
    return Neighbors(train, dict(zip(names, zip(nearest, cosines.max(axis=1).tolist(), strict=True), strict=True)))
