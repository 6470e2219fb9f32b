"""Batches: what is in them, in which order, on which host, and that they depend on nothing but seed and step."""

import dataclasses
import gc
import os
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf

from r23d_jax.config import ConfigError, DataConfig, EvalConfig, preprocessing
from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.read import augment, pipeline, sampling
from r23d_jax.data.read.broken import BrokenLog, BrokenVideoError
from r23d_jax.data.read.views import Views, make_views
from tests.data.find.frame_sets import pack, picture, videos_and_frames, write_videos

COUNTS = [12, 20, 3, 15, 9, 8, 30]
# The window is the whole height, so that colors are not disturbed by resizing
CFG = DataConfig(num_frames=8, short_side=24, crop_size=24, crop="random", num_workers=2)

Batches = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return write_videos(tmp_path_factory.mktemp("videos") / "frames", COUNTS)


def _train(
    index: VideoIndex,
    cfg: DataConfig = CFG,
    *,
    seed: int = 0,
    size: int = 4,
    start: int = 0,
    steps: int = 1,
    **host: Any,
) -> Batches:
    broken = BrokenLog(cfg)
    batches = pipeline.train_batches(
        index, cfg, seed=seed, global_batch_size=size, start_step=start, num_steps=steps, broken=broken, **host
    )
    out = list(batches)
    assert len(out) == steps and broken.count == 0
    return out


def _eval(index: VideoIndex, views: Views, cfg: DataConfig = CFG, *, size: int = 4, **more: Any) -> Batches:
    return list(pipeline.eval_batches(index, views, cfg, batch_size=size, broken=BrokenLog(cfg), **more))


def _same(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


def _joined(hosts: list[Batches]) -> Batches:
    return [{k: np.concatenate([p[k] for p in parts]) for k in parts[0]} for parts in zip(*hosts, strict=True)]


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_training_batch_holds_consecutive_frames_of_the_videos_it_names(index: VideoIndex) -> None:
    for batch in _train(index, steps=4):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            "video": ((4, 8, 24, 24, 3), np.uint8),
            "label": ((4,), np.int32),
            "mask": ((4,), np.float32),
            "video_id": ((4,), np.int32),
        }
        videos, frames = videos_and_frames(batch["video"])
        np.testing.assert_array_equal(videos, np.repeat(batch["video_id"][:, None], 8, 1))
        np.testing.assert_array_equal(batch["label"], batch["video_id"] % 3)
        assert np.all(batch["mask"] == 1)
        for video, row in zip(batch["video_id"], frames, strict=True):
            np.testing.assert_array_equal(row, (row[0] + np.arange(8)) % COUNTS[video])
            assert row[0] <= max(COUNTS[video] - 8, 0)


def test_an_epoch_visits_every_video_once_and_batches_go_across_its_end(index: VideoIndex) -> None:
    ids = np.concatenate([batch["video_id"] for batch in _train(index, steps=7)])  # 28 samples: 4 epochs of 7
    epochs = ids.reshape(4, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_clips_of_one_video_differ_between_epochs(index: VideoIndex) -> None:
    starts, mirrored = set(), set()
    for batch in _train(index, steps=14):  # 8 epochs
        _, frames = videos_and_frames(batch["video"])
        for row in np.flatnonzero(batch["video_id"] == 6):
            starts.add(int(frames[row, 0]))
            blue = batch["video"][row, 0, 12, :, 2].astype(int)
            mirrored.add(bool(blue[0] > blue[-1]))
    assert len(starts) > 4 and mirrored == {True, False}


def _blue_edges(index: VideoIndex, cfg: DataConfig) -> np.ndarray:
    """(samples, 2): blue, which rises from left to right in the frame, at the left and right edge of each clip."""
    one = dataclasses.replace(cfg, num_frames=1)
    clips = np.concatenate([batch["video"][:, 0] for batch in _train(index, one, size=28, steps=12)])
    return clips[:, 12, [0, -1], 2].astype(int)


@pytest.mark.slow
def test_mirroring_depends_on_neither_the_crop_nor_other_augmentations(index: VideoIndex) -> None:
    left, right = _blue_edges(index, CFG).T
    mirrored = left > right
    assert 0.4 < mirrored.mean() < 0.6
    # the smaller edge says where the window begins, and both halves of these are mirrored equally often
    begins = np.minimum(left, right)
    for half in (begins <= np.median(begins), begins > np.median(begins)):
        assert 0.38 < mirrored[half].mean() < 0.62
    for changes in ({"crop": "center"}, {"crop": "random_resized"}, {"color_jitter": 0.2}, {"sampling": "segments"}):
        changed = dataclasses.replace(CFG, **changes, num_segments=1)
        left, right = _blue_edges(index, changed).T
        np.testing.assert_array_equal(left > right, mirrored)


def test_windows_do_not_depend_on_augmentations(index: VideoIndex) -> None:
    """Where a clip is not mirrored it shows the same window with and without mirroring."""
    plain = _blue_edges(index, dataclasses.replace(CFG, flip=False))
    flipped = _blue_edges(index, CFG)
    np.testing.assert_array_equal(np.sort(flipped), np.sort(plain))


def test_a_batch_depends_on_seed_and_step_alone(index: VideoIndex) -> None:
    cfg = dataclasses.replace(CFG, crop="random_resized", color_jitter=0.4)
    all_steps = _train(index, cfg, steps=5)
    assert _same(all_steps, _train(index, cfg, steps=5))
    assert _same(all_steps[3:], _train(index, cfg, start=3, steps=2))
    assert not _same(all_steps, _train(index, cfg, seed=1, steps=5))


def _sample(index: VideoIndex, cfg: DataConfig, seed: int, number: int) -> tuple[int, int, list[int], int, bool]:
    """Of global sample `number`: the video, its substitute, the frames, the window's left edge and whether it turns."""
    count = len(index.names)
    epoch, position = (tf.constant(value, tf.int64) for value in divmod(number, count))
    video = sampling.epoch_order(seed, epoch, position, count)
    key = sampling.sample_key(seed, epoch, video)
    substitutes = sampling.pick(sampling.uniform(key, pipeline.ALTERNATIVES), tf.constant(count))
    key = sampling.fold_in(key, 0)  # of the first attempt
    num_frames = tf.constant(index.num_frames)[video]
    frames = sampling.training_frames(cfg, sampling.fold_in(key, 0), num_frames).numpy().tolist()
    draws = sampling.uniform(sampling.fold_in(key, 1), augment.WINDOW_DRAWS)
    window = augment.training_window(cfg, draws, tf.constant(24), tf.constant(32))
    turned = sampling.uniform(sampling.fold_in(key, zlib.crc32(b"flip")), 1)[0] < 0.5
    return int(video), int(substitutes[0]), frames, int(window[1]), bool(turned)


def test_a_sample_is_this_function_of_seed_epoch_and_video(tmp_path: Path) -> None:
    """To the pixel: another stream of numbers would change what a run resumes with."""
    index = write_videos(tmp_path, COUNTS, suffix=".png")
    for host, number in ((0, 12), (1, 14)):  # two rows of each of four, from the fourth step on; seven videos an epoch
        batches = _train(index, seed=3, start=3, steps=3, host=host, num_hosts=2)
        assert [len(batch["video"]) for batch in batches] == [2, 2, 2]
        for step, batch in enumerate(batches):
            for row in range(2):
                video, _, frames, left, turned = _sample(index, CFG, 3, number + 4 * step + row)
                assert batch["video_id"][row] == video
                want = np.stack([picture(video, frame) for frame in frames])[:, :, left : left + 24]
                np.testing.assert_array_equal(batch["video"][row], want[:, :, ::-1] if turned else want)


def _break(index: VideoIndex, video: int) -> None:
    for path in Path(index.frames.folder[video]).iterdir():  # type: ignore[union-attr]
        path.write_bytes(b"no picture")


def test_the_first_substitute_takes_the_place_of_a_video_that_cannot_be_read(tmp_path: Path) -> None:
    index = write_videos(tmp_path, COUNTS, suffix=".png")
    whole = _train(index, steps=4)
    _break(index, 2)
    cfg = dataclasses.replace(CFG, max_broken_fraction=1.0)
    lines: list[str] = []
    broken = BrokenLog(cfg, log=lines.append)
    batches = list(
        pipeline.train_batches(index, cfg, seed=0, global_batch_size=4, start_step=0, num_steps=4, broken=broken)
    )
    replaced = 0
    for step, (old, new) in enumerate(zip(whole, batches, strict=True)):
        assert new.keys() == old.keys() and new["mask"].tolist() == [1.0] * 4
        for row in range(4):
            if old["video_id"][row] != 2:
                assert all(np.array_equal(old[name][row], new[name][row]) for name in old)
                continue
            replaced += 1
            video, substitute, *_ = _sample(index, CFG, 0, 4 * step + row)
            assert video == 2
            if substitute != 2:
                assert new["video_id"][row] == substitute
            shown, _ = videos_and_frames(new["video"][row])
            assert set(shown.tolist()) == {int(new["video_id"][row])} != {2}
            assert new["label"][row] == new["video_id"][row] % 3
    assert replaced == broken.count == 3 and len(lines) == 1 and index.names[2] in lines[0]


def test_four_substitutes_are_tried(tmp_path: Path) -> None:
    """All videos are broken but the one that seed 3 draws last for its first sample."""
    index = write_videos(tmp_path, COUNTS, suffix=".png")
    wanted = sampling.epoch_order(3, tf.constant(0, tf.int64), tf.constant(0, tf.int64), 7)
    draws = sampling.uniform(sampling.sample_key(3, tf.constant(0, tf.int64), wanted), 4)
    *earlier, last = sampling.pick(draws, tf.constant(7)).numpy().tolist()
    assert last not in (int(wanted), *earlier)
    for video in {*range(7)} - {last}:
        _break(index, video)
    cfg = dataclasses.replace(CFG, max_broken_fraction=1.0)
    broken = BrokenLog(cfg, log=lambda line: None)
    (batch,) = pipeline.train_batches(index, cfg, seed=3, global_batch_size=1, start_step=0, num_steps=1, broken=broken)
    assert batch["video_id"].tolist() == [last]


def test_a_view_that_cannot_be_read_counts_for_nothing_and_keeps_its_numbers(tmp_path: Path) -> None:
    index = write_videos(tmp_path, COUNTS, suffix=".png")
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    whole = _eval(index, views)
    _break(index, 1)
    cfg = dataclasses.replace(CFG, max_broken_fraction=1.0)
    broken = BrokenLog(cfg, log=lambda line: None)
    batches = list(pipeline.eval_batches(index, views, cfg, batch_size=4, broken=broken))
    for old, new in zip(whole, batches, strict=True):
        lost = (new["video_id"] == 1) & (old["mask"] == 1)
        np.testing.assert_array_equal(new["mask"], np.where(lost, 0, old["mask"]))
        for name in ("label", "video_id", "view"):
            np.testing.assert_array_equal(new[name], old[name])
        np.testing.assert_array_equal(new["video"][~lost], old["video"][~lost])
        assert not new["video"][lost].any()
    assert broken.count == 2


@pytest.mark.parametrize("batches", [_train, _eval])
def test_a_video_that_cannot_be_read_ends_a_run_that_bears_none(tmp_path: Path, batches: Any) -> None:
    index = write_videos(tmp_path, COUNTS, suffix=".png")
    _break(index, 0)
    cfg = dataclasses.replace(CFG, on_broken="error", max_broken_fraction=1.0)
    with pytest.raises(BrokenVideoError, match=str(index.names[0])):
        if batches is _train:
            _train(index, cfg, steps=4)
        else:
            _eval(index, make_views(index.num_frames, preprocessing(cfg), EvalConfig()), cfg)


@pytest.mark.parametrize("host", [-1, 2])
def test_a_host_is_one_of_the_hosts(index: VideoIndex, host: int) -> None:
    with pytest.raises(ValueError, match=rf"^host={host}: must be 0 \.\. 1$"):
        _train(index, host=host, num_hosts=2)


@pytest.mark.slow
def test_crops_of_one_clip_are_decoded_together_or_alone_to_the_same_pixels(index: VideoIndex) -> None:
    """Six rows hold two clips of three crops, four rows none; rows of one host of two begin within a clip."""
    cfg = dataclasses.replace(CFG, crop_size=12)
    views = make_views(index.num_frames, preprocessing(cfg), EvalConfig(crops=3))
    together, alone = _eval(index, views, cfg, size=6), _eval(index, views, cfg, size=4)
    assert len(together) == 5 and len(alone) == 8  # of 30 views
    for name in together[0]:
        a, b = (np.concatenate([batch[name] for batch in batches])[:30] for batches in (together, alone))
        np.testing.assert_array_equal(a, b, err_msg=name)
    hosts = [_eval(index, views, cfg, size=8, host=host, num_hosts=2) for host in (0, 1)]
    assert _same(_joined(hosts), _eval(index, views, cfg, size=8))
    halves = [_eval(index, views, cfg, size=12, host=host, num_hosts=2) for host in (0, 1)]
    assert _same(_joined(halves), _eval(index, views, cfg, size=12))


def test_views_in_any_order_show_what_they_name(index: VideoIndex) -> None:
    """Crops of a clip that do not follow each other are decoded alone."""
    cfg = dataclasses.replace(CFG, crop_size=12)
    views = make_views(index.num_frames[:2], preprocessing(cfg), EvalConfig(crops=3))
    order = np.random.default_rng(0).permutation(len(views))
    mixed = Views(views.video[order], views.start[order], views.crop[order])
    sorted_, shuffled = (
        np.concatenate([batch["video"] for batch in _eval(index, rows, cfg, size=3)]) for rows in (views, mixed)
    )
    np.testing.assert_array_equal(shuffled, sorted_[order])


def test_flow_is_read_as_two_channels_in_training_and_evaluation(tmp_path: Path) -> None:
    """Gray pictures with x above y; a mirrored clip has the opposite x."""
    index = write_videos(tmp_path, [9, 9], suffix=".png")
    x, y = (np.random.default_rng(k).integers(1, 255, (24, 32), np.uint8) for k in (0, 1))
    for folder in tmp_path.iterdir():
        for path in folder.iterdir():
            cv2.imwrite(str(path), np.concatenate([x, y]))
    cfg = dataclasses.replace(CFG, input="flow", mean=(0.5, 0.5), std=(0.5, 0.5))
    views = make_views(index.num_frames, preprocessing(cfg), EvalConfig())
    for batch in (*_train(index, cfg, size=2, steps=4), *_eval(index, views, cfg, size=2)):
        for clip in batch["video"][batch["mask"] == 1]:
            assert clip.shape == (8, 24, 24, 2)
            found = []
            for left in range(9):
                window = np.stack([x[:, left : left + 24], y[:, left : left + 24]], -1)
                turned = window[:, ::-1].astype(int)
                turned[..., 0] = np.minimum(256 - turned[..., 0], 255)
                found += [np.array_equal(clip[0], way) and np.array_equal(clip[-1], way) for way in (window, turned)]
            assert sum(found) == 1


def test_hosts_read_their_own_rows_and_make_one_batch_together(index: VideoIndex) -> None:
    one = _train(index, steps=4)
    two = [_train(index, steps=4, host=host, num_hosts=2) for host in (0, 1)]
    assert all(len(batch["label"]) == 2 for batch in two[0])
    assert _same(one, _joined(two))
    (last,) = _train(index, start=3, host=3, num_hosts=4)
    assert all(np.array_equal(rows, one[3][name][3:]) for name, rows in last.items())


def test_packed_frames_give_the_same_batches(index: VideoIndex, tmp_path: Path) -> None:
    packed = pack(index, tmp_path / "packed")
    assert _same(_train(index, steps=4), _train(packed, steps=4))
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    assert _same(_eval(index, views), _eval(packed, views))


@pytest.mark.slow
def test_windows_of_shards_on_any_hosts_from_any_step(index: VideoIndex, tmp_path: Path) -> None:
    packed = pack(index, tmp_path / "packed")
    assert isinstance(packed.frames, PackedFrames)
    cfg = dataclasses.replace(CFG, source="packed", shuffle_shards=1)
    one = _train(packed, cfg, steps=7)  # 28 samples: 4 epochs of 7
    epochs = np.concatenate([batch["video_id"] for batch in one]).reshape(4, 7)
    for number, epoch in enumerate(epochs):
        np.testing.assert_array_equal(epoch, sampling.windowed_order(0, number, packed.frames.shard, 1))
        assert np.count_nonzero(np.diff(packed.frames.shard[epoch])) == 1, "one shard, then the other"
    for start in (1, 5):
        assert _same(one[start:], _train(packed, cfg, start=start, steps=7 - start))
    parts = [_train(packed, cfg, start=2, steps=5, host=host, num_hosts=4) for host in range(4)]
    assert _same(one[2:], _joined(parts))
    # A clip follows from the seed, the epoch and the video, whatever the order
    other = _train(packed, dataclasses.replace(cfg, shuffle_shards=0), steps=7)
    clips = [
        {(row // 7, int(video)): clip.tobytes() for row, (video, clip) in enumerate(_rows(batches))}
        for batches in (one, other)
    ]
    assert clips[0] == clips[1] and len(clips[0]) == 28


def _rows(batches: Batches) -> list[tuple[np.ndarray, np.ndarray]]:
    return [row for batch in batches for row in zip(batch["video_id"], batch["video"], strict=True)]


def test_png_frames(tmp_path: Path) -> None:
    index = write_videos(tmp_path, [9, 10], suffix=".png")
    (batch,) = _train(index, size=2)
    videos, _ = videos_and_frames(batch["video"])
    np.testing.assert_array_equal(videos[:, 0], batch["video_id"])


@pytest.mark.slow
@pytest.mark.parametrize("crops", [1, 3])
def test_dct_scaling_shows_the_same_windows(tmp_path: Path, crops: int) -> None:
    """Decoded at half their size, which the window is reduced to anyway: the same but for the filter."""
    large = write_videos(tmp_path / "frames", [9, 12, 10], height=96, width=128)
    exact = dataclasses.replace(CFG, crop="random", crop_size=40, short_side=48)
    scaled = dataclasses.replace(exact, dct_scaling=1.0)
    views = make_views(large.num_frames, preprocessing(exact), EvalConfig(crops=crops))
    pairs = [(_train(large, exact), _train(large, scaled)), (_eval(large, views, exact), _eval(large, views, scaled))]
    for batches, quicker in pairs:
        for a, b in zip(batches, quicker, strict=True):
            np.testing.assert_array_equal(a["video_id"], b["video_id"])
            difference = np.abs(a["video"].astype(int) - b["video"])
            assert 0 < difference.max() <= 6 and difference.mean() < 1


def test_segments_stride_and_differences(index: VideoIndex) -> None:
    segments = dataclasses.replace(CFG, sampling="segments", num_segments=4)
    strided = dataclasses.replace(CFG, frame_stride=2)
    difference = dataclasses.replace(CFG, input="rgb_diff")
    seen = set()
    for cfg, length in ((segments, 8), (strided, 8), (difference, 9)):
        for batch in _train(index, cfg, steps=7):
            assert batch["video"].shape == (4, length, 24, 24, 3)
            _, frames = videos_and_frames(batch["video"])
            for row in frames[batch["video_id"] == 6].tolist():  # 30 frames: nothing goes round
                seen.add(cfg.sampling + cfg.input + str(cfg.frame_stride))
                if cfg is segments:
                    assert all(row[k + 1] == row[k] + 1 for k in (0, 2, 4, 6))
                    assert all(30 * k // 4 <= row[2 * k] and row[2 * k + 1] < 30 * (k + 1) // 4 for k in range(4))
                else:
                    assert np.all(np.diff(row) == cfg.frame_stride)
    assert len(seen) == 3


def test_the_published_recipe(tmp_path: Path) -> None:
    """Short side 136, a square of one of five scales, flip, 112 x 112, pixels left as bytes for the device."""
    index = write_videos(tmp_path, [8, 8], height=60, width=80)
    cfg = DataConfig(num_frames=8, mean=(0.5,) * 3, std=(0.5,) * 3, byte_range=True, num_workers=2)
    shares = []
    for batch in _train(index, cfg, size=2, steps=16):
        assert batch["video"].shape == (2, 8, 112, 112, 3) and batch["video"].dtype == np.uint8
        # Blue rises by 210 over 79 pixels of the frame: what a crop sees of that says how wide it is
        blue = batch["video"][:, 0, 56, :, 2].astype(float)
        shares += (np.abs(blue[:, 100] - blue[:, 11]) * 112 / 89 / (210 / 79)).tolist()
    want = np.array([int(60 * s) for s in cfg.crop_scales], float)
    nearest = want[np.abs(np.array(shares)[:, None] - want).argmin(1)]
    assert np.abs(shares - nearest).max() < 2 and set(nearest) == set(want)


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_views_come_in_order_and_the_last_batch_is_padded(index: VideoIndex) -> None:
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    assert len(views) == 1 + 2 + 1 + 1 + 1 + 1 + 3
    batches = _eval(index, views)
    assert [batch["mask"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert {k: (v.shape, v.dtype) for k, v in batches[-1].items()} == {
        "video": ((4, 8, 24, 24, 3), np.uint8),
        "label": ((4,), np.int32),
        "mask": ((4,), np.float32),
        "video_id": ((4,), np.int32),
        "view": ((4,), np.int32),
    }
    joined = _joined([[batch] for batch in batches])  # hosts' concatenation serves for batches
    whole = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
    assert len(joined) == 1 and np.array_equal(joined[0]["video"], whole["video"])
    assert whole["view"][:10].tolist() == list(range(10)) and not whole["view"][10:].any()
    np.testing.assert_array_equal(whole["video_id"][:10], views.video)
    np.testing.assert_array_equal(whole["label"][:10], views.video % 3)
    videos, frames = videos_and_frames(whole["video"][:10])
    np.testing.assert_array_equal(videos[:, 0], views.video)
    want = (views.start[:, None] + np.arange(8)) % np.array(COUNTS)[views.video][:, None]
    np.testing.assert_array_equal(frames, want)
    assert not whole["video"][10:].any()


def test_evaluation_hosts_have_as_many_batches_each_and_cover_all_views(index: VideoIndex) -> None:
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    parts = [_eval(index, views, host=host, num_hosts=4) for host in range(4)]
    assert {len(part) for part in parts} == {3}
    assert _same(_eval(index, views), _joined(parts))


@pytest.mark.parametrize("crops", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_crops_of_a_view(index: VideoIndex, crops: int) -> None:
    cfg = dataclasses.replace(CFG, short_side=24, crop_size=12)
    views = make_views(index.num_frames[:1], preprocessing(cfg), EvalConfig(crops=crops))
    (batch,) = _eval(index, views, cfg, size=crops)
    left = batch["video"][:, 0, 6, 0, 2].astype(int)  # blue of the left edge: where the window begins
    right = batch["video"][:, 0, 6, -1, 2].astype(int)
    if crops == 3:
        assert left[0] < left[1] - 30 and left[1] < left[2] - 30 and np.all(left < right)
    else:
        np.testing.assert_array_equal(batch["video"][5:], batch["video"][:5, :, :, ::-1])
        assert np.all(left[:5] < right[:5]) and left[0] < left[1] - 30
    # Single views give the pixels that come of decoding a clip once for all its crops
    turned = Views(views.video[::-1], views.start[::-1], views.crop[::-1])
    for alone, video in zip(_eval(index, turned, cfg, size=1), batch["video"][::-1], strict=True):
        np.testing.assert_array_equal(alone["video"][0], video)
    # Told of how many crops this is one, which it does not show
    (first,) = _eval(index, Views(views.video[:1], views.start[:1], views.crop[:1]), cfg, size=1, crops=crops)
    np.testing.assert_array_equal(first["video"], batch["video"][:1])


def test_no_views_no_batches(index: VideoIndex) -> None:
    none = np.zeros(0, np.int32)
    assert _eval(index, Views(none, none, none)) == []


# -- limits ------------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_go_together_are_refused(index: VideoIndex) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.train\.global_batch_size=4: must be a multiple of the number of hosts, 3"
    ):
        _train(index, num_hosts=3)
    with pytest.raises(
        ConfigError, match=r"size=12: must be a multiple of the number of hosts, 3, times data\.repeats=8"
    ):
        _train(index, dataclasses.replace(CFG, repeats=8), size=12, num_hosts=3)
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    with pytest.raises(ConfigError, match=r"config\.eval\.batch_size=4: must be a multiple of the number of hosts, 3"):
        _eval(index, views, num_hosts=3)
    with pytest.raises(ConfigError, match=r"config\.eval\.crops=2"):
        _eval(index, views, crops=2)
    with pytest.raises(ConfigError, match="must divide num_frames=8"):
        _train(index, dataclasses.replace(CFG, sampling="segments", num_segments=3))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows them")
@pytest.mark.parametrize(("how", "packed"), [("closed", True), ("dropped", False), ("used up", True)])
def test_an_iterator_takes_its_threads_with_it(index: VideoIndex, tmp_path: Path, how: str, packed: bool) -> None:
    data = pack(index, tmp_path / "packed") if packed else index

    def run() -> None:
        steps = 2 if how == "used up" else 1000
        batches = pipeline.train_batches(
            data, CFG, seed=0, global_batch_size=4, start_step=0, num_steps=steps, broken=BrokenLog(CFG)
        )
        next(batches)
        if how == "closed":
            batches.close()
            assert list(batches) == []
        elif how == "used up":
            assert len(list(batches)) == 1

    run()  # TensorFlow's own pools have started now
    gc.collect()
    before = _threads()
    for _ in range(2):
        run()
    gc.collect()
    deadline = time.monotonic() + 60
    while _threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _threads() <= before


@pytest.mark.parametrize(("names", "mirrored"), [(("Left", "Right", "Up"), False), (("LeftHook", "Jab", "Up"), True)])
@pytest.mark.slow
def test_clips_of_mirrored_classes_are_not_mirrored(tmp_path: Path, names: tuple[str, ...], mirrored: bool) -> None:
    index = dataclasses.replace(write_videos(tmp_path, [8] * 6), class_names=names)
    plain = _blue_edges(index, dataclasses.replace(CFG, flip=False))
    assert np.array_equal(_blue_edges(index, dataclasses.replace(CFG, flip="auto")), plain) is not mirrored
    assert not np.array_equal(_blue_edges(index, dataclasses.replace(CFG, flip=True)), plain)
