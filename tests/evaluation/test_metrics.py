"""Accuracies against values worked out by hand, ties, and classes without videos."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r23d_jax.evaluation import metrics


def test_ranks_and_top_k():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    labels = np.array([1, 2, 1])
    assert metrics.true_ranks(scores, labels).tolist() == [0, 2, 1]
    assert metrics.top_k(scores, labels, 1) == pytest.approx(1 / 3)
    assert metrics.top_k(scores, labels, 2) == pytest.approx(2 / 3)
    assert metrics.top_k(scores, labels, 5) == 1.0, "trivial with fewer than five classes"
    assert np.isnan(metrics.top_k(np.zeros((0, 3)), np.zeros(0, int), 1))


def test_ties_go_to_the_smaller_class():
    scores = np.zeros((3, 3))
    assert metrics.true_ranks(scores, np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert metrics.top_k(scores, np.array([0, 1, 2]), 1) == pytest.approx(1 / 3), "a constant network is no better"


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 4))
def test_top_1_agrees_with_argmax_even_with_ties(seed, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (20, 6)).astype(float)
    labels = rng.integers(0, 6, 20)
    assert metrics.top_k(scores, labels, 1) == np.mean(scores.argmax(axis=1) == labels)


def test_confusion_and_per_class():
    labels = np.array([0, 0, 0, 2, 2])
    confusion = metrics.confusion_matrix(labels, np.array([0, 1, 0, 2, 0]), 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 0, 0], [1, 0, 1]]
    per_class = metrics.per_class_accuracy(confusion)
    assert per_class[[0, 2]].tolist() == [2 / 3, 0.5]
    assert np.isnan(per_class[1])
    assert metrics.mean_class_accuracy(per_class) == pytest.approx((2 / 3 + 0.5) / 2)
    assert np.isnan(metrics.mean_class_accuracy(np.array([np.nan])))


def test_logits_and_softmax_averaging_differ_where_they_should():
    # One view is very sure of class 1, two lean towards class 0: the sure one wins among logits, the many among shares.
    views = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 9.0]])
    softmax = np.exp(views) / np.exp(views).sum(axis=1, keepdims=True)
    out = metrics.video_metrics(views.sum(axis=0)[None], softmax.sum(axis=0)[None], np.array([1]))
    assert (out["val/top1_video"], out["val/top1_video_softmax"]) == (1.0, 0.0)
    assert out["val/top5_video"] == out["val/top5_video_softmax"] == 1.0
    assert (out["val/mean_class"], out["val/mean_class_softmax"]) == (1.0, 0.0)


def test_metrics_of_eight_classes() -> None:
    """Ranks 0, 0, 4, 5 and 7: two right, three among the first five; other ranks by probabilities."""
    scores = np.tile(np.arange(8, 0, -1.0), (5, 1))
    scores[1], labels = scores[1, ::-1].copy(), np.array([0, 7, 4, 5, 7])
    out = metrics.video_metrics(scores, scores[:, ::-1].copy(), labels)
    assert (out["val/top1_video"], out["val/top5_video"]) == (0.4, 0.6)
    assert (out["val/top1_video_softmax"], out["val/top5_video_softmax"]) == (0.2, 0.6)
    assert (out["val/mean_class"], out["val/mean_class_softmax"]) == (1.5 / 4, 0.5 / 4) and len(out) == 6
