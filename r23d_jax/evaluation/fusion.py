"""Two streams of one video, e.g. RGB and optical flow: their scores added, and a page about all three."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r23d_jax.config import UserError, look_up
from r23d_jax.evaluation import metrics as metric_functions
from r23d_jax.evaluation.figures import escape
from r23d_jax.evaluation.report import page_of, section, table
from r23d_jax.evaluation.result import EvalResult, percent, protocol_line, save_evaluation
from r23d_jax.runtime.disk import write_atomically

WEIGHTS = np.linspace(0.0, 1.0, 21)  # of the first stream, that `best_weight` tries
SCORES = {"softmax": "_softmax", "logits": ""}  # config.fusion.scores -> how the names of what follows from them end
PAGE = "report.html"
METRICS = (("video top-1", "val/top1_video"), ("video top-5", "val/top5_video"), ("mean class", "val/mean_class"))


def fuse(first: EvalResult, second: EvalResult, weight: float, scores: str) -> EvalResult:
    """Adds the scores of two streams, each the mean over its views.

    Args:
      first, second: of the same videos.
      weight: of the first stream, in [0, 1]; the second has the rest.
      scores: "softmax" or "logits": which decide the fused result's own metrics. Both are fused.

    Returns:
      A result whose videos have one view each. A video that one of the streams could not read takes part in no metric.

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
        logits=deciding * seen[:, None],  # what predictions and the confusion matrix follow from
        softmax=fused["softmax"] * seen[:, None],
        num_views=seen.astype(np.int32),
        broken_views=first.broken_views + second.broken_views,
        broken=tuple(dict.fromkeys((*first.broken, *second.broken))),
        missing=tuple(dict.fromkeys((*first.missing, *second.missing))),
        protocol=first.protocol,
        environment=first.environment,
    )


def best_weight(first: EvalResult, second: EvalResult, scores: str) -> float:
    """The weight of the first stream with the highest video top-1; of equals the nearest to one half."""
    accuracies = [fuse(first, second, float(w), scores).metrics["val/top1_video"] for w in WEIGHTS]
    best = WEIGHTS[np.asarray(accuracies) == np.nanmax(accuracies)]
    return float(best[np.argmin(np.abs(best - 0.5))])


def format_streams(titles: Sequence[str], results: Sequence[EvalResult], weight: float, how: str, scores: str) -> str:
    """The table printed at the end: both streams and their sum."""
    names = [*titles, "fused"]
    width = max(len(name) for name in names)
    lines = [f"  {'':{width}}  " + "  ".join(f"{title:>11}" for title, _ in METRICS)]
    for name, result in zip(names, results, strict=True):
        lines.append(
            f"  {name:{width}}  " + "  ".join(f"{percent(_value(result, key, scores)):>11}" for _, key in METRICS)
        )
    about = f"  by averaged {scores}; weights {weight:.2f} and {1 - weight:.2f}: {how}"
    return "\n".join(["two streams", *lines, about, *(f"  {protocol_line(result)}" for result in results[:2])])


def write_page(
    workdir: Path,
    titles: Sequence[str],
    results: tuple[EvalResult, EvalResult, EvalResult],
    weight: float,
    how: str,
    scores: str,
) -> Path:
    """Writes the fused evaluation and `report.html`: the three accuracies, and what every class gains."""
    first, second, fused = results
    save_evaluation(fused, workdir)
    rows = [
        [name, *(percent(_value(result, key, scores)) for _, key in METRICS)]
        for name, result in zip([*titles, "fused"], results, strict=True)
    ]
    protocols = [f"{title}: {protocol_line(result)}." for title, result in zip(titles, results[:2], strict=True)]
    how = f"By averaged {scores}; weights {weight:.2f} and {1 - weight:.2f}: {how}."
    summary = section(
        "Accuracy",
        table(["", *(title for title, _ in METRICS)], rows, numbers=(1, 2, 3)),
        *(f'<p class="small">{escape(text)}</p>' for text in (how, *protocols)),
    )
    per_class = [_per_class(result, scores) for result in results]
    best = np.fmax(per_class[0], per_class[1])
    gains = per_class[2] - best
    order = np.argsort(-np.nan_to_num(gains, nan=-np.inf), kind="stable")
    body = [
        [fused.class_names[k], *(percent(values[k]) for values in per_class), _points(float(gains[k]))]
        for k in order.tolist()
    ]
    head = ["class", *titles, "fused", "gain over the better stream"]
    classes = section("By class", table(head, body, numbers=(1, 2, 3, 4)))
    write_atomically(workdir / PAGE, page_of(f"{titles[0]} + {titles[1]}", "two streams", [summary, classes]))
    return workdir / PAGE


def _points(gain: float) -> str:
    return "-" if np.isnan(gain) else f"{100 * gain:+.2f}"


def _value(result: EvalResult, name: str, scores: str) -> float | None:
    """A metric by the scores that are fused; the fused result has them without an ending."""
    return result.metrics.get(name + SCORES[scores], result.metrics.get(name))


def _per_class(result: EvalResult, scores: str) -> np.ndarray:
    return metric_functions.per_class_accuracy(getattr(result, f"confusion{SCORES[scores]}"))


def _mean(result: EvalResult, name: str) -> np.ndarray:
    return getattr(result, name) / np.maximum(result.num_views, 1)[:, None]


def _refuse_different(first: EvalResult, second: EvalResult) -> None:
    if first.class_names != second.class_names:
        raise UserError("the two streams have different classes: train both on the same lists")
    ours, theirs = set(first.names.tolist()), set(second.names.tolist())
    same = np.array_equal(first.names, second.names) and np.array_equal(first.labels, second.labels)
    if not same:
        only = sorted(ours ^ theirs)
        raise UserError(
            f"the two streams were evaluated on different videos: {len(only)} are in one only, e.g. "
            f"{', '.join(only[:3]) or 'none, but their order differs'}; give both the same split, lists and classes, "
            "and prepare frames and flow of the same videos"
        )
