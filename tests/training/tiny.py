"""A network and batches so small that a step compiles in seconds."""

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.checkpoint.state import TrainState, create_state
from r23d_jax.config import Config
from r23d_jax.models.functional import split_model, values
from r23d_jax.runtime import parallel
from r23d_jax.training.optimizer import make_optimizer
from r23d_jax.training.step import TrainStep, make_train_step

NUM_CLASSES = 3


def tiny_config(family: str = "r2d", head: str = "avgpool") -> Config:
    cfg = Config()
    cfg.model.family, cfg.model.depth, cfg.model.widths = family, 10, (4, 8, 16, 64)
    cfg.model.head.kind, cfg.model.head.num_heads = head, 2
    cfg.model.head.dropout = 0.0
    cfg.data.num_frames, cfg.data.short_side, cfg.data.crop_size, cfg.data.crop = 4, 16, 16, "random"
    cfg.optimizer.name, cfg.optimizer.learning_rate, cfg.optimizer.warmup_epochs = "adamw", 1e-2, 0.0
    cfg.optimizer.weight_decay, cfg.optimizer.schedule = 0.0, "constant"
    cfg.train.global_batch_size = 8
    cfg.parallel.compute_dtype = "float32"
    return cfg


def start(cfg: Config, num_devices: int = 1) -> tuple[TrainState, TrainState, TrainStep, Mesh]:
    """A fresh state, its shardings, the step, and the mesh over that many devices."""
    mesh = parallel.make_mesh(cfg.parallel.fsdp, jax.devices()[:num_devices])
    make = lambda: create_configured_model(cfg, NUM_CLASSES)  # noqa: E731
    network, params, _ = split_model(nnx.eval_shape(make), frozen=cfg.optimizer.freeze)
    tx, schedule = make_optimizer(cfg.optimizer, params, steps_per_epoch=10, num_steps=100)
    state, shardings = create_state(lambda: values(make()), tx, cfg.train.ema_decay, mesh)
    return state, shardings, make_train_step(network, tx, cfg, NUM_CLASSES, mesh, shardings, schedule), mesh


def batch(cfg: Config, mesh: Mesh, seed: int = 0) -> dict[str, jax.Array]:
    """Random clips; the label decides their brightness, so there is something to learn."""
    rng = np.random.default_rng(seed)
    rows, size = cfg.train.global_batch_size, cfg.data.crop_size
    label = (np.arange(rows) % NUM_CLASSES).astype(np.int32)
    video = rng.integers(0, 120, (rows, cfg.data.num_frames, size, size, 3)) + 60 * label[:, None, None, None, None]
    host = {"video": video.astype(np.uint8), "label": label, "mask": np.ones(rows, np.float32)}
    return parallel.global_batch(host, mesh)
