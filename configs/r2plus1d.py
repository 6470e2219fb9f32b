"""R(2+1)D on UCF101, from scratch: the network that R(2+3)D is compared with.

    python launch.py --config=configs/r2plus1d.py --config.data.root=FRAMES --config.data.lists=LISTS

Variants: `r2plus1d.py:34`; `r2plus1d.py:18,tv` uses torchvision's mid-planes instead of the paper's.
Training follows configs/r23d.py, so that the two differ in the network and its head only.
Hardware: written for one 80 GB GPU in bfloat16. Result: not yet measured at full size; docs/results.md has what was.
Published for orientation: R(2+1)D-50 from scratch, split 1, 56.6 % (fourierer's 3D-ResNets runs, video level).
"""

from r23d_jax.config import Config, ConfigError


def get_config(arg: str = "") -> Config:
    """`arg` is `[depth][,tv]`."""
    depth, _, rule = arg.partition(",")
    if (depth or "18") not in ("18", "34") or rule not in ("", "tv"):
        raise ConfigError(f"configs/r2plus1d.py:{arg}: unknown variant; known: 18, 34, 18,tv, 34,tv")
    cfg = Config()
    cfg.model.family, cfg.model.depth = "r2plus1d_tv" if rule else "r2plus1d", int(depth or 18)
    cfg.model.head.kind = "avgpool"
    cfg.data.short_side = 128
    cfg.data.color_jitter = 0.2
    cfg.optimizer.learning_rate = 0.03  # for 64 clips a step
    cfg.optimizer.weight_decay = 5e-4
    cfg.optimizer.warmup_epochs = 5.0
    cfg.train.label_smoothing = 0.1
    cfg.parallel.compute_dtype = "bfloat16"
    return cfg
