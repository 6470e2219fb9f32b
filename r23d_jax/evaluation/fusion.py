"""Adds the scores of two streams, e.g. RGB and optical flow, and reports both and their sum."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r23d_jax.config import UserError, look_up
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.evaluation import browser
from r23d_jax.evaluation import metrics as metric_functions
from r23d_jax.evaluation.figures import escape
from r23d_jax.evaluation.report import REPORT, confusion, error_sections, page_of, section, table
from r23d_jax.evaluation.result import VIDEO_METRICS, EvalResult, percent, protocol_line, save_evaluation
from r23d_jax.runtime.disk import write_atomically

WEIGHTS = np.linspace(0.0, 1.0, 21)  # weights of the first stream that `best_weight` tries
SCORES = {"softmax": "_softmax", "logits": ""}  # config.fusion.scores -> ending of the metrics computed from them


def fuse(first: EvalResult, second: EvalResult, weight: float, scores: str) -> EvalResult:
    """Adds the scores of two streams, each averaged over its views.

    Args:
      first, second: results on the same videos.
      weight: weight of the first stream, in [0, 1]; the second gets the rest.
      scores: "softmax" or "logits": the scores that the fused metrics are computed from. Both are fused.

    Returns:
      A result with one view per video. A video that either stream could not read counts in no metric.

    Raises:
      UserError: if the streams were evaluated on different videos or labels.
    """
    _refuse_different(first, second)
    seen = first.evaluated & second.evaluated
    fused = {name: weight * _mean(first, name) + (1 - weight) * _mean(second, name) for name in ("logits", "softmax")}
    deciding = look_up(fused, scores, "config.fusion.scores")
    metrics = metric_functions.video_metrics(deciding[seen], deciding[seen], first.labels[seen])
    metrics = {name: value for name, value in metrics.items() if not name.endswith("_softmax")}
    return EvalResult(
        metrics=metrics | {"val/top1_clip": float("nan"), "val/loss": float("nan")},
        class_names=first.class_names,
        names=first.names,
        labels=first.labels,
        logits=deciding * seen[:, None],  # predictions and the confusion matrix are computed from these
        softmax=fused["softmax"] * seen[:, None],
        num_views=seen.astype(np.int32),
        broken_views=first.broken_views + second.broken_views,
        broken=tuple(dict.fromkeys((*first.broken, *second.broken))),
        missing=tuple(dict.fromkeys((*first.missing, *second.missing))),
        protocol=first.protocol,
        environment=first.environment,
    )


def best_weight(first: EvalResult, second: EvalResult, scores: str) -> float:
    """The weight of the first stream with the highest video top-1; among equals, the nearest to one half."""
    accuracies = [fuse(first, second, float(w), scores).metrics["val/top1_video"] for w in WEIGHTS]
    if np.isnan(accuracies).all():
        raise UserError("no video could be read by both streams, so there is nothing to choose their weights by")
    best = WEIGHTS[np.asarray(accuracies) == np.nanmax(accuracies)]
    return float(best[np.argmin(np.abs(best - 0.5))])


def format_streams(titles: Sequence[str], results: Sequence[EvalResult], weight: float, how: str, scores: str) -> str:
    """The table printed at the end: both streams and their sum."""
    rows = [["", *(title for title, _ in VIDEO_METRICS)], *_accuracies(titles, results, scores)]
    width = max(len(row[0]) for row in rows)
    lines = [f"  {name:{width}}  " + "  ".join(f"{cell:>11}" for cell in cells) for name, *cells in rows]
    about = f"  by averaged {scores}; weights {weight:.2f} and {1 - weight:.2f}: {how}"
    return "\n".join(["two streams", *lines, about, *(f"  {protocol_line(result)}" for result in results[:2])])


def write_page(
    workdir: Path,
    titles: Sequence[str],
    results: tuple[EvalResult, EvalResult, EvalResult],
    weight: float,
    how: str,
    scores: str,
    index: VideoIndex | None = None,
    maps: browser.Maps = browser.no_map,
) -> Path:
    """Writes the fused evaluation and `report.html`: three accuracies, the gain of every class, and the fused errors.

    Args:
      results: of the streams, and of their sum.
      weight: of the first stream.
      how: it was chosen, in words.
      index: the videos, for strips and clips of the errors.
      maps: what the streams looked at, by rows of `index` and of the results.
    """
    class_names = results[2].class_names
    save_evaluation(results[2], workdir)
    protocols = [f"{title}: {protocol_line(result)}." for title, result in zip(titles, results[:2], strict=True)]
    how = f"By averaged {scores}; weights {weight:.2f} and {1 - weight:.2f}: {how}."
    summary = section(
        "Accuracy",
        table(["", *(title for title, _ in VIDEO_METRICS)], _accuracies(titles, results, scores), numbers=(1, 2, 3)),
        *(f'<p class="small">{escape(text)}</p>' for text in (how, *protocols)),
    )
    confusions = [getattr(result, f"confusion{SCORES[scores]}") for result in results]
    per_class = [metric_functions.per_class_accuracy(confusion) for confusion in confusions]
    gains = per_class[2] - np.fmax(per_class[0], per_class[1])
    points = ["-" if np.isnan(gain) else f"{100 * gain:+.2f}" for gain in gains]
    order = np.argsort(-np.nan_to_num(gains, nan=-np.inf), kind="stable").tolist()
    body = [[class_names[k], *(percent(values[k]) for values in per_class), points[k]] for k in order]
    head = ["class", *titles, "fused", "gain over the better stream"]
    classes = section("By class", table(head, body, numbers=(1, 2, 3, 4)))
    sections, errors = [summary, classes], browser.confident_errors(results[2])
    if results[2].evaluated.any():
        sections += [confusion(results[2], scores)]
        sections += error_sections(results[2], errors, index, maps, size=sum(map(len, sections)))
    script = browser.SCRIPT if len(errors) else ""
    write_atomically(workdir / REPORT, page_of(f"{titles[0]} + {titles[1]}", "two streams", sections, script))
    return workdir / REPORT


def _accuracies(titles: Sequence[str], results: Sequence[EvalResult], scores: str) -> list[list[str]]:
    """A row per stream, and one for their sum, whose metrics have no ending."""
    return [
        [name, *(percent(values.get(key + SCORES[scores], values.get(key))) for _, key in VIDEO_METRICS)]
        for name, values in zip([*titles, "fused"], (result.metrics for result in results), strict=True)
    ]


def _mean(result: EvalResult, name: str) -> np.ndarray:
    return getattr(result, name) / np.maximum(result.num_views, 1)[:, None]


def _refuse_different(first: EvalResult, second: EvalResult) -> None:
    if first.class_names != second.class_names:
        raise UserError("the two streams have different classes: train both on the same lists")
    if not (np.array_equal(first.names, second.names) and np.array_equal(first.labels, second.labels)):
        only = sorted(set(first.names.tolist()) ^ set(second.names.tolist()))
        raise UserError(
            f"the two streams were evaluated on different videos: {len(only)} are in one only, e.g. "
            f"{', '.join(only[:3]) or 'none, but their order differs'}; give both the same split, lists and classes, "
            "and prepare frames and flow of the same videos"
        )
