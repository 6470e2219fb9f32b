"""Pretraining without labels: a small R(2+3)D learns how a window slides over single pictures (docs/pretraining.md).

    python -m r23d_jax prepare --videos UCF-101 --out data/ucf5 --short-side 128
    python launch.py --config=configs/pretrain.py --config.data.root=data/ucf5/frames --config.data.lists=LISTS \
      --config.data.classes="('HandstandPushups','JumpingJack','PullUps','PushUps','WallPushups')"

Without names, all classes of the lists are read. Any training of the same network then starts from it, with a head of
its own:

    python launch.py --config=configs/ucf5_cpu.py --config.init_from=runs/pretrain --config.init_skip="('head',)"

`pretrain.py:synthetic` draws its pictures itself and needs no data. Variants: `pretrain.py:frames,rgb_diff`,
`pretrain.py:synthetic,rgb_diff` (pictures, input). The recipe is MoSI's (Huang et al. 2021, arXiv:2104.00240), at the
size of small_cpu.py. Hardware: CPU. Results (docs/pretraining.md, five classes of UCF101, one seed): plain RGB gains 33
points by 99,540 clips on held-out groups, and 19 on the test videos of split 1. With the motion stem, which is what
this trains, no difference is shown with the average pool: 91.35 %, and 87.03 % without, on the test videos of three
splits. With a ViT head that starts as the average pool: 92.06 %, 5.03 points more than the average pool without.
"""

from configs import small_cpu
from r23d_jax.config import Config, ConfigError

_SOURCES = {"frames": "frames", "synthetic": "pictures"}
_INPUTS = ("rgb", "rgb_diff")


def get_config(arg: str = "") -> Config:
    """`arg` is `[frames or synthetic][,input]`."""
    source, _, given = arg.partition(",")
    source, given = source or "frames", given or "rgb"
    if source not in _SOURCES or given not in _INPUTS:
        known = f"known pictures: {', '.join(_SOURCES)}; inputs: {', '.join(_INPUTS)}"
        raise ConfigError(f"configs/pretrain.py:{arg}: {known}")
    cfg = small_cpu.get_config(f"avgpool,{given}")
    cfg.data.source = _SOURCES[source]
    epochs = 100.0  # 180,000 clips of ucf5's 202 videos that are not held out
    if source == "synthetic":
        cfg.data.root = cfg.data.lists = ""
        epochs = 10.0  # as many, of 1,960 groups of pictures
    # These were learned in 1,125 steps of 16 clips; 1 and 2 pixels a frame were not.
    cfg.data.motion.speeds, cfg.data.motion.box, cfg.data.motion.colors = (2, 4), (0.4, 0.8), "clip"
    cfg.data.motion.gray = 0.3
    cfg.data.repeats = 9  # a clip of each class
    cfg.data.hold_out = 0.2 if source == "frames" else 0.02
    cfg.data.flip = False
    cfg.data.stride_jitter = cfg.data.random_gray = 0.0
    cfg.data.frame_stride = 1
    cfg.data.short_side = 136
    cfg.data.crop_scales = (1.0, 0.9, 0.8)
    cfg.data.color_jitter = 0.5

    cfg.optimizer.weight_decay = 1e-4
    cfg.optimizer.warmup_epochs = epochs / 100
    cfg.train.epochs = epochs
    cfg.train.global_batch_size = 36  # four pictures
    cfg.train.label_smoothing = 0.0
    cfg.train.eval_every = epochs / 20
    cfg.eval.num_clips = 1
    return cfg
