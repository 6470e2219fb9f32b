"""A small R(2+3)D on real clips, within 25 minutes of CPU: five classes of UCF101, low resolution, from scratch.

    python -m r23d_jax prepare --videos UCF-101 --out data/ucf5 --short-side 80 [--flow farneback --flow-bound 5]
    python launch.py --config=configs/ucf5_cpu.py --config.data.lists=ucfTrainTestlist

The classes are HandstandPushups, JumpingJack, PullUps, PushUps and WallPushups. Variants: `ucf5_cpu.py:avgpool`,
`ucf5_cpu.py:vit,rgb_diff`, `ucf5_cpu.py:vit,flow` (head, input; `prepare --flow` writes flow to data/ucf5_flow).
Hardware: 2 CPU cores, 22 min.
Results, video top-1 (docs/results.md): vit 47.27 %, avgpool 50.91 %, vit,rgb_diff 79.09 %, vit,flow 82.73 %.
"""

from r23d_jax.config import HEADS, INPUTS, Config, ConfigError, use_flow


def get_config(arg: str = "") -> Config:
    """`arg` is `[head][,input]`."""
    head, _, source = arg.partition(",")
    head, source = head or "vit", source or "rgb"
    if head not in HEADS or source not in INPUTS:
        raise ConfigError(f"configs/ucf5_cpu.py:{arg}: known heads: {', '.join(HEADS)}; inputs: {', '.join(INPUTS)}")
    cfg = Config()
    cfg.model.family, cfg.model.depth = "r2plus3d", 10
    cfg.model.widths = (32, 64, 128, 128)
    cfg.model.head.kind = head
    cfg.model.head.num_heads = 4
    cfg.model.head.dropout = 0.5

    cfg.data.root = "data/ucf5/frames"
    cfg.data.classes = ("HandstandPushups", "JumpingJack", "PullUps", "PushUps", "WallPushups")
    cfg.data.input = source
    cfg.data.num_frames = 16
    cfg.data.frame_stride = 2
    cfg.data.short_side = 72
    cfg.data.crop_size = 64
    cfg.data.crop_scales = (1.0, 0.9, 0.8, 0.7)
    cfg.data.color_jitter = 0.3
    cfg.data.antialias = True

    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 1e-3
    cfg.optimizer.weight_decay = 0.05
    cfg.optimizer.warmup_epochs = 5.0
    cfg.train.epochs = 75.0
    cfg.train.global_batch_size = 16
    cfg.train.label_smoothing = 0.1
    cfg.train.eval_every = 25.0
    cfg.eval.views = "uniform"
    cfg.eval.num_clips = 10
    if source == "flow":
        use_flow(cfg)
        cfg.data.root = "data/ucf5_flow/frames"
    return cfg
