"""Temporal sampling and the order of an epoch, against plain numpy."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from r23d_jax.config import ConfigError, DataConfig, validate
from r23d_jax.data.read import sampling
from r23d_jax.data.read.views import clip_steps


def _consecutive(start: int, num_frames: int, length: int, stride: int) -> np.ndarray:
    return (start + stride * np.arange(length)) % num_frames


@pytest.mark.parametrize(("start", "num_frames", "stride"), [(0, 40, 1), (7, 40, 2), (24, 40, 1), (0, 5, 1), (3, 5, 3)])
def test_consecutive_frames(start: int, num_frames: int, stride: int) -> None:
    got = sampling.consecutive_frames(tf.constant(start), tf.constant(num_frames), length=16, stride=stride)
    assert got.dtype == tf.int32
    np.testing.assert_array_equal(got, _consecutive(start, num_frames, 16, stride))


def test_a_stride_may_be_a_fraction() -> None:
    frames = sampling.consecutive_frames(tf.constant(3), tf.constant(1000), length=7, stride=29.97 * 0.08).numpy()
    assert frames.tolist() == [3 + math.floor(k * 29.97 * 0.08 + 0.5) for k in range(7)] == [3, 5, 8, 10, 13, 15, 17]
    slow = sampling.consecutive_frames(tf.constant(0), tf.constant(9), length=5, stride=tf.constant(0.5, tf.float64))
    assert slow.numpy().tolist() == [0, 1, 1, 2, 2], "frames are repeated, halves rounded up"
    assert slow.numpy().tolist() == clip_steps(5, 0.5).tolist(), "predict chooses the same"
    last = sampling.random_start(tf.constant(0.9999), tf.constant(20), length=7, stride=2.4)
    assert int(last) == 19 - clip_steps(7, 2.4)[-1] == 5, "the clip ends with the video"


def test_a_short_clip_goes_round_with_one_jump_per_lap() -> None:
    frames = sampling.consecutive_frames(tf.constant(0), tf.constant(10), length=17, stride=1).numpy()
    assert np.count_nonzero(np.diff(frames) != 1) == 1
    # 17 frames are read for 16 differences, and a video of 17 frames has no jump
    frames = sampling.consecutive_frames(tf.constant(0), tf.constant(17), length=17, stride=1).numpy()
    assert np.all(np.diff(frames) == 1)


@pytest.mark.parametrize(("num_frames", "stride", "last"), [(20, 1, 4), (20, 2, 0), (31, 2, 0), (33, 2, 2), (5, 1, 0)])
def test_random_start_covers_exactly_the_starts_at_which_a_clip_fits(num_frames: int, stride: int, last: int) -> None:
    draws = np.concatenate([np.linspace(0, 1, 200, endpoint=False), [np.nextafter(np.float32(1), np.float32(0))]])
    starts = {
        int(sampling.random_start(tf.constant(d, tf.float32), tf.constant(num_frames), length=16, stride=stride))
        for d in draws
    }
    assert starts == set(range(last + 1))


@pytest.mark.parametrize(("num_frames", "stride"), [(40, 1), (41, 2), (16, 1), (7, 1), (3, 2), (1, 1)])
def test_segment_frames(num_frames: int, stride: int) -> None:
    for draws in np.random.default_rng(0).random((5, 4), np.float32):
        got = sampling.segment_frames(tf.constant(draws), tf.constant(num_frames), length=16, stride=stride).numpy()
        want = []
        for part in range(4):
            first, end = part * num_frames // 4, (part + 1) * num_frames // 4
            starts = max(end - first - (3 * stride + 1), 0) + 1
            want.append(_consecutive(first + min(int(draws[part] * starts), starts - 1), num_frames, 4, stride))
        np.testing.assert_array_equal(got, np.concatenate(want))
        if num_frames >= 16 and stride == 1:  # then every run stays in its own part
            assert [set(got[4 * k : 4 * k + 4] * 4 // num_frames) for k in range(4)] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize(
    ("cfg", "length"),
    [
        (DataConfig(num_frames=8), 8),
        (DataConfig(num_frames=8, input="rgb_diff"), 9),
        (DataConfig(num_frames=8, input="rgb_and_diff"), 9),
        (DataConfig(num_frames=8, sampling="segments", num_segments=4), 8),
    ],
)
def test_training_frames_depend_on_the_key_alone(cfg: DataConfig, length: int) -> None:
    def sample(key: int) -> list[int]:
        return sampling.training_frames(cfg, tf.constant([0, key], tf.int64), tf.constant(100)).numpy().tolist()

    clips = [sample(key) for key in range(8)]
    assert all(len(clip) == length and 0 <= min(clip) and max(clip) < 100 for clip in clips)
    assert clips == [sample(key) for key in range(8)]
    assert len({tuple(clip) for clip in clips}) > 4


def test_a_jittered_stride_is_within_its_bounds_and_changes_with_the_key() -> None:
    cfg = DataConfig(num_frames=17, frame_stride=4, stride_jitter=1.0)
    sample = tf.function(lambda key: sampling.training_frames(cfg, key, tf.constant(1000)))
    clips = [sample(tf.constant([0, key], tf.int64)).numpy() for key in range(100)]
    strides = np.array([(clip[-1] - clip[0]) / 16 for clip in clips])
    assert 2 <= strides.min() < 2.5 and 7 < strides.max() <= 8
    assert 0.35 < np.mean(strides < 4) < 0.65  # as often slower as faster
    for clip, stride in zip(clips, strides, strict=True):
        np.testing.assert_allclose(clip - clip[0], np.arange(17) * stride, atol=1.1)
    assert len({clip[0] for clip in clips}) > 50
    np.testing.assert_array_equal(clips[7], sample(tf.constant([0, 7], tf.int64)))
    short = sampling.training_frames(cfg, tf.constant([0, 0], tf.int64), tf.constant(5)).numpy()
    assert short.shape == (17,) and short.max() < 5


@pytest.mark.parametrize("num_videos", [1, 2, 5, 64, 100])
def test_epoch_order_is_a_permutation_that_changes_with_seed_and_epoch(num_videos: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        positions = tf.range(num_videos, dtype=tf.int64)
        pick = lambda p: sampling.epoch_order(seed, tf.constant(epoch, tf.int64), p, num_videos)  # noqa: E731
        return tf.map_fn(pick, positions).numpy().tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(sorted(o) == list(range(num_videos)) for o in orders)
    assert orders[0] == order(0, 0)
    if num_videos >= 64:
        assert orders[0] != orders[1] != orders[2] != orders[0]
        # and no neighbours' pattern: hardly any video keeps its place
        assert np.count_nonzero(np.array(orders[0]) == np.arange(num_videos)) < num_videos // 8


def test_windows_mix_videos_and_are_others_in_every_epoch() -> None:
    shard = np.repeat(np.arange(40), 30)
    orders = [sampling.windowed_order(seed, epoch, shard, 4) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    windows = [frozenset(shard[order[:120]].tolist()) for order in orders]
    assert all(len(window) == 4 for window in windows) and len(set(windows)) == 3
    for order in orders:
        neighbors = np.diff(shard[order]) == 0  # a quarter of them, if a window is mixed
        assert 0.2 < neighbors.mean() < 0.3
        assert np.count_nonzero(np.diff(order) == 1) < 20, "videos of a shard do not keep their order"
    everything = sampling.windowed_order(0, 0, shard, 1000)  # more shards than there are: all videos are mixed
    assert len(set(shard[everything[:120]].tolist())) > 30


def test_an_order_of_windows_stays_the_same_in_every_version() -> None:
    """A resumed run depends on it. By hand from Philox's raw bits: shards 2 and 0, then 1."""
    order = sampling.windowed_order(7, 3, np.array([0, 0, 1, 1, 2, 2]), 2)
    assert order.tolist() == [4, 0, 5, 1, 2, 3]


def test_every_seed_has_an_order_of_windows_of_its_own() -> None:
    shard = np.repeat(np.arange(5), 20)
    seeds = (0, 1, -1, -2, 2**63 - 1, -(2**63))
    assert len({tuple(sampling.windowed_order(seed, 0, shard, 2).tolist()) for seed in seeds}) == len(seeds)


def test_a_wrong_sampling_is_refused_by_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^config\.data\.sampling='segment': unknown; did you mean segments\?$"):
        sampling.training_frames(DataConfig(sampling="segment"), tf.constant([0, 0], tf.int64), tf.constant(9))


def test_a_row_is_a_scalar_in_a_graph_too() -> None:
    order = tf.function(lambda position: sampling.epoch_order(0, tf.constant(1, tf.int64), position, 5))
    assert order.get_concrete_function(tf.TensorSpec((), tf.int64)).output_shapes == tf.TensorShape(())


def test_sample_keys_are_all_different() -> None:
    numbers = [(seed, epoch, video) for seed in (0, 1, -3) for epoch in range(4) for video in range(4)]
    keys = {
        tuple(sampling.sample_key(s, tf.constant(e, tf.int64), tf.constant(v, tf.int64)).numpy()) for s, e, v in numbers
    }
    draws = {
        float(sampling.uniform(sampling.sample_key(s, tf.constant(e, tf.int64), tf.constant(v, tf.int64)), 1)[0])
        for s, e, v in numbers
    }
    assert len(keys) == len(draws) == len(numbers)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"config\.data\.num_segments=5: must divide num_frames=16"):
        validate(DataConfig(sampling="segments", num_segments=5))
    for kind in ("rgb_diff", "rgb_and_diff"):
        with pytest.raises(ConfigError, match=rf"{kind}.*jump, not motion; set --config\.data\.sampling=random"):
            validate(DataConfig(sampling="segments", input=kind))
    validate(DataConfig(num_segments=5))  # not used


# -- properties --------------------------------------------------------------------------------------------------------

most = 2**31 - 1


@functools.cache
def _compiled(sampling_kind: str, num_frames: int, stride: int, difference: bool):
    cfg = DataConfig(
        num_frames=num_frames,
        frame_stride=stride,
        sampling=sampling_kind,
        num_segments=2 if num_frames % 2 == 0 else 1,
        input="rgb_diff" if difference else "rgb",
    )
    return tf.function(lambda key, count: sampling.training_frames(cfg, key, count))


@given(
    kind=st.sampled_from(["random", "segments"]),
    num_frames=st.sampled_from([1, 2, 7, 16]),
    stride=st.sampled_from([1, 3, 200_000_000, most]),
    difference=st.booleans(),
    count=st.one_of(st.integers(0, 40), st.integers(0, most)),
    key=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
)
def test_any_video_gives_a_clip_of_its_own_frames(
    kind: str, num_frames: int, stride: int, difference: bool, count: int, key: tuple[int, int]
) -> None:
    sample = _compiled(kind, num_frames, stride, difference and kind == "random")
    args = tf.constant(key, tf.int64), tf.constant(count, tf.int32)
    frames = sample(*args).numpy()
    length = num_frames + (difference and kind == "random")
    assert frames.shape == (length,) and frames.dtype == np.int32
    assert 0 <= frames.min() and frames.max() < max(count, 1)
    np.testing.assert_array_equal(frames, sample(*args))
    runs = frames.reshape(2 if kind == "segments" and num_frames % 2 == 0 else 1, -1).astype(object)
    assert np.all((runs[:, :1] + stride * np.arange(runs.shape[1]).astype(object) - runs) % max(count, 1) == 0)


@given(draw=st.floats(0, 1, exclude_max=True, width=32), count=st.integers(1, most))
def test_any_draw_picks_something_there_is(draw: float, count: int) -> None:
    assert 0 <= int(sampling.pick(tf.constant(draw), tf.constant(count))) < count


@given(
    shard=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    window=st.integers(1, 14),
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**40),
)
def test_any_epoch_visits_every_video_once_and_ends_a_window_before_the_next(
    shard: list[int], window: int, seed: int, epoch: int
) -> None:
    order = sampling.windowed_order(seed, epoch, np.array(shard, np.int32), window)
    assert sorted(order.tolist()) == list(range(len(shard)))
    np.testing.assert_array_equal(order, sampling.windowed_order(seed, epoch, np.array(shard, np.int64), window))
    visited = np.array(shard)[order].tolist()
    window_of = {number: place // window for place, number in enumerate(dict.fromkeys(visited))}
    turns = [window_of[number] for number in visited]
    assert turns == sorted(turns)
