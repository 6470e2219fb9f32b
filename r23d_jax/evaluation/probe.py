"""What features tell: a linear probe and nearest neighbors, whose settings are chosen on training videos alone."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from r23d_jax.config import UserError

FOLDS = 5
# Strengths of the linear probe, on features of mean 0 and variance 1, and numbers of neighbors
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
NEIGHBORS = (1, 3, 5, 10, 20)


@dataclasses.dataclass(frozen=True)
class Score:
    """How well one method recognizes test videos."""

    method: str  # in words
    # top1, mean_class: shares of the test videos, and the mean of the shares of all classes that have some
    top1: float
    mean_class: float
    setting: str  # the value that was chosen, e.g. "C = 0.01"
    choice: str  # how it was chosen, in words
    chosen_at: float  # its share in the cross-validation on training videos; nan without one
    predicted: np.ndarray  # (N_test,) int32


def probe(
    train: np.ndarray, labels: np.ndarray, groups: Sequence[str], test: np.ndarray, test_labels: np.ndarray
) -> list[Score]:
    """A linear probe and nearest neighbors by cosine distance.

    The strength C of the probe and the number of neighbors are those with the best cross-validation on the training
    videos, in which no group is on both sides. Of equals the first is taken, which is the stronger regularization.

    Args:
      train: (N, D) float32 features of the training videos.
      labels: (N,) class numbers.
      test, test_labels: the same of the test videos.

    Raises:
      UserError: the training videos are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        raise UserError("--probe: the training videos are of one class; give videos of two classes or more")
    folds = _folds(labels, groups)
    fitting = min((len(part) for part, _ in folds), default=len(train))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    nearest = KNeighborsClassifier(metric="cosine", weights="distance", algorithm="brute")
    methods = (
        ("linear probe", linear, "logisticregression__C", "C", STRENGTHS, 1e-2),
        ("nearest neighbors", nearest, "n_neighbors", "k", [k for k in NEIGHBORS if k <= fitting], 1),
    )
    scores = []
    for name, estimator, parameter, letter, values, default in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty needs more steps, and gains nothing
            value, at = _choose(estimator, parameter, values, default, train, labels, folds)
            fitted = estimator.set_params(**{parameter: value}).fit(train, labels)
        predicted = fitted.predict(test).astype(np.int32)
        right = predicted == test_labels
        per_class = [right[test_labels == label].mean() for label in np.unique(test_labels)]
        how = f"chosen by {len(folds)}-fold cross-validation on {len(set(groups))} training groups"
        if not folds:
            how = "the default, because the training videos have too few groups for a cross-validation"
        scores.append(
            Score(name, float(right.mean()), float(np.mean(per_class)), f"{letter} = {value:g}", how, at, predicted)
        )
    return scores


def _folds(labels: np.ndarray, groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to score, without a group in both; each part to fit has every class. [] if impossible."""
    from sklearn.model_selection import StratifiedGroupKFold

    classes = np.unique(labels)
    most = min(FOLDS, len(set(groups)), int(np.bincount(labels)[classes].min()))
    for count in range(most, 1, -1):
        folds = list(
            StratifiedGroupKFold(count, shuffle=True, random_state=0).split(labels[:, None], labels, list(groups))
        )
        if all(len(np.unique(labels[fit])) == len(classes) and len(score) for fit, score in folds):
            return folds
    return []


def _choose(
    estimator: Any,
    parameter: str,
    values: Sequence[float],
    default: float,
    features: np.ndarray,
    labels: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float]:
    """The best value, and the share of training videos that it recognizes in the cross-validation."""
    from sklearn.model_selection import cross_val_predict

    if not folds:
        return default, float("nan")
    shares = []
    for value in values:
        found = cross_val_predict(estimator.set_params(**{parameter: value}), features, labels, cv=folds)
        shares.append(np.mean(found == labels))
    best = int(np.argmax(shares))
    return values[best], float(shares[best])
