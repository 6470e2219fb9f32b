"""Clips of pseudo-motion: how the window slides, what stands still, and that a batch depends on seed and step alone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from r23d_jax.config import DataConfig, EvalConfig, preprocessing
from r23d_jax.config.motion import MOTIONS, MotionConfig
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import motion, pipeline
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.views import make_views
from tests.data.find.frame_sets import write_videos

CFG = DataConfig(
    num_frames=5, short_side=24, crop_size=12, crop="random", repeats=9, hold_out=0.3, flip=False, num_workers=2,
    motion=MotionConfig(speeds=(1, 3), frozen=0.0),
)  # fmt: skip
SIDE = 12 + 4 * 3
# Where the picture goes: pixels down and to the right
GOES = {
    "still": (0, 0), "left slow": (0, -1), "left fast": (0, -3), "right slow": (0, 1), "right fast": (0, 3),
    "up slow": (-1, 0), "up fast": (-3, 0), "down slow": (1, 0), "down fast": (3, 0),
}  # fmt: skip

Batch = dict[str, np.ndarray]


def changed(cfg: DataConfig = CFG, **fields: Any) -> DataConfig:
    return dataclasses.replace(cfg, motion=dataclasses.replace(cfg.motion, **fields))


def places() -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a pixel says in which row (red) and column (green) it is."""
    rows, columns = np.indices((SIDE, SIDE)) * 10
    return np.stack([rows, columns, np.full_like(rows, 70)], -1).astype(np.uint8)


def made(cfg: DataConfig, label: str, key: int) -> np.ndarray:
    """(t, s, s, 3) of the picture of places."""
    given = tf.constant(places()[None]), tf.constant([5, key], tf.int64), [MOTIONS.index(label)]
    clips = motion.moving_clips(cfg, *given, on_device=False)
    (clip,) = clips["video"].numpy()
    assert clip.dtype == np.uint8 and clip.shape == (preprocessing(cfg).read_frames, 12, 12, 3)
    return clip


@pytest.mark.parametrize("label", MOTIONS)
def test_the_picture_goes_as_the_label_says(label: str) -> None:
    down, right = GOES[label]
    starts = set()
    for key in range(20):
        clip = made(CFG, label, key).astype(int)
        top, left = clip[0, 0, 0, :2] // 10
        starts.add((top, left))
        for t, frame in enumerate(clip):
            rows, columns = np.indices((12, 12))
            np.testing.assert_array_equal(frame[..., 0], 10 * (rows + top - t * down))
            np.testing.assert_array_equal(frame[..., 1], 10 * (columns + left - t * right))
    assert len(starts) >= 8
    assert all(0 <= top - 4 * down <= SIDE - 12 and 0 <= left - 4 * right <= SIDE - 12 for top, left in starts)


def test_only_a_box_moves_in_a_frozen_clip() -> None:
    cfg = changed(frozen=1.0, box=(0.25, 0.5))
    sizes, corners, shown = set(), set(), set()
    for key in range(60):
        clip = made(cfg, "left slow", key).astype(int)
        moving = np.argwhere((clip != clip[:1]).any((0, 3)))
        (top, left), (bottom, right) = moving.min(0), moving.max(0) + 1
        sizes |= {bottom - top, right - left}
        corners.add((top, left))
        assert len(moving) == (bottom - top) * (right - left)  # a whole rectangle
        columns = clip[:, 0, 0, 1] // 10 if top > 0 or left > 0 else clip[:, -1, -1, 1] // 10 - 11
        inside = clip[:, top, left, 1] // 10 - left  # of the window, in each frame
        np.testing.assert_array_equal(np.diff(inside), 1)
        assert len(set(columns)) == 1
        shown.add(int(np.flatnonzero(inside == columns[0])[0]))  # the rest is that of one of the frames
    assert sizes == {3, 4, 5, 6} and len(corners) > 30 and shown == set(range(5))


def test_some_clips_are_frozen_and_others_move_as_a_whole() -> None:
    whole = [
        (np.diff(made(changed(frozen=0.3), "up fast", key).astype(int), axis=0) != 0).any(-1).all()
        for key in range(100)
    ]
    assert 55 <= sum(whole) <= 85


@pytest.mark.parametrize(("colors", "tints"), [("clip", 1), ("frame", 5)])
@pytest.mark.slow
def test_colors_change_with_the_clip_or_with_each_frame(colors: str, tints: int) -> None:
    cfg = changed(dataclasses.replace(CFG, color_jitter=0.5), colors=colors)
    clip = made(cfg, "still", 1)
    assert len({frame.tobytes() for frame in clip}) == tints
    grays = [
        (np.ptp(frame, axis=-1) == 0).all() for key in range(20) for frame in made(changed(cfg, gray=0.4), "still", key)
    ]
    assert 20 <= sum(grays) <= 60  # of 100
    assert not any((np.ptp(frame, axis=-1) == 0).all() for frame in clip)


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    index = write_videos(tmp_path_factory.mktemp("videos") / "frames", [12, 20, 3, 15, 1])
    return dataclasses.replace(index, class_names=MOTIONS, labels=np.zeros_like(index.labels))


def train(index: VideoIndex, cfg: DataConfig = CFG, start: int = 0, steps: int = 5, **more: Any) -> list[Batch]:
    broken = BrokenLog(cfg, log=lambda line: None)
    given: dict[str, Any] = {"seed": 0, "global_batch_size": 18, "broken": broken} | more
    batches = list(pipeline.train_batches(index, cfg, start_step=start, num_steps=steps, **given))
    assert len(batches) == steps
    return batches


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_picture_gives_a_clip_of_each_class(index: VideoIndex) -> None:
    batches = train(index, dataclasses.replace(CFG, color_jitter=0.4))
    for batch in batches:
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            "video": ((18, 5, 12, 12, 3), np.uint8),
            "label": ((18,), np.int32),
            "mask": ((18,), np.float32),
            "video_id": ((18,), np.int32),
        }
        np.testing.assert_array_equal(batch["label"], [*range(9), *range(9)])
        assert len(set(batch["video_id"][:9])) == len(set(batch["video_id"][9:])) == 1
    visited = [batch["video_id"][row] for batch in batches for row in (0, 9)]
    assert sorted(visited[:5]) == sorted(visited[5:]) == list(range(5))


@pytest.mark.slow
def test_a_batch_depends_on_seed_and_step_alone(index: VideoIndex) -> None:
    cfg = changed(dataclasses.replace(CFG, input="rgb_diff", crop_size=8, color_jitter=0.3), frozen=0.5, colors="clip")
    whole = train(index, cfg)
    assert whole[0]["video"].shape[1] == preprocessing(cfg).read_frames
    assert_same(whole, train(index, cfg))
    assert_same(whole[3:], train(index, cfg, start=3, steps=2))
    hosts = [train(index, cfg, host=host, num_hosts=2) for host in (0, 1)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*hosts, strict=True)]
    assert_same(whole, joined)
    assert not np.array_equal(whole[0]["video"], train(index, cfg, seed=1)[0]["video"])


@pytest.mark.slow
def test_an_unreadable_video_is_replaced(index: VideoIndex, tmp_path: Path) -> None:
    broken_index = dataclasses.replace(index, frames=write_videos(tmp_path / "frames", [12, 20, 3, 15, 1]).frames)
    for path in (tmp_path / "frames" / str(index.names[1])).iterdir():
        path.write_bytes(b"")
    cfg = dataclasses.replace(CFG, max_broken_fraction=1.0)
    log = BrokenLog(cfg, log=lambda line: None)
    for was, batch in zip(train(index, cfg), train(broken_index, cfg, broken=log), strict=True):
        assert 1 not in batch["video_id"]
        same = was["video_id"] != 1
        np.testing.assert_array_equal(batch["video"][same], was["video"][same])
        np.testing.assert_array_equal(batch["label"], was["label"])
    assert list(log.faults) == [str(index.names[1])] and log.count == 18  # two of its turns, nine rows each


def test_a_view_is_the_same_in_any_batch(index: VideoIndex) -> None:
    rows = np.repeat(np.arange(5), 9)
    every = dataclasses.replace(
        index,
        names=np.array([f"{row} {label}" for row in range(5) for label in MOTIONS]),
        labels=np.tile(np.arange(9, dtype=np.int32), 5),
        num_frames=index.num_frames[rows],
        frames=index.frames.take(rows),
    )
    cfg = dataclasses.replace(CFG, color_jitter=0.5)  # evaluations leave colors as they are
    views = make_views(every.num_frames, preprocessing(cfg), EvalConfig(views="uniform", num_clips=2))

    def clips(size: int) -> Batch:
        batches = list(pipeline.eval_batches(every, views, cfg, batch_size=size, broken=BrokenLog(cfg)))
        return {name: np.concatenate([batch[name] for batch in batches])[: len(views)] for name in batches[0]}

    found = clips(8)
    assert_same([found], [clips(45)])
    np.testing.assert_array_equal(found["label"], np.repeat(every.labels, 2))
    for clip, label, row in zip(found["video"].astype(int), found["label"], rows.repeat(2), strict=True):
        assert np.abs(clip[..., 0] - (10 + 20 * row)).max() <= 6  # red says which video
        to_the_right = clip[0, ..., 2].mean() - clip[-1, ..., 2].mean()  # blue rises from left to right
        assert np.sign(round(to_the_right / 6)) == np.sign(GOES[MOTIONS[label]][1])
