"""Optical flow: what is computed, how it is kept, and what the pipeline makes of it."""

import dataclasses
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import tensorflow as tf

from r23d_jax.__main__ import main
from r23d_jax.config import Config, ConfigError, DataConfig, UserError, preprocessing, use_flow, validate
from r23d_jax.data.make import flow
from r23d_jax.data.read.augment import mirror
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.decode import decode_clip
from r23d_jax.data.read.pipeline import eval_batches, train_batches
from r23d_jax.data.read.views import make_views
from r23d_jax.data.sources import open_index


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """Lossless, so that the motion stays what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="bgr24")))
        container.mux(stream.encode())


def moving(dx: int, dy: int, count: int = 4, size: int = 96) -> list[np.ndarray]:
    """A texture that moves by (dx, dy) pixels a frame."""
    noise = np.random.default_rng(0).integers(0, 256, (size // 4, size // 4), np.uint8)
    texture = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return [cv2.cvtColor(np.roll(texture, (k * dy, k * dx), (0, 1)), cv2.COLOR_GRAY2BGR) for k in range(count)]


@pytest.mark.parametrize("method", flow.METHODS)
def test_every_method_sees_the_motion(method: str) -> None:
    if method == "tvl1" and not hasattr(cv2, "optflow"):
        pytest.fail("OpenCV has no TV-L1: opencv-contrib-python-headless is needed, not opencv-python-headless")
    pictures = list(flow.flow_pictures(moving(3, -2), method, bound=10.0))
    assert len(pictures) == 3 and pictures[0].shape == (192, 96) and pictures[0].dtype == np.uint8
    x, y = np.split(pictures[1].astype(float), 2, axis=0)
    for values, pixels in ((x, 3), (y, -2)):
        assert abs(np.median((values - 128) / 127 * 10) - pixels) < 0.3


def test_quantisation_is_symmetric_and_cut_at_the_bound() -> None:
    values = np.array([[[0.0, -50.0], [20.0, 20.1], [-20.0, 5.0]]])
    assert flow.quantize(values, 20.0).tolist() == [[128, 255, 1], [1, 255, 160]]


def test_what_the_network_sees_lies_between_minus_one_and_one() -> None:
    cfg = validate(use_flow(Config()))
    pre = preprocessing(cfg.data)
    stored = np.array([1, 128, 255]) / 255
    np.testing.assert_allclose((stored - pre.mean[0]) / pre.std[0], [-1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("form", [".jpg", ".png"])
def test_a_window_is_cut_out_of_x_and_y_alike(form: str) -> None:
    rng = np.random.default_rng(0)
    smooth = [cv2.resize(rng.integers(0, 256, (6, 8), np.uint8), (40, 30)) for _ in range(4)]
    pictures = [np.concatenate([smooth[0], smooth[1]]), np.concatenate([smooth[2], smooth[3]])]
    contents = [tf.constant(cv2.imencode(form, p, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()) for p in pictures]
    clip = decode_clip(contents, lambda h, w: tf.constant([4, 7, 20, 20]), 20, False, flow=True).numpy()
    assert clip.shape == (2, 20, 20, 2)
    for frame, (x, y) in enumerate((smooth[:2], smooth[2:])):
        np.testing.assert_allclose(clip[frame, ..., 0], x[4:24, 7:27], atol=3)  # JPEG's loss
        np.testing.assert_allclose(clip[frame, ..., 1], y[4:24, 7:27], atol=3)


def test_the_mirror_changes_the_sign_of_x() -> None:
    """Flow of mirrored frames is the mirrored flow with x negated."""
    clip = np.random.default_rng(0).integers(1, 256, (2, 3, 4, 2)).astype(np.uint8)
    mirrored = mirror(tf.constant(clip), tf.constant(True)).numpy()
    np.testing.assert_array_equal(mirrored[..., 0], 256 - clip[:, :, ::-1, 0].astype(int))
    np.testing.assert_array_equal(mirrored[..., 1], clip[:, :, ::-1, 1])
    again = mirror(tf.constant(mirrored), tf.constant(True)).numpy()
    np.testing.assert_array_equal(again, clip)
    frames = moving(4, 0, count=2)
    (forth,) = flow.flow_pictures(frames, "farneback", 20.0)
    (back,) = flow.flow_pictures([frame[:, ::-1] for frame in frames], "farneback", 20.0)
    assert np.median(forth[:96]) == 256 - np.median(back[:96]) > 128


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Flow of four videos of two classes, made by the command, and lists."""
    for name, dx in (("Left", -4), ("Right", 4)):
        for group in (1, 2):
            path = tmp_path / "videos" / name / f"v_{name}_g{group:02d}_c01.avi"
            write_video(path, moving(dx, 0, count=9))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Left\n2 Right\n")
    for side, group in (("train", 1), ("test", 2)):
        rows = [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in ("Left", "Right")]
        text = "\n".join(f"{row} {k}" if side == "train" else row for k, row in enumerate(rows, start=1))
        (lists / f"{side}list01.txt").write_text(text + "\n")
    command = ["prepare", "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--format", "both"]
    assert main([*command, "--flow", "farneback", "--flow-bound", "8", "--workers", "1"]) == 0
    return tmp_path


def data_config(root: Path, source: str) -> DataConfig:
    cfg = use_flow(Config()).data
    folder = "frames" if source == "frames" else "packed"
    fields = {"num_frames": 4, "short_side": 48, "crop_size": 32, "crop": "random", "flip": True, "num_workers": 1}
    return dataclasses.replace(cfg, source=source, root=str(root / "out" / folder), lists=str(root / "lists"), **fields)


@pytest.mark.parametrize("source", ["frames", "packed"])
def test_from_video_files_to_batches(prepared: Path, source: str) -> None:
    record = json.loads((prepared / "out" / "prepare.json").read_text())
    assert (record["flow"], record["flow_bound"]) == ("farneback", 8.0)
    cfg = data_config(prepared, source)
    index = open_index(cfg, "train")
    assert index.num_frames.tolist() == [8, 8]  # one fewer than frames
    assert "optical flow by farneback, bound 8 pixels" in index.notes
    log = BrokenLog(cfg, log=lambda line: None)
    batches = train_batches(index, cfg, seed=0, global_batch_size=8, start_step=0, num_steps=2, broken=log)
    signs = set()
    for batch in batches:
        assert batch["video"].shape == (8, 4, 32, 32, 2) and batch["video"].dtype == np.uint8
        x = np.median(batch["video"][..., 0].astype(float), axis=(1, 2, 3)) - 128
        np.testing.assert_allclose(np.abs(x) / 127 * 8, 4, atol=0.7)
        signs |= {(int(label), bool(value > 0)) for label, value in zip(batch["label"], x, strict=True)}
    assert len(signs) == 4  # flips make a left of a right
    views = make_views(index.num_frames, preprocessing(cfg), dataclasses.replace(Config().eval, views="dense"))
    for batch in eval_batches(index, views, cfg, batch_size=4, broken=log):
        x = np.median(batch["video"][..., 0].astype(float), axis=(1, 2, 3))
        for label, value, mask in zip(batch["label"], x, batch["mask"], strict=True):
            assert not mask or (value > 128) == bool(label)
    assert not log.faults


def test_flow_and_frames_are_not_taken_for_each_other(prepared: Path) -> None:
    cfg = data_config(prepared, "frames")
    with pytest.raises(ConfigError, match="holds optical flow .farneback., and config.data.input is 'rgb'"):
        open_index(dataclasses.replace(cfg, input="rgb"), "train")
    (prepared / "out" / "prepare.json").unlink()
    with pytest.raises(ConfigError, match="holds no optical flow .*python -m r23d_jax prepare --flow"):
        open_index(cfg, "train")


def test_another_method_into_the_same_folder_is_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "--videos", str(prepared / "videos"), "--out", str(prepared / "out"), "--format", "both"]
    assert main(command) == 2
    assert "was prepared with flow farneback, flow bound 8.0; use the same" in capsys.readouterr().err
    assert main([*command, "--flow", "dis", "--flow-bound", "0"]) == 2
    assert "--flow-bound 0: must be above 0" in capsys.readouterr().err


def test_a_video_of_one_frame_is_skipped_and_named(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "A" / "one.avi", moving(1, 1, count=1))
    args = ["--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--flow", "dis", "--workers", "1"]
    assert main(["prepare", *args]) == 3
    assert "one frame only, which has no optical flow" in (tmp_path / "out" / "broken.txt").read_text()


def test_wrong_configs() -> None:
    cfg = use_flow(Config())
    cfg.model.in_channels, cfg.data.mean, cfg.data.color_jitter = 3, (0.5, 0.5, 0.5), 0.3
    cfg.data.dct_scaling = 0.9
    message = r"(?s)in_channels=3: must be 2 for data.input=.flow.*mean=.*must be 2 values.*dct_scaling=0.9: must be 0"
    with pytest.raises(UserError, match=message):
        validate(cfg)
