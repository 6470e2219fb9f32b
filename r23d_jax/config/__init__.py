"""The configuration of a run: small groups of typed fields, each with its constraint beside it, and their JSON form.

A config file has one `get_config(arg)` that returns a `Config`. The command line overrides its fields, e.g.
`--config.optimizer.learning_rate=0.01`. An empty tuple or string means the default of the part that the field
describes; no field is `None`, because the command line cannot override a `None`.

Only the standard library is imported here, so that reading a config never imports jax or TensorFlow. Therefore the keys
of some tables of builders are listed here too; a test compares the two.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

from r23d_jax.config.data import AUGMENT_ON, BROKEN_POLICIES, CROPS, SOURCES, TEMPORAL_SAMPLING, DataConfig  # noqa: F401
from r23d_jax.config.fields import (
    ConfigError,
    Group,
    UserError,  # noqa: F401
    build,
    kinds_of,
    look_up,  # noqa: F401
    must,
    nearest,
    one_of,
    validate,  # noqa: F401
)
from r23d_jax.config.kinds import (
    Count,
    CountOrZero,
    Fraction,
    FractionAboveZero,
    FractionBelowOne,
    NotNegative,
    Positive,
)
from r23d_jax.config.preprocessing import (
    FLOW_SCALE,
    FLOW_ZERO,
    INPUTS,
    NO_FLOW,  # noqa: F401
    RATE_TOLERANCE,  # noqa: F401
    Flow,  # noqa: F401
    Input,  # noqa: F401
    Preprocessing,
)

HEADS = ("avgpool", "vit", "attention_pool")
TOKENS = ("space_time", "time")
INFLATIONS = ("repeat", "center")
FUSED_SCORES = ("softmax", "logits")
FUSION_CHOICES = ("fixed", "sum", "held_out")
TEMPORAL_VIEWS = ("dense", "uniform")
SPATIAL_CROPS = (1, 3, 10)
CHECKPOINTS = ("best", "latest")
STEM_KINDS = ("", "1x7x7", "3x7x7", "7x7x7", "motion", "Lx7x7", "factorized")
STEM_POOLS = ("", "none", "2d", "3d")
PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")
COMPUTE_DTYPES = ("float32", "bfloat16", "auto")
TRACKERS = ("wandb", "mlflow")

Part = Annotated[str, one_of(*PARTS)]
Widths = Annotated[
    tuple[int, ...], must(lambda w: len(w) in (0, 4) and all(n > 0 for n in w), "() or four positive widths")
]
Strides = Annotated[
    tuple[int, ...], must(lambda s: len(s) in (0, 3) and {*s} <= {1, 2}, "() or three values, each 1 or 2")
]
Rising = Annotated[tuple[Positive, ...], must(lambda m: list(m) == sorted(set(m)), "rising epochs, e.g. (20, 30, 40)")]


class HeadConfig(Group, place="config.model.head"):
    """The head, which turns the last feature map (B, T, H, W, C) into logits."""

    # mean of all places; a transformer with a class token; one query that attends to all places
    kind: Annotated[str, one_of(*HEADS)] = "vit"
    tokens: Annotated[str, one_of(*TOKENS)] = "space_time"  # per location; time: per step, averaged over space
    num_layers: Count = 1  # transformer blocks
    num_heads: Count = 8  # attention heads of each transformer block
    hidden_dim: CountOrZero = 0  # 0: the width of the backbone's last stage
    mlp_ratio: Positive = 4.0  # width of a block's MLP over that of its tokens
    dropout: FractionBelowOne = 0.5  # before the classifier
    transformer_dropout: FractionBelowOne = 0.1  # inside the transformer blocks
    embedding_dropout: FractionBelowOne = 0.0  # of the tokens with their positions (BERT pooling has 0.1)
    attention_dropout: FractionBelowOne = 0.0  # of the attention weights (BERT pooling has 0.1)
    # add the transformer's output to the mean of all places, times a learned scale that starts at zero
    residual: bool = False
    token_keep: FractionAboveZero = 1.0  # probability of keeping a token while training


class ModelConfig(Group, place="config.model"):
    """The network: a row of the registry, and variations of it."""

    family: str = "r2plus3d"  # a row of FAMILIES in models/registry.py
    depth: Count = 18  # ignored for families of one size, such as i3d
    widths: Widths = ()  # channels of the four stages; (): those of the registry
    # first convolution: frames x 7 x 7, where L is the whole clip; motion: 3x7x7 that sees only what moves;
    # factorized: 1x7x7 and then over time; "": that of the registry
    stem: Annotated[str, one_of(*STEM_KINDS)] = ""
    # max-pool after the stem: none, 2d (over space), 3d (over space and time); "": that of the registry
    stem_pool: Annotated[str, one_of(*STEM_POOLS)] = ""
    in_channels: Count = 3  # channels of a clip; 2 for optical flow, 6 for rgb_and_diff
    block_dropout: FractionBelowOne = 0.0  # inside every residual block (the published code has 0.3)
    # probability that the last residual block is skipped in training; that of the others rises linearly to it
    stochastic_depth: FractionBelowOne = 0.0
    # of stages 2, 3 and 4, each 1 or 2, e.g. (1, 2, 1) for twice as many time steps before the head; (): the family's
    temporal_strides: Strides = ()
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)


class OptimizerConfig(Group, place="config.optimizer"):
    """Update rule, learning-rate schedule and regularization."""

    name: str = "sgd"  # a key of OPTIMIZERS in training/optimizer.py
    learning_rate: Positive = 0.03  # peak, for global_batch_size clips; not scaled with it
    momentum: FractionBelowOne = 0.9  # of sgd; beta 1 of adamw
    nesterov: bool = True  # sgd and lars
    b2: FractionBelowOne = 0.999  # beta 2 of adamw
    weight_decay: NotNegative = 0.0  # on convolution and linear kernels only
    clip_norm: NotNegative = 0.0  # global norm; 0: off
    schedule: str = "cosine"  # a key of SCHEDULES in training/optimizer.py
    warmup_epochs: NotNegative = 0.0  # in which the rate rises linearly
    milestones: Rising = ()  # epochs, for schedule="multistep"
    decay_factor: FractionAboveZero = 0.1  # at each of the milestones
    backbone_multiplier: NotNegative = 1.0  # multiplies the learning rate of the backbone
    head_multiplier: NotNegative = 1.0  # the same for the head
    freeze: tuple[Part, ...] = ()  # parts that are not trained

    def conflicts(self) -> Iterator[str]:
        if self.schedule == "multistep" and not self.milestones:
            wanted = "rising epochs for optimizer.schedule='multistep', e.g. (20, 30, 40)"
            yield f"config.optimizer.milestones=(): must be {wanted}"


class TrainConfig(Group, place="config.train"):
    """The length of the run and the content of a step."""

    epochs: Positive = 300.0  # may be a fraction
    global_batch_size: Count = 64  # clips in a step, over all devices
    accumulate: Count = 1  # micro-batches per step
    label_smoothing: FractionBelowOne = 0.0  # 0: off
    mixup: NotNegative = 0.0  # alpha; 0: off
    cutmix: NotNegative = 0.0  # alpha; 0: off; with both, every micro-batch draws one of them
    still_mix: FractionBelowOne = 0.0  # largest weight of a still frame of another clip, blended in; 0: off
    # of the moving average of the parameters, which is what is evaluated; smaller in the first steps; 0: off
    ema_decay: FractionBelowOne = 0.0
    log_every: Count = 20  # steps between two rows of metrics
    eval_every: Positive = 10.0  # epochs; the last epoch is always evaluated

    def conflicts(self) -> Iterator[str]:
        if self.accumulate > 0 and self.global_batch_size % self.accumulate:
            total = f"train.global_batch_size={self.global_batch_size}"
            yield f"config.train.accumulate={self.accumulate}: must divide {total}"


class EvalConfig(Group, place="config.eval"):
    """The views of a video to score."""

    views: Annotated[str, one_of(*TEMPORAL_VIEWS)] = "dense"  # all non-overlapping clips; uniform: num_clips
    num_clips: Count = 10  # for views="uniform"
    # of each clip: the center; both ends of the longer side as well; or corners and center, mirrored too
    crops: Annotated[int, one_of(*SPATIAL_CROPS)] = 1
    batch_size: Count = 32  # views per batch, over all devices
    # which checkpoint to evaluate: the last one, or the best on the videos that the training evaluated, which flatters
    # it if these are the test videos
    checkpoint: Annotated[str, one_of(*CHECKPOINTS)] = "latest"
    # with --mode=eval: show the nearest training video of every error; off, because it reads a clip of all of them
    nearest: bool = False


class FusionConfig(Group, place="config.fusion"):
    """Two trained streams whose scores `--mode=eval` adds, if `first` is set."""

    first: str = ""  # folder of a run, usually on RGB
    second: str = ""  # folder of a run, usually on optical flow
    first_root: str = ""  # folder of its frames; "": as in its training
    second_root: str = ""  # as first_root
    scores: Annotated[str, one_of(*FUSED_SCORES)] = "softmax"  # the scores to average over views and add
    # how to choose the weight: fixed, sum (equal weights), held_out (the best on videos that neither was trained on)
    choice: Annotated[str, one_of(*FUSION_CHOICES)] = "fixed"
    weight: Fraction = 0.6  # weight of the first stream for choice="fixed" (VMZ's scripts have 0.6 for RGB)


class CheckpointConfig(Group, place="config.checkpoint"):
    """When to save the state, and how many checkpoints to keep."""

    every_steps: Count = 500  # steps between two checkpoints; every evaluation saves one too
    keep: Count = 2  # number of newest ones; the best by video top-1 is kept as well


class LoggingConfig(Group, place="config.logging"):
    """Services that get the metrics too, beside metrics.jsonl and TensorBoard."""

    # W&B writes offline unless WANDB_MODE is set, MLflow into the workdir unless MLFLOW_TRACKING_URI is
    to: tuple[Annotated[str, one_of(*TRACKERS)], ...] = ()
    project: Annotated[str, must(bool, "a name")] = "r23d_jax"  # the project of W&B, the experiment of MLflow


class ParallelConfig(Group, place="config.parallel"):
    """How to use the devices."""

    fsdp: Count = 1  # devices that share one copy of the parameters; the rest is data parallel
    compute_dtype: Annotated[str, one_of(*COMPUTE_DTYPES)] = "float32"  # auto: bfloat16, but float32 on a CPU
    remat: bool = False  # recompute each block in the backward pass


def _is_profile(text: str) -> bool:
    steps = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    return not text or (steps is not None and int(steps[1]) < int(steps[2]))


class Config(Group, place="config"):
    """Everything that a run depends on."""

    seed: int = 0  # of the initial weights, the order of videos, the crops and dropout
    # weights to start from: .pth, .safetensors, a run's folder, name:r2plus1d_18.kinetics400, ...; "": random
    init_from: str = ""
    init_skip: tuple[Annotated[str, one_of(*PARTS, "head")], ...] = ()  # parts of `init_from` to leave random
    inflate: Annotated[str, one_of(*INFLATIONS)] = "repeat"  # how 2D weights become 3D: repeat (and divide) or center
    profile: Annotated[str, must(_is_profile, "START:STOP, e.g. 20:25")] = ""  # steps to trace into the workdir
    compilation_cache: bool = True  # keep compiled programs in the workdir, so that a resumed run starts sooner
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

    def conflicts(self) -> Iterator[str]:
        given, wanted = self.model.in_channels, INPUTS.get(self.data.input)
        if wanted is not None and given != wanted.channels:
            yield f"config.model.in_channels={given}: must be {wanted.channels} for data.input={self.data.input!r}"
        if self.train.still_mix and wanted is not None and not wanted.pixel_channels:
            source = f"data.input={self.data.input!r}, which has no frames"
            yield f"config.train.still_mix={self.train.still_mix:g}: must be 0 for {source}"
        if self.data.num_frames == 1:
            if self.model.stem == "motion":
                yield "config.model.stem='motion': sees only what moves, so nothing of data.num_frames=1"
            if self.train.still_mix:
                yield f"config.train.still_mix={self.train.still_mix:g}: must be 0 for data.num_frames=1"
        size, parts = self.train.global_batch_size, self.train.accumulate * self.data.repeats
        if self.data.repeats > 1 and parts > 0 and size % parts:
            micro = f"train.global_batch_size / accumulate = {size} / {self.train.accumulate}"
            yield f"config.data.repeats={self.data.repeats}: must divide {micro}"
        mixing = {name: value for name in ("mixup", "cutmix", "still_mix") if (value := getattr(self.train, name))}
        for name, value in mixing.items():
            if self.train.accumulate > 0 and 0 < size // self.train.accumulate <= self.data.repeats:
                yield (
                    f"config.train.{name}={value:g}: must be 0 where there is no clip of another video to mix with "
                    f"(train.global_batch_size / accumulate = {size} / {self.train.accumulate}, data.repeats = "
                    f"{self.data.repeats})"
                )
            if self.data.motion.speeds and name != "still_mix":
                speeds = f"data.motion.speeds={self.data.motion.speeds}, which mixes the same two classes each time"
                yield f"config.train.{name}={value:g}: must be 0 with {speeds}"
        if self.data.motion.speeds and self.eval.crops != 1:
            yield f"config.eval.crops={self.eval.crops}: must be 1 with data.motion.speeds={self.data.motion.speeds}"


def use_flow(cfg: Config) -> Config:
    """Makes a config read optical flow as `prepare --flow` writes it; returns the same config."""
    cfg.model.in_channels = 2
    cfg.data.input = "flow"
    cfg.data.mean, cfg.data.std = (FLOW_ZERO / 255,) * 2, (FLOW_SCALE / 255,) * 2  # so that values lie in [-1, 1]
    cfg.data.color_jitter = cfg.data.hue_jitter = cfg.data.random_gray = cfg.train.still_mix = 0.0
    cfg.data.root = "data/ucf101_flow/frames"
    return cfg


def use_motion(cfg: Config) -> Config:
    """Makes a network on RGB learn motion instead of rooms and clothes (docs/results.md); returns the same config."""
    cfg.model.stem = "motion"
    cfg.data.random_gray, cfg.data.stride_jitter = 0.3, 0.5
    cfg.data.frame_stride = 2  # or a clip that is slowed would show frames twice, which look still
    return cfg


def preprocessing(cfg: DataConfig) -> Preprocessing:
    """The part of a data config that using a trained network requires."""
    return Preprocessing(**_shared(cfg))


def with_preprocessing(cfg: DataConfig, pre: Preprocessing) -> DataConfig:
    """A data config with the preprocessing of a trained network. Its own `frame_rate` is kept if it has one."""
    rate = cfg.frame_rate or (pre.frame_rate if pre.frame_seconds else 0.0)
    return dataclasses.replace(cfg, **_shared(pre) | {"frame_rate": rate})


def _shared(group: DataConfig | Preprocessing) -> dict[str, Any]:
    names = kinds_of(Preprocessing).keys() & kinds_of(DataConfig).keys()
    return {name: getattr(group, name) for name in names}


# -- names and JSON ----------------------------------------------------------------------------------------------------


def check_override(path: str) -> None:
    """Raises ConfigError if an override such as `config.optimizer.learning_rate` names no field; hints at near ones."""
    kind: Any = Config
    names = path.split(".")
    for depth, name in enumerate(names[1:], start=1):
        kinds = kinds_of(kind) if dataclasses.is_dataclass(kind) else {}
        if not kinds:
            raise ConfigError(f"--{path}: {'.'.join(names[:depth])} is a value and has no field {name!r}")
        if name not in kinds:
            raise ConfigError(f"--{path}: {'.'.join(names[:depth])} has no field {name!r}; {nearest(name, kinds)}")
        kind = kinds[name]
    if dataclasses.is_dataclass(kind):
        raise ConfigError(f"--{path}: is a group; set one of its fields: {', '.join(kinds_of(kind))}")


def to_json(cfg: Any) -> str:
    """A config, or any of its groups, as JSON text."""
    return json.dumps(dataclasses.asdict(cfg), indent=2, sort_keys=True)


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """The fields of `dataclasses.asdict` by dotted name; tuples become lists, as in JSON."""
    out = {}
    for name, value in values.items():
        value = list(value) if isinstance(value, tuple) else value
        out |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return out


def from_json(text: str, kind: type = Config) -> Any:
    """Reads the text of `to_json`; raises ConfigError if it is not JSON, or as `from_dict`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config: not JSON ({error})") from None
    return from_dict(values, kind)


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """Reads the result of `dataclasses.asdict`, in which tuples may be lists. A missing field takes its default.

    Raises:
      ConfigError: naming a field that is unknown, or missing without a default, or of the wrong type.
    """
    return build(values, kind, "config")
