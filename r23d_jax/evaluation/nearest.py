"""The training video that a network finds most alike to a test video: a network often errs where it remembers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r23d_jax import config
from r23d_jax.config import Config, EvalConfig, Preprocessing
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import pipeline
from r23d_jax.data.read.views import Views, make_views, video_strides
from r23d_jax.evaluation.evaluate import on_mesh
from r23d_jax.evaluation.step import EvalStep
from r23d_jax.models.augment import finish_clips
from r23d_jax.models.convolution import compiled_for
from r23d_jax.models.functional import Network
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import parallel
from r23d_jax.runtime.progress import Progress


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
    network: Network,
    params: Any,
    batch_stats: Any,
    train: VideoIndex,
    test: VideoIndex,
    rows: np.ndarray,
    cfg: Config,
    mesh: Mesh,
    log: Callable[[str], None],
) -> Neighbors:
    """Compares the last feature map, averaged over time and space, of the clip in the middle of each video.

    Args:
      network, params, batch_stats: the trained network.
      train: the videos to search, all of which are read once.
      test: the videos to find neighbors of.
      rows: (n,) rows of `test`.
      cfg: data and eval groups.
      mesh: the devices; all hosts must call this together.
      log: takes one line at a time.
    """
    step = make_feature_step(network, config.preprocessing(cfg.data), mesh)
    params, batch_stats = on_mesh((params, batch_stats), mesh)
    everything = np.arange(len(train))
    known = _features(step, params, batch_stats, train, everything, cfg, mesh, log)
    asked = _features(step, params, batch_stats, test, rows, cfg, mesh, log)
    cosines = asked @ known.T  # an unreadable video has zeros, and is near to nothing
    nearest = cosines.argmax(axis=1)
    pairs = zip(rows.tolist(), nearest.tolist(), cosines.max(axis=1).tolist(), strict=True)
    return Neighbors(train, {str(test.names[row]): (near, cosine) for row, near, cosine in pairs if cosine > 0})


def make_feature_step(network: Network, pre: Preprocessing, mesh: Mesh) -> EvalStep:
    """As `make_eval_step`, but gives pooled features of length 1 instead of logits."""

    @compiled_for(parallel.platform(mesh))
    def step(params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch = finish_clips(batch, pre)
        found = network.build(params, batch_stats).features(prepare_video(batch["video"], pre))
        pooled = found.astype(jnp.float32).mean((1, 2, 3))
        length = jnp.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled / jnp.maximum(length, 1e-12), batch["view"], batch["mask"]

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, out_shardings=whole, compiler_options=parallel.compiler_options(mesh))


def _features(
    step: EvalStep,
    params: Any,
    batch_stats: Any,
    index: VideoIndex,
    rows: np.ndarray,
    cfg: Config,
    mesh: Mesh,
    log: Callable[[str], None],
) -> np.ndarray:
    """(n, C) float32 of the videos `rows`, (n,); zeros for a video that cannot be read."""
    one = EvalConfig(views="uniform", num_clips=1)
    views = make_views(index.num_frames, config.preprocessing(cfg.data), one, video_strides(index, cfg.data))
    views = Views(views.video[rows], views.start[rows], views.crop[rows])
    multiple = int(np.lcm(mesh.size, jax.process_count()))
    batches = pipeline.eval_batches(
        index,
        views,
        cfg.data,
        batch_size=-(-cfg.eval.batch_size // multiple) * multiple,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        broken=pipeline.BrokenLog(cfg.data, log=log),
        crops=1,
    )
    features = np.zeros((len(rows), 0), np.float32)
    with Progress(len(rows), "videos", "nearest", shown=jax.process_index() == 0) as progress:
        for batch in batches:
            held = {name: value for name, value in batch.items() if name not in ("label", "video_id")}
            found, view, mask = jax.device_get(step(params, batch_stats, parallel.global_batch(held, mesh)))
            features = features if features.size else np.zeros((len(rows), found.shape[1]), np.float32)
            features[view[mask > 0]] = found[mask > 0]
            progress.update(min(len(mask), len(rows) - progress.done))
    return features
