"""The empirical study of spatiotemporal convolutions: every block of the R(2+1)D paper and R(2+3)D, side by side.

    python -m r23d_jax study --config=configs/study.py --workdir runs/study

`study.py` trains small networks on the synthetic motion set, three seeds each, on a CPU. Its classes differ in motion
alone, so the table shows what only temporal convolution can tell apart.
`study.py:heads` compares the heads on R(2+3)D there. On five classes of UCF101 (ucf5_cpu.py), with three seeds and
three splits, `study.py:heads_ucf5` does the same on RGB and `heads_diff_ucf5` on frame differences, each also with
heads that start as the average pool, and `study.py:inputs_ucf5` compares RGB, frame differences and flow, each by its
own recipe in ucf5_cpu.py. `study.py:recipe_ucf5` takes the recipe for RGB apart: each part taken away alone, and others
added alone. `--set data.lists=FOLDER` says where the lists are, and `--set frames.flow=FOLDER` where the flow is.
`study.py:heads_full_ucf5` compares heads at full size, R(2+3)D-18 at 112 pixels, on RGB and on frame differences; it is
written for a GPU, and `python -m benchmarks.resident` runs it there within minutes.
`study.py:ucf101` is the full-size study: 18 layers, three splits, three seeds, for 80 GB GPUs; `--list` shows its cost
and `--shard i/n` shares it out.
`study.py:table` fills the table of the original README, in its order, and adds rows of this project; `table_ucf5` is
the same at the size of a CPU, on the five classes. Rows whose weights are missing are left out:
`--set weights.imagenet=FILE`, `weights.sports1m`, `weights.sports1m_flow`, `weights.motion`.
`,folds` behind a name, e.g. `study.py:heads_ucf5,folds`, takes three folds of the training list instead of the splits,
to choose by: no test video is read. Results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r23d_jax.config import Config, UserError, look_up, use_flow
from r23d_jax.config.files import call_file
from r23d_jax.study.grid import File, Study

NETWORKS = {
    "R2D": "r2d",
    "f-R2D": "f_r2d",
    "R3D": "r3d",
    "MC3": "mc3",
    "rMC3": "rmc3",
    "R(2+1)D": "r2plus1d",
    "R(2+3)D": "r2plus3d",
    "(2+3)D units": "conv2plus3d",
}
BLOCKS = {title: {"model.family": family} for title, family in NETWORKS.items()}
HEADS = {
    "average pool": {"model.head.kind": "avgpool"},
    "attention pool": {"model.head.kind": "attention_pool"},
    "ViT, time": {"model.head.kind": "vit", "model.head.tokens": "time"},
    "ViT, space-time": {"model.head.kind": "vit", "model.head.tokens": "space_time"},
}
# Heads that start as the average pool and learn what to add to it, with the dropouts of BERT pooling
_ADDED = {"model.head.residual": True, "model.head.embedding_dropout": 0.1, "model.head.attention_dropout": 0.1}
ADDING_HEADS = {f"average pool + {title}": HEADS[title] | _ADDED for title in list(HEADS)[1:]}
SEEDS = {str(seed): {"seed": seed} for seed in range(3)}
SPLITS = {str(split): {"data.split": split} for split in (1, 2, 3)}
FOLDS = {str(fold): {"data.fold": fold} for fold in (1, 2, 3)}

# What the recipe for RGB of ucf5_cpu.py has, each taken away alone, and what it does not have, each added alone
RECIPE = {
    "the recipe": {},
    "no motion stem": {"model.stem": ""},
    "no gray": {"data.random_gray": 0.0},
    "no change of pace": {"data.stride_jitter": 0.0},
    "still frames 0.7": {"train.still_mix": 0.7},
    "color jitter 0.6": {"data.color_jitter": 0.6},
    "CutMix": {"train.cutmix": 1.0},
    "stochastic depth 0.2": {"model.stochastic_depth": 0.2},
    "EMA 0.99": {"train.ema_decay": 0.99},
    "dropout 0.9": {"model.head.dropout": 0.9},
    "8 time steps": {"model.temporal_strides": (1, 2, 1)},
}

# -- the table of the original README ----------------------------------------------------------------------------------

IMAGENET, SPORTS, SPORTS_FLOW = "weights.imagenet", "weights.sports1m", "weights.sports1m_flow"
MOTION, FLOW = "weights.motion", "frames.flow"
FILES = {
    IMAGENET: File("torchvision's googlenet, https://download.pytorch.org/models/googlenet-1378be20.pth"),
    SPORTS: File("R(2+1)D-34 trained on Sports-1M, RGB, for PyTorch (VMZ has a pickle for Caffe2; convert that first)"),
    SPORTS_FLOW: File(
        "R(2+1)D-34 trained on Sports-1M, optical flow, for PyTorch (VMZ has a pickle for Caffe2; convert that first)"
    ),
    MOTION: File(
        "a run that trained the same R(2+3)D on motion, on the training list of this split or on generated pictures"
    ),
}
# Label: pretraining; published on UCF101; published on Kinetics-400
ROWS = {
    "I3D RGB": ("none", "50 to 60 [c], split 1", "67.5 [t]"),
    "I3D RGB, ImageNet": ("ImageNet", "84.5 [i], split 1", "72.1 [t]"),
    "I3D flow, ImageNet": ("ImageNet", "90.6 [i], split 1", "65.3 [t]"),
    "I3D two-stream, ImageNet": ("ImageNet", "93.4 [i], split 1", "75.7 [t]"),
    "R(2+1)D RGB": ("none", "56.60 [f], split 1, 50 layers", "72.0 [t], misprinted as 75.7"),
    "R(2+1)D flow": ("none", "", "67.5 [t]"),
    "R(2+1)D two-stream": ("none", "", "73.9 [t]"),
    "R(2+1)D RGB, Sports-1M": ("Sports-1M", "93.6 [t]", "74.3 [t]"),
    "R(2+1)D flow, Sports-1M": ("Sports-1M", "93.3 [t]", "68.5 [t]"),
    "R(2+1)D two-stream, Sports-1M": ("Sports-1M", "95.0 [t]", "75.4 [t]"),
    "R(2+3)D RGB": ("none", "86.88 claimed [o], no log", ""),
    "R(2+3)D RGB, average pool": ("none", "", ""),
    "R(2+3)D differences, average pool": ("none", "", ""),
    "R(2+3)D RGB, average pool, motion stem": ("none", "", ""),
    "R(2+3)D RGB, average pool, motion stem, motion": ("motion, no labels", "", ""),
    "R(2+3)D flow, average pool": ("none", "", ""),
    "R(2+3)D two-stream, motion stem": ("none", "", ""),
    "R(2+3)D two-stream, motion stem, motion": ("motion, no labels", "", ""),
}
# Row -> the rows that it adds
TWO_STREAMS = {
    "I3D two-stream, ImageNet": ("I3D RGB, ImageNet", "I3D flow, ImageNet"),
    "R(2+1)D two-stream": ("R(2+1)D RGB", "R(2+1)D flow"),
    "R(2+1)D two-stream, Sports-1M": ("R(2+1)D RGB, Sports-1M", "R(2+1)D flow, Sports-1M"),
    "R(2+3)D two-stream, motion stem": ("R(2+3)D RGB, average pool, motion stem", "R(2+3)D flow, average pool"),
    "R(2+3)D two-stream, motion stem, motion": (
        "R(2+3)D RGB, average pool, motion stem, motion",
        "R(2+3)D flow, average pool",
    ),
}
COLUMNS = ("pretraining", "published UCF101", "published Kinetics-400")
NOTES = """The first eleven rows are those of the table in the original README. It prints the published Kinetics-400
results under the heading UCF101. All published results are of others, top-1 in percent. The owners: [t] Tran et
al. 2018, mean of 3 splits on UCF101, R(2+1)D-34 of 32 frames, and I3D as quoted there; [i] Carreira and Zisserman 2017;
[c] Carreira, issue 46 of kinetics-i3d; [f] fourierer's runs of the 3D-ResNets code; [o] the original README, which says
both "from scratch" and "pretrained on Kinetics-400". Two-stream rows add the scores of two rows above with equal
weights. R(2+3)D has the ViT head unless the row names another; in two-stream rows both streams have average pools. RGB
rows with a motion stem also lose colors and change the pace in training (data.random_gray, data.stride_jitter); no
other row does."""


def get_study(arg: str = "") -> Study:
    """`arg` is nothing, or a key of `STUDIES`; `,folds` behind it takes folds instead of splits."""
    name, comma, how = arg.partition(",")
    study = look_up(STUDIES, name, "configs/study.py: variant")()
    if not comma:
        return study
    if how != "folds":
        raise UserError(f"configs/study.py:{arg}: after the comma, only folds is known")
    axes = {axis: values for axis, values in study.axes.items() if axis != "split"}
    return dataclasses.replace(study, axes=axes | {"fold": FOLDS})


def _motion() -> Study:
    base = _base("quickstart", "r2plus3d,avgpool")
    base.model.stem_pool = "2d"  # in all of them, for a CPU
    return Study("What tells motion apart", base, {"network": BLOCKS, "seed": SEEDS})


def _heads_ucf5(title: str, arg: str) -> Study:
    axes = {"head": HEADS | ADDING_HEADS, "seed": SEEDS, "split": SPLITS}
    return Study(f"Heads on five classes of UCF101, {title}", _base("ucf5_cpu", arg), axes)


def _heads_full_ucf5() -> Study:
    base = _base("ucf5_cpu", "vit")  # the recipe; then the network and the clips of r23d.py
    base.data.root = "data/ucf5_128/frames"
    base.data.short_side, base.data.crop_size = 128, 112
    base.model.depth, base.model.widths, base.model.head.num_heads = 18, (), 8
    base.train.global_batch_size, base.parallel.compute_dtype = 32, "auto"
    names = ("average pool", "ViT, space-time", "average pool + ViT, time", "average pool + ViT, space-time")
    diff = _changes(_base("ucf5_cpu", "vit"), _base("ucf5_cpu", "vit,rgb_diff"))
    inputs = {"RGB": {}, "frame differences": diff | {"train.still_mix": 0.0}}  # if it is set, for RGB alone
    heads = {name: (HEADS | ADDING_HEADS)[name] for name in names}
    axes = {"input": inputs, "head": heads, "seed": SEEDS, "split": SPLITS}
    return Study("Heads on five classes of UCF101, full size", base, axes)


def _inputs_ucf5() -> Study:
    base, flow = _base("ucf5_cpu"), _base("ucf5_cpu", "vit,flow")
    inputs = {
        "RGB": {},
        "frame differences": _changes(base, _base("ucf5_cpu", "vit,rgb_diff")),
        "flow": _changes(base, flow) | {"data.root": FLOW},
    }
    axes = {"input": inputs, "seed": SEEDS, "split": SPLITS}
    return Study("Inputs on five classes of UCF101", base, axes, files={FLOW: _flow_at(flow)})


def _table() -> Study:
    base, pooled = _base("r23d", "published"), _base("r23d", "18,avgpool,published")
    inflate, sports = _base("i3d", "inflate"), _base("r2plus1d", "finetune")
    diff, won = _base("r23d", "18,avgpool,published"), _base("r23d", "18,avgpool")
    diff.data.input, moving = "rgb_diff", _base("r23d", "18,avgpool,flow")
    flow = {"data.root": FLOW}
    others = {
        "I3D RGB": _changes(base, _base("i3d")),
        "I3D RGB, ImageNet": _changes(base, inflate) | {"init_from": IMAGENET},
        "I3D flow, ImageNet": _changes(base, use_flow(inflate)) | flow | {"init_from": IMAGENET},
        "R(2+1)D RGB": _changes(base, _base("r2plus1d", "34")),
        "R(2+1)D flow": _changes(base, _base("r2plus1d", "34,flow")) | flow,
        "R(2+1)D RGB, Sports-1M": _changes(base, sports) | {"init_from": SPORTS},
        "R(2+1)D flow, Sports-1M": _changes(base, use_flow(sports)) | flow | {"init_from": SPORTS_FLOW},
    }
    title = "The table of the original README, on UCF101"
    return _filled(title, base, others | _ours(base, pooled, diff, won, moving), moving)


def _table_ucf5() -> Study:
    base, pooled, won = (_base("ucf5_cpu", arg) for arg in ("vit,plain", "avgpool,plain", "avgpool"))
    diff, moving = _base("ucf5_cpu", "avgpool,rgb_diff"), _base("ucf5_cpu", "avgpool,flow")
    flow = _changes(pooled, moving) | {"data.root": FLOW}
    pool = _changes(base, pooled)
    i3d = pool | {"model.family": "i3d", "model.widths": ()}
    inflated = i3d | {"model.family": "i3d_gamma", "init_from": IMAGENET, "optimizer.learning_rate": 1e-4}
    small = pool | {"model.family": "r2plus1d", "model.stem_pool": "2d"}  # pooled for a CPU
    sports = pool | {"model.family": "r2plus1d", "model.depth": 34, "model.widths": (), "optimizer.learning_rate": 1e-4}
    others = {
        "I3D RGB": i3d,
        "I3D RGB, ImageNet": inflated,
        "I3D flow, ImageNet": inflated | flow,
        "R(2+1)D RGB": small,
        "R(2+1)D flow": small | flow,
        "R(2+1)D RGB, Sports-1M": sports | {"init_from": SPORTS},
        "R(2+1)D flow, Sports-1M": sports | flow | {"init_from": SPORTS_FLOW},
    }
    title = "The table of the original README, at the size of a CPU, on five classes of UCF101"
    return _filled(title, base, others | _ours(base, pooled, diff, won, moving), moving)


def _ours(base: Config, pooled: Config, diff: Config, won: Config, flow: Config) -> dict[str, dict[str, Any]]:
    """The trainings of R(2+3)D; all configs but `base` have the average pool."""
    pool = _changes(base, pooled)
    stem = pool | _changes(pooled, won)
    return {
        "R(2+3)D RGB": {},
        "R(2+3)D RGB, average pool": pool,
        "R(2+3)D differences, average pool": pool | _changes(pooled, diff),
        "R(2+3)D RGB, average pool, motion stem": stem,
        "R(2+3)D RGB, average pool, motion stem, motion": stem | {"init_from": MOTION},
        "R(2+3)D flow, average pool": pool | _changes(pooled, flow) | {"data.root": FLOW},
    }


def _filled(title: str, base: Config, trainings: dict[str, dict[str, Any]], flow: Config) -> Study:
    """The study of all `ROWS`."""
    networks: dict[str, dict[str, Any]] = {}
    for label in ROWS:
        if label in TWO_STREAMS:
            first, second = TWO_STREAMS[label]
            streams = {"fusion.first": first, "fusion.second": second, "fusion.choice": "sum"}
            networks[label] = networks[first] | {"init_from": ""} | streams
        else:
            networks[label] = trainings[label]
    return Study(
        title,
        base,
        {"network": networks, "seed": SEEDS, "split": SPLITS},
        files=FILES | {FLOW: _flow_at(flow)},
        facts={column: {label: row[k] for label, row in ROWS.items()} for k, column in enumerate(COLUMNS)},
        notes=NOTES,
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "": _motion,
    "heads": lambda: Study("Heads on synthetic motion", _base("quickstart"), {"head": HEADS, "seed": SEEDS}),
    "heads_ucf5": lambda: _heads_ucf5("RGB", "vit"),
    "heads_diff_ucf5": lambda: _heads_ucf5("frame differences", "vit,rgb_diff"),
    "heads_full_ucf5": _heads_full_ucf5,
    "inputs_ucf5": _inputs_ucf5,
    "recipe_ucf5": lambda: Study(
        "The recipe for RGB on five classes of UCF101, part by part",
        _base("ucf5_cpu", "avgpool"),
        {"change": RECIPE, "seed": SEEDS, "split": SPLITS},
    ),
    "ucf101": lambda: Study(
        "Spatiotemporal convolutions on UCF101",
        _base("r23d", "18,avgpool,published"),
        {"network": BLOCKS, "seed": SEEDS, "split": SPLITS},
    ),
    "table": _table,
    "table_ucf5": _table_ucf5,
}


def _base(name: str, arg: str = "") -> Config:
    return call_file(str(Path(__file__).with_name(f"{name}.py")), "get_config", Config, arg)


def _flow_at(cfg: Config) -> File:
    return File("optical flow of the same videos (prepare --flow)", cfg.data.root)


def _changes(base: Config, other: Config) -> dict[str, Any]:
    """The fields that differ, with the values of `other`."""

    def flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
        out = {}
        for name, value in values.items():
            out |= flat(value, f"{place}{name}.") if isinstance(value, dict) else {place + name: value}
        return out

    before = flat(dataclasses.asdict(base))
    return {name: value for name, value in flat(dataclasses.asdict(other)).items() if value != before[name]}
