"""Prediction at any frame rate, with networks that read optical flow, and with two streams."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from r23d_jax.checkpoint.checkpoint import Checkpoints, create_configured_model
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.commands import predict, prepare
from r23d_jax.config import Config, EvalConfig, Flow, Preprocessing, UserError, preprocessing, use_flow
from r23d_jax.data.make.video import VideoError, iter_frames
from r23d_jax.data.read.views import make_views
from r23d_jax.data.sources import open_index, trained_preprocessing
from r23d_jax.evaluation.evaluate import evaluate
from r23d_jax.evaluation.single import Predictor, fuse
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.evaluation.video_source import open_source, stride_of
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel
from tests.moving import write_moving

CLASSES = ("Jump", "Walk")
RATES = (12.5, 25, 50)


def make_config(kind: str = "rgb") -> Config:
    cfg = Config()
    if kind == "flow":
        use_flow(cfg)
    cfg.model.family, cfg.model.depth, cfg.model.widths = "r2d", 10, (4, 8, 8, 8)
    cfg.model.head.kind = "avgpool"
    cfg.data.input = kind
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = 4, 16, 20
    return cfg


def make_model(cfg: Config):
    """A network of random weights whose scores tell clips apart."""
    shapes = nnx.eval_shape(lambda: create_configured_model(cfg, len(CLASSES)))
    network, params, batch_stats = split_model(shapes)
    rng = np.random.default_rng(0)

    def value(leaf):
        if len(leaf.shape) < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape), leaf.dtype)

    return network.build(*jax.tree.map(value, (params, batch_stats)))


@pytest.fixture(scope="module")
def models():
    return {kind: make_model(make_config(kind)) for kind in ("rgb", "flow")}


def trained(kind: str = "rgb", **fields) -> Preprocessing:
    return dataclasses.replace(preprocessing(make_config(kind).data), frame_rate=25.0, **fields)


def save_run(root: Path, model, cfg: Config, pre: Preprocessing, classes: tuple[str, ...] = CLASSES) -> Path:
    _, params, batch_stats = split_model(model)
    state = TrainState(jnp.asarray(12, jnp.int32), params, batch_stats, {"count": jnp.zeros(())}, {})
    meta = {"config": dataclasses.asdict(cfg), "class_names": list(classes), "version": r23d_jax.__version__}
    checkpoints = Checkpoints(root)
    checkpoints.save(state, meta | {"preprocessing": dataclasses.asdict(pre)}, {"val/top1_video": 0.5})
    checkpoints.close()
    return root


def call(command, *argv: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(arg) for arg in argv]))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same moving picture at three rates, without loss, and others at one."""
    root = tmp_path_factory.mktemp("videos")
    for rate in RATES:
        write_moving(root / "Walk" / f"r{rate:g}.avi", rate)
    write_moving(root / "Jump" / "other.avi", 25, speed=-2, seed=1)
    for seed, name in enumerate(CLASSES, start=2):
        write_moving(root / name / "train.avi", 25, seed=seed)
    return root


# -- frames per second -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"frame_stride": 2}, {"frame_seconds": 0.08}], ids=["matched", "seconds"])
@pytest.mark.parametrize("kind", ["rgb", "rgb_diff"])
def test_a_video_scores_alike_at_every_rate(models, videos: Path, fields: dict, kind: str) -> None:
    predictor = Predictor(models["rgb"], trained(kind, **fields), EvalConfig())
    scored = {rate: predictor(videos / "Walk" / f"r{rate:g}.avi") for rate in RATES}
    assert [scored[rate].stride for rate in RATES] == [1, 2, 4]
    assert {prediction.num_clips for prediction in scored.values()} == {6}
    for prediction in scored.values():  # the very same pixels
        np.testing.assert_allclose(prediction.logits, scored[25].logits, rtol=1e-5, atol=1e-5)
    other = predictor(videos / "Jump" / "other.avi")
    assert np.abs(other.logits - scored[25].logits).max() > 1e-2, (
        "videos can be told apart, so equality means something"
    )
    by_frames = Predictor(
        models["rgb"], dataclasses.replace(trained(kind), frame_stride=2, frame_rate=0.0), EvalConfig()
    )
    assert np.abs(by_frames(videos / "Walk" / "r50.avi").logits - scored[50].logits).max() > 1e-2


def test_clips_that_are_spread_evenly_begin_at_about_the_same_time() -> None:
    pre, views = trained(frame_seconds=0.08), EvalConfig(views="uniform", num_clips=5)
    begin = [
        make_views(np.array([2 * rate]), pre, views, np.array([pre.stride_at(rate)])).start / rate for rate in RATES
    ]
    for times in begin:
        np.testing.assert_allclose(times, begin[1], atol=1 / min(RATES))


def test_strides_follow_the_rate() -> None:
    pre = trained(frame_stride=2)
    assert [pre.stride_at(rate) for rate in (0, 25, 25.1, 30, 12.5)] == [2, 2, 2, 2.4, 1]
    assert dataclasses.replace(pre, frame_rate=0.0).stride_at(50) == 2, "the rate of the training is not known"
    assert [trained(frame_seconds=0.1).stride_at(rate) for rate in (0, 30)] == [2.5, 3]
    with pytest.raises(VideoError, match=r"frames per second are not known, and the network reads a frame every 0.1 s"):
        stride_of(dataclasses.replace(trained(frame_seconds=0.1), frame_rate=0.0), 0.0)


def test_the_command_says_that_the_stride_follows(models, videos: Path, tmp_path: Path, capsys) -> None:
    run = save_run(tmp_path / "run", models["rgb"], make_config(), trained(frame_stride=2))
    assert call(predict, "--workdir", run, videos / "Walk" / "r50.avi", videos / "Walk" / "r25.avi") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "  50 frames a second, 25 in training: a stride of 4 frames instead of 2"
    assert sum("in training" in line for line in lines) == 1
    assert call(predict, "--workdir", run, videos / "Walk" / "r12.5.avi", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["stride"] == 1 and row["pace"].startswith("12.5 frames a second, 25 in training")


def test_folders_have_the_rate_that_prepare_recorded(models, videos: Path, tmp_path: Path, capsys) -> None:
    assert call(prepare, "--videos", videos, "--out", tmp_path / "out", "--workers", 1) == 0
    predictor = Predictor(models["rgb"], trained(frame_stride=2), EvalConfig())
    folder = tmp_path / "out" / "frames" / "Walk" / "r50"
    assert predictor(folder).stride == 4
    (tmp_path / "out" / "prepare.json").unlink()
    unknown = predictor(folder)
    assert unknown.stride == 2
    assert unknown.pace == "its rate is not known, and is taken as the 25 frames a second of the training"


# -- optical flow ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow_data(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flow of the videos of 25 frames a second, frames of the same, and lists."""
    root = tmp_path_factory.mktemp("flow")
    (root / "train.csv").write_text("path,label\nWalk/train.avi,Walk\nJump/train.avi,Jump\n")
    (root / "val.csv").write_text("path,label\nWalk/r25.avi,Walk\nJump/other.avi,Jump\n")
    common = ["--videos", videos, "--lists", root, "--short-side", 32, "--quality", 100, "--workers", 1]
    assert call(prepare, *common, "--out", root / "flow", "--flow", "dis", "--flow-bound", 6) == 0
    assert call(prepare, *common, "--out", root / "rgb") == 0
    return root


def flow_config(root: Path) -> Config:
    cfg = make_config("flow")
    cfg.data.root, cfg.data.lists = str(root / "flow" / "frames"), str(root)
    return cfg


@pytest.fixture(scope="module")
def flow_pre(flow_data: Path) -> Preprocessing:
    cfg = flow_config(flow_data)
    return trained_preprocessing(cfg.data, open_index(cfg.data, "train"))


def test_the_network_keeps_how_its_flow_was_made(flow_pre: Preprocessing) -> None:
    assert flow_pre.flow == Flow("dis", 6.0, 32) and flow_pre.frame_rate == 25.0


def test_flow_is_computed_as_for_training(models, flow_data: Path, flow_pre: Preprocessing, videos: Path) -> None:
    cfg = flow_config(flow_data)
    index, mesh = open_index(cfg.data, "test"), parallel.make_mesh()
    network, params, batch_stats = split_model(models["flow"])
    result = evaluate(make_eval_step(network, flow_pre, mesh), params, batch_stats, index, cfg, mesh)
    assert result is not None and index.names.tolist() == ["Walk/r25", "Jump/other"]
    predictor = Predictor(models["flow"], flow_pre, cfg.eval)
    for name, want in zip(index.names.tolist(), result.probabilities, strict=True):
        from_flow = predictor(flow_data / "flow" / "frames" / name)
        np.testing.assert_allclose(from_flow.probabilities, want, atol=1e-5)  # the same pictures
        assert from_flow.num_frames == 49
        frames = np.stack(list(iter_frames(videos / f"{name}.avi")))
        places = (
            flow_data / "flow" / "frames" / name,
            videos / f"{name}.avi",
            flow_data / "rgb" / "frames" / name,
            frames,
        )
        stored, *computed = (
            np.stack(list(open_source(place, flow_pre).clips(np.array([0, 5, 40])))).astype(int) for place in places
        )
        assert np.abs(stored - 128).mean() > 10, "there is motion"
        for clips, loss in zip(computed, (1, 2, 1), strict=True):  # of JPEG: once, and of the frames too
            assert np.abs(clips - stored).mean() < loss
    assert np.abs(result.probabilities[0] - result.probabilities[1]).max() > 1e-3, "equality means something"


def test_flow_shows_the_same_speed_at_every_rate(flow_pre: Preprocessing, videos: Path) -> None:
    """A video of 50 frames a second is thinned; displacements of one of 12.5 are halved."""
    pre = dataclasses.replace(flow_pre, crop_size=20)
    speeds = {}
    for rate in RATES:
        source = open_source(videos / "Walk" / f"r{rate:g}.avi", pre)
        assert (source.rate, source.count()) == ({12.5: 12.5}.get(rate, 25), {12.5: 24}.get(rate, 49))
        (clip,) = source.clips(np.array([4]))
        assert clip.shape == (4, 20, 20, 2)
        speeds[rate] = float(np.median(clip[..., 0].astype(float) - 128) / 127 * 6)
    assert speeds[25] == speeds[50] == pytest.approx(2 * 32 / 48, abs=0.15), "pixels a frame, at a short side of 32"
    assert speeds[12.5] == pytest.approx(speeds[25], abs=0.15)


def test_what_cannot_be_read_as_flow(models, flow_data: Path, flow_pre: Preprocessing, videos: Path) -> None:
    with pytest.raises(
        VideoError, match=r"r25: holds optical flow by dis, .*, and the network reads rgb; give the video"
    ):
        open_source(flow_data / "flow" / "frames" / "Walk" / "r25", trained())
    unknown = dataclasses.replace(flow_pre, flow=Flow())
    message = r"r25.avi: the network reads optical flow, and its checkpoint does not say how that was computed; give a"
    with pytest.raises(VideoError, match=message):
        open_source(videos / "Walk" / "r25.avi", unknown)
    stored = Predictor(models["flow"], unknown, EvalConfig())(flow_data / "flow" / "frames" / "Walk" / "r25")
    assert stored.num_frames == 49, "stored flow needs no method"
    with pytest.raises(VideoError, match="frames: one frame only, which has no optical flow"):
        open_source(np.zeros((1, 30, 30, 3), np.uint8), flow_pre)


def test_stored_flow_is_read_alike_without_tensorflow(flow_data: Path, flow_pre: Preprocessing, monkeypatch) -> None:
    folder = flow_data / "flow" / "frames" / "Walk" / "r25"
    (want,) = open_source(folder, flow_pre).clips(np.array([3]))
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    (got,) = open_source(folder, flow_pre).clips(np.array([3]))
    assert np.abs(got.astype(int) - want).max() <= 1 and want.std() > 2


# -- two streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["softmax", "logits"])
@pytest.mark.slow
def test_two_streams(models, flow_data: Path, flow_pre, videos: Path, tmp_path: Path, capsys, scores: str) -> None:
    rgb = save_run(tmp_path / "rgb", models["rgb"], make_config(), trained())
    flow = save_run(tmp_path / "flow", models["flow"], flow_config(flow_data), flow_pre)
    video = videos / "Walk" / "r25.avi"
    args = ("--workdir", rgb, "--second", flow, video, "--weight", 0.25, "--scores", scores)
    assert call(predict, *args, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    first = Predictor(models["rgb"], trained(), EvalConfig())(video)
    second = Predictor(models["flow"], flow_pre, EvalConfig())(video)
    if scores == "softmax":
        want = 0.25 * first.probabilities + 0.75 * second.probabilities
    else:
        want = np.asarray(jax.nn.softmax(0.25 * first.logits + 0.75 * second.logits))
    got = {entry["class"]: entry["probability"] for entry in row["predictions"]}
    np.testing.assert_allclose([got[name] for name in CLASSES], want, atol=1e-5)
    assert np.abs(want - first.probabilities).max() > 0.01 < np.abs(want - second.probabilities).max()
    assert fuse(first, second, 1.0, "softmax").probabilities == pytest.approx(first.probabilities)
    assert call(predict, *args) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["r2d_10", "r2d_10"]


def test_wrong_streams(models, videos: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", models["rgb"], make_config(), trained())
    other = save_run(tmp_path / "other", models["rgb"], make_config(), trained(), CLASSES[::-1])
    video = videos / "Walk" / "r25.avi"
    with pytest.raises(
        UserError, match=r"--second .*other: was trained on other classes than .*run, or in another order"
    ):
        call(predict, "--workdir", run, "--second", other, video)
    with pytest.raises(UserError, match=r"--weight 1.5: must be between 0 and 1"):
        call(predict, "--workdir", run, "--second", run, video, "--weight", 1.5)
    with pytest.raises(UserError, match=r"is a folder of runs: give one of them \(other, run\)"):
        call(predict, "--workdir", run, "--second", tmp_path, video)
