"""Adds the scores of two trained streams, RGB and optical flow (Simonyan & Zisserman 2014, arXiv:1406.2199).

    python launch.py --config=configs/r2plus1d.py --workdir=runs/rgb ...
    python launch.py --config=configs/r2plus1d.py:18,flow --workdir=runs/flow ...
    python launch.py --config=configs/two_stream.py --mode=eval --workdir=runs/two_stream

--config.fusion.first and --config.fusion.second name other runs. Frames and lists are those of their trainings;
fusion.first_root, fusion.second_root and data.lists name other folders, if they have moved. Ten uniform clips of each;
averaged softmax, weight 0.6 for RGB (VMZ's c2/scripts/fuse_prediction.sh). `two_stream.py:i3d` adds logits with equal
weights, as I3D does. `--config.fusion.choice=held_out` uses the best weight on training videos that neither stream was
trained on: train both with --config.data.hold_out=0.1.
Published for orientation: R(2+1)D-34, Kinetics-400: RGB 96.8 %, flow 95.5 %, both 97.3 %, mean of 3 splits (Tran et al.
2018, Table 6); I3D from scratch, both 88.8 %, split 1 (Carreira & Zisserman 2017, Table 4).
Result: not yet measured at full size; see docs/results.md.
"""

from r23d_jax.config import Config, ConfigError


def get_config(arg: str = "") -> Config:
    """`arg` is `i3d` or nothing."""
    if arg not in ("", "i3d"):
        raise ConfigError(f"configs/two_stream.py:{arg}: unknown variant; known: i3d")
    cfg = Config()
    cfg.eval.views = "uniform"
    cfg.eval.num_clips = 10
    cfg.fusion.first, cfg.fusion.second = "runs/rgb", "runs/flow"
    if arg == "i3d":
        cfg.fusion.scores, cfg.fusion.choice = "logits", "sum"
    return cfg
