"""R(2+1)D on UCF101: from scratch, what R(2+3)D is compared with; or fine-tuned by the literature's recipes.

    python launch.py --config=configs/r2plus1d.py --config.data.root=FRAMES --config.data.lists=LISTS
    python launch.py --config=configs/r2plus1d.py:finetune --config.init_from=WEIGHTS.pth --config.data.root=FRAMES ...

Variants: `r2plus1d.py:34`; `18,tv` with torchvision's mid-planes, `18,flow` on optical flow. From weights:
`finetune` R(2+1)D-34 by VMZ's c2/scripts/finetune_ucf101.sh, from Kinetics-400 weights of 32 frames. Published: 96.8 %
  RGB, mean of 3 splits (Tran et al. 2018, Table 6), with their own weights.
`finetune,tv` torchvision's r2plus1d_18, by the recipe of RSPNet's issue 3. No published figure with these weights.
`bert` R(2+1)D-34 and a ViT head on time tokens (Kalfaoglu et al. 2020). Published: 98.69 %, mean of 3 splits, of IG-65M
  weights, 64 frames and 10 crops, which is not the head's merit alone.
From scratch, training follows r23d.py:published, so that the two differ in the network and its head only.
Hardware: written for one 80 GB GPU in bfloat16. Result: not yet measured at full size; see docs/results.md.
Published for orientation: R(2+1)D-50 from scratch, split 1, 56.6 % (fourierer's 3D-ResNets runs, video level).
"""

from r23d_jax.config import Config, ConfigError, use_flow

VARIANTS = ("18", "34", "18,tv", "34,tv", "18,flow", "34,flow", "finetune", "finetune,tv", "bert")


def get_config(arg: str = "") -> Config:
    """`arg` is `[depth][,tv|,flow]`, or a recipe to fine-tune by."""
    arg = arg or "18"
    if arg not in VARIANTS:
        raise ConfigError(f"configs/r2plus1d.py:{arg}: unknown variant; known: {', '.join(VARIANTS)}")
    cfg = Config()
    cfg.model.family = "r2plus1d_tv" if arg.endswith("tv") else "r2plus1d"
    cfg.model.depth = 18 if arg.startswith("18") or arg == "finetune,tv" else 34
    cfg.model.head.kind = "avgpool"
    cfg.data.short_side = 128
    cfg.parallel.compute_dtype = "auto"
    opt, train = cfg.optimizer, cfg.train
    if arg[0].isdigit():
        cfg.data.color_jitter = 0.2
        opt.learning_rate, opt.weight_decay, opt.warmup_epochs = 0.03, 5e-4, 5.0  # for 64 clips a step
        train.label_smoothing = 0.1
        return use_flow(cfg) if arg.endswith("flow") else cfg
    cfg.init_from = "weights/r2plus1d_18.pth" if arg == "finetune,tv" else "weights/r2plus1d_34_clip32.pth"
    cfg.data.num_frames, cfg.data.frame_stride = (16, 2) if arg == "finetune,tv" else (32, 1)
    cfg.data.crop_scales = (1.0, 0.875, 0.75, 0.66)
    cfg.eval.views, train.eval_every, train.global_batch_size = "uniform", 5.0, 32
    if arg == "finetune":  # 8 epochs of 100,000 clips, a tenth every 2 of them; 1e-4 times 8 GPUs of 4 clips
        epoch = 100_000 / 9537
        opt.learning_rate, opt.weight_decay = 8e-4, 5e-3
        opt.schedule, opt.milestones = "multistep", (2 * epoch, 4 * epoch, 6 * epoch)
        cfg.eval.views, train.epochs = "dense", 8 * epoch
    elif arg == "finetune,tv":
        opt.learning_rate, opt.weight_decay, opt.nesterov, train.epochs = 0.1, 1e-4, False, 30.0
    else:
        cfg.model.head.kind, cfg.model.head.tokens = "vit", "time"
        cfg.model.head.token_keep, cfg.model.head.dropout = 0.8, 0.8
        opt.name, opt.learning_rate, opt.weight_decay = "adamw", 1e-5, 1e-3
        train.global_batch_size, train.accumulate, train.epochs, cfg.eval.crops = 128, 16, 60.0, 10
    return cfg
