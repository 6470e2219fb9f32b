"""The empirical study of spatiotemporal convolutions: every block of the R(2+1)D paper and R(2+3)D, side by side.

    python -m r23d_jax study --config=configs/study.py --workdir runs/study

`study.py` trains small networks on the synthetic motion set, three seeds each, on a CPU. Its classes differ in motion
alone, so the table shows what only temporal convolution can tell apart.
`study.py:heads` compares the heads on R(2+3)D there, `study.py:heads_ucf5` on five classes of UCF101 (ucf5_cpu.py), and
`study.py:inputs_ucf5` RGB, frame differences and flow on these; `--set data.lists=FOLDER` says where they are.
`study.py:ucf101` is the full-size study: 18 layers, three splits, three seeds, for 80 GB GPUs; `--list` shows its cost
and `--shard i/n` shares it out. Results: docs/results.md.
"""

from pathlib import Path

from r23d_jax.config import Config, UserError
from r23d_jax.config.files import call_file
from r23d_jax.study.grid import Study

NETWORKS = {
    "R2D": "r2d",
    "f-R2D": "f_r2d",
    "R3D": "r3d",
    "MC3": "mc3",
    "rMC3": "rmc3",
    "R(2+1)D": "r2plus1d",
    "R(2+3)D": "r2plus3d",
    "(2+3)D units": "conv2plus3d",
}
HEADS = {
    "average pool": {"model.head.kind": "avgpool"},
    "attention pool": {"model.head.kind": "attention_pool"},
    "ViT, time": {"model.head.kind": "vit", "model.head.tokens": "time"},
    "ViT, space-time": {"model.head.kind": "vit", "model.head.tokens": "space_time"},
}
SEEDS = {str(seed): {"seed": seed} for seed in range(3)}
SPLITS = {str(split): {"data.split": split} for split in (1, 2, 3)}


def get_study(arg: str = "") -> Study:
    """`arg` is nothing, `heads`, `heads_ucf5`, `inputs_ucf5` or `ucf101`."""
    networks = {title: {"model.family": family} for title, family in NETWORKS.items()}
    if arg == "":
        base = _base("quickstart", "r2plus3d,avgpool")
        base.model.stem_pool = "2d"  # in all of them, for a CPU
        return Study("What tells motion apart", base, {"network": networks, "seed": SEEDS})
    if arg == "heads":
        return Study("Heads on synthetic motion", _base("quickstart"), {"head": HEADS, "seed": SEEDS})
    if arg == "heads_ucf5":
        return Study("Heads on five classes of UCF101", _base("ucf5_cpu"), {"head": HEADS, "seed": SEEDS})
    if arg == "inputs_ucf5":
        flow = _base("ucf5_cpu", "vit,flow")
        fields = ("input", "mean", "std", "color_jitter", "root")
        inputs = {
            "RGB": {},
            "frame differences": {"data.input": "rgb_diff"},
            "flow": {"model.in_channels": flow.model.in_channels}
            | {f"data.{field}": getattr(flow.data, field) for field in fields},
        }
        return Study("Inputs on five classes of UCF101", _base("ucf5_cpu"), {"input": inputs, "seed": SEEDS})
    if arg == "ucf101":
        axes = {"network": networks, "seed": SEEDS, "split": SPLITS}
        return Study("Spatiotemporal convolutions on UCF101", _base("r23d", "18,avgpool"), axes)
    raise UserError(f"configs/study.py:{arg}: unknown variant; known: heads, heads_ucf5, inputs_ucf5, ucf101")


def _base(name: str, arg: str = "") -> Config:
    return call_file(str(Path(__file__).with_name(f"{name}.py")), "get_config", Config, arg)
