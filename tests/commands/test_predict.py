"""Prediction: the same scores as an evaluation of the same frames, in bounded memory, and no video stops the others."""

import argparse
import dataclasses
import json
import re
import tracemalloc
from pathlib import Path

import av
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from r23d_jax.checkpoint.checkpoint import Checkpoints, create_configured_model
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.commands import predict
from r23d_jax.config import Config, UserError, preprocessing
from r23d_jax.data.find.frames import index_frames
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.data.make.video import VideoError, iter_frames
from r23d_jax.evaluation import evaluate as evaluation
from r23d_jax.evaluation import video_source
from r23d_jax.evaluation.single import Predictor
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.evaluation.video_source import VideoFile
from r23d_jax.models.functional import split_model
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import parallel
from tests.hostile.bad_files.corpus import PICTURES, VIDEOS, picture, pipe

CLASSES = ("left", "right", "up")


def make_config() -> Config:
    cfg = Config()
    cfg.model.family, cfg.model.depth, cfg.model.widths = "r2plus3d", 10, (8, 8, 8, 8)
    cfg.model.head.kind = "avgpool"
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = 4, 16, 20
    return cfg


def write_video(path: Path, num_frames: int, seed: int) -> Path:
    """Blurred noise that drifts: every frame, place and video is different."""
    draws = np.random.default_rng(seed).integers(0, 256, (80, 160, 3), np.uint8)
    noise = cv2.normalize(cv2.GaussianBlur(draws, (0, 0), 3), draws, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = np.ascontiguousarray(np.roll(noise, 2 * i, axis=1)[:48, :64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def extract(video: Path, folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(iter_frames(video)):
        cv2.imwrite(str(folder / f"frame{i + 1}{suffix}"), frame[..., ::-1])  # not padded: 10 sorts before 2 as text


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for k, count in enumerate((13, 2, 30)):  # the second is shorter than a clip
        write_video(root / f"v{k}.avi", count, k)
        extract(root / f"v{k}.avi", root / "png" / f"v{k}", ".png")
        extract(root / f"v{k}.avi", root / "jpg" / f"v{k}", ".jpg")
    return root


@pytest.fixture(scope="module")
def model():
    """A network of random weights and statistics, made without running it."""
    return random_model(make_config())


def random_model(cfg: Config):
    shapes = nnx.eval_shape(lambda: create_configured_model(cfg, len(CLASSES)))
    network, params, batch_stats = split_model(shapes)
    rng = np.random.default_rng(0)

    def value(leaf):
        if len(leaf.shape) < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        # scaled by the inputs of a unit, so that what tells videos apart reaches the logits
        return jnp.asarray(rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape), leaf.dtype)

    params, batch_stats = jax.tree.map(value, (params, batch_stats))
    return network.build(params, batch_stats)


@pytest.fixture(scope="module")
def predictor(model):
    cfg = make_config()
    cfg.eval.crops = 10  # which prediction does not use
    return Predictor(model, preprocessing(cfg.data), cfg.eval)


def evaluate(model, frames: Path, cfg: Config) -> np.ndarray:
    entries = tuple(Entry(f"v{k}", k, CLASSES[k], "") for k in range(3))
    index = index_frames(frames, VideoList(CLASSES, entries), cache=False)
    mesh = parallel.make_mesh()
    network, params, batch_stats = split_model(model)
    step = make_eval_step(network, preprocessing(cfg.data), mesh)
    result = evaluation.evaluate(step, params, batch_stats, index, cfg, mesh)
    assert result is not None
    return result.probabilities


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"views": "uniform", "num_clips": 5},
        {"frame_stride": 3, "antialias": True},
        {"views": "uniform", "num_clips": 3, "frame_stride": 2, "input": "rgb_diff"},
        {"views": "uniform", "num_clips": 3, "input": "rgb_and_diff"},
    ],
    ids=["dense", "uniform", "stride", "differences", "both"],
)
def test_a_video_scores_as_in_an_evaluation_of_its_frames(model, videos, fields):
    cfg = make_config()
    for name, value in fields.items():
        setattr(cfg.data if hasattr(cfg.data, name) else cfg.eval, name, value)
    if cfg.data.input == "rgb_and_diff":
        cfg.model.in_channels = 6
        model = random_model(cfg)
    predictor = Predictor(model, preprocessing(cfg.data), cfg.eval, batch_size=3)
    want = evaluate(model, videos / "png", cfg)
    from_video = np.stack([predictor(videos / f"v{k}.avi").probabilities for k in range(3)])
    from_frames = np.stack([predictor(videos / "png" / f"v{k}").probabilities for k in range(3)])
    # same pixels, so only the batch size of float32 products differs
    np.testing.assert_allclose(from_video, want, atol=1e-5)
    np.testing.assert_allclose(from_frames, want, atol=1e-5)
    assert np.abs(want[0] - want[1]).max() > 1e-3, "the videos can be told apart, so equality means something"


def test_jpeg_frames_score_alike(model, predictor, videos):
    want = evaluate(model, videos / "jpg", make_config())
    for k in range(3):
        np.testing.assert_allclose(predictor(videos / "jpg" / f"v{k}").probabilities, want[k], atol=1e-5)
        np.testing.assert_allclose(predictor(videos / f"v{k}.avi").probabilities, want[k], atol=0.02)  # loss of JPEG


def test_counts(predictor, videos):
    counted = [predictor(videos / f"v{k}.avi") for k in range(3)]
    assert [(p.num_frames, p.num_clips) for p in counted] == [(13, 3), (2, 1), (30, 7)]


def test_memory_does_not_grow_with_the_video(monkeypatch):
    def long_video(path, short_side, rate):
        for number in range(1500):
            yield np.full((100, 100, 3), number % 251, np.uint8)

    monkeypatch.setattr(video_source, "iter_frames", long_video)
    pre = dataclasses.replace(preprocessing(make_config().data), crop_size=20)
    video = VideoFile(Path("long"), pre)
    starts = np.arange(0, 1500 - 4, 4)
    next(video.clips(starts))  # loads what TensorFlow loads once
    tracemalloc.start()
    firsts = [int(clip[0, 0, 0, 0]) for clip in video.clips(starts)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert firsts == [start % 251 for start in starts]
    assert peak < 3e6, "45 MB of frames went by; a clip of them is 0.12 MB"


def test_overlapping_clips_are_cut_right(monkeypatch):
    monkeypatch.setattr(
        video_source, "iter_frames", lambda path, *_, **__: (np.full((8, 8, 3), k, np.uint8) for k in range(9))
    )
    pre = dataclasses.replace(preprocessing(make_config().data), frame_stride=2, crop_size=8, short_side=8)
    clips = VideoFile(Path("short"), pre).clips(np.array([0, 1, 1, 2]))
    assert [clip[:, 0, 0, 0].tolist() for clip in clips] == [[0, 2, 4, 6], [1, 3, 5, 7], [1, 3, 5, 7], [2, 4, 6, 8]]
    looped = VideoFile(Path("short"), dataclasses.replace(pre, num_frames=6)).clips(np.array([0]))
    assert [clip[:, 0, 0, 0].tolist() for clip in looped] == [[0, 2, 4, 6, 8, 1]]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    save_run(root, model, make_config())
    return root


def save_run(root: Path, model, cfg: Config) -> None:
    _, params, batch_stats = split_model(model)
    state = TrainState(jnp.asarray(12, jnp.int32), params, batch_stats, {"count": jnp.zeros(())}, {})
    meta = {
        "config": dataclasses.asdict(cfg),
        "class_names": list(CLASSES),
        "preprocessing": dataclasses.asdict(preprocessing(cfg.data)),
        "version": r23d_jax.__version__,
    }
    checkpoints = Checkpoints(root)
    checkpoints.save(state, meta, {"val/top1_video": 0.5})
    checkpoints.close()


def call(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    return predict.run(parser.parse_args([str(arg) for arg in argv]))


def test_prints_classes_and_probabilities(workdir, videos, capsys, predictor):
    assert call("--workdir", workdir, videos / "v0.avi", videos / "jpg" / "v2", "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "r2plus3d_10, 3 classes, step 12, the best checkpoint, video top-1 50.00 %"
    assert lines[1] == f"{videos / 'v0.avi'}  (13 frames, 3 clips, 92 % of the video seen)"
    assert lines[4] == f"{videos / 'jpg' / 'v2'}  (30 frames, 7 clips, 93 % of the video seen)"
    assert len(lines) == 7
    want = predictor(videos / "v0.avi").probabilities
    best = [(CLASSES[k], f"{100 * want[k]:.2f}", "%") for k in np.argsort(-want)[:2]]
    assert [tuple(line.split()) for line in lines[2:4]] == best
    assert len({line.index("%") for line in lines[2:4]}) == 1, "aligned"


def test_json(workdir, videos, capsys):
    assert call("--workdir", workdir, videos / "v0.avi", "--json", "--clips", 2) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["video"], row["frames"], row["clips"]) == (str(videos / "v0.avi"), 13, 2)
    assert row["seen"] == pytest.approx(8 / 13, abs=1e-4)
    assert {entry["class"] for entry in row["predictions"]} == set(CLASSES)
    assert sum(entry["probability"] for entry in row["predictions"]) == pytest.approx(1)


def test_a_run_that_evaluates_one_clip_still_predicts_from_ten(model, videos, tmp_path, capsys):
    cfg = make_config()
    cfg.eval.views, cfg.eval.num_clips = "uniform", 1
    save_run(tmp_path, model, cfg)
    assert call("--workdir", tmp_path, videos / "v2.avi", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["clips"] == 10 and row["seen"] == 1


def test_broken_videos_do_not_stop_the_others(workdir, videos, tmp_path, capsys):
    (tmp_path / "noise.avi").write_bytes(b"no video" * 100)
    (tmp_path / "empty").mkdir()
    frames = tmp_path / "frames"
    frames.mkdir()
    cv2.imwrite(str(frames / "1.jpg"), np.zeros((40, 40, 3), np.uint8))
    for number, content in ((2, b""), (3, b"x")):
        folder = tmp_path / f"frames{number}"
        folder.mkdir()
        cv2.imwrite(str(folder / "1.jpg"), np.zeros((40, 40, 3), np.uint8))
        (folder / f"{number}.jpg").write_bytes(content)
    cv2.imwrite(str(frames / "2.jpg"), np.zeros((40, 44, 3), np.uint8))
    bad = [tmp_path / "gone.mp4", tmp_path / "noise.avi", tmp_path / "empty"]
    bad += [tmp_path / "frames2", tmp_path / "frames3", frames]
    assert call("--workdir", workdir, *bad, videos / "v1.avi", "--top", 1) == 3
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(bad) + 2, "one line for each broken one, two for the sound one"
    reasons = ["No such file", "not a readable video", "holds no numbered .jpg, .jpeg or .png"]
    reasons += [
        "2.jpg: is empty (0 bytes)",
        "3.jpg: not a picture",
        "2.jpg: is 44x40, unlike 1.jpg, which is 40x40",
    ]
    for line, path, reason in zip(lines, bad, reasons, strict=False):
        assert line.startswith(f"{path}  not recognized: ") and reason in line
    assert "(2 frames, 1 clip, 100 % of the video seen)" in lines[-2]
    assert call("--workdir", workdir, tmp_path / "noise.avi", "--json") == 3
    assert "not a readable video" in json.loads(capsys.readouterr().out)["error"]


def test_a_folder_of_frames_is_read_as_in_training(workdir, videos, tmp_path, capsys):
    """Flow, covers and hidden files beside the frames are not frames; two videos in a folder and holes are refused."""
    frames = sorted((videos / "jpg/v0").iterdir(), key=lambda path: int(path.stem[5:]))
    folders = {name: tmp_path / name for name in ("plain", "tsn", "cover", "hidden", "two", "hole")}
    for name, folder in folders.items():
        folder.mkdir()
        for number, file in enumerate(frames, start=1):
            (folder / f"img_{number:05d}.jpg").write_bytes(file.read_bytes())
            if name == "tsn":
                for axis in "xy":
                    (folder / f"flow_{axis}_{number:05d}.jpg").write_bytes(picture())
            if name == "two":
                (folder / f"other_{number:05d}.jpg").write_bytes(picture())
    (folders["cover"] / "cover.jpg").write_bytes(picture())
    (folders["hidden"] / "._img_00001.jpg").write_bytes(b"Mac OS X")
    (folders["hole"] / "img_00006.jpg").unlink()
    assert call("--workdir", workdir, *folders.values(), "--json") == 3
    rows = {Path(row["video"]).name: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["plain"]["frames"] == len(frames)
    for name in ("tsn", "cover", "hidden"):  # rounding depends on the place in a batch
        for found, wanted in zip(rows[name]["predictions"], rows["plain"]["predictions"], strict=True):
            assert found["class"] == wanted["class"] and found["probability"] == pytest.approx(wanted["probability"])
        assert rows[name]["frames"] == len(frames)
    assert rows["tsn"]["note"] == "not used: flow_x_N.jpg (13 files), flow_y_N.jpg (13 files)"
    assert "note" not in rows["plain"]
    assert "two: holds files of several kinds (" in rows["two"]["error"]
    assert "img_00006.jpg: cannot be read (No such file or directory)" in rows["hole"]["error"]
    assert call("--workdir", workdir, folders["tsn"]) == 0
    assert "  not used: flow_x_N.jpg (13 files), flow_y_N.jpg (13 files)\n" in capsys.readouterr().out


def test_every_kind_of_bad_file(workdir, tmp_path, capsys):
    files = {name: file.write(tmp_path, name) for name, file in VIDEOS.items()}
    frames = {}
    for name, file in PICTURES.items():
        frames[name] = file.write(tmp_path / name, "2").parent
        for number in (1, 3):
            (tmp_path / name / f"{number}{file.suffix}").write_bytes(picture())
    kinds = [(path, VIDEOS[name]) for name, path in files.items()]
    kinds += [(path, PICTURES[name]) for name, path in frames.items()]
    with pipe(tmp_path / "pipe.mp4") as waiting, pipe(frames["grayscale"] / "4.jpg"):
        assert call("--workdir", workdir, *(path for path, _ in kinds), waiting, "--top", 1, "--json") == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "pipe.mp4: is no file, but a pipe or a device" in rows.pop()["error"]
    for row, (path, file) in zip(rows, kinds, strict=True):
        assert row["video"] == str(path)
        if path == frames["grayscale"]:
            assert "4.jpg is no file" in row["error"]
        elif not file.reason:
            assert len(row["predictions"]) == 1
        else:
            reason = "is .*, unlike 1.jpg" if "where the video began" in file.reason else file.reason
            assert re.search(reason, row["error"]) and row["error"].startswith(str(path))


def test_a_loaded_model_takes_clips_frames_and_files(workdir, videos, predictor):
    model = r23d_jax.load_model(workdir)
    want = predictor(videos / "v0.avi").probabilities
    order = np.argsort(-want)
    for video in (str(videos / "v0.avi"), np.stack(list(iter_frames(videos / "v0.avi")))):
        got = model.predict(video)
        assert list(got) == [CLASSES[k] for k in order]
        np.testing.assert_allclose(list(got.values()), want[order], atol=1e-6)
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    logits = model(clips)
    assert logits.shape == (2, 3)
    np.testing.assert_array_equal(logits, model.model(prepare_video(jnp.asarray(clips), model.preprocessing)))
    np.testing.assert_array_equal(model(clips.astype(np.float32)), model.model(jnp.asarray(clips, jnp.float32)))
    with pytest.raises(VideoError, match=r"frames are float32 \(2, 8, 8, 3\); expected uint8 \(T, H, W, 3\)"):
        model.predict(np.zeros((2, 8, 8, 3), np.float32))
    assert set(r23d_jax.to_torch(model)) == set(r23d_jax.to_torch(model.model))


def test_names_cannot_command_the_terminal(workdir, tmp_path, capsys):
    assert call("--workdir", workdir, tmp_path / "a\x1b[2J\nb.avi") == 3
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"a\x1b[2J\nb.avi" in out


def test_wrong_use(workdir, videos, tmp_path):
    with pytest.raises(UserError, match="--top 0: must be at least 1"):
        call("--workdir", workdir, videos / "v0.avi", "--top", 0)
    with pytest.raises(UserError, match="--batch-size -1: must be at least 1"):
        call("--workdir", workdir, videos / "v0.avi", "--batch-size", -1)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        call("--workdir", tmp_path, videos / "v0.avi")
    for option, value in (("--weight", 0.9), ("--scores", "logits")):
        with pytest.raises(UserError, match=f"{option} {value}: is for --second, which is not given"):
            call("--workdir", workdir, videos / "v0.avi", option, value)


def test_one_device_is_enough(predictor):
    """Prediction runs on one device only, so that a batch may be of any size."""
    assert predictor._mesh.size == 1 < jax.device_count()
