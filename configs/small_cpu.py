"""A small R(2+3)D for a few hundred clips of any classes, on a CPU: low resolution, from scratch.

    python -m r23d_jax prepare --videos CLIPS --out data/clips --short-side 80
    python launch.py --config=configs/small_cpu.py --config.data.root=data/clips/frames --config.data.lists=LISTS

Variants: `small_cpu.py:avgpool`, `small_cpu.py:vit,rgb_diff`, `small_cpu.py:vit,rgb_and_diff`,
`small_cpu.py:vit,flow` (head, input). `small_cpu.py:vit,plain` is RGB by the recipe of the other inputs.
Hardware: 2 CPU cores, 22 min for 75 epochs of 260 videos.
Result: configs/ucf5_cpu.py is this recipe on five classes of UCF101.
"""

from r23d_jax.config import HEADS, INPUTS, Config, ConfigError, use_flow, use_motion


def get_config(arg: str = "") -> Config:
    """`arg` is `[head][,input]`; the input `plain` is RGB by the recipe of the other inputs."""
    head, _, source = arg.partition(",")
    head, plain = head or "vit", source == "plain"
    source = "rgb" if plain else source or "rgb"
    if head not in HEADS or source not in INPUTS:
        raise ConfigError(
            f"configs/small_cpu.py:{arg}: known heads: {', '.join(HEADS)}; inputs: {', '.join(INPUTS)}, plain"
        )
    cfg = Config()
    cfg.model.family, cfg.model.depth = "r2plus3d", 10
    cfg.model.widths = (32, 64, 128, 128)
    cfg.model.head.kind = head
    cfg.model.head.num_heads = 4
    cfg.model.head.dropout = 0.5

    cfg.data.input, cfg.model.in_channels = source, INPUTS[source].channels
    cfg.data.num_frames = 16
    cfg.data.frame_stride = 2
    cfg.data.short_side = 72
    cfg.data.crop_size = 64
    cfg.data.crop_scales = (1.0, 0.9, 0.8, 0.7)
    cfg.data.color_jitter = 0.3
    cfg.data.antialias = True
    if source == "rgb" and not plain:
        use_motion(cfg)

    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 1e-3
    cfg.optimizer.weight_decay = 0.05
    cfg.optimizer.warmup_epochs = 5.0
    cfg.train.epochs = 100.0 if cfg.model.stem == "motion" else 75.0
    cfg.train.global_batch_size = 16
    cfg.train.label_smoothing = 0.1
    cfg.train.eval_every = 25.0
    cfg.eval.views = "uniform"
    cfg.eval.num_clips = 10
    return use_flow(cfg) if source == "flow" else cfg
