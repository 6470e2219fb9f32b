"""Timelines: the clips that slide over a video, and the segments that their scores give."""

import dataclasses

import numpy as np
import pytest

from r23d_jax.config import Config, UserError, preprocessing
from r23d_jax.evaluation.timeline import SlidingClips, Timeline, TimelineOptions
from r23d_jax.evaluation.video_source import open_source


def preprocessing_of(num_frames: int = 4, **fields):
    cfg = Config()
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = num_frames, 8, 8
    return dataclasses.replace(preprocessing(cfg.data), **fields)


def numbered(count: int) -> np.ndarray:
    """Frames that hold their number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3)).copy()


def slide(count: int, rate: float = 10.0, every: float = 0.0, **fields) -> tuple[SlidingClips, list[list[int]]]:
    pre = preprocessing_of(**fields)
    sliding = SlidingClips(open_source(numbered(count), pre, rate), pre, TimelineOptions(every))
    return sliding, [clip[:, 0, 0, 0].tolist() for clip in sliding]


def test_clips_slide_by_half_their_length() -> None:
    sliding, clips = slide(9)
    assert clips == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]] and sliding.count == 9
    assert sliding.options == TimelineOptions(every=0.2, smooth=0.8)
    assert slide(9, frame_stride=2)[1] == [[0, 2, 4, 6]]  # the next would pass the end
    assert slide(12, frame_stride=2)[1] == [[0, 2, 4, 6], [4, 6, 8, 10]]  # half of 7 frames, rounded
    assert slide(9, every=0.5)[1] == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert slide(30, every=1.0)[1] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert len(slide(9, every=0.001)[1]) == 6, "at most one clip a frame"


def test_a_rate_that_is_not_whole_does_not_drift() -> None:
    sliding, clips = slide(200, rate=30000 / 1001, every=0.25)
    starts = [clip[0] for clip in clips]
    assert len(clips) == 27
    np.testing.assert_allclose(np.array(starts) / sliding.rate, 0.25 * np.arange(27), atol=0.5 / sliding.rate)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_short_video_gives_one_looped_clip(stride: int) -> None:
    sliding, clips = slide(3, frame_stride=stride)
    assert clips == [[k * stride % 3 for k in range(4)]]
    timeline = sliding.timeline(np.array([[5.0, 0.0]]))
    assert timeline.centers.tolist() == [0.15] and timeline.edges.tolist() == [0, 0.3]


def test_only_frames_that_a_clip_reads_are_asked_for() -> None:
    pre = preprocessing_of(frame_stride=2)
    source, asked = open_source(numbered(60), pre, 10.0), []

    class Recording:
        rate = own_rate = 10.0

        def crops(self, needed):
            for number, crop in enumerate(source.crops(needed)):
                asked.extend([number] if crop is not None else [])
                yield crop

    list(SlidingClips(Recording(), pre, TimelineOptions(every=2.0)))  # type: ignore[arg-type]
    assert asked == [*range(7), 20, 22, 24, 26, 40, 42, 44, 46], "all of the first, which may be all there is"


def make(rows: list[str], smooth: float = 0.0, min_score: float = 0.5, step: float = 1.0) -> Timeline:
    """A clip a second of a video whose best class is a letter; "." is unsure."""
    shares = {"a": [0.9, 0.05, 0.05], "b": [0.1, 0.8, 0.1], "c": [0.0, 0.1, 0.9], ".": [0.34, 0.33, 0.33]}
    logits = np.log(np.maximum([shares[row] for row in rows], 1e-9)).astype(np.float32)
    centers = step * (np.arange(len(rows)) + 0.5)
    return Timeline(centers, step * len(rows), logits, TimelineOptions(step, smooth, min_score))


def spans(timeline: Timeline) -> list[tuple[float, float, int]]:
    return [(found.start, found.end, found.label) for found in timeline.segments]


def test_neighboring_clips_of_a_class_are_one_segment() -> None:
    timeline = make(list("aaabbc"))
    assert spans(timeline) == [(0, 3, 0), (3, 5, 1), (5, 6, 2)]
    np.testing.assert_allclose(timeline.segments[1].scores, [0.1, 0.8, 0.1], atol=1e-6)
    assert timeline.at(0) @ [1, 0, 0] == pytest.approx(0.9) and timeline.at(3.01) @ [0, 1, 0] == pytest.approx(0.8)
    assert timeline.at(99) @ [0, 0, 1] == pytest.approx(0.9)


def test_below_the_least_score_there_is_no_segment() -> None:
    assert spans(make(list("aa..b"))) == [(0, 2, 0), (4, 5, 1)]
    assert spans(make(list("aa..b"), min_score=0.85)) == [(0, 2, 0)]
    assert spans(make(list("..."))) == []
    assert spans(make(list("aa.b"), min_score=0.0)) == [(0, 3, 0), (3, 4, 1)]


def test_smoothing_removes_what_lasts_for_a_moment() -> None:
    rows = list("aaaabaaaa")
    assert len(make(rows).segments) == 3
    smooth = make(rows, smooth=2.0)
    assert spans(smooth) == [(0, 9, 0)]
    np.testing.assert_allclose(smooth.scores[4], [(0.9 + 0.1 + 0.9) / 3, 0.9 / 3, 0.2 / 3], atol=1e-6)
    np.testing.assert_allclose(smooth.scores[0], [0.9, 0.05, 0.05], atol=1e-6)  # only what is there
    np.testing.assert_allclose(smooth.scores.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "logits"])
def test_streams_are_added_at_the_same_time(kind: str) -> None:
    """The second stream has clips twice as often."""
    first, second = make(list("aaaa")), make(list("aabbbbbb"), step=0.5)
    assert spans(first.mixed_with(second, 1.0, kind)) == [(0, 4, 0)]
    assert spans(first.mixed_with(second, 0.0, kind)) == [(0, 1, 0), (1, 4, 1)]
    half = first.mixed_with(second, 0.5, "softmax").scores
    np.testing.assert_allclose(half[3], [0.5, 0.425, 0.075], atol=1e-6)


def test_options_out_of_range() -> None:
    for fields, message in (
        ({"every": -1.0}, "every -1: must be a number of seconds"),
        ({"smooth": float("nan")}, "smooth nan: must be"),
        ({"min_score": 1.5}, "min_score 1.5: must be between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            TimelineOptions(**fields)
