"""The configuration of a run: small typed groups, their checks, and their JSON form.

Every config file in `configs/` has one `get_config(arg)` that returns a `Config`. Values are overridden on the command
line (`--config.optimizer.learning_rate=0.01`). Standard library only, so that reading a config never imports jax or
TensorFlow. An empty tuple or string means "take the default of whatever this refers to"; there are no `None` fields,
because a `None` cannot be overridden from the command line.
"""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# The names a field may take. The modules that implement them import these tuples, so that a name cannot be accepted
# here and be unknown there.
HEADS = ("avgpool", "vit", "attention_pool")
TOKENS = ("space_time", "time")
CROPS = ("multi_scale", "random_resized", "random", "center")
TEMPORAL_SAMPLING = ("random", "segments")
INFLATIONS = ("repeat", "center")
INPUTS = ("rgb", "rgb_diff", "flow")
FUSED_SCORES = ("softmax", "logits")
FUSION_CHOICES = ("fixed", "sum", "held_out")
FLOW_METHODS = ("tvl1", "farneback", "dis")
SOURCES = ("frames", "packed", "synthetic")
BROKEN_POLICIES = ("skip", "error")
TEMPORAL_VIEWS = ("dense", "uniform")
SPATIAL_CROPS = (1, 3, 10)
OPTIMIZERS = ("sgd", "adamw", "lars")
SCHEDULES = ("cosine", "cosine_7_16", "multistep", "constant")
STEM_POOLS = ("", "none", "2d", "3d")
PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")
COMPUTE_DTYPES = ("float32", "bfloat16")


class UserError(Exception):
    """Something the user can put right. Its message is all that is shown: what is wrong, where, and the remedy."""


class ConfigError(UserError, ValueError):
    """A value in a config is wrong; the message names the field, the value and the remedy."""


@dataclasses.dataclass
class HeadConfig:
    """What turns the last feature map (B, T, H, W, C) into logits."""

    kind: str = "vit"
    tokens: str = "space_time"  # space_time: one token per place; time: one per time step, after spatial averaging
    num_layers: int = 1
    num_heads: int = 8
    hidden_dim: int = 0  # 0: the width of the backbone's last stage
    mlp_ratio: float = 4.0
    dropout: float = 0.5  # before the classifier
    transformer_dropout: float = 0.1  # inside the transformer blocks
    token_keep: float = 1.0  # probability that a token is kept while training


@dataclasses.dataclass
class ModelConfig:
    """Which row of the registry to build, and how to vary it."""

    family: str = "r2plus3d"
    depth: int = 18  # not read for families of one size, such as i3d
    widths: tuple[int, ...] = ()  # four stage widths; (): the registry's
    stem_pool: str = ""  # max-pool after the stem: none, 2d (over space), 3d (and time); "": the registry's
    in_channels: int = 3  # of the clips; 2 for optical flow
    block_dropout: float = 0.0  # inside every residual block (the published code has 0.3)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)


@dataclasses.dataclass
class DataConfig:
    """Which videos, and how a clip is cut out of them."""

    source: str = "frames"
    root: str = "data/UCF-101-frames"  # folder of frame folders, or of packed shards
    lists: str = (
        "data/ucfTrainTestlist"  # folder of classInd.txt, trainlist0N.txt, testlist0N.txt; or train.csv, val.csv
    )
    split: int = 1
    classes: tuple[str, ...] = ()  # (): all classes of the lists
    hold_out: float = 0.0  # of the training groups of a class: not trained on, to choose a fusion weight by
    input: str = "rgb"
    num_frames: int = 16
    frame_stride: int = 1  # frames from one sampled frame to the next
    sampling: str = "random"
    num_segments: int = 4  # for sampling="segments": the clip is this many equal runs of consecutive frames
    short_side: int = 136  # pixels; the scale at which crops are taken
    crop_size: int = 112  # pixels
    crop: str = "multi_scale"
    crop_scales: tuple[float, ...] = (1.0, 0.8409, 0.7071, 0.5946, 0.5)  # multi_scale: of the short side
    crop_area: tuple[float, float] = (0.25, 1.0)  # random_resized: fraction of the frame
    flip: bool = True
    color_jitter: float = 0.0  # strength; 0 is off
    antialias: bool = False
    # Decode JPEGs at 1/2, 1/4 or 1/8 where this share of the crop's pixels remains; 0: off; 1: never enlarges. Quick.
    dct_scaling: float = 0.0
    mean: tuple[float, ...] = (0.43216, 0.394666, 0.37645)  # of pixels in [0, 1]; two values for input="flow"
    std: tuple[float, ...] = (0.22803, 0.22145, 0.216989)
    byte_range: bool = False  # True: mean and std apply to pixels in 0..255 (the published code's slip)
    on_broken: str = "skip"
    max_broken_fraction: float = 0.05
    num_workers: int = 0  # threads that read and decode; 0: one per core


@dataclasses.dataclass
class OptimizerConfig:
    """Update rule, learning-rate schedule and regularisation."""

    name: str = "sgd"
    learning_rate: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    b2: float = 0.999  # adamw
    weight_decay: float = 0.0  # on convolution and linear kernels only
    clip_norm: float = 0.0  # global norm; 0: off
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()  # epochs, for schedule="multistep"
    decay_factor: float = 0.1
    backbone_multiplier: float = 1.0  # of the learning rate
    head_multiplier: float = 1.0
    freeze: tuple[str, ...] = ()  # parts not trained: "stem", "stage1" .. "stage4"


@dataclasses.dataclass
class TrainConfig:
    """Length of the run and what happens in a step."""

    epochs: float = 300.0
    global_batch_size: int = 64
    accumulate: int = 1  # micro-batches per step
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha; 0: off
    ema_decay: float = 0.0  # 0: off
    log_every: int = 20  # steps
    eval_every: float = 10.0  # epochs; the last epoch is always evaluated


@dataclasses.dataclass
class EvalConfig:
    """Which views of a video are scored."""

    views: str = "dense"  # dense: all non-overlapping clips; uniform: num_clips spread evenly
    num_clips: int = 10
    crops: int = 1
    batch_size: int = 32  # views per batch, over all devices


@dataclasses.dataclass
class FusionConfig:
    """Two trained streams whose scores are added; `--mode=eval` does it where `first` is set."""

    first: str = ""  # folder of a run, usually of RGB
    second: str = ""  # of optical flow
    first_root: str = ""  # of its frames; "": as in its training
    second_root: str = ""
    scores: str = "softmax"  # which are averaged over views and added: softmax or logits
    choice: str = "fixed"  # of the weight: fixed, sum (both alike), held_out (the best where neither was trained)
    weight: float = 0.6  # of the first, for choice="fixed" (VMZ's scripts have 0.6 for RGB)


@dataclasses.dataclass
class CheckpointConfig:
    """When state is saved and how much of it is kept."""

    every_steps: int = 500
    keep: int = 2  # newest; the best by video top-1 is kept besides


@dataclasses.dataclass
class ParallelConfig:
    """How the run is laid over devices."""

    fsdp: int = 1  # devices that share one copy of the parameters; the rest is data parallel
    compute_dtype: str = "float32"
    remat: bool = False  # recompute each stage in the backward pass


@dataclasses.dataclass
class Config:
    """Everything a run depends on."""

    seed: int = 0
    init_from: str = ""  # weights to start from: .pth, .safetensors, a run's folder, ...; "": random
    init_skip: tuple[str, ...] = ()  # parts that stay random all the same: "stem", "stage1" .. "stage4", "head"
    inflate: str = "repeat"  # how 2D weights become 3D: repeat (and divide) or center
    profile: str = ""  # START:STOP, steps of which a trace is written to the workdir, e.g. 20:25
    compilation_cache: bool = True  # keep compiled programs in the workdir, so that a resumed run starts sooner
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How raw frames become the network's input; travels with every checkpoint."""

    input: str
    num_frames: int
    frame_stride: int
    short_side: int
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    byte_range: bool
    antialias: bool

    @property
    def read_frames(self) -> int:
        """Frames to read per clip: a difference of T frames needs T + 1."""
        return self.num_frames + (1 if self.input == "rgb_diff" else 0)


# Optical flow is kept as bytes: 128 is no motion, 1 and 255 are the bound.
FLOW_ZERO, FLOW_SCALE = 128, 127


def use_flow(cfg: Config) -> Config:
    """Makes a config read optical flow as `prepare --flow` writes it: 128 is no motion, 1 and 255 are the bound.

    Returns:
      The same config.
    """
    cfg.model.in_channels = 2
    cfg.data.input = "flow"
    cfg.data.mean, cfg.data.std = (FLOW_ZERO / 255,) * 2, (FLOW_SCALE / 255,) * 2  # so that values lie in [-1, 1]
    cfg.data.color_jitter = 0.0
    cfg.data.root = "data/ucf101_flow/frames"
    return cfg


def preprocessing(cfg: DataConfig) -> Preprocessing:
    """The part of a data config that a trained network cannot be used without."""
    names = [f.name for f in dataclasses.fields(Preprocessing)]
    return Preprocessing(**{name: getattr(cfg, name) for name in names})


# -- checks ------------------------------------------------------------------------------------------------------------


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known ones, or all of them when nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def look_up(table: Mapping[str, T], name: str, field: str) -> T:
    """The entry of a table under the name that a user wrote.

    Raises:
      ConfigError: if there is none; names the field, and the nearest keys.
    """
    if name not in table:
        raise ConfigError(f"{field}={name!r}: unknown; {nearest(name, table)}")
    return table[name]


def validate(cfg: Config) -> Config:
    """Checks types and values of every field.

    Returns:
      The same config.

    Raises:
      ConfigError: listing every wrong field at once, each with its value and what it may be.
    """
    problems = _type_problems(cfg, "config")
    if not problems:  # value checks assume right types
        problems = _value_problems(cfg)
    if problems:
        raise ConfigError("wrong configuration:\n" + "\n".join(f"  {p}" for p in problems))
    return cfg


def _type_problems(obj: Any, path: str) -> list[str]:
    problems = []
    for name, kind in typing.get_type_hints(type(obj)).items():
        value = getattr(obj, name)
        if dataclasses.is_dataclass(kind):
            problems += _type_problems(value, f"{path}.{name}")
        elif not _is_a(value, kind):
            problems.append(f"{path}.{name}={value!r}: must be {_describe(kind)}")
    return problems


# Numbers go into int32 and float32 arrays. NaN, which no comparison finds in order, is none of them either.
_LARGEST_INT, _LARGEST_FLOAT = 2**31 - 1, 1e30


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_is_a(v, args[0]) for v in value)
        return len(value) == len(args) and all(_is_a(v, a) for v, a in zip(value, args, strict=True))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_FLOAT
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INT
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is not tuple:
        return {
            "int": f"a whole number up to {_LARGEST_INT}",
            "float": "a finite number",
            "str": "a string",
            "bool": "True or False",
        }[kind.__name__]
    args = typing.get_args(kind)
    if args[-1] is Ellipsis:
        return f"a tuple of {args[0].__name__}s"
    return f"a tuple ({', '.join(a.__name__ for a in args)})"


def _value_problems(cfg: Config) -> list[str]:
    problems: list[str] = []

    def one_of(path: str, value: Any, known: tuple) -> None:
        if value not in known:
            hint = nearest(value, known) if isinstance(value, str) else f"known: {', '.join(map(str, known))}"
            problems.append(f"config.{path}={value!r}: unknown; {hint}")

    def check(path: str, value: Any, ok: bool, want: str) -> None:
        if not ok:
            problems.append(f"config.{path}={value!r}: must be {want}")

    def at_least(path: str, value: float, low: float) -> None:
        check(path, value, value >= low, f"at least {low}")

    def fraction(path: str, value: float, low_open: bool = False) -> None:
        ok = 0 <= value <= 1 and not (low_open and value == 0)
        check(path, value, ok, "above 0 and at most 1" if low_open else "between 0 and 1")

    d, h, o, t, e = cfg.data, cfg.model.head, cfg.optimizer, cfg.train, cfg.eval
    steps = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", cfg.profile)
    in_order = steps is not None and int(steps[1]) < int(steps[2])
    check("profile", cfg.profile, not cfg.profile or in_order, "START:STOP, e.g. 20:25")
    one_of("model.head.kind", h.kind, HEADS)
    one_of("model.head.tokens", h.tokens, TOKENS)
    at_least("model.head.num_layers", h.num_layers, 1)
    at_least("model.head.num_heads", h.num_heads, 1)
    at_least("model.head.hidden_dim", h.hidden_dim, 0)
    check("model.head.mlp_ratio", h.mlp_ratio, h.mlp_ratio > 0, "above 0")
    fraction("model.head.dropout", h.dropout)
    fraction("model.head.transformer_dropout", h.transformer_dropout)
    fraction("model.head.token_keep", h.token_keep, low_open=True)
    fraction("model.block_dropout", cfg.model.block_dropout)
    widths = cfg.model.widths
    check("model.widths", widths, len(widths) in (0, 4) and all(w > 0 for w in widths), "() or four positive widths")

    one_of("model.stem_pool", cfg.model.stem_pool, STEM_POOLS)
    channels = 2 if d.input == "flow" else 3
    check(
        "model.in_channels",
        cfg.model.in_channels,
        cfg.model.in_channels == channels,
        f"{channels} for data.input={d.input!r}",
    )
    for name, values in (("mean", d.mean), ("std", d.std)):
        check(f"data.{name}", values, len(values) == channels, f"{channels} values for data.input={d.input!r}")
    if d.input == "flow" and d.color_jitter:
        problems.append(
            f"config.data.color_jitter={d.color_jitter}: must be 0 for data.input='flow', which has no color"
        )
    if d.input == "flow" and d.dct_scaling:
        problems.append(
            f"config.data.dct_scaling={d.dct_scaling}: must be 0 for data.input='flow', which is read exactly"
        )
    one_of("inflate", cfg.inflate, INFLATIONS)
    for part in cfg.init_skip:
        one_of("init_skip", part, (*PARTS, "head"))

    one_of("data.source", d.source, SOURCES)
    one_of("data.input", d.input, INPUTS)
    one_of("data.sampling", d.sampling, TEMPORAL_SAMPLING)
    one_of("data.crop", d.crop, CROPS)
    one_of("data.on_broken", d.on_broken, BROKEN_POLICIES)
    one_of("data.split", d.split, (1, 2, 3))
    check("data.hold_out", d.hold_out, 0 <= d.hold_out < 1, "at least 0 and below 1")
    at_least("data.num_frames", d.num_frames, 1)
    at_least("data.frame_stride", d.frame_stride, 1)
    at_least("data.num_segments", d.num_segments, 1)
    at_least("data.crop_size", d.crop_size, 1)
    check("data.short_side", d.short_side, d.short_side >= d.crop_size, f"at least data.crop_size={d.crop_size}")
    check(
        "data.crop_scales", d.crop_scales, bool(d.crop_scales) and all(0 < s <= 1 for s in d.crop_scales), "in (0, 1]"
    )
    lo, hi = d.crop_area
    check("data.crop_area", d.crop_area, 0 < lo <= hi <= 1, "(low, high) with 0 < low <= high <= 1")
    at_least("data.color_jitter", d.color_jitter, 0)
    fraction("data.dct_scaling", d.dct_scaling)
    check("data.std", d.std, all(s > 0 for s in d.std), "above 0")
    fraction("data.max_broken_fraction", d.max_broken_fraction)
    at_least("data.num_workers", d.num_workers, 0)

    one_of("optimizer.name", o.name, OPTIMIZERS)
    one_of("optimizer.schedule", o.schedule, SCHEDULES)
    check("optimizer.learning_rate", o.learning_rate, o.learning_rate > 0, "above 0")
    fraction("optimizer.momentum", o.momentum)
    fraction("optimizer.b2", o.b2)
    at_least("optimizer.weight_decay", o.weight_decay, 0)
    at_least("optimizer.clip_norm", o.clip_norm, 0)
    at_least("optimizer.warmup_epochs", o.warmup_epochs, 0)
    at_least("optimizer.backbone_multiplier", o.backbone_multiplier, 0)
    at_least("optimizer.head_multiplier", o.head_multiplier, 0)
    for part in o.freeze:
        one_of("optimizer.freeze", part, PARTS)
    if o.schedule == "multistep" and (not o.milestones or list(o.milestones) != sorted(o.milestones)):
        problems.append(
            f"config.optimizer.milestones={o.milestones!r}: must be rising epochs for optimizer.schedule='multistep', "
            "e.g. (20, 30, 40)"
        )

    check("train.epochs", t.epochs, t.epochs > 0, "above 0")
    at_least("train.global_batch_size", t.global_batch_size, 1)
    at_least("train.accumulate", t.accumulate, 1)
    if t.accumulate >= 1 and t.global_batch_size % t.accumulate:
        problems.append(
            f"config.train.accumulate={t.accumulate}: must divide train.global_batch_size={t.global_batch_size}"
        )
    fraction("train.label_smoothing", t.label_smoothing)
    at_least("train.mixup", t.mixup, 0)
    check("train.ema_decay", t.ema_decay, 0 <= t.ema_decay < 1, "at least 0 and below 1")
    at_least("train.log_every", t.log_every, 1)
    check("train.eval_every", t.eval_every, t.eval_every > 0, "above 0")

    one_of("eval.views", e.views, TEMPORAL_VIEWS)
    one_of("eval.crops", e.crops, SPATIAL_CROPS)
    at_least("eval.num_clips", e.num_clips, 1)
    at_least("eval.batch_size", e.batch_size, 1)
    fraction("fusion.weight", cfg.fusion.weight)
    one_of("fusion.scores", cfg.fusion.scores, FUSED_SCORES)
    one_of("fusion.choice", cfg.fusion.choice, FUSION_CHOICES)
    at_least("checkpoint.every_steps", cfg.checkpoint.every_steps, 1)
    at_least("checkpoint.keep", cfg.checkpoint.keep, 1)
    at_least("parallel.fsdp", cfg.parallel.fsdp, 1)
    one_of("parallel.compute_dtype", cfg.parallel.compute_dtype, COMPUTE_DTYPES)
    return problems


def check_override(path: str) -> None:
    """Checks that a dotted override such as `config.optimizer.learning_rate` names a field.

    Raises:
      ConfigError: naming the first part that is unknown and the nearest known ones.
    """
    kind: Any = Config
    names = path.split(".")
    for depth, name in enumerate(names[1:], start=1):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if not hints:
            raise ConfigError(f"--{path}: {'.'.join(names[:depth])} is a value and has no field {name!r}")
        if name not in hints:
            raise ConfigError(f"--{path}: {'.'.join(names[:depth])} has no field {name!r}; {nearest(name, hints)}")
        kind = hints[name]
    if dataclasses.is_dataclass(kind):
        raise ConfigError(f"--{path}: is a group; set one of its fields: {', '.join(typing.get_type_hints(kind))}")


# -- JSON --------------------------------------------------------------------------------------------------------------


def to_json(cfg: Any) -> str:
    """A config, or any of its groups, as JSON text."""
    return json.dumps(dataclasses.asdict(cfg), indent=2, sort_keys=True)


def from_json(text: str, kind: type = Config) -> Any:
    """Reads what `to_json` wrote. A field that an older version did not have takes its default.

    Raises:
      ConfigError: if it is no JSON; or as `from_dict`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config: not JSON ({error})") from None
    return from_dict(values, kind)


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """The same from what `dataclasses.asdict` gave, with lists where JSON turned tuples into them.

    Raises:
      ConfigError: naming a field that is unknown here, or missing there without a default here, or of another type.
    """
    return _from_dict(values, kind, "config")


def _from_dict(values: dict[str, Any], kind: type, path: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}={values!r}: must be the group {', '.join(hints)}")
    for name in values:
        if name not in hints:
            raise ConfigError(f"{path}.{name}: unknown field; {nearest(str(name), hints)}")
    built = {}
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    for name, hint in hints.items():
        if name not in values:
            if name in needed:
                raise ConfigError(f"{path}.{name}: missing")
            continue
        value = values[name]
        if dataclasses.is_dataclass(hint):
            value = _from_dict(value, typing.cast(type, hint), f"{path}.{name}")
        value = built[name] = tuple(value) if isinstance(value, list) else value
        if not dataclasses.is_dataclass(hint) and not _is_a(value, hint):
            raise ConfigError(f"{path}.{name}={value!r}: must be {_describe(hint)}")
    return kind(**built)
