"""Predicts the cost of a study from shapes and the number of videos."""

import dataclasses
import functools
from pathlib import Path

from r23d_jax.config import DataConfig, ModelConfig, UserError, from_json, to_json
from r23d_jax.study.grid import Cell

# Multiply-adds per second, half the measured operations (docs/performance.md, docs/results.md), for a first estimate
GPU_RATE = 70e12  # one H200 in bfloat16, r2plus1d_18
GPU_RATES = {"r2plus1d": GPU_RATE, "r2plus3d": 55e12, "r3d": 125e12}  # measured; other families are taken as GPU_RATE
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
    parameters, macs = _count(to_json(cfg.model), cfg.data.num_frames, cfg.data.crop_size)
    videos = _videos_at(to_json(cfg.data))
    clips = None if videos is None else round(videos * cfg.train.epochs * cfg.data.repeats)
    return Cost(parameters, macs / 1e9, clips)


def gpu_hours(cell: Cell) -> float | None:
    """Estimated hours of one training on one GPU, at the speed of `GPU_RATES`; None while the clips are not known."""
    pmacs = cost_of(cell).pmacs
    return None if pmacs is None else 1e15 * pmacs / GPU_RATES.get(cell.config.model.family, GPU_RATE) / 3600


@functools.cache
def _count(model: str, num_frames: int, size: int) -> tuple[int, int]:
    from flax import nnx

    from r23d_jax.models.complexity import count_parts
    from r23d_jax.models.registry import build_model

    cfg = from_json(model, ModelConfig)
    parts = count_parts(
        lambda: build_model(cfg, num_classes=101, num_frames=num_frames, crop_size=size, rngs=nnx.Rngs(0)),
        (num_frames, size, size, cfg.in_channels),
    )
    return sum(part.parameters for part in parts), sum(part.macs for part in parts)


@functools.cache
def _videos_at(data: str) -> int | None:
    """The number of training videos of a data config, as JSON; None if neither they nor their lists exist yet."""
    from r23d_jax.data.sources import listed_videos, lists_of, open_index

    cfg = from_json(data, DataConfig)
    if cfg.source == "synthetic" and not (Path(cfg.root) / "lists").is_dir():
        return None  # the first training writes it
    if not cfg.lists and not lists_of(cfg).is_dir():
        return None  # likewise
    try:
        return len(open_index(cfg, "train").names)
    except UserError:
        pass
    try:
        return len(listed_videos(cfg, lists_of(cfg), "train").entries)
    except UserError:
        return None
