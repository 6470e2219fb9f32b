"""Adds up the scores of all views of every video, and reduces them to accuracies."""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from r23d_jax.config import Config, UserError
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read.views import Views
from r23d_jax.evaluation import metrics as metric_functions
from r23d_jax.evaluation.result import EvalResult, Protocol, environment

# Probabilities (views x classes) that are kept until the predicted classes are known: 128 MB. UCF101 has 4 million.
MOST_KEPT = 2**26


class Scores:
    """Adds up scores per video, in bounded memory."""

    def __init__(self, index: VideoIndex, views: Views):
        self._index, self._video, self._start = index, views.video, views.start
        shape = (len(index.names), len(index.class_names))
        self._logits, self._softmax = np.zeros(shape), np.zeros(shape)
        self._scored = np.zeros(len(views), bool)
        kept = len(views) * shape[1] <= MOST_KEPT
        self._shares = np.zeros((len(views), shape[1]), np.float16) if kept else None
        self._correct, self._loss = 0, 0.0

    def add(self, logits: np.ndarray, view: np.ndarray, mask: np.ndarray) -> None:
        """Adds a batch in the order of its views, so that sums do not depend on the number of devices.

        Args:
          logits: (B, C) float32.
          view: (B,) int32, rows of the views.
          mask: (B,), 0 for padding and for unreadable views.

        Raises:
          UserError: if a score is not finite.
        """
        real = np.flatnonzero(mask > 0)
        real = real[np.argsort(view[real], kind="stable")]
        view, scores = view[real], logits[real].astype(np.float64)
        if np.any(self._scored[view]) or len(np.unique(view)) != len(view):
            raise RuntimeError("a view was scored twice: the evaluation batches overlap")
        self._scored[view] = True
        video = self._video[view]
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise UserError(
                f"the scores of video {self._index.names[video[~finite][0]]} are not finite: training has diverged or "
                "the weights are damaged. Go back to an earlier checkpoint, or lower config.optimizer.learning_rate."
            )
        log_shares = log_softmax(scores, axis=1)
        # add.at adds row by row, in order.
        np.add.at(self._logits, video, scores)
        np.add.at(self._softmax, video, np.exp(log_shares))
        if self._shares is not None:
            self._shares[view] = np.exp(log_shares)
        labels = self._index.labels[video]
        self._correct += int(np.count_nonzero(metric_functions.true_ranks(scores, labels) == 0))
        self._loss -= float(log_shares[np.arange(len(labels)), labels].sum())

    def result(self, cfg: Config, broken: Sequence[tuple[str, str]] = ()) -> EvalResult:
        """The result of the whole evaluation; `broken` has the (file, reason) of everything unreadable."""
        index, scored = self._index, int(self._scored.sum())
        num_views = np.bincount(self._video[self._scored], minlength=len(index.names)).astype(np.int32)
        seen = num_views > 0
        metrics = metric_functions.video_metrics(self._logits[seen], self._softmax[seen], index.labels[seen])
        metrics["val/top1_clip"] = self._correct / scored if scored else float("nan")
        metrics["val/loss"] = self._loss / scored if scored else float("nan")
        return EvalResult(
            metrics=metrics,
            class_names=index.class_names,
            names=np.asarray(index.names, np.str_),
            labels=np.asarray(index.labels, np.int32),
            logits=self._logits,
            softmax=self._softmax,
            num_views=num_views,
            broken_views=len(self._scored) - scored,
            broken=tuple(broken),
            missing=tuple(index.missing),
            protocol=Protocol.of(cfg),
            environment=environment(),
            timeline=self._timeline(),
        )

    def _timeline(self) -> np.ndarray | None:
        """See `EvalResult.timeline`."""
        views = np.flatnonzero(self._scored)
        if self._shares is None or not len(views):
            return None
        video, start = self._video[views], self._start[views]
        classes = np.stack([self._index.labels[video], self._logits.argmax(axis=1)[video]], axis=1)
        shares = np.take_along_axis(self._shares[views], classes, axis=1).astype(np.float32)
        rows = np.concatenate([video[:, None], start[:, None], shares], axis=1, dtype=np.float32)
        first = np.flatnonzero(np.diff(video, prepend=-1) | np.diff(start, prepend=-1))  # the first crop of each clip
        crops = np.diff(first, append=len(views))[:, None]
        return np.add.reduceat(rows, first) / crops
