"""Frames per second: as found in files, as kept by `prepare`, and as read from its record."""

import argparse
import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from r23d_jax.commands import prepare as command
from r23d_jax.config import DataConfig, Preprocessing, UserError, preprocessing, validate
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.make.record import Made, how_made
from r23d_jax.data.make.video import at_rate, iter_frames, video_rate
from r23d_jax.data.read.views import video_strides
from r23d_jax.data.sources import open_index, trained_preprocessing
from r23d_jax.evaluation.video_source import open_source
from tests.hostile.bad_files.corpus import video
from tests.moving import write_moving


def timed(times: list[float]) -> list[tuple[float, np.ndarray]]:
    return [(time, np.array(number)) for number, time in enumerate(times)]


@pytest.mark.parametrize(
    ("times", "rate", "want"),
    [
        ([0, 0.02, 0.04, 0.06, 0.08], 25, [0, 2, 4]),
        ([0.5, 0.54, 0.58], 25, [0, 1, 2]),  # the first frame need not be at 0
        ([0, 0.033, 0.067, 0.1, 0.133], 30, [0, 1, 2, 3, 4]),  # times are rounded to milliseconds
        ([0, 0.04, 0.08, 0.12, 0.16, 0.2], 16.6667, [0, 1, 3, 4]),  # halfway: the earlier one
        ([0, 0.04, 0.5, 0.54, 1.0], 10, [0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4]),  # variable: the nearest, also again
        ([3.0], 25, [0]),
        ([], 25, []),
    ],
)
def test_the_nearest_frame_in_time_is_given(times: list[float], rate: float, want: list[int]) -> None:
    assert [int(frame) for frame in at_rate(timed(times), rate)] == want


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0])
def test_the_rate_of_a_file(tmp_path: Path, name: str, rate: float) -> None:
    assert video_rate(write_moving(tmp_path / name, rate)) == pytest.approx(rate, rel=1e-6)


def test_frames_at_another_rate_are_those_of_that_rate(tmp_path: Path) -> None:
    read = {rate: np.stack(list(iter_frames(write_moving(tmp_path / f"{rate}.mkv", rate)))) for rate in (12.5, 25, 50)}
    assert [len(frames) for frames in read.values()] == [25, 50, 100]
    for rate in (12.5, 25):
        np.testing.assert_array_equal(np.stack(list(iter_frames(tmp_path / "50.mkv", rate=rate))), read[rate])


def write_at(path: Path, times: list[int], ticks: int, brighter: int) -> None:
    """A video with frames at times in 1 / `ticks` s, each brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=ticks, options={"crf": "1", "bf": "0", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), brighter * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_variable_rate_is_averaged_and_made_even(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    times = [0, 1, 2, 3, 10, 20, 21, 22, 23, 24]  # in 1/10 s
    write_at(path, times, ticks=10, brighter=20)
    assert video_rate(path) == pytest.approx(9 / 2.4, abs=0.3)
    shown = [round(float(frame.mean()) / 20) for frame in iter_frames(path, rate=5)]
    nearest = [min(range(len(times)), key=lambda k: (abs(times[k] / 10 - n / 5), k)) for n in range(len(shown))]
    assert shown == nearest and len(shown) == 13


def test_what_has_no_rate(tmp_path: Path) -> None:
    (tmp_path / "bare.mp4").write_bytes(video("m4v", "mpeg4", 8))
    assert video_rate(tmp_path / "bare.mp4") == 0.0, "FFmpeg makes up times for a bare stream"
    assert video_rate(write_moving(tmp_path / "one.avi", 25, seconds=0.04)) == 0.0


# -- prepare -----------------------------------------------------------------------------------------------------------


def prepare(root: Path, *args: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["--videos", root / "videos", "--out", root / "out", *args, "--workers", "1"]
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same moving picture at three rates, and lists of them."""
    for rate in (12.5, 25, 50):
        write_moving(tmp_path / "videos" / "Walk" / f"r{rate:g}.avi", rate)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.csv").write_text("path,label\nWalk/r25.avi,Walk\nWalk/r50.avi,Walk\n")
    (tmp_path / "lists" / "val.csv").write_text("path,label\nWalk/r12.5.avi,Walk\n")
    return tmp_path


def counts(root: Path) -> dict[str, int]:
    return {folder.name: len(list(folder.iterdir())) for folder in (root / "out" / "frames" / "Walk").iterdir()}


def config(root: Path, source: str = "frames", **fields) -> DataConfig:
    return DataConfig(source=source, root=str(root / "out" / source), lists=str(root / "lists"), **fields)


def test_prepare_keeps_so_many_frames_a_second_and_records_the_rates(root: Path, capsys) -> None:
    assert prepare(root, "--fps", 25) == 0
    assert counts(root) == {"r12.5": 25, "r25": 50, "r50": 50}
    record = json.loads((root / "out" / "prepare.json").read_text())
    assert record["fps"] == 25 and record["rates"] == {"Walk/r12.5": 12.5, "Walk/r25": 25.0, "Walk/r50": 25.0}
    printed = capsys.readouterr().out
    slow = root / "videos" / "Walk" / "r12.5.avi"
    assert f"1 videos do not have 25 frames a second and keep all of theirs, e.g. {slow} has 12.5\n" in printed
    assert prepare(root, "--fps", 12.5) == 2
    assert "was prepared with fps 25.0; use the same" in capsys.readouterr().err
    assert prepare(root, "--fps", -1) == prepare(root, "--fps", "nan") == 2
    assert "--fps -1: must be above 0, or 0 to keep all frames" in capsys.readouterr().err


def test_an_uneven_video_that_is_slow_enough_keeps_all_frames(tmp_path: Path) -> None:
    """30 frames a second, then 10: resampled at their mean rate, frames would be left out and others repeated."""
    times = [*range(0, 1000, 33), *range(1000, 3000, 100)]
    (tmp_path / "videos" / "Walk").mkdir(parents=True)
    write_at(tmp_path / "videos" / "Walk" / "uneven.mkv", times, ticks=1000, brighter=4)
    assert prepare(tmp_path, "--fps", 25) == 0
    assert counts(tmp_path) == {"uneven": len(times)}


def test_rates_that_are_not_recorded_are_added_without_decoding(root: Path, capsys) -> None:
    """As after a run that was killed, or one by an older version."""
    assert prepare(root) == 0
    path = root / "out" / "prepare.json"
    record = json.loads(path.read_text())
    assert record["rates"] == {"Walk/r12.5": 12.5, "Walk/r25": 25.0, "Walk/r50": 50.0}
    path.write_text(json.dumps({name: value for name, value in record.items() if name not in ("rates", "fps")}))
    before = {file: file.stat().st_mtime_ns for file in (root / "out" / "frames").rglob("*.jpg")}
    capsys.readouterr()
    assert prepare(root) == 0
    assert "(0 of them new, with 0 frames)" in capsys.readouterr().out
    assert json.loads(path.read_text())["rates"] == record["rates"]
    assert before == {file: file.stat().st_mtime_ns for file in (root / "out" / "frames").rglob("*.jpg")}


@pytest.mark.parametrize("source", ["frames", "packed"])
def test_the_index_has_the_rates(root: Path, source: str) -> None:
    assert prepare(root, "--format", "both") == 0
    if source == "packed":
        (root / "out" / "prepare.json").unlink()  # shards hold the rates themselves
    cfg = config(root, source, frame_seconds=0.08)
    index = open_index(cfg, "train")
    assert index.rates is not None and index.rates.tolist() == [25.0, 50.0]
    assert "a frame every 0.08 s, which is every 2 to 4 frames" in index.notes
    assert video_strides(index, cfg).tolist() == [2.0, 4.0]
    assert trained_preprocessing(cfg, index).frame_rate == 37.5
    assert video_strides(open_index(cfg, "test"), cfg).tolist() == [1.0]
    plain = open_index(config(root, source, frame_stride=3), "train")
    assert video_strides(plain, config(root, source, frame_stride=3)).tolist() == [3.0, 3.0]
    assert (
        "the videos have 25 to 50 frames a second, and a clip takes every 3 of them; config.data.frame_seconds takes "
        "them at one pace"
    ) in plain.notes


@pytest.mark.parametrize("source", ["frames", "packed"])
def test_a_video_is_reduced_as_the_frames_of_the_training_were(root: Path, source: str) -> None:
    assert prepare(root, "--format", "both", "--short-side", 16) == 0
    cfg = config(root, source, num_frames=4, crop_size=12, short_side=14)
    pre = dataclasses.replace(trained_preprocessing(cfg, open_index(cfg, "train")), frame_rate=0.0)
    assert pre.reduced_to == 16
    video, starts = root / "videos" / "Walk" / "r25.avi", np.array([0, 11])

    def clips(video: Path | np.ndarray, pre: Preprocessing) -> np.ndarray:
        return np.stack(list(open_source(video, pre).clips(starts)))

    as_it_is = dataclasses.replace(pre, reduced_to=0)
    prepared = clips(np.stack(list(iter_frames(video, 16))), as_it_is)
    np.testing.assert_array_equal(clips(video, pre), prepared)
    np.testing.assert_array_equal(clips(np.stack(list(iter_frames(video))), pre), prepared)
    assert not np.array_equal(clips(video, as_it_is), prepared)


def test_videos_without_a_known_rate(root: Path) -> None:
    assert prepare(root) == 0
    path = root / "out" / "prepare.json"
    record = json.loads(path.read_text())
    record["rates"].pop("Walk/r50")
    path.write_text(json.dumps(record))
    message = (
        r"config.data.frame_seconds=0.1: the rate of 1 of 2 videos in .* is not recorded, e.g. Walk/r50; make the "
        r"frames with .*prepare, which records it, or set config.data.frame_rate to the frames per second of them"
    )
    with pytest.raises(DataError, match=message):
        open_index(config(root, frame_seconds=0.1), "train")
    index = open_index(config(root, frame_seconds=0.1, frame_rate=40.0), "train")
    assert index.rates is not None and index.rates.tolist() == [25.0, 40.0]
    assert "1 videos have no recorded rate: taken as 40 frames a second (config.data.frame_rate)" in index.notes
    path.unlink()
    assert trained_preprocessing(config(root), open_index(config(root), "train")) == preprocessing(config(root))


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"flow": "dis"}', '{"short_side": 1, "rates": 3}', '{"short_side": 1, "rates": {"a": "x"}}'],
)
def test_a_forged_record_is_as_none(root: Path, content: str) -> None:
    assert prepare(root) == 0
    (root / "out" / "prepare.json").write_text(content)
    assert how_made(root / "out" / "frames") == Made()
    (root / "out" / "prepare.json").write_text('{"short_side": 0, "rates": {"a": -1, "b": Infinity, "c": 5}}')
    assert how_made(root / "out" / "frames" / "c") == Made(rates={"c": 5.0}, target="c")


def test_a_stride_in_seconds_and_one_in_frames_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"frame_seconds=0.08: replaces config.data.frame_stride=2; leave that at 1"):
        validate(DataConfig(frame_seconds=0.08, frame_stride=2))
