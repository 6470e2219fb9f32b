"""The page: whole, self-contained, escaped, and readable from whatever part of a run is there."""

import base64
import dataclasses
import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from r23d_jax import config
from r23d_jax.config import Config, UserError
from r23d_jax.data.find.frames import FrameFiles, PackedFrames, VideoIndex
from r23d_jax.evaluation import figures, film, metrics, report
from r23d_jax.evaluation.result import (
    EvalResult,
    Protocol,
    environment,
    format_table,
    load_evaluation,
    save_evaluation,
)
from tests.data.find.frame_sets import as_value

NAMES = ("left", "right & <b>bold</b>", "$up$")
VOID = {"meta", "img", "br", "rect", "path"}


class Page(html.parser.HTMLParser):
    """Collects text and tags, and checks that they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID or (tag == "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def make_result(class_names=NAMES, labels=(0, 0, 1, 1, 2, 0), predicted=(0, 1, 1, 0, 2, 0), unseen=(5,)):
    labels, predicted = np.array(labels, np.int32), np.array(predicted)
    count = len(labels)
    softmax = np.full((count, len(class_names)), 0.1 / len(class_names))
    softmax[np.arange(count), predicted] += 0.9 - 0.3 * np.arange(count) / count
    num_views = np.full(count, 2, np.int32)
    num_views[list(unseen)] = 0
    logits, softmax = 2 * np.log(softmax), 2 * softmax
    seen = num_views > 0
    logits[~seen] = softmax[~seen] = 0
    values = metrics.video_metrics(logits[seen], softmax[seen], labels[seen])
    return EvalResult(
        metrics=values | {"val/top1_clip": 0.25, "val/loss": 1.5},
        class_names=class_names,
        names=np.array([f"v_{k}" for k in range(count)]),
        labels=labels,
        logits=logits,
        softmax=softmax,
        num_views=num_views,
        broken_views=3,
        broken=(("v_5", "frame 7: <script>alert(1)</script>"),),
        missing=("v_gone",),
        protocol=Protocol.of(Config()),
        environment=environment(),
    )


def make_index(folder, result, num_frames=10):
    folder.mkdir(parents=True)
    for k in range(num_frames):
        cv2.imwrite(str(folder / f"{k:03d}.jpg"), np.full((24, 32, 3), (0, 0, 20 * k), np.uint8))
    count = len(result.names)
    frames = FrameFiles(
        folder=np.full(count, str(folder)),
        prefix=np.full(count, ""),
        suffix=np.full(count, ".jpg"),
        first=np.zeros(count, np.int64),
        step=np.ones(count, np.int64),
        digits=np.full(count, 3, np.int32),
    )
    lengths = np.full(count, num_frames, np.int32)
    return VideoIndex(result.class_names, result.names, result.labels, lengths, frames, "made for a test")


def write_metrics(workdir):
    rows = [{"step": 10 * k, "epoch": k, "train/loss": 2.0 / k, "train/learning_rate": 0.1} for k in range(1, 60)]
    rows += [{"step": 590, "epoch": 59, "val/top1_video": 0.5, "val/top1_clip": 0.4, "val/loss": None}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 60, "tr')


def test_whole_report(tmp_path):
    result = make_result()
    save_evaluation(result, tmp_path)
    write_metrics(tmp_path)
    (tmp_path / "config.json").write_text(config.to_json(Config()))
    path = report.write_report(tmp_path, make_index(tmp_path / "frames", result))
    assert path == tmp_path / "report.html"
    text = path.read_text()
    page = Page(text)
    for title in ("Accuracy", "Training", "Confusion matrix", "Accuracy by class", "Most confident errors"):
        assert f"<h2>{title}</h2>" in text
    for part in ("Broken files", "Configuration", "Environment", "Most frequent confusions"):
        assert f"<h2>{part}</h2>" in text
    assert "60.00 %" in page.text, "3 of 5 videos"
    assert "split 1, 5 videos, 10 views: all non-overlapping clips of 16 frames x 1 crop of 112x112" in page.text
    assert "Not evaluated, every view broken: 1 video (v_5)." in page.text
    assert "best video top-1 50.00 % after epoch 59" in page.text
    assert "590 steps, 59 epochs" in page.text, "the torn last line is passed over"
    assert '"learning_rate": 0.03' in page.text
    # one picture of curves and one strip per error
    kinds = [value.partition(";")[0] for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert kinds == ["data:image/svg+xml", "data:image/jpeg", "data:image/jpeg"]
    assert page.text.index("v_1") < page.text.index("v_3"), "the more confident error comes first"


def test_report_is_self_contained_and_escaped(tmp_path):
    result = make_result()
    save_evaluation(result, tmp_path)
    text = report.write_report(tmp_path, make_index(tmp_path / "frames", result), Config()).read_text()
    page = Page(text)
    assert not {"link", "iframe", "b>bold"} & set(page.tags) and page.tags.count("script") == 1
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href") or value.startswith("data:image/")
    assert "url(" not in text and "@import" not in text
    assert NAMES[1] not in text and "right & <b>bold</b>" in page.text
    assert text.count("<script") == 1 and "<script>alert(1)</script>" in page.text


def test_parts_that_are_missing_are_left_out(tmp_path):
    empty = report.write_report(tmp_path / "empty")
    assert "Environment" in Page(empty.read_text()).text
    assert "<h2>Accuracy</h2>" not in empty.read_text()

    (tmp_path / "training").mkdir()
    write_metrics(tmp_path / "training")
    text = report.write_report(tmp_path / "training", cfg=Config()).read_text()
    assert "<h2>Training</h2>" in text and "<h2>Confusion matrix</h2>" not in text

    save_evaluation(make_result(), tmp_path / "evaluation")
    text = report.write_report(tmp_path / "evaluation").read_text()
    assert "<h2>Training</h2>" not in text and "<h2>Confusion matrix</h2>" in text
    assert "No film strips: there is no config.json" in text


def test_frames_out_of_reach_cost_only_the_strips(tmp_path):
    result = make_result()
    save_evaluation(result, tmp_path)
    index = make_index(tmp_path / "frames", result)
    for file in (tmp_path / "frames").iterdir():
        file.unlink()
    text = report.write_report(tmp_path, index, Config()).read_text()
    assert "image/jpeg" not in text and "predicted <b" in text


def test_no_errors_and_nothing_evaluated(tmp_path):
    save_evaluation(make_result(predicted=(0, 0, 1, 1, 2, 0)), tmp_path / "perfect")
    assert "None: all 5 videos were recognized." in report.write_report(tmp_path / "perfect").read_text()
    nothing = make_result(unseen=range(6))
    assert np.isnan(nothing.metrics["val/top1_video"])
    save_evaluation(nothing, tmp_path / "nothing")
    text = Page(report.write_report(tmp_path / "nothing").read_text()).text
    assert "Not evaluated, every view broken: 6 videos (v_0, v_1, v_2, v_3, v_4, ...)." in text


def test_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 0')
    with pytest.raises(UserError, match=r"config\.json: cannot be read .* delete the file"):
        report.write_report(tmp_path)


def test_many_classes(tmp_path):
    names = tuple(f"Class{k}" for k in range(101))
    result = make_result(names, labels=tuple(range(101)), predicted=tuple([1, *range(1, 101)]), unseen=())
    svg = figures.confusion_svg(result.confusion, names)
    assert len(re.findall("<title>", svg)) == 101, "a cell for each count, none for zeros"
    assert "true Class0, predicted Class1: 1 of 1 (100 %)" in svg
    assert figures.confused_pairs(result.confusion) == [(0, 1, 1, 1.0)]
    bars = figures.accuracy_bars(result.per_class, result.confusion.sum(axis=1), names)
    assert bars.count('class="bar"') == 101
    assert bars.rindex("Class0<") > bars.rindex("Class99<"), "the worst is last"


def test_curves_are_the_same_for_the_same_data_and_skip_what_is_not_a_number():
    rows = [{"step": k, "epoch": float(k), "train/loss": 1.0, "val/top1_video": None} for k in range(5)]
    rows[2]["train/loss"] = None
    first = figures.curves(rows)
    assert first == figures.curves(rows)
    svg = base64.b64decode(first.partition("base64,")[2].rstrip('">')).decode()
    assert svg.count('id="axes_') == 1, "no panel without data"
    assert figures.curves([{"step": 1, "epoch": 1.0, "train/loss": float("nan")}]) == ""


def test_frames_of_packed_shards(tmp_path):
    encoded = [cv2.imencode(".png", np.full((4, 6, 3), value, np.uint8))[1].tobytes() for value in range(5)]
    encoded[3] = b"broken"
    values = [as_value(content) for content in encoded]
    (tmp_path / "shard").write_bytes(b"head" + b"".join(values))
    lengths = np.array([len(content) for content in encoded], np.uint32)
    begin = 4 + np.array([0, len(values[0] + values[1])])
    # video 1 has frames 2, 3, 4 of the shard
    shards, names = (str(tmp_path / "shard"),), np.array(["x", "y"])
    packed = PackedFrames(shards, np.zeros(2, np.int32), begin, np.array([0, 2]), lengths, names)
    counts = np.array([2, 3], np.int32)
    index = VideoIndex(("a",), names, np.zeros(2, np.int32), counts, packed, "")
    frames = film.sample_frames(index, 1)
    assert [int(frame[0, 0, 0]) for frame in frames] == [2, 4], "the broken one is left out"
    strip = film.film_strip(frames, height=8)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(strip.partition("base64,")[2].rstrip('">')), np.uint8), 1)
    assert picture is not None and picture.shape == (8, 12 + 3 + 12, 3)


def test_frames_are_rgb_and_spread_over_the_video(tmp_path):
    index = make_index(tmp_path / "frames", make_result(), num_frames=10)
    reds = [int(frame[0, 0, 0]) for frame in film.sample_frames(index, 0, count=4)]
    assert np.abs(np.array(reds) - [0, 60, 120, 180]).max() <= 3, "first, last and two between; red comes first"


def test_save_and_load(tmp_path):
    assert load_evaluation(tmp_path) is None
    result = make_result(unseen=(4, 5))  # class 2 then has no evaluated video
    save_evaluation(result, tmp_path)
    loaded = load_evaluation(tmp_path)
    assert loaded is not None
    for field in dataclasses.fields(EvalResult):
        np.testing.assert_equal(getattr(loaded, field.name), getattr(result, field.name))
    meta = json.loads((tmp_path / "evaluation.json").read_text())
    assert meta["metrics"] == result.metrics
    assert meta["per_class"][2] is None and meta["classes_without_videos"] == ["$up$"]
    with np.load(tmp_path / "evaluation.npz") as file:
        np.testing.assert_array_equal(file["confusion"], result.confusion)
        np.testing.assert_array_equal(file["confusion_softmax"], result.confusion_softmax)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "evaluation.npz"]


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_evaluation_is_named(tmp_path, damage):
    save_evaluation(make_result(), tmp_path)
    path = tmp_path / "evaluation.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"evaluation\.npz: cannot be read .* evaluate again with --mode=eval"):
        load_evaluation(tmp_path)


def test_a_failed_write_leaves_the_old_evaluation(tmp_path, monkeypatch):
    save_evaluation(make_result(), tmp_path)
    before = (tmp_path / "evaluation.npz").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_evaluation(make_result(unseen=()), tmp_path)
    assert (tmp_path / "evaluation.npz").read_bytes() == before
    assert not list(tmp_path.glob(".*tmp")), "the half-written file is removed"


def test_table():
    lines = format_table(make_result()).splitlines()
    assert lines[0] == "evaluation"
    assert lines[1].split() == ["averaged:", "logits", "softmax"]
    assert lines[2].split() == ["video", "top-1", "60.00", "%", "60.00", "%"]
    assert len({len(line) for line in lines[1:5]}) == 1, "columns are aligned"
    text = "\n".join(lines)
    assert "clip top-1    25.00 %" in text
    assert "listed, but not found on disk: 1 video (v_gone)" in text
    assert "left out: 3 views that could not be read" in text
    assert "top-5 means nothing here: there are only 3 classes" in text


def test_protocol_in_words():
    cfg = Config()
    cfg.eval.views, cfg.eval.num_clips, cfg.eval.crops = "uniform", 10, 3
    cfg.data.frame_stride, cfg.data.input = 2, "rgb_diff"
    assert Protocol.of(cfg).describe() == (
        "10 uniform clips of 16 frame differences, stride 2 x 3 crops of 112x112 (short side 136)"
    )
    cfg.data.input = "rgb_and_diff"
    assert "clips of 16 frames and their differences, stride 2" in Protocol.of(cfg).describe()


def test_environment_names_no_machine():
    import getpass
    import socket

    values = " ".join(environment().values())
    assert {"jax", "flax", "numpy", "Python", "devices", "r23d_jax", "CPU cores"} <= set(environment())
    assert socket.gethostname() not in values
    assert len(getpass.getuser()) < 4 or getpass.getuser() not in values
