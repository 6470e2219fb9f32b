"""Scores every view of every video, on any number of devices and hosts, and reduces them to accuracies."""

import collections
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r23d_jax import config
from r23d_jax.config import Config
from r23d_jax.data.find.directions import refuse_mirrored_views
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import pipeline
from r23d_jax.data.read.views import largest_frame, make_views, video_strides
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.evaluation.scores import Scores
from r23d_jax.evaluation.step import EvalStep
from r23d_jax.runtime import parallel
from r23d_jax.runtime.progress import Progress, announced

# A device cuts the crops if the whole frames are at most this many times as large as all crops of them together.
MOST_CANVAS = 4
# Batches dispatched before the oldest one's scores are read: the device always has its next batch.
BATCHES_IN_FLIGHT = 2
COMPILING = "compiling the network, which may take a minute the first time"


def evaluate(
    eval_step: EvalStep,
    params: Any,
    batch_stats: Any,
    index: VideoIndex,
    cfg: Config,
    mesh: Mesh,
    *,
    broken: pipeline.BrokenLog | None = None,
    should_stop: Callable[[], bool] | None = None,
    log: Callable[[str], None] = print,
) -> EvalResult | None:
    """Evaluates a network on the views that `cfg.eval` asks for.

    Every view is scored once on any number of devices and hosts: the batch size is rounded up to a multiple of the
    devices and to whole clips, the last batch is padded, and padding is masked. All hosts must call this together.

    Args:
      eval_step: the result of `make_eval_step`.
      params: parameters; arrays on the mesh, or on the host.
      batch_stats: BatchNorm statistics, also on the mesh or on the host.
      cfg: the config of the run; its data and eval groups are read.
      mesh: the mesh that `eval_step` was made for.
      broken: counts and names unreadable files; a new one by default.
      should_stop: called before every batch; True ends the evaluation without a result. It must return the same on
        every host.

    Returns:
      The result, the same on every host; None if `should_stop` ended it.

    Raises:
      UserError: if a score is not finite, or more views are broken than `cfg.data.max_broken_fraction` allows, or ten
        crops would turn a class into another.
    """
    refuse_mirrored_views(cfg.eval.crops, cfg.data.flip, index.class_names)
    strides = video_strides(index, cfg.data)
    views = make_views(index.num_frames, config.preprocessing(cfg.data), cfg.eval, strides)
    canvas = _canvas(index, cfg, log)
    # Every host, and every device that cuts crops, gets whole clips: a clip is decoded once for all its crops.
    multiple = math.lcm(mesh.size * (cfg.eval.crops if canvas else 1), cfg.eval.crops * jax.process_count())
    batch_size = -(-cfg.eval.batch_size // multiple) * multiple
    broken = broken or pipeline.BrokenLog(cfg.data, log=log)
    params, batch_stats = on_mesh((params, batch_stats), mesh)
    scores = Scores(index, views)
    batches = pipeline.eval_batches(
        index,
        views,
        cfg.data,
        batch_size=batch_size,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        broken=broken,
        crops=cfg.eval.crops,
        canvas=canvas,
    )
    in_flight: collections.deque[tuple[jax.Array, jax.Array, jax.Array]] = collections.deque()
    with Progress(len(views), "views", "evaluate", shown=jax.process_index() == 0) as progress:

        def add_oldest() -> None:
            logits, view, mask = jax.device_get(in_flight.popleft())
            progress.update(min(len(mask), len(views) - progress.done))  # the rest of the last batch is padding
            scores.add(logits, view, mask)

        for batch in batches:
            if should_stop is not None and should_stop():
                return None
            rows = {name: value for name, value in batch.items() if name not in ("label", "video_id")}
            first = announced(COMPILING, progress.message) if not progress.done and not in_flight else nullcontext()
            with first:
                in_flight.append(eval_step(params, batch_stats, parallel.global_batch(rows, mesh)))
            if len(in_flight) > BATCHES_IN_FLIGHT:
                add_oldest()
        while in_flight:
            add_oldest()
    files = parallel.from_processes(broken.files)  # a host reads its own rows only
    result = scores.result(cfg, tuple(dict.fromkeys((file, reason) for host in files for file, reason in host)))
    if result.not_evaluated:
        log(f"not evaluated, because no view could be read: {', '.join(result.not_evaluated)}")
    return result


def _canvas(index: VideoIndex, cfg: Config, log: Callable[[str], None]) -> tuple[int, int] | None:
    """Height and width of the frames that the device cuts all crops from; None if the host cuts them."""
    crops, size = cfg.eval.crops, cfg.data.crop_size
    if crops == 1 or not parallel.augments_on_device(cfg.data):
        return None
    largest = np.array(largest_frame(index))
    if jax.process_count() > 1:
        largest = multihost_utils.process_allgather(largest).max(0)
    height, width = largest.tolist()
    height //= 2 if cfg.data.input == "flow" else 1
    if 0 < height * width <= MOST_CANVAS * crops * size**2:
        return height, width
    log(f"the largest frames, {width}x{height} pixels, are too large for the device: {crops} crops are cut on the host")
    return None


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Copies every leaf that is not on the mesh to all its devices, once instead of with every batch."""
    whole = NamedSharding(mesh, PartitionSpec())
    devices = set(mesh.devices.flat)
    is_there = lambda leaf: isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices  # noqa: E731
    return jax.tree.map(lambda leaf: leaf if is_there(leaf) else parallel.place(leaf, whole), tree)
