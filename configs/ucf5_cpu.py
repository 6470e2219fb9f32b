"""A small R(2+3)D on real clips, on a CPU: five classes of UCF101, by the recipe of small_cpu.py.

    python -m r23d_jax prepare --videos UCF-101 --out data/ucf5 --short-side 80
    python -m r23d_jax prepare --videos UCF-101 --out data/ucf5_flow --short-side 80 --flow dis --flow-bound 5
    python launch.py --config=configs/ucf5_cpu.py --config.data.lists=ucfTrainTestlist

The classes are HandstandPushups, JumpingJack, PullUps, PushUps and WallPushups. Variants: `ucf5_cpu.py:avgpool`,
`ucf5_cpu.py:vit,rgb_diff`, `ucf5_cpu.py:vit,flow` (head, input), `ucf5_cpu.py:vit,plain` on RGB without what looks at
motion.
Hardware: 2 CPU cores, 22 min (vit,rgb_diff, 75 epochs; RGB trains for 100).
Results on the test videos (docs/results.md), video top-1, mean of three splits: avgpool 87.83 % (seed 0). Of three
seeds, all but flow trained on a GPU by benchmarks.resident, and RGB with still frames (train.still_mix=0.7): avgpool
87.49 %, with a ViT head that starts as the average pool 88.61 %; avgpool,rgb_diff 84.42 %; avgpool,flow 86.51 % (DIS);
RGB and flow 91.41 %.
"""

from configs import small_cpu
from r23d_jax.config import Config


def get_config(arg: str = "") -> Config:
    """`arg` is `[head][,input]`."""
    cfg = small_cpu.get_config(arg)
    cfg.data.root = "data/ucf5_flow/frames" if cfg.data.input == "flow" else "data/ucf5/frames"
    cfg.data.classes = ("HandstandPushups", "JumpingJack", "PullUps", "PushUps", "WallPushups")
    return cfg
