"""`explain`: what it prints and writes, for frames, files, differences and flow; and what it refuses."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import av
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.commands import explain
from r23d_jax.config import Config, ConfigError, Flow, UserError, preprocessing
from r23d_jax.data.make.video import VideoError, iter_frames
from r23d_jax.evaluation import overlay
from r23d_jax.evaluation.single import Predictor
from r23d_jax.evaluation.video_source import open_source
from r23d_jax.models.functional import split_model
from tests.commands.test_predict import CLASSES, extract, make_config, save_run, write_video


def make_model(cfg: Config, scale: float = 1.0) -> Any:
    """Random weights; those of an average pool's classifier are positive, times `scale`."""
    network, params, batch_stats = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, len(CLASSES))))
    rng = np.random.default_rng(1)

    def value(leaf: Any) -> jax.Array:
        if len(leaf.shape) < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape), leaf.dtype)

    params, batch_stats = jax.tree.map(value, (params, batch_stats))
    if cfg.model.head.kind == "avgpool":
        params["head"]["classifier"]["kernel"] = scale * jnp.abs(params["head"]["classifier"]["kernel"])
    return network.build(params, batch_stats)


SHOWN = 256  # pixels of a crop of 64


def config_of(kind: str, **data: Any) -> Config:
    """Clips of 64 pixels leave 2 x 2 places."""
    cfg = make_config()
    cfg.data.crop_size, cfg.data.short_side = 64, 80
    cfg.model.head.kind, cfg.model.head.num_heads, cfg.model.head.hidden_dim = kind, 2, 8
    for name, field in data.items():
        setattr(cfg.data, name, field)
    return cfg


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    configs = {
        "average": config_of("avgpool"),
        "vit": config_of("vit"),
        "differences": config_of("avgpool", input="rgb_diff"),
    }
    configs["time"] = config_of("vit")
    configs["time"].model.head.tokens = "time"
    roots = {}
    for name, cfg in configs.items():
        roots[name] = tmp_path_factory.mktemp(name)
        save_run(roots[name], make_model(cfg), cfg)
    roots["cold"] = tmp_path_factory.mktemp("cold")
    save_run(roots["cold"], make_model(configs["average"], 0.0), configs["average"])
    return roots


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "v.avi", 13, 0)


def call(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return explain.run(parser.parse_args([str(arg) for arg in argv]))


def test_prints_class_and_moments_and_writes_what_was_named(runs, video, tmp_path, capsys):
    argv = ("--video", tmp_path / "o.mp4", "--picture", tmp_path / "o.png")
    assert call(video, "--weights", runs["average"], *argv) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "r2plus3d_10, 3 classes, step 12, the best checkpoint, video top-1 50.00 %"
    assert lines[0] == f"{video}  (13 frames, 4 clips)"
    cfg = config_of("avgpool")
    scores = Predictor(
        make_model(cfg), preprocessing(cfg.data), dataclasses.replace(cfg.eval, views="uniform", num_clips=4)
    )
    shares = scores(video).probabilities
    best = int(scores(video).logits.argmax())
    assert lines[1] == f"  {CLASSES[best]}  {100 * shares[best]:.2f} %"
    assert lines[2].startswith("  gradcam over time  ") and "highest at frame " in lines[2]
    assert lines[3:] == [f"  video: {tmp_path / 'o.mp4'}", f"  picture: {tmp_path / 'o.png'}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.mp4", "o.png"]
    with av.open(str(tmp_path / "o.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert len(shown) == 13 and shown[0].shape == (SHOWN + 44, 2 * SHOWN, 3)
    # the left half is the crop of every frame in its order
    for frame, picture in zip(iter_frames(video), shown, strict=True):
        crop = cv2.resize(frame[5:43, 13:51], (SHOWN, SHOWN))  # 48 x 64 / 80 pixels in the center
        assert np.abs(crop.astype(int) - picture[:SHOWN, :SHOWN]).mean() < 6
    heated = np.stack(shown)[:, :SHOWN, SHOWN:].astype(int)
    assert np.ptp(heated, axis=3).max() > 60, "the right half is colored"
    picture = cv2.imread(str(tmp_path / "o.png"))
    assert picture is not None and picture.shape == (2 * SHOWN + 20 + 44, 8 * SHOWN + 7 * 3, 3)


def test_json(runs, video, capsys):
    assert call(video, "--weights", runs["average"], "--class", "up", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["class"], row["method"], row["frames"], row["clips"]) == ("up", "gradcam", 13, 4)
    assert [number for number, _ in row["over_time"]] == list(range(13)) and row["written"] == {}
    heat = dict(row["over_time"])
    assert heat[row["peak_frame"]] == max(heat.values()) and row["predicted"] in CLASSES
    assert 0 < row["probability"] < 1


def test_a_class_that_nothing_speaks_for(runs, video, tmp_path, capsys):
    assert call(video, "--weights", runs["cold"], "--picture", tmp_path / "o.png") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[2:] == ["  no place of any clip raises the score of this class", f"  picture: {tmp_path / 'o.png'}"]
    picture = cv2.imread(str(tmp_path / "o.png"))
    assert picture is not None and np.ptp(picture[SHOWN : 2 * SHOWN].astype(int), axis=2).max() <= 1, "gray all over"


def test_attention_of_a_folder_of_frames(runs, video, tmp_path, capsys):
    extract(video, tmp_path / "frames", ".png")
    argv = ("--weights", runs["vit"], "--method", "attention", "--json")
    assert call(video, *argv) == 0 and call(tmp_path / "frames", *argv) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["over_time"] == second["over_time"] and min(heat for _, heat in first["over_time"]) >= 0
    with pytest.raises(UserError, match="--class: the attention is the same for every class"):
        call(video, *argv, "--class", "up")
    with pytest.raises(UserError, match="AvgPoolHead has no attention; use --method gradcam"):
        call(video, "--weights", runs["average"], "--method", "attention")


def test_attention_over_time_alone_colors_no_frame(runs, video, tmp_path, capsys):
    argv = ("--method", "attention", "--picture", tmp_path / "o.png")
    assert call(video, "--weights", runs["time"], *argv) == 0
    assert "attention over time  " in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / "o.png"))
    assert picture is not None
    np.testing.assert_array_equal(picture[:SHOWN], picture[SHOWN : 2 * SHOWN])


def test_differences_are_shown_on_their_frames(runs, video, tmp_path, capsys):
    assert call(video, "--weights", runs["differences"], "--video", tmp_path / "o.mp4", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    with av.open(str(tmp_path / "o.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    numbers = [number for number, _ in row["over_time"]]
    assert len(shown) == len(numbers) and numbers == sorted(set(numbers)) and numbers[-1] == 11
    for number, frame in enumerate(iter_frames(video)):
        if number in numbers:
            crop = cv2.resize(frame[5:43, 13:51], (SHOWN, SHOWN))
            assert np.abs(crop.astype(int) - shown[numbers.index(number)][:SHOWN, :SHOWN]).mean() < 6


def test_flow_is_shown_on_the_frames_before_it(video, tmp_path):
    pre = preprocessing(config_of("avgpool", input="flow").data)
    pre = dataclasses.replace(pre, flow=Flow("dis", 20.0, 48))
    flow, frames = open_source(video, pre), overlay.open_frames(video, pre)
    assert flow.count() == frames.count() == 12
    clips = list(frames.clips(np.array([0, 8])))
    assert clips[0].shape == (4, SHOWN, SHOWN, 3)
    want = list(iter_frames(video))
    for number, picture in zip((0, 1, 2, 3, 8, 9, 10, 11), np.concatenate(clips), strict=True):
        crop = cv2.resize(want[number][5:43, 13:51], (SHOWN, SHOWN))
        assert np.abs(crop.astype(int) - picture).mean() < 3
    extract(video, tmp_path / "frames", ".png")
    folder = overlay.open_frames(tmp_path / "frames", pre)
    np.testing.assert_array_equal(next(folder.clips(np.array([0]))), clips[0])


def test_flow_alone_becomes_colors():
    still = overlay.as_picture(np.full((2, 2, 2), 128, np.uint8))
    assert still.max() == 0
    right, left = (overlay.as_picture(np.full((2, 2, 2), (x, 128), np.uint8))[0, 0] for x in (200, 56))
    assert right.max() == left.max() == 255 and np.abs(right.astype(int) - left).max() > 200


def test_a_frame_of_a_short_video_has_the_most_heat_of_all_times_that_it_is_shown():
    pre = dataclasses.replace(preprocessing(make_config().data), num_frames=4)
    maps = np.array([0.0, 0.25, 0.5, 0.75], np.float32)[None, :, None, None]
    seen = overlay.moments(maps, overlay.whole_video(1, pre, 1.0), 1, pre, 1.0)
    assert seen.number.tolist() == [0] and seen.heat.tolist() == [0.75]
    seen = overlay.moments(maps, overlay.whole_video(3, pre, 1.0), 3, pre, 1.0)
    assert seen.number.tolist() == [0, 1, 2] and seen.heat.tolist() == [0.75, 0.25, 0.5]


@pytest.mark.parametrize(
    ("count", "stride"), [(1, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (29, 1.0), (29, 2.0), (31, 2.5), (200, 1.0)]
)
def test_clips_cover_a_video_to_its_end_and_show_each_frame_once(count, stride):
    pre = preprocessing(make_config().data)
    starts = overlay.whole_video(count, pre, stride)
    maps = np.zeros((len(starts), 2, 1, 1), np.float32)
    numbers = overlay.moments(maps, starts, count, pre, stride).number
    assert numbers[0] == 0 and (np.diff(numbers) > 0).all()
    assert numbers[-1] == count - 1 or stride > 1
    assert count - numbers[-1] <= np.ceil(stride) and np.diff(numbers).max(initial=0) <= np.ceil(stride)


def test_heat_colors_and_cold_does_not():
    frame = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    shown = overlay.overlay(frame, heat)
    assert np.ptp(shown[0, 0]) <= 1, "cold is gray"
    assert np.ptp(shown[1, 2].astype(int)) > 30 and shown[1, 2, 0] > shown[1, 2, 2], "hot is yellow"


def test_wrong_use(runs, video, tmp_path):
    weights = ("--weights", runs["average"])
    for argv, message in (
        (("--batch-size", 0), "--batch-size 0: must be at least 1"),
        (("--video", tmp_path / "a.gif"), r"--video .*a\.gif: must end in \.mp4"),
        (("--picture", tmp_path / "a"), r"--picture .*: must end in \.png"),
        (("--picture", tmp_path / "no/a.png"), "there is no folder .*no; make it first"),
        (("--class", "upp"), "--class='upp': .*up"),
        (("--method", "cam"), "--method='cam': .*gradcam"),
    ):
        with pytest.raises((UserError, ConfigError), match=message):
            call(video, *weights, *argv)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        call(video, "--weights", tmp_path)
    mine = write_video(tmp_path / "mine.mp4", 13, 0)
    before = mine.read_bytes()
    extract(mine, frames := tmp_path / "frames", ".png")
    for argv in ((mine, "--video", mine), (frames, "--picture", frames / "frame1.png")):
        with pytest.raises(UserError, match="is the video itself, or among its frames; give another file"):
            call(*argv, *weights)
    assert mine.read_bytes() == before
    shutil.rmtree(frames)
    mine.unlink()
    with pytest.raises(VideoError, match="gone.avi: cannot be read"):
        call(tmp_path / "gone.avi", *weights)
    assert not list(tmp_path.iterdir())
