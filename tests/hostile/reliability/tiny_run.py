"""The config of the trainings that are killed: as much of everything as fits into a few seconds.

Everything random that a run can have, a checkpoint every other step, so that saving goes on beside the steps, an
evaluation every sixth, and a row of metrics for every step.
"""

from r23d_jax.config import Config


def get_config(arg: str = "") -> Config:
    """`arg` is not read."""
    cfg = Config()
    cfg.model.family, cfg.model.depth, cfg.model.widths = "r2d", 10, (8, 16, 16, 32)
    cfg.model.head.kind, cfg.model.head.dropout = "avgpool", 0.3
    cfg.data.num_frames, cfg.data.short_side, cfg.data.crop_size, cfg.data.crop = 4, 36, 32, "random"
    cfg.data.color_jitter = 0.2
    cfg.data.max_broken_fraction = 0.2
    cfg.optimizer.name, cfg.optimizer.learning_rate, cfg.optimizer.warmup_epochs = "adamw", 1e-3, 0.0
    cfg.train.mixup, cfg.train.ema_decay = 0.2, 0.9
    cfg.train.global_batch_size, cfg.train.log_every = 12, 1
    cfg.train.epochs, cfg.train.eval_every = 20.0, 3.0  # 40 steps, evaluated after every sixth and the last
    cfg.eval.views, cfg.eval.num_clips = "uniform", 2
    cfg.checkpoint.every_steps = 2
    cfg.parallel.compute_dtype = "float32"
    return cfg
