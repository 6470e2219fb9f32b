"""The configuration of a run: small typed groups, each field with its constraint beside it, and their JSON form.

Every config file in `configs/` has one `get_config(arg)` that returns a `Config`. Values are overridden on the command
line (`--config.optimizer.learning_rate=0.01`). Standard library only, so that reading a config never imports jax or
TensorFlow. An empty tuple or string means "take the default of whatever this refers to"; there are no `None` fields,
because a `None` cannot be overridden from the command line.

Names that choose what is built are keys of a table beside the builders. The command line needs some of them before jax
or TensorFlow can be imported, so those are listed here too, and a test compares them with the tables. The optimizers
and schedules stand in `training/optimizer.py` alone, which checks them before any data is read.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from r23d_jax.config.fields import (
    ConfigError,
    Group,
    UserError,  # noqa: F401
    above,
    at_least,
    at_most,
    below,
    between,
    build,
    kinds_of,
    look_up,
    must,
    nearest,
    one_of,
    validate,  # noqa: F401
)


class Input(NamedTuple):
    """What a network reads: channels of a clip, and frames read beyond those it sees."""

    channels: int
    extra_frames: int = 0


HEADS = ("avgpool", "vit", "attention_pool")
TOKENS = ("space_time", "time")
CROPS = ("multi_scale", "random_resized", "random", "center")
TEMPORAL_SAMPLING = ("random", "segments")
INFLATIONS = ("repeat", "center")
INPUTS = {"rgb": Input(3), "rgb_diff": Input(3, extra_frames=1), "flow": Input(2)}
FUSED_SCORES = ("softmax", "logits")
FUSION_CHOICES = ("fixed", "sum", "held_out")
SOURCES = ("frames", "packed", "synthetic")
BROKEN_POLICIES = ("skip", "error")
TEMPORAL_VIEWS = ("dense", "uniform")
SPATIAL_CROPS = (1, 3, 10)
STEM_POOLS = ("", "none", "2d", "3d")
PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")
COMPUTE_DTYPES = ("float32", "bfloat16")

Count = Annotated[int, at_least(1)]
CountOrZero = Annotated[int, at_least(0)]
Positive = Annotated[float, above(0)]
NotNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]
FractionBelowOne = Annotated[float, at_least(0), below(1)]
FractionAboveZero = Annotated[float, above(0), at_most(1)]
Part = Annotated[str, one_of(*PARTS)]
Widths = Annotated[
    tuple[int, ...], must(lambda w: len(w) in (0, 4) and all(n > 0 for n in w), "() or four positive widths")
]
Scales = Annotated[tuple[FractionAboveZero, ...], must(bool, "one scale or more")]
Area = Annotated[tuple[float, float], must(lambda a: 0 < a[0] <= a[1] <= 1, "(low, high) with 0 < low <= high <= 1")]
Rising = Annotated[tuple[Positive, ...], must(lambda m: list(m) == sorted(set(m)), "rising epochs, e.g. (20, 30, 40)")]


class HeadConfig(Group, place="config.model.head"):
    """What turns the last feature map (B, T, H, W, C) into logits."""

    kind: Annotated[str, one_of(*HEADS)] = "vit"
    tokens: Annotated[str, one_of(*TOKENS)] = "space_time"  # one per place; "time": one per step, averaged over space
    num_layers: Count = 1
    num_heads: Count = 8
    hidden_dim: CountOrZero = 0  # 0: the width of the backbone's last stage
    mlp_ratio: Positive = 4.0
    dropout: FractionBelowOne = 0.5  # before the classifier
    transformer_dropout: FractionBelowOne = 0.1  # inside the transformer blocks
    token_keep: FractionAboveZero = 1.0  # probability that a token is kept while training


class ModelConfig(Group, place="config.model"):
    """Which row of the registry to build, and how to vary it."""

    family: str = "r2plus3d"
    depth: Count = 18  # not read for families of one size, such as i3d
    widths: Widths = ()  # of the four stages; (): the registry's
    # max-pool after the stem: none, 2d (over space), 3d (and time); "": the registry's
    stem_pool: Annotated[str, one_of(*STEM_POOLS)] = ""
    in_channels: Count = 3  # of the clips; 2 for optical flow
    block_dropout: FractionBelowOne = 0.0  # inside every residual block (the published code has 0.3)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)


class DataConfig(Group, place="config.data"):
    """Which videos, and how a clip is cut out of them."""

    source: Annotated[str, one_of(*SOURCES)] = "frames"
    root: str = "data/UCF-101-frames"  # folder of frame folders, or of packed shards
    # folder of classInd.txt, trainlist0N.txt, testlist0N.txt; or train.csv, val.csv
    lists: str = "data/ucfTrainTestlist"
    split: Annotated[int, one_of(1, 2, 3)] = 1
    classes: tuple[str, ...] = ()  # (): all classes of the lists
    hold_out: FractionBelowOne = 0.0  # of the training groups of a class: not trained on, to choose a fusion weight by
    input: Annotated[str, one_of(*INPUTS)] = "rgb"
    num_frames: Count = 16
    frame_stride: Count = 1  # frames from one sampled frame to the next
    sampling: Annotated[str, one_of(*TEMPORAL_SAMPLING)] = "random"
    num_segments: Count = 4  # for sampling="segments": the clip is this many equal runs of consecutive frames
    short_side: Count = 136  # pixels; the scale at which crops are taken
    crop_size: Count = 112  # pixels
    crop: Annotated[str, one_of(*CROPS)] = "multi_scale"
    crop_scales: Scales = (1.0, 0.8409, 0.7071, 0.5946, 0.5)  # multi_scale: of the short side
    crop_area: Area = (0.25, 1.0)  # random_resized: fraction of the frame
    flip: bool = True
    color_jitter: NotNegative = 0.0  # strength; 0 is off
    antialias: bool = False
    # Decode JPEGs at 1/2, 1/4 or 1/8 where this share of the crop's pixels remains; 0: off; 1: never enlarges. Quick.
    dct_scaling: Fraction = 0.0
    mean: tuple[float, ...] = (0.43216, 0.394666, 0.37645)  # of pixels in [0, 1]; two values for input="flow"
    std: tuple[Positive, ...] = (0.22803, 0.22145, 0.216989)
    byte_range: bool = False  # True: mean and std apply to pixels in 0..255 (the published code's slip)
    on_broken: Annotated[str, one_of(*BROKEN_POLICIES)] = "skip"
    max_broken_fraction: Fraction = 0.05
    num_workers: CountOrZero = 0  # threads that read and decode; 0: one per core

    def conflicts(self) -> Iterator[str]:
        if self.short_side < self.crop_size:
            yield f"config.data.short_side={self.short_side}: must be at least data.crop_size={self.crop_size}"
        channels = INPUTS[self.input].channels if self.input in INPUTS else len(self.mean)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                yield f"config.data.{name}={values!r}: must be {channels} values for data.input={self.input!r}"
        for name, why in (("color_jitter", "has no color"), ("dct_scaling", "is read exactly")):
            if self.input == "flow" and getattr(self, name):
                yield f"config.data.{name}={getattr(self, name)}: must be 0 for data.input='flow', which {why}"
        if self.sampling == "segments" and self.num_segments > 0 and self.num_frames % self.num_segments:
            yield (
                f"config.data.num_segments={self.num_segments}: must divide num_frames={self.num_frames} "
                "when config.data.sampling='segments'"
            )
        if self.sampling == "segments" and self.input == "rgb_diff":
            yield (
                "config.data.input='rgb_diff' with sampling='segments': the difference from one segment to the next is "
                "a jump, not motion; set --config.data.sampling=random"
            )


class OptimizerConfig(Group, place="config.optimizer"):
    """Update rule, learning-rate schedule and regularization."""

    name: str = "sgd"  # a key of training/optimizer.py's OPTIMIZERS
    learning_rate: Positive = 0.03
    momentum: FractionBelowOne = 0.9
    nesterov: bool = True
    b2: FractionBelowOne = 0.999  # adamw
    weight_decay: NotNegative = 0.0  # on convolution and linear kernels only
    clip_norm: NotNegative = 0.0  # global norm; 0: off
    schedule: str = "cosine"  # a key of training/optimizer.py's SCHEDULES
    warmup_epochs: NotNegative = 0.0
    milestones: Rising = ()  # epochs, for schedule="multistep"
    decay_factor: FractionAboveZero = 0.1
    backbone_multiplier: NotNegative = 1.0  # of the learning rate
    head_multiplier: NotNegative = 1.0
    freeze: tuple[Part, ...] = ()  # parts not trained

    def conflicts(self) -> Iterator[str]:
        if self.schedule == "multistep" and not self.milestones:
            yield (
                "config.optimizer.milestones=(): must be rising epochs for optimizer.schedule='multistep', "
                "e.g. (20, 30, 40)"
            )


class TrainConfig(Group, place="config.train"):
    """Length of the run and what happens in a step."""

    epochs: Positive = 300.0
    global_batch_size: Count = 64
    accumulate: Count = 1  # micro-batches per step
    label_smoothing: FractionBelowOne = 0.0
    mixup: NotNegative = 0.0  # alpha; 0: off
    ema_decay: FractionBelowOne = 0.0  # 0: off
    log_every: Count = 20  # steps
    eval_every: Positive = 10.0  # epochs; the last epoch is always evaluated

    def conflicts(self) -> Iterator[str]:
        if self.accumulate > 0 and self.global_batch_size % self.accumulate:
            yield (
                f"config.train.accumulate={self.accumulate}: must divide "
                f"train.global_batch_size={self.global_batch_size}"
            )


class EvalConfig(Group, place="config.eval"):
    """Which views of a video are scored."""

    views: Annotated[str, one_of(*TEMPORAL_VIEWS)] = "dense"  # all whole clips in a row; uniform: num_clips, spread out
    num_clips: Count = 10
    crops: Annotated[int, one_of(*SPATIAL_CROPS)] = 1
    batch_size: Count = 32  # views per batch, over all devices


class FusionConfig(Group, place="config.fusion"):
    """Two trained streams whose scores are added; `--mode=eval` does it where `first` is set."""

    first: str = ""  # folder of a run, usually of RGB
    second: str = ""  # of optical flow
    first_root: str = ""  # of its frames; "": as in its training
    second_root: str = ""
    scores: Annotated[str, one_of(*FUSED_SCORES)] = "softmax"  # which are averaged over views and added
    # how the weight is chosen: fixed, sum (both alike), held_out (the best on videos that neither was trained on)
    choice: Annotated[str, one_of(*FUSION_CHOICES)] = "fixed"
    weight: Fraction = 0.6  # of the first, for choice="fixed" (VMZ's scripts have 0.6 for RGB)


class CheckpointConfig(Group, place="config.checkpoint"):
    """When state is saved and how much of it is kept."""

    every_steps: Count = 500
    keep: Count = 2  # newest; the best by video top-1 is kept as well


class ParallelConfig(Group, place="config.parallel"):
    """How the run is laid over devices."""

    fsdp: Count = 1  # devices that share one copy of the parameters; the rest is data parallel
    compute_dtype: Annotated[str, one_of(*COMPUTE_DTYPES)] = "float32"
    remat: bool = False  # recompute each stage in the backward pass


def _is_profile(text: str) -> bool:
    steps = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    return not text or (steps is not None and int(steps[1]) < int(steps[2]))


class Config(Group, place="config"):
    """Everything a run depends on."""

    seed: int = 0
    init_from: str = ""  # weights to start from: .pth, .safetensors, a run's folder, ...; "": random
    init_skip: tuple[Annotated[str, one_of(*PARTS, "head")], ...] = ()  # parts that stay random all the same
    inflate: Annotated[str, one_of(*INFLATIONS)] = "repeat"  # how 2D weights become 3D: repeat (and divide) or center
    # steps of which a trace is written to the workdir
    profile: Annotated[str, must(_is_profile, "START:STOP, e.g. 20:25")] = ""
    compilation_cache: bool = True  # keep compiled programs in the workdir, so that a resumed run starts sooner
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def conflicts(self) -> Iterator[str]:
        given, wanted = self.model.in_channels, INPUTS.get(self.data.input)
        if wanted is not None and given != wanted.channels:
            yield f"config.model.in_channels={given}: must be {wanted.channels} for data.input={self.data.input!r}"


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
        return self.num_frames + look_up(INPUTS, self.input, "config.data.input").extra_frames


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


# -- names and JSON ----------------------------------------------------------------------------------------------------


def check_override(path: str) -> None:
    """Checks that a dotted override such as `config.optimizer.learning_rate` names a field.

    Raises:
      ConfigError: naming the first part that is unknown and the nearest known ones.
    """
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
    return build(values, kind, "config")
