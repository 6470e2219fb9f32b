"""What `predict` draws: the annotated video and the picture of a timeline; and what it says about a camera."""

import http.server
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from r23d_jax.commands import predict, predict_camera
from r23d_jax.config import EvalConfig, UserError
from r23d_jax.data.make.video import VideoError, iter_frames, timed_frames
from r23d_jax.evaluation import camera
from r23d_jax.evaluation.annotate import annotate, draw
from r23d_jax.evaluation.answer import Answer
from r23d_jax.evaluation.camera import LiveClips
from r23d_jax.evaluation.single import Predictor
from r23d_jax.evaluation.timeline import TimelineOptions
from r23d_jax.evaluation.timeline_picture import draw_timeline
from r23d_jax.evaluation.video_source import open_source
from tests.commands.test_predict import extract, write_video
from tests.commands.test_predict_streams import CLASSES, call, make_config, make_model, save_run, trained
from tests.hostile.bad_files.corpus import turned


@pytest.fixture(scope="module")
def model():
    return make_model(make_config())


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), model, make_config(), trained())


@pytest.fixture(scope="module")
def answered(model):
    predictor = Predictor(model, trained(), EvalConfig())
    return lambda path: Answer(CLASSES, predictor(path, TimelineOptions(min_score=0.0)))


def frames_of(path: Path) -> tuple[list[float], np.ndarray]:
    times, frames = zip(*timed_frames(path), strict=True)
    return list(times), np.stack(frames)


# -- the annotated video -----------------------------------------------------------------------------------------------


def write_odd(path: Path, times: list[int], codec: str = "ffv1", sound: str = "") -> Path:
    """A video of 97x61 pixels with frames at milliseconds of one's choice, and a tone."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 256, (12, 20, 3), np.uint8), (160, 96), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 97, 61, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        tone: Any = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for number, at in enumerate(times):
            picture = np.ascontiguousarray(np.roll(texture, 3 * number, axis=1)[:61, :97], np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            wave = (8000 * np.sin(np.arange(48 * times[-1]) * 0.05)).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            samples.sample_rate, samples.pts = 48000, 0
            resampler = av.AudioResampler(tone.format, "mono", 48000, tone.codec_context.frame_size or 1024)
            for part in [*resampler.resample(samples), *resampler.resample(None)]:
                container.mux(tone.encode(part))
            container.mux(tone.encode(None))
    return path


UNEVEN = [0, 40, 80, 120, 300, 340, 500, 540, 580, 620, 660, 1000]


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_an_annotated_video_keeps_size_times_and_pictures(answered, tmp_path: Path, monkeypatch, encoder: str) -> None:
    if encoder == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    path = write_odd(tmp_path / "odd.mkv", UNEVEN)
    assert annotate(path, answered(path), tmp_path / "out.mp4") == ""
    times, frames = frames_of(path)
    new_times, new_frames = frames_of(tmp_path / "out.mp4")
    np.testing.assert_allclose(np.array(new_times) - new_times[0], times, atol=1e-3)
    assert new_frames.shape == (12, 62, 98, 3), "even sizes"
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == {"libx264": "h264"}.get(encoder, encoder)
    for frame, new in zip(frames, new_frames, strict=True):
        difference = np.abs(frame.astype(int) - new[:61, :97]).mean(axis=2)
        assert difference[18:26, 60:].mean() < 20 < difference[-30:, :40].mean(), "the picture, and the panel on it"
    assert not list(tmp_path.glob(".*")), "nothing is left"


def test_the_sound_is_copied_or_named(answered, tmp_path: Path) -> None:
    for codec, suffix, missing in (("aac", ".mp4", ""), ("wavpack", ".mp4", "wavpack"), ("wavpack", ".mkv", "")):
        path = write_odd(tmp_path / f"{codec}.mkv", UNEVEN, sound=codec)
        out = tmp_path / f"{codec}{suffix}" if suffix == ".mp4" else tmp_path / "other.mkv"
        note = annotate(path, answered(path), out)
        assert note == (f"without the sound, which is {missing}: {suffix} cannot hold it" if missing else "")
        with av.open(str(out)) as container:
            assert len(container.streams.audio) == (not missing) and len(container.streams.video) == 1
            if not missing:
                heard = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
                assert heard == pytest.approx(48000, abs=3000)


def write_broadcast(path: Path, picture: float, sound: float) -> Path:
    """A video of 1.2 s whose picture and sound begin at seconds of one's choice."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        tone: Any = container.add_stream("mp2", rate=48000, layout="mono")
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * picture) + 40 * number, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152 * 25), np.int16), format="s16p", layout="mono")
        samples.sample_rate, samples.time_base = 48000, Fraction(1, 48000)
        resampler = av.AudioResampler(tone.format, "mono", 48000, tone.codec_context.frame_size or 1152)
        heard = round(48000 * sound)
        for part in [*resampler.resample(samples), *resampler.resample(None)]:
            part.pts, part.time_base, heard = heard, Fraction(1, 48000), heard + part.samples
            container.mux(tone.encode(part))
        container.mux(tone.encode(None))
    return path


def test_the_times_of_a_broadcast_count_from_its_start(answered, tmp_path: Path) -> None:
    path = write_broadcast(tmp_path / "late.ts", 3600.0, 3600.0)
    annotate(path, answered(path), tmp_path / "out.mp4")
    times, _ = frames_of(tmp_path / "out.mp4")
    assert times[0] < 0.2 and times[-1] == pytest.approx(times[0] + 29 * 0.04, abs=0.01)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert (container.duration or 0) < 2.5 * av.time_base


def test_subtitles_wait_for_a_picture_that_comes_after_the_sound(workdir: Path, answered, tmp_path: Path) -> None:
    path, out = write_broadcast(tmp_path / "late.mkv", 0.8, 0.0), tmp_path / "late.srt"
    assert call(predict, "--workdir", workdir, path, "--min-score", 0, "--srt", out) == 0
    assert out.read_text().splitlines()[1].startswith("00:00:00,8")
    annotate(path, answered(path), tmp_path / "out.mkv")
    assert frames_of(tmp_path / "out.mkv")[0][0] == pytest.approx(0.8, abs=0.05)


def test_files_beside_a_video_are_not_replaced_unless_they_are_named(workdir: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 12, 0)
    for option, name in (("srt", "a.srt"), ("annotated", "a.mp4")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(
            UserError, match=rf"--{option} .*: .*{name} exists already, beside the video, and may be you"
        ):
            call(predict, "--workdir", workdir, path, f"--{option}", tmp_path)
        assert (tmp_path / name).read_text() == "mine"
    assert call(predict, "--workdir", workdir, path, "--srt", tmp_path / "a.srt") == 0
    (tmp_path / "out").mkdir()
    for _ in range(2):
        assert call(predict, "--workdir", workdir, path, "--srt", tmp_path / "out") == 0


def test_a_turned_video_stays_upright(answered, tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", 12, 0)
    path.write_bytes(turned(path.read_bytes(), (0, 1, -1, 0)))
    _, frames = frames_of(path)
    assert frames.shape[1:3] == (64, 48)
    annotate(path, answered(path), tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[1].shape[1:3] == tuple(n + n % 2 for n in frames.shape[1:3])


def test_bars_are_as_long_as_the_scores(answered, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 20, 0)
    answer = answered(path)
    gray = np.full((480, 640, 3), 200, np.uint8)
    drawn = draw(gray, answer, 0.3)
    assert (gray == 200).all(), "a copy"
    scores = sorted(answer.prediction.timeline.at(0.3).tolist(), reverse=True)
    blue = (drawn == (0, 114, 178)).all(axis=2)
    columns = np.flatnonzero(blue.any(axis=0))
    assert len(columns) == pytest.approx(scores[0] * (384 - 24), abs=3)
    other = (drawn == (110, 118, 128)).all(axis=2)
    assert len(np.flatnonzero(other.any(axis=0))) == pytest.approx(scores[1] * (384 - 24), abs=3)


def test_frames_in_a_folder_become_a_video(workdir: Path, tmp_path: Path, capsys) -> None:
    extract(write_video(tmp_path / "a.avi", 12, 0), tmp_path / "frames", ".png")
    out, picture = tmp_path / "out.mkv", tmp_path / "out.png"
    assert call(predict, "--workdir", workdir, tmp_path / "frames", "--annotated", out, "--picture", picture) == 0
    assert len(frames_of(out)[0]) == 12 and cv2.imread(str(picture)) is not None
    assert "a timeline" not in capsys.readouterr().err


def test_the_video_itself_is_not_replaced(workdir: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12, 0)
    with pytest.raises(UserError, match=r"--annotated .*a.mp4: is the video itself, or among its frames; give another"):
        call(predict, "--workdir", workdir, path, "--annotated", path)
    extract(path, tmp_path / "frames.v1", ".png")
    before = sorted(file.name for file in (tmp_path / "frames.v1").iterdir())
    for target in ("frames.v1/frame1.png", "frames.v1"):
        with pytest.raises(
            UserError, match=r"--picture .*: is the video itself, or among its frames; give another file"
        ):
            call(predict, "--workdir", workdir, tmp_path / "frames.v1", "--picture", tmp_path / target)
    assert sorted(file.name for file in (tmp_path / "frames.v1").iterdir()) == before
    for option, suffix in (("annotated", ".mp4"), ("picture", ".png"), ("csv", ".csv"), ("srt", ".srt")):
        (tmp_path / f"folder{suffix}").mkdir()
        (tmp_path / f"folder{suffix}" / f"a{suffix}").mkdir()
        with pytest.raises(UserError, match=rf"--{option} .*{suffix}: is a folder; give the name of a file"):
            call(predict, "--workdir", workdir, path, f"--{option}", tmp_path / f"folder{suffix}")
    with pytest.raises(UserError, match=r"--annotated .*a.gif: must end in .mp4 or .mkv or .mov"):
        call(predict, "--workdir", workdir, path, "--annotated", tmp_path / "a.gif")


def test_folders_whose_names_have_a_dot_get_files_of_their_own(workdir: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        extract(write_video(tmp_path / f"{number}.avi", 12, number), tmp_path / f"take.{number}", ".png")
    (tmp_path / "out").mkdir()
    takes = tmp_path / "take.1", tmp_path / "take.2"
    assert call(predict, "--workdir", workdir, *takes, "--srt", tmp_path / "out", "--timeline") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["take.1.srt", "take.2.srt"]


def test_a_frame_that_cannot_be_drawn_is_named_and_the_rest_goes_on(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames that no clip reads."""
    extract(write_video(tmp_path / "a.avi", 40, 0), tmp_path / "frames", ".png")
    (tmp_path / "frames" / "frame12.png").write_bytes(b"junk")
    table, picture = tmp_path / "a.csv", tmp_path / "a.png"
    words = ("--workdir", workdir, tmp_path / "frames", "--every", 0.6, "--csv", table)
    assert call(predict, *words, "--annotated", tmp_path / "a.mp4", "--picture", picture) == 3
    said = capsys.readouterr().err
    assert "a.mp4: not written: " in said and "frame12.png" in said and "could not be recognized" not in said
    assert table.is_file() and not (tmp_path / "a.mp4").exists()


# -- the picture -------------------------------------------------------------------------------------------------------


def test_the_picture_shows_frames_and_curves(answered, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 40, 0)
    draw_timeline(path, answered(path), tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture is not None
    drawn = picture[..., ::-1].astype(int)
    assert drawn.shape[1] == 1254
    middle = drawn[drawn.shape[0] // 6]  # a row through the strip
    for k, number in enumerate(range(2, 40, 5)):
        frame = list(iter_frames(path))[number]
        left = round((0.75 + k * 1.30625) * 110)
        tile = drawn[14:90, left + 6 : left + 136].mean(axis=(0, 1))
        assert np.abs(tile - frame.mean(axis=(0, 1))).max() < 25
    assert middle.std() > 10
    for color in ((0, 114, 178), (213, 94, 0)):
        assert (np.abs(drawn - color).max(axis=2) < 8).sum() > 300, "a curve of each class"


def test_a_picture_needs_matplotlib_before_anything_is_scored(workdir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError):
        call(predict, "--workdir", tmp_path / "none", tmp_path / "a.avi", "--picture", tmp_path / "a.png")


# -- cameras -----------------------------------------------------------------------------------------------------------


class FakeCamera:
    """Gives the frames of a video, then numbered gray ones for ever if asked to."""

    def __init__(self, path: Path, endless: bool = False, error: Exception | None = None):
        self._container, self._endless, self._error = av.open(str(path)), endless, error
        self.streams = self._container.streams

    def decode(self, stream: Any) -> Iterator[av.VideoFrame]:
        yield from self._container.decode(stream)
        if self._error is not None:
            raise self._error
        while self._endless:
            time.sleep(0.02)
            yield av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")

    def close(self) -> None:
        self._container.close()


def test_the_newest_clip_of_a_camera(model, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 30, 0)
    pre = trained(frame_stride=2)
    with LiveClips(FakeCamera(path), pre) as live:
        while not live.ended:
            time.sleep(0.01)
        clip = live.latest()
    (expected,) = open_source(path, pre).clips(np.array([30 - 7]))
    np.testing.assert_array_equal(clip, expected)
    with LiveClips(FakeCamera(write_video(tmp_path / "b.avi", 3, 0)), pre) as live:
        while not live.ended:
            time.sleep(0.01)
        assert live.latest() is None, "fewer frames than a clip"
    with LiveClips(FakeCamera(path, error=OSError(19, "No such device")), pre) as live:
        while not live.ended:
            time.sleep(0.01)
        with pytest.raises(VideoError, match="the camera failed: No such device"):
            live.latest()


@pytest.mark.slow
def test_a_camera_is_watched_until_ctrl_c(workdir: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    path = write_video(tmp_path / "a.avi", 30, 0)
    monkeypatch.setattr(predict_camera, "open_camera", lambda name: FakeCamera(path, endless=True))
    printed, said = predict_camera.print_moment, 0

    def interrupt_second(*args: Any) -> None:
        nonlocal said
        printed(*args)
        said += 1
        if said == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(predict_camera, "print_moment", interrupt_second)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born ignoring it
    try:
        assert call(predict, "--workdir", workdir, "--camera", 0, "--top", 1) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("r2d_10, 2 classes") and len(lines) == 3
    assert all(re.fullmatch(r" +0:\d\d\.0  (Jump|Walk) \d+\.\d %", line) for line in lines[1:])
    assert call(predict, "--workdir", workdir, "--camera", 0, "--seconds", 2, "--smooth", 2, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 1 <= len(rows) <= 2 and rows[-1]["camera"] == "0"
    assert sum(entry["probability"] for entry in rows[-1]["predictions"]) == pytest.approx(1)


class Multipart(http.server.BaseHTTPRequestHandler):
    """A network camera that sends JPEG pictures without end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
        self.end_headers()
        noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
        picture = cv2.imencode(".jpg", cv2.resize(noise, (64, 48)))[1].tobytes()
        try:
            while True:
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(0.005)
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
def test_a_network_camera(workdir: Path, capsys) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Multipart) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        assert call(predict, "--workdir", workdir, "--camera", address, "--seconds", 3, "--json") == 0
        server.shutdown()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows and rows[0]["camera"] == address


def test_a_camera_that_is_not_there(workdir: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(VideoError, match=r"--camera 77: there is no /dev/video77; "):
        camera.open_camera("77")
    file = tmp_path / "video0"
    file.write_bytes(b"x" * 100)
    with pytest.raises(VideoError, match=rf"--camera {file}: {file} (is no camera|cannot be opened)"):
        camera.open_camera(str(file))
    with pytest.raises(VideoError, match=r"--camera rtsp://127.0.0.1:1/a: cannot be opened \(Connection refused\)"):
        camera.open_camera("rtsp://127.0.0.1:1/a")

    def no_device(*args: object, **kwargs: object) -> None:
        raise ValueError("no container format 'v4l2'")

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(camera.av, "open", no_device)
    with pytest.raises(VideoError, match=r"this PyAV cannot read cameras, because its FFmpeg lacks v4l2; install"):
        camera.open_camera(str(file))
    monkeypatch.setattr(camera.av, "open", denied)
    with pytest.raises(VideoError, match=r"cannot be opened \(Permission denied\): add yourself to its group"):
        camera.open_camera(str(file))


def test_options_that_a_camera_does_not_have(workdir: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--camera", 0, tmp_path), "videos: not with --camera"),
        (("--camera", 0, "--csv", "a.csv"), "--csv: not with --camera"),
        (("--camera", 0, "--second", tmp_path), "--second: not with --camera"),
        (("--camera", 0, "--seconds", 0), "--seconds 0: must be above 0"),
        (("--seconds", 3), "--seconds: is for --camera; name one, or drop it"),
        ((), "no video is named: give files, folders, patterns or addresses, or --camera 0"),
    ):
        with pytest.raises(UserError, match=message):
            call(predict, "--workdir", workdir, *options)


def test_ticks_leave_out_what_was_missed(monkeypatch) -> None:
    now = [10.0]
    monkeypatch.setattr(camera.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(camera.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    times = []
    for at in camera.ticks(6):
        times.append(at)
        now[0] += 2.5 if at == 2 else 0.1
    assert times == [1, 2, 5, 6]
