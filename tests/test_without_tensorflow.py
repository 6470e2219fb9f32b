"""A machine without TensorFlow can use a network; what it cannot do is one sentence with the remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import create_configured_model, save_model
from r23d_jax.config import Config
from r23d_jax.models.functional import initialize
from tests.commands.test_predict import extract, write_video

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import json, sys
absent = {"tensorflow", "tensorflow_datasets", "tensorboardX", "matplotlib", "sklearn", "torch"}
sys.modules.update(dict.fromkeys(absent))
from r23d_jax.__main__ import main
statuses = [main(args) for args in json.loads(sys.argv[1])]
assert all(sys.modules[name] is None for name in absent)
print("statuses", statuses)
"""


def run(*commands: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, json.dumps(commands)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights, a video, and its frames."""
    root = tmp_path_factory.mktemp("without")
    cfg = Config()
    cfg.model.family, cfg.model.depth, cfg.model.widths = "r2plus3d", 10, (8, 8, 8, 8)
    cfg.model.head.kind = "avgpool"
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = 4, 16, 20
    save_model(root / "run", initialize(lambda: create_configured_model(cfg, 3)), cfg, ("left", "right", "up"))
    video = write_video(root / "video.avi", 13, 0)
    extract(video, root / "frames", ".png")
    return root


@pytest.mark.slow
def test_a_network_is_used_as_with_tensorflow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict = ["predict", "--workdir", str(folder / "run"), "--json", str(folder / "video.avi"), str(folder / "frames")]
    done = run(
        predict,
        ["info", "r2plus1d_18"],
        ["features", "video.avi", "frames", "--workdir", "run", "--out", "f.npz"],
        ["export", "--workdir", "run", "--to", "a.safetensors"],
        ["export", "--workdir", "run", "--to", "a.stablehlo"],
        ["convert", "--from", "a.safetensors", "--to", "again"],
        ["requirements"],
        ["explain", "video.avi", "--weights", "run", "--picture", "why.png", "--video", "why.mp4"],
        folder=folder,
    )
    assert f"statuses {[0] * 8}\n" in done.stdout, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert main(predict) == 0
    for row, line in zip(found, capsys.readouterr().out.splitlines(), strict=True):
        expected = json.loads(line)
        assert row["video"] == expected["video"]
        for ours, theirs in zip(row["predictions"], expected["predictions"], strict=True):
            assert ours["class"] == theirs["class"]
            np.testing.assert_allclose(ours["probability"], theirs["probability"], rtol=1e-5)  # another XLA_FLAGS


def test_what_needs_tensorflow_says_so(folder: Path) -> None:
    done = run(
        ["train", "--config=quickstart", "--workdir=t"],
        ["evaluate", "--config=quickstart", "--workdir=run"],
        ["export", "--workdir", "run", "--to", "a.savedmodel"],
        folder=folder,
    )
    assert "statuses [2, 2, 2]" in done.stdout and "Traceback" not in done.stderr, done.stderr
    train, evaluate, export = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    for line in (train, evaluate):
        assert "needs tensorflow, which is not installed: pip install tensorflow" in line
    assert "writing a SavedModel needs tensorflow" in export
