"""R(2+3)D + ViT head on UCF101, from scratch: the main job.

    python launch.py --config=configs/r23d.py --config.data.root=FRAMES --config.data.lists=LISTS

Variants: `r23d.py:34` (depth), `r23d.py:18,vit_time`, `r23d.py:18,avgpool`, `r23d.py:18,attention_pool` (head). The
recipe for RGB is the one that did best on five classes of UCF101 with a small network: a stem that sees only motion,
some gray clips, and a frame stride that varies around 2. A ViT or attention head starts as the average pool
(docs/results.md). `r23d.py:published`, also `r23d.py:18,avgpool,published`, has none of these.
`r23d.py:flow` trains on optical flow (prepare --flow); `r23d.py:finetune` starts from DPC's self-supervised weights of
the same backbone (--config.init_from=FILE): the backbone at a tenth of the rate, weight decay 1e-3, dropout 0.5, at 128
pixels (TengdaHan/DPC, which has a ConvGRU in place of the ViT head, and does not decouple Adam's decay). Published:
68.2 % with Kinetics-400 videos (Han et al. 2019, R18).
Hardware: one GPU in bfloat16; 3,100 to 3,660 clips/s on an NVIDIA H200 with 16 cores (docs/performance.md).
Result: not yet measured on UCF101; on five of its classes, split 1, 81.82 % after 200 epochs, with
still frames (train.still_mix=0.7; docs/results.md).
"""

from r23d_jax.config import Config, ConfigError, nearest, use_flow, use_motion

HEADS = {
    "vit": ("vit", "space_time"),
    "vit_time": ("vit", "time"),
    "avgpool": ("avgpool", "space_time"),
    "attention_pool": ("attention_pool", "space_time"),
}
PLAIN = ("published", "flow", "finetune")


def get_config(arg: str = "") -> Config:
    """`arg` is `[depth][,head]`, one of `PLAIN`, or both with a comma between them."""
    words = arg.split(",")
    plain = words.pop() if words[-1] in PLAIN else ""
    depth, head = (words + ["", ""])[:2]
    if (depth or "18") not in ("18", "34") or len(words) > 2:
        known = f"known: 18, 34, {', '.join(PLAIN)}"
        raise ConfigError(f"configs/r23d.py:{arg}: depth {depth!r} is unknown; {known}")
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
    cfg.parallel.compute_dtype = "auto"
    if not plain:
        use_motion(cfg)
        if cfg.model.head.kind != "avgpool":
            cfg.model.head.residual = True
            cfg.model.head.embedding_dropout = cfg.model.head.attention_dropout = 0.1
    if plain == "flow":
        return use_flow(cfg)
    if plain == "finetune":
        cfg.init_from = "weights/k400_128_r18_dpc-rnn.pth.tar"
        cfg.data.num_frames, cfg.data.frame_stride = 40, 3  # there: 8 blocks of 5 frames
        cfg.data.short_side, cfg.data.crop_size = 136, 128
        cfg.data.mean, cfg.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        cfg.optimizer.name, cfg.optimizer.learning_rate, cfg.optimizer.weight_decay = "adamw", 1e-3, 1e-3
        cfg.optimizer.backbone_multiplier = 0.1
        cfg.train.global_batch_size = 128
    return cfg
