"""Inception-I3D on UCF101: RGB or optical flow (`i3d.py:flow`) from scratch, or RGB from Kinetics-400 or ImageNet.

    python launch.py --config=configs/i3d.py --config.data.root=FRAMES --config.data.lists=LISTS
    python launch.py --config=configs/i3d.py:finetune --config.init_from=rgb_imagenet/model.ckpt ...

`finetune`: DeepMind's Kinetics-400 weights (its TensorFlow checkpoint or a torch port; `finetune,gamma` for weights
whose BN has gammas that are not 1, or to train gammas), at most 5,000 steps of 96 clips, weight decay 1e-7, dropout 0.5
(Carreira & Zisserman 2017, section 3.5; it gives no rate for the fine-tuning; 0.01 is a guess).
Published: 95.1 % RGB, mean of 3 splits, or 95.6 % with ImageNet first (their Table 5).
`inflate`: from torchvision's googlenet (ImageNet). Published: 84.5 % RGB, split 1 (their Table 2).
Scratch: about 50 to 60 % RGB (Carreira, kinetics-i3d issue 46). Frames must be extracted with --short-side 256.
Hardware: written for one 80 GB GPU in bfloat16. Result: not yet measured at full size; see docs/results.md.
"""

from r23d_jax.config import Config, ConfigError, use_flow

VARIANTS = ("", "flow", "finetune", "finetune,gamma", "inflate")


def get_config(arg: str = "") -> Config:
    """`arg` is `flow`, `finetune`, `finetune,gamma`, `inflate` or nothing."""
    if arg not in VARIANTS:
        raise ConfigError(f"configs/i3d.py:{arg}: unknown variant; known: {', '.join(VARIANTS[1:])}")
    cfg = Config()
    cfg.model.family = "i3d_gamma" if arg in ("finetune,gamma", "inflate") else "i3d"
    cfg.model.head.kind, cfg.model.head.dropout = "avgpool", 0.5
    cfg.data.num_frames, cfg.data.short_side, cfg.data.crop_size = 64, 256, 224
    cfg.data.crop = "random"
    cfg.data.mean = cfg.data.std = (0.5, 0.5, 0.5)
    cfg.optimizer.weight_decay = 1e-7
    cfg.optimizer.nesterov = False
    cfg.optimizer.learning_rate = 0.1
    cfg.parallel.compute_dtype, cfg.parallel.remat = "auto", True
    cfg.train.global_batch_size, cfg.train.accumulate = 96, 4
    cfg.train.epochs = 200.0
    cfg.eval.batch_size = 8
    if arg == "flow":
        return use_flow(cfg)
    if arg:
        cfg.init_from = "weights/googlenet.pth" if arg == "inflate" else "weights/rgb_imagenet.pt"
        if arg == "finetune":
            cfg.init_from = "weights/rgb_imagenet/model.ckpt"
        cfg.optimizer.learning_rate = 0.01
        cfg.optimizer.schedule, cfg.optimizer.milestones = "multistep", (30.0, 42.0)
        cfg.train.epochs = 5000 * 96 / 9537  # 50.3
        cfg.train.eval_every = 10.0
    return cfg
