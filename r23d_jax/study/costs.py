"""Predicts the cost of a study from shapes and the number of videos."""

import dataclasses
import functools
from pathlib import Path

from r23d_jax.config import Config, DataConfig, ModelConfig, UserError, from_json, to_json
from r23d_jax.study.grid import Cell

# Multiply-adds per second, half the measured operations (docs/performance.md, docs/results.md), for a first estimate
GPU_RATE = 70e12  # one H200 in bfloat16, r2plus1d_18
GPU_RATES = {"r2plus1d": GPU_RATE, "r2plus3d": 55e12, "r3d": 125e12}  # measured; other families are taken as GPU_RATE
UCF101_CLASSES = 101
CORE_RATE = 7e9  # one CPU core in float32, small networks, with loading and evaluation


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one training, or of the sum of two, which are trained already."""

    parameters: int  # number of parameters of the network
    gmacs: float  # billions of multiply-adds for one clip
    clips: int | None  # number of training clips; None while neither the dataset nor its lists exist

    @property
    def pmacs(self) -> float | None:
        """10^15 multiply-adds for all training clips: forward, and twice that backward."""
        return None if self.clips is None else 3 * self.gmacs * self.clips / 1e6


def cost_of(cell: Cell) -> Cost:
    """Parameters and multiply-adds by shape, and the number of clips if the dataset or its lists exist."""
    if cell.streams:
        costs = [cost_of(stream) for stream in cell.streams]
        return Cost(sum(cost.parameters for cost in costs), sum(cost.gmacs for cost in costs), 0)
    cfg = cell.config
    videos, classes = _listed(to_json(cfg.data))
    parameters, macs = _count(to_json(cfg.model), cfg.data.num_frames, cfg.data.crop_size, classes)
    clips = None if videos is None else round(videos * cfg.train.epochs * cfg.data.repeats)
    return Cost(parameters, macs / 1e9, clips)


def parameters_of(cfg: Config, num_classes: int) -> int:
    """The number of parameters of a config's network for so many classes."""
    return _count(to_json(cfg.model), cfg.data.num_frames, cfg.data.crop_size, num_classes)[0]


def gpu_hours(cell: Cell) -> float | None:
    """Estimated hours of one training on one GPU, at the speed of `GPU_RATES`; None while the clips are not known."""
    pmacs = cost_of(cell).pmacs
    return None if pmacs is None else 1e15 * pmacs / GPU_RATES.get(cell.config.model.family, GPU_RATE) / 3600


@functools.cache
def _count(model: str, num_frames: int, size: int, num_classes: int) -> tuple[int, int]:
    from flax import nnx

    from r23d_jax.models.complexity import count_parts
    from r23d_jax.models.registry import build_model

    cfg = from_json(model, ModelConfig)
    parts = count_parts(
        lambda: build_model(cfg, num_classes=num_classes, num_frames=num_frames, crop_size=size, rngs=nnx.Rngs(0)),
        (num_frames, size, size, cfg.in_channels),
    )
    return sum(part.parameters for part in parts), sum(part.macs for part in parts)


@functools.cache
def _listed(data: str) -> tuple[int | None, int]:
    """The number of training videos of a data config, as JSON, None if neither they nor their lists exist yet; and of
    classes, UCF101's if nothing tells."""
    from r23d_jax.config.motion import MOTIONS
    from r23d_jax.data.make.synthetic import CLASSES
    from r23d_jax.data.sources import listed_videos, lists_of, open_index

    cfg = from_json(data, DataConfig)
    classes = len(cfg.classes) or (len(CLASSES) if cfg.source == "synthetic" else UCF101_CLASSES)
    classes = len(MOTIONS) if cfg.motion.speeds else classes
    if cfg.source == "synthetic" and not (Path(cfg.root) / "lists").is_dir():
        return None, classes  # the first training writes it
    if not cfg.lists and not lists_of(cfg).is_dir():
        return None, classes  # likewise
    try:
        index = open_index(cfg, "train")
        return len(index.names), len(index.class_names)
    except UserError:
        pass
    try:
        listed = listed_videos(cfg, lists_of(cfg), "train")
        return len(listed.entries), len(listed.class_names)
    except UserError:
        return None, classes
