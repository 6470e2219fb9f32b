"""Prediction for many videos, long ones and addresses: what is found, what is written, and what happens when."""

import csv
import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

import r23d_jax
from r23d_jax.commands import predict
from r23d_jax.config import EvalConfig, UserError
from r23d_jax.data.make.video import VideoError, iter_frames
from r23d_jax.evaluation import single, video_source
from r23d_jax.evaluation.inputs import expand
from r23d_jax.evaluation.single import Predictor
from r23d_jax.evaluation.timeline import TimelineOptions
from tests.commands.test_predict import extract, write_video
from tests.commands.test_predict_streams import CLASSES, call, make_config, make_model, save_run, trained

TIMELINE = TimelineOptions(every=0.2, smooth=0.4, min_score=0.0)


@pytest.fixture(scope="module")
def model():
    return make_model(make_config())


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), model, make_config(), trained())


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model, trained(), EvalConfig(), batch_size=3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos at two depths, one of them as frames, and things that are no videos."""
    root = tmp_path_factory.mktemp("clips")
    (root / "b" / "deep").mkdir(parents=True)
    for name, count in (("a.avi", 13), ("b/c.mp4", 5), ("b/deep/d.MKV", 30)):
        write_video(root / name, count, seed=count)
    extract(root / "a.avi", root / "frames", ".png")
    (root / "notes.txt").write_text("no video")
    (root / ".hidden.avi").write_bytes(b"x")
    (root / "b" / "up").symlink_to(root)
    return root


def test_what_arguments_stand_for(clips: Path, tmp_path: Path) -> None:
    every = [clips / "a.avi", clips / "b" / "c.mp4", clips / "b" / "deep" / "d.MKV", clips / "frames"]
    assert expand([str(clips)]) == [str(path) for path in every]
    assert expand([str(clips / "b"), str(clips / "a.avi")])[-1] == str(every[0])
    assert expand([str(clips / "*.avi")]) == [str(every[0])]
    assert sorted(expand([str(clips / "**" / "[cd].*")])) == [str(every[1]), str(every[2])]
    kept = [str(tmp_path), str(tmp_path / "gone.mp4"), str(tmp_path / "*.mp4"), "http://host/a.mp4?b=*"]
    assert expand(kept) == kept, "their reader says what is wrong"
    (tmp_path / "odd[1].mp4").write_bytes(b"x")
    assert expand([str(tmp_path / "odd[1].mp4")]) == [str(tmp_path / "odd[1].mp4")], "a name comes before a pattern"


def test_a_pattern_that_stands_for_nothing_is_no_missing_file(
    workdir: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    reasons = {
        "in/**/a*.mp4": f"matches no video: nothing in {tmp_path / 'in'} is called **/a*.mp4; check its spelling",
        "[ab].mp4": f"matches no video: nothing in {tmp_path} is called [ab].mp4",
        "gone/deep/*.mp4": f"matches no video, because there is no folder {tmp_path / 'gone' / 'deep'}",
        "gone.mp4": "cannot be read (No such file",
    }
    assert call(predict, "--workdir", workdir, *reasons, "--json") == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, (name, reason) in zip(rows, reasons.items(), strict=True):
        assert row["video"] == name and row["error"].startswith(f"{name}: ") and reason in row["error"]
        assert ("No such file" in row["error"]) is (name == "gone.mp4")


def test_many_videos_score_as_one_by_one(predictor: Predictor, clips: Path) -> None:
    """Clips of several videos share a batch, and a video that cannot be read changes nothing for the others."""
    names = [*map(Path, expand([str(clips)])), clips / "gone.mp4", clips / "notes.txt"]
    together = list(predictor.many(names[:2] + names[-2:] + names[2:-2]))
    assert [isinstance(found, VideoError) for found in together] == [False] * 2 + [True] * 2 + [False] * 2
    assert "gone.mp4: cannot be read (No such file" in str(together[2])
    for name, found in zip(names[:-2], together[:2] + together[4:], strict=True):
        alone = predictor(name)
        assert isinstance(found, single.Prediction) and found.num_clips == alone.num_clips
        np.testing.assert_allclose(found.logits, alone.logits, rtol=1e-5, atol=1e-5)
    scores = [found.logits for found in together if isinstance(found, single.Prediction)]
    assert np.abs(scores[0] - scores[1]).max() > 1e-2, "videos can be told apart"


def test_a_file_that_is_held_and_one_that_is_not_give_the_same_clips(clips: Path, monkeypatch) -> None:
    starts = np.array([0, 3, 3, 8])
    held = video_source.VideoFile(clips / "a.avi", trained())
    expected = np.stack(list(held.clips(starts)))
    assert held._kept and expected.std() > 1
    monkeypatch.setattr(video_source, "HELD_BYTES", 5 * 16 * 16 * 3)
    read_again = video_source.VideoFile(clips / "a.avi", trained())
    np.testing.assert_array_equal(np.stack(list(read_again.clips(starts))), expected)
    assert not read_again._kept


def test_a_table_of_many_videos(workdir: Path, clips: Path, tmp_path: Path, capsys) -> None:
    bad = tmp_path / "=bad.avi"
    bad.write_bytes(b"no video")
    names = [clips, bad, tmp_path / "none-*.avi"]
    assert call(predict, "--workdir", workdir, *names, "--csv", tmp_path / "out.csv", "--top", 2) == 3
    printed = capsys.readouterr()
    assert printed.out.startswith("r2d_10, 2 classes") and printed.out.count("\n") == 1
    assert f"{bad}  not recognized: not a readable video" in printed.err
    assert "2 of 6 videos could not be recognized" in printed.err
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [*expand([str(clips)]), str(bad), str(tmp_path / "none-*.avi")]
    assert list(rows[0]) == ["video", "start", "end", "class", "score", "class_2", "score_2", "error"]
    assert {rows[0]["class"], rows[0]["class_2"]} == set(CLASSES)
    assert float(rows[0]["score"]) + float(rows[0]["score_2"]) == pytest.approx(1, abs=2e-4)
    assert (rows[0]["start"], rows[0]["end"], rows[0]["error"]) == ("0.000", "0.520", "")
    assert "not a readable video" in rows[4]["error"] and not rows[4]["class"]
    assert f"matches no video: nothing in {tmp_path} is called none-*.avi; check" in rows[5]["error"]
    assert call(predict, "--workdir", workdir, clips, "--json") == 0
    for line, row in zip(capsys.readouterr().out.splitlines(), rows, strict=False):
        best = json.loads(line)["predictions"][0]
        assert (best["class"], f"{best['probability']:.4f}") == (row["class"], row["score"])


def test_a_table_is_safe_in_a_spreadsheet(workdir: Path, clips: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=1+1.avi").symlink_to(clips / "a.avi")
    assert call(predict, "--workdir", workdir, "=1+1.avi", "--csv", "out.csv") == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("'=1+1.avi,0.000,")


# -- timelines ---------------------------------------------------------------------------------------------------------


def test_a_timeline_has_the_scores_of_its_clips(predictor: Predictor, clips: Path) -> None:
    path = clips / "b" / "deep" / "d.MKV"
    found = predictor(path, TIMELINE)
    frames = np.stack(list(iter_frames(path)))
    starts = range(0, 27, 5)
    timeline = found.timeline
    assert timeline is not None and timeline.seconds == pytest.approx(1.2)
    np.testing.assert_allclose(timeline.centers, [(start + 2) / 25 for start in starts])
    for k, start in enumerate(starts):
        (clip,) = video_source.open_source(frames[start : start + 4], trained()).clips(np.array([0]))
        _, logits = predictor._score([(0, clip)])
        np.testing.assert_allclose(timeline.logits[k], np.asarray(logits)[0], rtol=1e-4, atol=1e-4)
    array = predictor(frames, TIMELINE, rate=25.0)
    assert array.timeline is not None
    np.testing.assert_allclose(array.timeline.logits, timeline.logits, rtol=1e-4, atol=1e-4)
    assert np.ptp(timeline.logits, axis=0).max() > 1e-2, "clips can be told apart"
    assert found.seen == pytest.approx((29 - 6) / 30, abs=0.05) and found.num_clips == 6


def test_long_videos_get_a_timeline(workdir: Path, clips: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(single, "LONG_SECONDS", 1.0)
    names = [clips / "a.avi", clips / "b" / "deep" / "d.MKV"]

    def with_timeline(*options: str) -> list[bool]:
        assert call(predict, "--workdir", workdir, *names, "--json", *options) == 0
        return ["segments" in json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert with_timeline() == [False, True]
    assert with_timeline("--no-timeline") == [False, False]
    assert with_timeline("--timeline") == with_timeline("--every", "0.2") == [True, True]


OPTIONS = ("--every", 0.2, "--smooth", 0.4, "--min-score", 0)


def test_every_form_tells_the_same_timeline(workdir: Path, clips: Path, tmp_path: Path, capsys) -> None:
    path = clips / "b" / "deep" / "d.MKV"
    assert call(predict, "--workdir", workdir, path, *OPTIONS, "--json", "--csv", tmp_path / "t.csv") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["every"], row["smooth"], row["min_score"], row["seconds"]) == (0.2, 0.4, 0, 1.2)
    segments = row["segments"]
    assert segments[0]["start"] == 0 and segments[-1]["end"] == 1.2 and {s["class"] for s in segments} <= set(CLASSES)
    with open(tmp_path / "t.csv", newline="") as file:
        for line, segment in zip(csv.DictReader(file), segments, strict=True):
            assert (float(line["start"]), float(line["end"])) == (segment["start"], segment["end"])
            assert line["class"] == segment["class"] and float(line["score"]) == pytest.approx(
                segment["score"], abs=1e-4
            )
    assert call(predict, "--workdir", workdir, path, *OPTIONS, "--srt", tmp_path / "t.srt") == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == len(segments) and lines[0].split()[:4] == [
        "0:00.0",
        "-",
        lines[0].split()[2],
        segments[0]["class"],
    ]
    assert call(predict, "--workdir", workdir, path, "--min-score", 1, "--top", 1) == 0
    assert "no class scores 100 % at any time" in capsys.readouterr().out.splitlines()[2]


def test_subtitles_are_valid(workdir: Path, clips: Path, tmp_path: Path, capsys) -> None:
    """FFmpeg reads them, and the times are those of the segments; several videos are written into a folder."""
    names = [clips / "a.avi", clips / "b" / "deep" / "d.MKV"]
    assert call(predict, "--workdir", workdir, *names, *OPTIONS, "--srt", tmp_path, "--json") == 0
    for name, line in zip(names, capsys.readouterr().out.splitlines(), strict=True):
        path, segments = tmp_path / f"{name.stem}.srt", json.loads(line)["segments"]
        blocks = path.read_text().strip().split("\n\n")
        pattern = r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d\d\d) --> (\d\d):(\d\d):(\d\d),(\d\d\d)\n(\w+) (\d+) %"
        for number, (block, segment) in enumerate(zip(blocks, segments, strict=True), start=1):
            match = re.fullmatch(pattern, block)
            assert match is not None and int(match[1]) == number and match[10] == segment["class"]
            assert int(match[4]) + int(match[5]) / 1000 == pytest.approx(segment["start"], abs=1e-3)
            assert int(match[8]) + int(match[9]) / 1000 == pytest.approx(segment["end"], abs=1e-3)
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux() if packet.size]
            assert container.format.name == "srt" and len(packets) == len(segments)


def test_memory_of_a_timeline_does_not_grow_with_the_video(model, monkeypatch) -> None:
    """What is held at a time is counted; 6,000 frames go by."""
    most = 0

    def long_video(path, short_side, rate):
        for number in range(6000):
            yield np.full((40, 40, 3), number % 251, np.uint8)

    monkeypatch.setattr(video_source, "iter_frames", long_video)
    monkeypatch.setattr(video_source, "video_rate", lambda path: 25.0)
    source = video_source.VideoFile(Path("long"), trained(), even=True)
    import tracemalloc

    from r23d_jax.evaluation.timeline import SlidingClips

    sliding = SlidingClips(source, trained(), TimelineOptions())
    clips = iter(sliding)
    next(clips)
    tracemalloc.start()
    firsts = [int(clip[0, 0, 0, 0]) for clip in clips]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert firsts == [start % 251 for start in range(2, 5997, 2)] and sliding.count == 6000
    assert most < 1e6, "4.6 MB of crops and 29 MB of frames went by"


def test_wrong_use(workdir: Path, clips: Path, tmp_path: Path) -> None:
    video = clips / "a.avi"
    for options, message in (
        (("--every", 0), r"--every 0: must be a number of seconds above 0"),
        (("--smooth", "nan"), r"--smooth nan: must be"),
        (("--min-score", 1.1), r"--min-score 1.1: must be between 0 and 1"),
        (("--no-timeline", "--srt", tmp_path), r"--srt: is of a timeline, and --no-timeline asks for none; drop one"),
        (("--csv", tmp_path / "no" / "a.csv"), r"--csv .*a.csv: there is no folder .*no; create it first"),
        (("--csv", video), r"--csv .*a.avi: must end in .csv"),
        (("--srt", tmp_path / "a.txt"), r"--srt .*a.txt: must end in .srt"),
        ((clips / "b" / "c.mp4", "--srt", tmp_path / "a.srt"), r"--srt .*: is no folder, and 2 videos need one"),
        ((clips / "a", "--srt", tmp_path), r"--srt .*: .*a.avi and .*clips0/a would both be .*a.srt; give them one by"),
    ):
        with pytest.raises(UserError, match=message):
            call(predict, "--workdir", workdir, video, *options)


# -- addresses ---------------------------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(clips: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(clips))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_addresses(workdir: Path, clips: Path, server: str, capsys) -> None:
    names = [f"{server}/a.avi", clips / "a.avi", f"{server}/gone.avi", f"{server}/notes.txt", "ftp://host/a.avi"]
    names += ["http://127.0.0.1:1/a.avi"]
    assert call(predict, "--workdir", workdir, *names, "--json") == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["predictions"] == rows[1]["predictions"] and rows[0]["video"] == names[0]
    reasons = ["404 Not Found", "not a readable video", "only addresses with http:// or https:// are read", "refused"]
    for row, reason in zip(rows[2:], reasons, strict=True):
        assert reason in row["error"] and row["error"].startswith(row["video"])


def test_an_address_has_a_timeline(predictor: Predictor, clips: Path, server: str) -> None:
    there, here = predictor(f"{server}/a.avi", TIMELINE).timeline, predictor(clips / "a.avi", TIMELINE).timeline
    assert there is not None and here is not None
    np.testing.assert_allclose(there.logits, here.logits, rtol=1e-4, atol=1e-4)


# -- from Python -------------------------------------------------------------------------------------------------------


def test_predict_from_python(workdir: Path, clips: Path) -> None:
    model = r23d_jax.load_model(workdir)
    path = clips / "b" / "deep" / "d.MKV"
    answer = r23d_jax.predict(model, path)
    assert answer.segments == [] and answer.class_names == CLASSES
    assert answer.top(1)[0] == next(iter(model.predict(path).items())) and len(answer.top()) == 2
    answer = r23d_jax.predict(model, str(path), timeline=True, every=0.2, smooth=0.4, min_score=0)
    frames = np.stack(list(iter_frames(path)))
    same = r23d_jax.predict(model, frames, rate=25.0, timeline=True, every=0.2, smooth=0.4, min_score=0)
    assert [segment[:3] for segment in answer.segments] == [segment[:3] for segment in same.segments]
    first = answer.segments[0]
    assert first.start == 0 and first.top[0] == (first.class_name, first.score) and first.score >= 0.5
    with pytest.raises(UserError, match=r"predict: the model is a str; give the result of r23d_jax.load_model"):
        r23d_jax.predict("runs/r23d", path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="min_score 2: must be between 0 and 1"):
        r23d_jax.predict(model, path, min_score=2)
