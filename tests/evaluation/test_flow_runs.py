"""Runs on optical flow and on frames a fixed time apart: trained, evaluated, predicted from, and fused."""

import argparse
import json
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.commands import predict
from r23d_jax.config import INPUTS, Config, Flow, FusionConfig, use_flow
from r23d_jax.evaluation.run import evaluate_checkpoint
from r23d_jax.evaluation.two_stream import evaluate_two_streams
from r23d_jax.training import loop
from tests.moving import write_moving
from tests.training.tiny import tiny_config

pytestmark = pytest.mark.slow
TRAINED = ("rgb", "rgb_diff", "flow")


def make_config(root: Path, kind: str) -> Config:
    cfg = tiny_config("f_r2d")
    cfg.model.in_channels = INPUTS[kind].channels
    if kind == "flow":
        use_flow(cfg)
    else:
        cfg.data.frame_seconds = 0.08
    cfg.data.input, cfg.data.root, cfg.data.lists = kind, str(root / kind.partition("_")[0] / "frames"), str(root)
    cfg.train.epochs, cfg.train.eval_every, cfg.eval.views, cfg.eval.num_clips = 8.0, 100.0, "uniform", 2
    return cfg


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames and flow of videos of 25 and 50 frames a second, and runs on three kinds of input."""
    root = tmp_path_factory.mktemp("runs")
    for number, (name, speed) in enumerate((("Left", -1), ("Right", 1))):
        for side, rate in (("train", 25), ("test", 50)):
            write_moving(root / "videos" / name / f"{side}.avi", rate, seconds=1.0, speed=speed, seed=number)
    for file, side in (("train", "train"), ("val", "test")):
        (root / f"{file}.csv").write_text(f"path,label\nLeft/{side}.avi,Left\nRight/{side}.avi,Right\n")
    common = ["--videos", str(root / "videos"), "--short-side", "24", "--workers", "1"]
    assert main(["prepare", *common, "--out", str(root / "rgb")]) == 0
    flow = [*common, "--fps", "25", "--flow", "--flow-bound", "5", "--out", str(root / "flow")]
    assert main(["prepare", *flow]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.report, "write_report", lambda *args, **options: root)  # evaluations write their own
        for kind in TRAINED:
            loop.train(make_config(root, kind), root / f"run_{kind}", log=lambda line: None)
    return root


def test_a_checkpoint_keeps_the_rate_and_how_flow_was_made(root: Path) -> None:
    kept = {kind: load_checkpoint(root / f"run_{kind}").preprocessing for kind in ("rgb", "flow")}
    assert (kept["rgb"].frame_seconds, kept["rgb"].frame_rate, kept["rgb"].flow) == (0.08, 25.0, Flow())
    assert (kept["flow"].frame_rate, kept["flow"].flow) == (25.0, Flow("dis", 5.0, 24)), "--flow alone means DIS"


@pytest.mark.parametrize(
    "kind", [kind if kind != "rgb_and_diff" else pytest.param(kind, marks=pytest.mark.long) for kind in INPUTS]
)
def test_every_input_is_evaluated(root: Path, kind: str) -> None:
    if kind not in TRAINED:
        loop.train(make_config(root, kind), root / f"run_{kind}", log=lambda line: None)
    cfg, lines = Config(), []
    cfg.data.root, cfg.data.lists = str(root / kind.partition("_")[0] / "frames"), str(root)
    result = evaluate_checkpoint(cfg, root / f"run_{kind}", log=lines.append)
    assert result.evaluated.all() and len(result.names) == 2
    assert f"config.data.input is {kind!r}, as in training" in lines or kind == "rgb"
    text = "\n".join(lines)
    assert "every 4 frames" in text or kind == "flow", "0.08 s of 50 frames a second"
    assert "expect another accuracy" not in text and "at the same stride" not in text


def test_differences_from_the_training_are_logged(root: Path, tmp_path: Path) -> None:
    command = ["prepare", "--videos", str(root / "videos"), "--out", str(tmp_path / "flow"), "--workers", "1"]
    assert main([*command, "--flow", "farneback", "--flow-bound", "9", "--short-side", "24"]) == 0
    cfg, lines = Config(), []
    cfg.data.root, cfg.data.lists = str(tmp_path / "flow" / "frames"), str(root)
    evaluate_checkpoint(cfg, root / "run_flow", log=lines.append)
    text = "\n".join(lines)
    assert (
        "trained on optical flow by dis, bound 5 pixels, frames of short side 24, and evaluated on optical flow by "
        "farneback, bound 9 pixels, frames of short side 24: expect another accuracy"
    ) in text
    assert "trained on videos of 25 frames a second, and evaluated on 50, at the same stride; " in text


@pytest.mark.parametrize("first", ["rgb", pytest.param("rgb_diff", marks=pytest.mark.long)])
def test_two_streams_are_evaluated_and_predict_together(root: Path, tmp_path: Path, capsys, first: str) -> None:
    cfg, lines = Config(), []
    cfg.eval.views, cfg.eval.num_clips = "uniform", 2
    cfg.fusion = FusionConfig(first=str(root / f"run_{first}"), second=str(root / "run_flow"))
    result = evaluate_two_streams(cfg, tmp_path, lines.append)
    assert result.evaluated.all() and "flow (f_r2d_10)" in (tmp_path / "report.html").read_text()
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    video = str(root / "videos" / "Left" / "test.avi")
    words = ["--workdir", cfg.fusion.first, "--second", cfg.fusion.second, "--clips", "2", "--json", video]
    capsys.readouterr()
    assert predict.run(parser.parse_args(words)) == 0
    row = json.loads(capsys.readouterr().out)
    shares = {entry["class"]: entry["probability"] for entry in row["predictions"]}
    number = result.names.tolist().index("Left/test")
    # JPEG, and the size at which frames were stored, differ from those of the video file
    assert [shares[name] for name in ("Left", "Right")] == pytest.approx(result.softmax[number].tolist(), abs=0.05)
    assert row["stride"] == 4
