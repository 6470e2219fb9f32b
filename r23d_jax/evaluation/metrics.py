"""Accuracies from scores, in numpy. Ties go to the class with the smaller number, so no result depends on chance."""

import numpy as np

TOP_K = 5


def true_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of classes ranked before the true one.

    Args:
      scores: (N, num_classes), finite.
      labels: (N,) int.

    Returns:
      (N,) int: 0 where the true class has the highest score. A class with an equal score ranks before it only if its
      number is smaller, as in `argmax`.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Fraction of rows whose true class is among the best k, which is 1 with at most k classes; nan without rows."""
    return float(np.mean(true_ranks(scores, labels) < k)) if len(labels) else float("nan")


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts, (num_classes, num_classes) int64: row is the true class, column the predicted one."""
    flat = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(flat, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Recall of each class, (num_classes,) float64; nan for a class without videos."""
    totals = confusion.sum(axis=1)
    return np.divide(np.diagonal(confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def mean_class_accuracy(per_class: np.ndarray) -> float:
    """Mean over the classes with videos; nan if there are none."""
    seen = per_class[~np.isnan(per_class)]
    return float(seen.mean()) if len(seen) else float("nan")


def video_metrics(logits: np.ndarray, softmax: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies of videos, as fractions, under both ways of averaging over views.

    Args:
      logits: (N, num_classes) logits summed (or averaged) over the views of a video.
      softmax: (N, num_classes) probabilities summed (or averaged) in the same way.
      labels: (N,) int.

    Returns:
      `val/top1_video`, `val/top5_video` and `val/mean_class` from averaged logits, and the same with `_softmax`
      appended from averaged probabilities.
    """
    out = {}
    for suffix, scores in (("", logits), ("_softmax", softmax)):
        out[f"val/top1_video{suffix}"] = top_k(scores, labels, 1)
        out[f"val/top5_video{suffix}"] = top_k(scores, labels, TOP_K)
        confusion = confusion_matrix(labels, scores.argmax(axis=1), scores.shape[1])
        out[f"val/mean_class{suffix}"] = mean_class_accuracy(per_class_accuracy(confusion))
    return out
