"""Two streams: what is added, how a weight is chosen, what is refused, and the page."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r23d_jax.config import Config, ConfigError, UserError
from r23d_jax.evaluation import fusion
from r23d_jax.evaluation.metrics import video_metrics
from r23d_jax.evaluation.result import EvalResult, Protocol, load_evaluation, protocol_line

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
    assert fusion.best_weight(sure, stream(FIRST, confidence=4.9), "logits") == pytest.approx(0.85)  # above 0.83
    assert fusion.best_weight(stream(RIGHT), stream(RIGHT), "softmax") == 0.5


def test_a_video_that_one_stream_could_not_read_takes_part_in_nothing() -> None:
    first = stream(RIGHT)
    broken = dataclasses.replace(stream(RIGHT), num_views=np.array([0, 4, 4, 4, 4, 4], np.int32), broken_views=4)
    fused = fusion.fuse(first, broken, 0.5, "softmax")
    assert fused.not_evaluated == ("v0",) and fused.confusion.sum() == 5 and fused.broken_views == 4


def test_no_weight_can_be_chosen_where_no_video_was_read_by_both() -> None:
    none = dataclasses.replace(stream(RIGHT), num_views=np.zeros(6, np.int32))
    with pytest.raises(UserError, match="^no video could be read by both streams, so there is nothing to choose their"):
        fusion.best_weight(stream(RIGHT), none, "softmax")


def test_what_a_fused_result_keeps_of_the_streams() -> None:
    first = dataclasses.replace(
        stream(FIRST, views=1),
        broken_views=1,
        broken=(("v1", "cut off"),),
        missing=("m1", "m2"),
        environment={"a": "1"},
    )
    second = dataclasses.replace(
        stream(SECOND, views=3), broken_views=2, broken=(("v1", "cut off"), ("v2", "empty")), missing=("m2", "m3")
    )
    fused = fusion.fuse(first, second, 0.5, "logits")
    assert set(fused.metrics) == {"val/top1_video", "val/top5_video", "val/mean_class", "val/top1_clip", "val/loss"}
    assert np.isnan([fused.metrics["val/top1_clip"], fused.metrics["val/loss"]]).all()
    assert (fused.broken_views, fused.missing) == (3, ("m1", "m2", "m3"))
    assert fused.broken == (("v1", "cut off"), ("v2", "empty"))
    assert (fused.environment, fused.protocol, fused.class_names) == ({"a": "1"}, first.protocol, CLASSES)
    assert fused.num_views.tolist() == [1] * 6 and fused.num_views.dtype == np.int32
    np.testing.assert_allclose(fused.logits, 0.5 * first.logits + 0.5 * second.logits / 3)
    np.testing.assert_allclose(fused.softmax, 0.5 * first.softmax + 0.5 * second.softmax / 3)


def test_other_videos_are_refused() -> None:
    def message(**changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            fusion.fuse(stream(RIGHT), dataclasses.replace(stream(RIGHT), **changes), 0.5, "softmax")
        return str(caught.value)

    def different(how: str) -> str:
        return (
            f"the two streams were evaluated on different videos: {how}; give both the same split, lists and classes, "
            "and prepare frames and flow of the same videos"
        )

    names = stream(RIGHT).names
    assert message(names=np.array([*names[:5], "x"])) == different("2 are in one only, e.g. v5, x")
    assert message(names=np.array([*names[:4], "x", "y"])) == different("4 are in one only, e.g. v4, v5, x")
    order = different("0 are in one only, e.g. none, but their order differs")
    assert message(names=names[::-1]) == message(labels=stream(RIGHT).labels[::-1]) == order
    assert (
        message(class_names=("a", "b", "d")) == "the two streams have different classes: train both on the same lists"
    )
    with pytest.raises(ConfigError, match=r"^config\.fusion\.scores='logit': unknown; did you mean logits"):
        fusion.fuse(stream(RIGHT), stream(RIGHT), 0.5, "logit")


@pytest.mark.parametrize("scores", ["softmax", "logits"])
def test_the_table(scores: str) -> None:
    """Another accuracy by averaged logits than by averaged probabilities, in each stream."""
    first, second = stream(FIRST), stream(SECOND, confidence=1.0, views=10)
    ending = fusion.SCORES[scores]
    other = {"": "_softmax", "_softmax": ""}[ending]
    for result in (first, second):
        result.metrics[f"val/top1_video{other}"] = 0.0
    fused = fusion.fuse(first, second, 0.6, scores)
    lines = fusion.format_streams(("rgb", "flow"), (first, second, fused), 0.6, "fixed", scores).splitlines()
    top1 = fused.metrics["val/top1_video"]
    assert lines == [
        "two streams",
        "         video top-1  video top-5   mean class",
        "  rgb        50.00 %     100.00 %      50.00 %",
        "  flow       66.67 %     100.00 %      66.67 %",
        f"  fused  {f'{100 * top1:.2f} %':>11}     100.00 %  {f'{100 * top1:.2f} %':>11}",
        f"  by averaged {scores}; weights 0.60 and 0.40: fixed",
        f"  {protocol_line(first)}",
        f"  {protocol_line(second)}",
    ]


def test_the_page(tmp_path: Path) -> None:
    """Three classes: the fused scores gain in none, lose in one and one has no videos; in this order."""
    first, second = stream(FIRST), stream(SECOND, confidence=1.0)
    keep = [2, 3, 4, 5]  # none of class "a"
    first, second = (
        dataclasses.replace(
            result,
            **{name: getattr(result, name)[keep] for name in ("names", "labels", "logits", "softmax", "num_views")},
        )
        for result in (first, second)
    )
    fused = fusion.fuse(first, second, 0.7, "softmax")
    path = fusion.write_page(tmp_path, ("rgb", "flow"), (first, second, fused), 0.7, "chosen <here>", "softmax")
    assert path == tmp_path / "report.html"
    page = path.read_text()
    assert "<h1>rgb + flow</h1>" in page and '<p class="muted">two streams</p>' in page
    titles = ["Accuracy", "By class", "Confusion matrix", "Most frequent confusions", "Most confident errors"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == [*titles, "All errors"]
    assert re.findall(r'<p class="small">(.*?)</p>', page) == [
        "By averaged softmax; weights 0.70 and 0.30: chosen &lt;here&gt;.",
        f"rgb: {protocol_line(first)}.",
        f"flow: {protocol_line(second)}.",
    ]
    accuracy, by_class, _, errors = re.findall(r"<table>(.*?)</table>", page)
    assert errors.count("<tr data-t=") == int((fused.predictions != fused.labels).sum()) and "averaged softmax" in page
    number = ' class="number"'
    assert _cells(accuracy)[0] == ["", number + ">video top-1", number + ">video top-5", number + ">mean class"]
    assert [row[0] for row in _cells(accuracy)] == ["", "rgb", "flow", "fused"]
    rows = [[cell.removeprefix(number + ">") for cell in row] for row in _cells(by_class)]
    assert rows == [
        ["class", "rgb", "flow", "fused", "gain over the better stream"],
        ["b", "50.00 %", "100.00 %", "50.00 %", "-50.00"],
        ["c", "0.00 %", "100.00 %", "0.00 %", "-100.00"],
        ["a", "-", "-", "-", "-"],
    ]
    assert all(cell.startswith(number) for row in _cells(by_class) for cell in row[1:])
    assert not any(row[0].startswith(number) for row in _cells(by_class))
    again = load_evaluation(tmp_path)
    assert again is not None and again.metrics["val/top1_video"] == fused.metrics["val/top1_video"]


def test_equal_gains_keep_the_order_of_the_classes(tmp_path: Path) -> None:
    results = stream(RIGHT), stream(RIGHT)
    fused = fusion.fuse(*results, 0.5, "softmax")
    page = fusion.write_page(tmp_path, ("rgb", "flow"), (*results, fused), 0.5, "fixed", "softmax").read_text()
    rows = _cells(re.findall(r"<table>(.*?)</table>", page)[1])[1:]
    assert [row[0] for row in rows] == list(CLASSES) and all(row[-1].endswith(">+0.00") for row in rows)
    for refused in (
        lambda: fusion.write_page(tmp_path, ("rgb",), (*results, fused), 0.5, "fixed", "softmax"),
        lambda: fusion.format_streams(("rgb",), (*results, fused), 0.5, "fixed", "softmax"),
    ):
        with pytest.raises(ValueError, match="zip"):
            refused()


def test_many_classes_are_sorted_by_gain_and_then_by_their_order(tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.int32)

    def of(predicted: np.ndarray) -> EvalResult:
        scores, names = np.eye(60)[predicted], tuple(f"c{k:02d}" for k in range(60))
        fields = {"class_names": names, "names": np.array(names), "labels": labels, "num_views": np.ones(60, np.int32)}
        metrics = video_metrics(scores, scores, labels)
        return dataclasses.replace(stream(RIGHT), metrics=metrics, logits=scores, softmax=scores, **fields)

    first, second = of(np.where(labels % 3 == 0, (labels + 1) % 60, labels)), of(labels)
    fused = fusion.fuse(first, second, 0.9, "softmax")  # wrong where the first one is
    page = fusion.write_page(tmp_path, ("rgb", "flow"), (first, second, fused), 0.9, "fixed", "softmax").read_text()
    rows = _cells(re.findall(r"<table>(.*?)</table>", page)[1])[1:]
    wanted = [*labels[labels % 3 != 0], *labels[labels % 3 == 0]]
    assert [row[0] for row in rows] == [f"c{k:02d}" for k in wanted]
    assert {row[-1].partition(">")[2] for row in rows} == {"+0.00", "-100.00"}


def _cells(table: str) -> list[list[str]]:
    """The cells of each row; those of a number begin with their class."""
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [
        [cell.removeprefix(">") for cell in re.findall(r"<t[hd]((?: class=.*?)?>.*?)</t[hd]>", row)] for row in rows
    ]
