"""Two streams: what is added, how a weight is chosen, what is refused, and the page."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from r23d_jax.config import Config, UserError
from r23d_jax.evaluation import fusion
from r23d_jax.evaluation.metrics import video_metrics
from r23d_jax.evaluation.result import EvalResult, Protocol, load_evaluation

CLASSES = ("a", "b", "c")


def stream(right: list[bool], confidence: float = 2.0, views: int = 4) -> EvalResult:
    """Six videos, two of a class; wrong ones are taken for the next class."""
    labels = np.array([0, 0, 1, 1, 2, 2], np.int32)
    predicted = np.where(right, labels, (labels + 1) % 3)
    mean = np.eye(3)[predicted] * confidence
    softmax = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    return EvalResult(
        metrics=video_metrics(mean * views, softmax * views, labels),
        class_names=CLASSES,
        names=np.array([f"v{k}" for k in range(6)]),
        labels=labels,
        logits=mean * views,
        softmax=softmax * views,
        num_views=np.full(6, views, np.int32),
        broken_views=0,
        broken=(),
        missing=(),
        protocol=Protocol.of(Config()),
        environment={"devices": "1 x cpu"},
    )


RIGHT, FIRST, SECOND = [True] * 6, [True, True, True, False, False, False], [False, False, True, True, True, True]


@pytest.mark.parametrize("scores", ["softmax", "logits"])
def test_scores_are_means_over_views_times_the_weight(scores: str) -> None:
    first, second = stream(FIRST, views=4), stream(SECOND, confidence=1.0, views=10)
    fused = fusion.fuse(first, second, 0.25, scores)
    want = 0.25 * getattr(first, scores) / 4 + 0.75 * getattr(second, scores) / 10
    np.testing.assert_allclose(fused.logits, want)
    top1 = (want.argmax(axis=1) == first.labels).mean()
    assert fused.metrics["val/top1_video"] == pytest.approx(top1)
    assert fusion.fuse(first, second, 1.0, scores).metrics["val/top1_video"] == pytest.approx(0.5)
    assert fusion.fuse(first, second, 0.0, scores).metrics["val/top1_video"] == pytest.approx(4 / 6)


def test_the_better_stream_gets_the_weight_and_equals_share_it() -> None:
    sure = stream(RIGHT, confidence=1.0)
    assert fusion.best_weight(sure, stream(FIRST, confidence=3.0), "logits") == pytest.approx(0.8)  # above 3/4
    assert fusion.best_weight(stream(FIRST, confidence=3.0), sure, "logits") == pytest.approx(0.2)
    assert fusion.best_weight(stream(RIGHT), stream(RIGHT), "softmax") == 0.5


def test_a_video_that_one_stream_could_not_read_takes_part_in_nothing() -> None:
    first = stream(RIGHT)
    broken = dataclasses.replace(stream(RIGHT), num_views=np.array([0, 4, 4, 4, 4, 4], np.int32), broken_views=4)
    fused = fusion.fuse(first, broken, 0.5, "softmax")
    assert fused.not_evaluated == ("v0",) and fused.confusion.sum() == 5 and fused.broken_views == 4


def test_other_videos_are_refused() -> None:
    other = dataclasses.replace(stream(RIGHT), names=np.array(["v0", "v1", "v2", "v3", "v4", "x"]))
    with pytest.raises(UserError, match="different videos: 2 are in one only, e.g. v5, x; give both the same split"):
        fusion.fuse(stream(RIGHT), other, 0.5, "softmax")
    with pytest.raises(UserError, match="different classes"):
        fusion.fuse(stream(RIGHT), dataclasses.replace(stream(RIGHT), class_names=("a", "b", "d")), 0.5, "softmax")


def test_the_page_and_the_table(tmp_path: Path) -> None:
    results = stream(FIRST), stream(SECOND, confidence=1.0), None
    fused = fusion.fuse(results[0], results[1], 0.6, "softmax")
    triple = (results[0], results[1], fused)
    text = fusion.format_streams(("rgb", "flow"), triple, 0.6, "fixed", "softmax")
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["rgb", "flow", "fused"]
    assert "50.00 %" in text and "66.67 %" in text and "weights 0.60 and 0.40: fixed" in text
    page = fusion.write_page(tmp_path, ("rgb", "flow"), triple, 0.6, "fixed", "softmax").read_text()
    assert "<h1>rgb + flow</h1>" in page and "gain over the better stream" in page and "+0.00" in page
    again = load_evaluation(tmp_path)
    assert again is not None and again.metrics["val/top1_video"] == fused.metrics["val/top1_video"]
