"""Which clips are scored: the published protocol, uniform clips, crops, and odd lengths."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r23d_jax.config import DataConfig, EvalConfig, preprocessing
from r23d_jax.data.read.views import clip_steps, make_views

PRE = preprocessing(DataConfig(num_frames=16, frame_stride=1))


def starts(num_frames, cfg, pre=PRE):
    return make_views(np.array([num_frames]), pre, cfg).start.tolist()


def test_dense_is_the_published_protocol():
    dense = EvalConfig(views="dense")
    assert starts(32, dense) == [0, 16]
    assert starts(47, dense) == [0, 16], "the last partial clip is dropped"
    assert starts(16, dense) == [0]
    assert starts(5, dense) == [0], "a video shorter than a clip is looped"
    # floor(n / 16) clips, at least one: what 41,497 over the 3,783 test videos of UCF101 comes from
    lengths = np.random.default_rng(0).integers(10, 500, 3783)
    views = make_views(lengths, PRE, dense)
    assert len(views) == np.maximum(lengths // 16, 1).sum()
    assert np.array_equal(np.bincount(views.video), np.maximum(lengths // 16, 1))


def test_dense_with_stride_cuts_the_strided_video():
    pre = dataclasses.replace(PRE, num_frames=4, frame_stride=3)
    assert starts(24, EvalConfig(), pre) == [0, 12]
    assert starts(22, EvalConfig(), pre) == [0, 12], "frames 12, 15, 18, 21 are there"
    assert starts(21, EvalConfig(), pre) == [0]


def test_strides_differ_between_videos_and_may_be_fractions():
    pre, strides = dataclasses.replace(PRE, num_frames=4), np.array([2.0, 4.0, 2.4])
    dense = make_views(np.array([24, 48, 30]), pre, EvalConfig(), strides)
    assert dense.start[dense.video == 0].tolist() == [0, 8, 16]
    assert dense.start[dense.video == 1].tolist() == [0, 16, 32], "the same moments at twice the rate"
    assert dense.start[dense.video == 2].tolist() == [0, 10, 19], "9.6 and 19.2 to the nearest frame"
    uniform = make_views(np.array([24, 48, 30]), pre, EvalConfig(views="uniform", num_clips=2), strides)
    ends = uniform.start + np.array([clip_steps(4, float(strides[video]))[-1] for video in uniform.video])
    assert uniform.start.tolist()[::2] == [0, 0, 0] and ends.tolist()[1::2] == [23, 47, 29]


def test_dense_frame_differences_share_the_frame_between_two_clips():
    pre = dataclasses.replace(PRE, input="rgb_diff")
    assert starts(33, EvalConfig(), pre) == [0, 16]
    assert starts(32, EvalConfig(), pre) == [0], "32 frames have 31 differences"


def test_uniform():
    cfg = EvalConfig(views="uniform", num_clips=4)
    assert starts(46, cfg) == [0, 10, 20, 30], "first and last possible start are included"
    assert starts(17, cfg) == [0, 0, 1, 1], "fewer starts than clips"
    assert starts(16, cfg) == starts(3, cfg) == [0] * 4, "every video weighs the same"
    assert starts(46, EvalConfig(views="uniform", num_clips=1)) == [15], "the middle"


@pytest.mark.parametrize("crops", [1, 3, 10])
def test_crops_of_a_clip_are_neighbors(crops):
    views = make_views(np.array([40, 16]), PRE, EvalConfig(crops=crops))
    assert views.video.tolist() == [0] * 2 * crops + [1] * crops
    assert views.start.tolist() == [0] * crops + [16] * crops + [0] * crops
    assert views.crop.tolist() == list(range(crops)) * 3
    assert all(array.dtype == np.int32 for array in (views.video, views.start, views.crop))


@given(
    lengths=st.lists(st.integers(0, 2000), min_size=1, max_size=30),
    num_frames=st.integers(1, 40),
    stride=st.integers(1, 8),
    diff=st.booleans(),
    views=st.sampled_from(["dense", "uniform"]),
    num_clips=st.integers(1, 12),
    crops=st.sampled_from([1, 3, 10]),
)
def test_every_video_is_seen_and_no_clip_runs_over_its_end(lengths, num_frames, stride, diff, views, num_clips, crops):
    pre = dataclasses.replace(PRE, num_frames=num_frames, frame_stride=stride, input="rgb_diff" if diff else "rgb")
    counts = np.array(lengths)
    out = make_views(counts, pre, EvalConfig(views=views, num_clips=num_clips, crops=crops))
    per_video = np.bincount(out.video, minlength=len(counts))
    assert per_video.min() >= crops
    assert np.all(per_video == num_clips * crops) or views == "dense"
    assert np.array_equal(np.lexsort((out.start, out.video)), np.arange(len(out))), "sorted by video, then start"
    assert np.array_equal(out.crop, np.arange(len(out)) % crops)
    last = out.start + (pre.read_frames - 1) * stride
    inside = last < counts[out.video]
    # a clip reaches over the end only where no whole clip fits, and then it starts at frame 0
    too_short = (pre.read_frames - 1) * stride >= counts[out.video]
    assert np.all(inside | (too_short & (out.start == 0)))
    assert np.all(out.start >= 0)
    if views == "dense":
        gaps = np.diff(out.start[:: out.crop.max() + 1])
        same = np.diff(out.video[:: out.crop.max() + 1]) == 0
        assert np.all(gaps[same] == num_frames * stride)


def test_no_videos_no_views():
    assert len(make_views(np.array([], int), PRE, EvalConfig())) == 0


def test_unknown_views_are_refused():
    with pytest.raises(ValueError, match="config.eval.views='all': unknown; known: dense, uniform"):
        make_views(np.array([20]), PRE, EvalConfig(views="all"))
