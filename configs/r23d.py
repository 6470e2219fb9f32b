"""R(2+3)D + ViT head on UCF101, from scratch: the main job.

    python launch.py --config=configs/r23d.py --config.data.root=FRAMES --config.data.lists=LISTS

Variants: `r23d.py:34` (depth), `r23d.py:18,vit_time`, `r23d.py:18,avgpool`, `r23d.py:18,attention_pool` (head).
Hardware: written for one 80 GB GPU in bfloat16. Result: not yet measured at full size; docs/results.md has what was.
"""

from r23d_jax.config import Config, ConfigError, nearest

HEADS = {
    "vit": ("vit", "space_time"),
    "vit_time": ("vit", "time"),
    "avgpool": ("avgpool", "space_time"),
    "attention_pool": ("attention_pool", "space_time"),
}


def get_config(arg: str = "") -> Config:
    """`arg` is `[depth][,head]`."""
    depth, _, head = arg.partition(",")
    if (depth or "18") not in ("18", "34"):
        raise ConfigError(f"configs/r23d.py:{arg}: depth {depth!r} is unknown; known: 18, 34")
    if (head or "vit") not in HEADS:
        raise ConfigError(f"configs/r23d.py:{arg}: head {head!r} is unknown; {nearest(head, HEADS)}")
    cfg = Config()
    cfg.model.family, cfg.model.depth = "r2plus3d", int(depth or 18)
    cfg.model.head.kind, cfg.model.head.tokens = HEADS[head or "vit"]
    cfg.data.short_side = 128
    cfg.data.color_jitter = 0.2
    cfg.optimizer.learning_rate = 0.03  # for 64 clips a step
    cfg.optimizer.weight_decay = 5e-4
    cfg.optimizer.warmup_epochs = 5.0
    cfg.train.label_smoothing = 0.1
    cfg.parallel.compute_dtype = "bfloat16"
    return cfg
