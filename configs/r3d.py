"""R3D-18 on UCF101: from scratch, or its last stage and head fine-tuned by the recipe of 3D-ResNets.

    python launch.py --config=configs/r3d.py --config.data.root=FRAMES --config.data.lists=LISTS
    python launch.py --config=configs/r3d.py:finetune --config.init_from=r3d_18.pth --config.data.root=FRAMES ...

`finetune`: torchvision's r3d_18 (Kinetics-400), stages up to the third frozen, SGD 0.001, weight decay 1e-5, 128 clips
(kenshohara/3D-ResNets-PyTorch, README). Published: 84.4 % split 1 (Hara et al. 2018, R3D-18 of their own weights).
`inflate`: from torchvision's resnet18 (ImageNet), with the image network's pool after the stem. Nothing is published.
Hardware: written for one 80 GB GPU in bfloat16. Result: not yet measured at full size; see docs/results.md.
Published for orientation: R3D-50 from scratch, split 1, 46.42 % (fourierer's 3D-ResNets runs, video level).
"""

from r23d_jax.config import Config, ConfigError


def get_config(arg: str = "") -> Config:
    """`arg` is `finetune`, `inflate` or nothing."""
    if arg not in ("", "finetune", "inflate"):
        raise ConfigError(f"configs/r3d.py:{arg}: unknown variant; known: finetune, inflate")
    cfg = Config()
    cfg.model.family, cfg.model.depth = "r3d", 18
    cfg.model.head.kind = "avgpool"
    cfg.data.short_side = 128
    cfg.parallel.compute_dtype = "auto"
    if arg == "finetune":
        cfg.init_from = "weights/r3d_18.pth"
        cfg.optimizer.freeze = ("stem", "stage1", "stage2", "stage3")
        cfg.optimizer.learning_rate, cfg.optimizer.weight_decay = 1e-3, 1e-5
        cfg.optimizer.nesterov = False
        cfg.optimizer.schedule, cfg.optimizer.milestones = "multistep", (100.0, 150.0)  # there: when the loss stalls
        cfg.data.frame_stride = 2  # what torchvision's weights have seen
        cfg.train.global_batch_size, cfg.train.epochs = 128, 200.0
        return cfg
    if arg == "inflate":
        cfg.init_from = "weights/resnet18.pth"
        cfg.model.stem_pool = "2d"
        cfg.data.crop_size, cfg.data.short_side = 160, 180
        cfg.data.mean, cfg.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    cfg.data.color_jitter = 0.2
    cfg.optimizer.learning_rate = 0.03  # for 64 clips a step
    cfg.optimizer.weight_decay = 5e-4
    cfg.optimizer.warmup_epochs = 5.0
    cfg.train.label_smoothing = 0.1
    return cfg
