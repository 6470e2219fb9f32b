"""Which recipe suits a set of clips, and the config file that has it: the table behind the command `new`."""

import dataclasses
import json
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r23d_jax.config import DataConfig, ModelConfig, Preprocessing
from r23d_jax.config.fields import kinds_of
from r23d_jax.runtime.remote import is_remote
from r23d_jax.weights.pretrained import PREFIX, pretrained_name

FEW_TO_TUNE = 1000  # training clips below which only the last stage and the head are trained
FEW_FROM_SCRATCH = 2000  # training clips below which a small network is trained
FEW_OF_A_CLASS = 20  # the same, for the mean of the classes


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a recipe depends on."""

    num_clips: int  # to train on
    num_classes: int
    has_weights: bool
    on_cpu: bool

    def are_few(self, least: int) -> bool:
        """Whether there are fewer clips than `least`, or few of a class."""
        return self.num_clips < least or self.num_clips < FEW_OF_A_CLASS * self.num_classes


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recipe."""

    why: str  # when it is chosen, and for what reason
    fits: Callable[[Facts], bool]  # whether it is for such clips
    fields: dict[str, Any]  # field of the config -> value; without those of the network of given weights
    short_side: int  # of the frames to prepare, in pixels


_COMMON = {"eval.views": "uniform", "eval.num_clips": 10, "parallel.compute_dtype": "auto"}
_FINE_TUNE = {
    "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
    "data.color_jitter": 0.2,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 1e-3,
    "optimizer.backbone_multiplier": 0.1,
    "train.label_smoothing": 0.1,
}
_RATES_APART = 1.05  # videos of rates that differ by less are read by frames
_ORDER = ("model", "data", "optimizer", "train", "eval", "parallel")  # in a config file
# By name, in the order of preference: the first that fits is taken
RECIPES = {
    "last_stage": Recipe(
        why="there are pretrained weights, and few clips: the early stages stay as they are, because so few would "
        "overfit them",
        fits=lambda facts: facts.has_weights and facts.are_few(FEW_TO_TUNE),
        fields=_FINE_TUNE
        | {
            "optimizer.freeze": ("stem", "stage1", "stage2", "stage3"),
            "train.epochs": 20.0,
            "train.global_batch_size": 16,
            "train.eval_every": 5.0,
        },
        short_side=128,
    ),
    "fine_tune": Recipe(
        why="there are pretrained weights, and clips enough to train the whole network, the backbone at a tenth of "
        "the rate",
        fits=lambda facts: facts.has_weights,
        fields=_FINE_TUNE
        | {
            "optimizer.warmup_epochs": 1.0,
            "train.epochs": 25.0,
            "train.global_batch_size": 32,
            "train.eval_every": 5.0,
        },
        short_side=128,
    ),
    "small": Recipe(
        why="there are no weights, and few clips or only a CPU: a small network on frame differences, which measured "
        "better than RGB without a motion stem (docs/results.md). If still pictures tell your classes apart, set "
        "cfg.data.input = 'rgb'",
        fits=lambda facts: facts.on_cpu or facts.are_few(FEW_FROM_SCRATCH),
        fields={
            "model.family": "r2plus3d",
            "model.depth": 10,
            "model.widths": (32, 64, 128, 128),
            "model.head.num_heads": 4,
            "data.input": "rgb_diff",
            "data.frame_stride": 2,
            "data.short_side": 72,
            "data.crop_size": 64,
            "data.crop_scales": (1.0, 0.9, 0.8, 0.7),
            "data.color_jitter": 0.3,
            "data.antialias": True,
            "optimizer.name": "adamw",
            "optimizer.learning_rate": 1e-3,
            "optimizer.weight_decay": 0.05,
            "optimizer.warmup_epochs": 5.0,
            "train.epochs": 75.0,
            "train.global_batch_size": 16,
            "train.label_smoothing": 0.1,
            "train.eval_every": 25.0,
        },
        short_side=80,
    ),
    "scratch": Recipe(
        why="there are no weights, but many clips and an accelerator: R(2+3)D-18 with a ViT head, as configs/r23d.py",
        fits=lambda facts: True,
        fields={
            "model.family": "r2plus3d",
            "model.depth": 18,
            "model.stem": "motion",
            "model.head.kind": "vit",
            "model.head.residual": True,
            "model.head.embedding_dropout": 0.1,
            "model.head.attention_dropout": 0.1,
            "data.num_frames": 16,
            "data.frame_stride": 2,
            "data.short_side": 128,
            "data.color_jitter": 0.2,
            "data.random_gray": 0.3,
            "data.stride_jitter": 0.5,
            "optimizer.learning_rate": 0.03,
            "optimizer.weight_decay": 5e-4,
            "optimizer.warmup_epochs": 5.0,
            "train.epochs": 300.0,
            "train.global_batch_size": 64,
            "train.label_smoothing": 0.1,
        },
        short_side=128,
    ),
}


def choose(facts: Facts) -> str:
    """The key of the first recipe that fits."""
    return next(name for name, recipe in RECIPES.items() if recipe.fits(facts))


def network_fields(model: ModelConfig, pre: Preprocessing) -> dict[str, Any]:
    """The fields of a config that make it read given weights: those of the network and its preprocessing."""
    head = dataclasses.replace(model.head, dropout=0.5)
    if head.kind == "none":
        head.kind = "avgpool"
    here = dataclasses.replace(model, head=ModelConfig().head)
    fields = (
        {"model.family": model.family}
        | _changed("model", here, ModelConfig())
        | _changed("model.head", head, ModelConfig().head)
    )
    shared = {name: getattr(pre, name) for name in kinds_of(Preprocessing) if name in kinds_of(DataConfig)}
    data = dataclasses.replace(DataConfig(), **shared | {"frame_rate": 0.0})
    return fields | _changed("data", data, DataConfig())


def pace_fields(fields: dict[str, Any], rates: Sequence[float], trained_rate: float = 0.0) -> dict[str, Any]:
    """The fields that take frames at one pace in time, if the rates of the videos, or of the weights, differ; else {}.

    Args:
      rates: of the videos in frames per second; 0 is not known.
      trained_rate: of the videos that the weights were trained on; 0: not known, or no weights.
    """
    if not rates or min(rates) <= 0 or "data.frame_seconds" in fields:
        return {}
    known = [*rates, trained_rate] if trained_rate else rates
    if max(known) < _RATES_APART * min(known):
        return {}
    stride = fields.get("data.frame_stride", DataConfig().frame_stride)
    return {
        "data.frame_stride": 1,
        "data.frame_seconds": round(stride / (trained_rate or statistics.median(rates)), 4),
    }


def _changed(place: str, group: Any, default: Any) -> dict[str, Any]:
    names = [name for name in kinds_of(type(group)) if getattr(group, name) != getattr(default, name)]
    return {f"{place}.{name}": getattr(group, name) for name in names}


def _literal(value: Any) -> str:
    """A value as Python source, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value).replace("'", '"')


def config_text(
    name: str,
    fields: dict[str, Any],
    weights: str,
    videos: Path,
    rates: Sequence[float] = (),
    trained_rate: float = 0.0,
) -> str:
    """A config file that finds its data beside itself, so that it works from any folder.

    Args:
      name: a key of `RECIPES`.
      fields: of the network of the weights; {} without weights.
      weights: a path or a name of published weights; "" without.
      videos: the folder of the videos, for the top of the file.
      rates, trained_rate: see `pace_fields`.
    """
    recipe = RECIPES[name]
    shown = json.dumps(str(videos), ensure_ascii=False)[1:-1]  # its name must not end the docstring
    fields = {**fields, **recipe.fields, **_COMMON}
    fields |= pace_fields(fields, rates, trained_rate)
    published = pretrained_name(weights)
    path = weights if is_remote(weights) else str(Path(weights).absolute())
    source = f"{PREFIX}{published}" if published else path
    lines = [f"    cfg.init_from = {_literal(source)}"] if weights else []
    group = ""
    for path, value in sorted(fields.items(), key=lambda item: _ORDER.index(item[0].split(".")[0])):
        top = path.split(".")[0]
        lines += [""] if top != group else []
        group = top
        lines.append(f"    cfg.{path} = {_literal(value)}")
    body = "\n".join(lines)
    return f'''"""Trains on the clips of {shown}.

Recipe "{name}":
{textwrap.fill(recipe.why, 116)}.
All fields: docs/config.md. Change them here, or on the command line: --config.train.epochs=10
"""

from pathlib import Path

from r23d_jax.config import Config

HERE = Path(__file__).resolve().parent


def get_config(arg: str = "") -> Config:
    cfg = Config()
    cfg.data.root = str(HERE / "frames")
    cfg.data.lists = str(HERE / "lists")
{body}
    return cfg
'''
