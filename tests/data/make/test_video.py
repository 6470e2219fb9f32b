"""Decoding of real and made video files."""

import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition

from r23d_jax.data.make.video import VideoError, iter_frames, resize_short_side
from tests.hostile.bad_files.corpus import add_video_stream, turned, video


def pattern(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A frame whose colors tell channels apart, with a white top left corner and a bar that moves."""
    image = np.full((height, width, 3), (200, 40, 90), np.uint8)
    image[: height // 2, : width // 3] = 255
    image[-16:, 4 * number : 4 * number + 16] = 0
    return image


def write_video(path: Path, num_frames: int = 10, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, codec, height=64, width=96, options={"crf": "4"})
        for i in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(i), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read(path: Path, short_side: int = 0) -> np.ndarray:
    return np.stack(list(iter_frames(path, short_side)))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.mov", "file with spaces, ünïcode.mp4", "concat:a.mp4"])
def test_round_trip(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "made.mkv").rename(name) if ":" in name else write_video(tmp_path / name)
    frames = read(Path(name))
    assert (frames.shape, frames.dtype) == ((10, 64, 96, 3), np.uint8)
    want = np.stack([pattern(i) for i in range(10)]).astype(int)
    # Chroma is stored at half resolution, so compare away from edges, and allow the encoder's rounding.
    inside = np.zeros((64, 96), bool)
    inside[4:28, 4:28] = inside[4:44, 36:92] = True
    assert np.abs(frames.astype(int) - want)[:, inside].max() <= 6
    assert [int(frame[56].mean(-1).argmin()) // 4 for frame in frames] == pytest.approx(list(range(10)), abs=1.5)


def test_channel_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    rgb, bgr = next(iter_frames(path)), next(iter_frames(path, channels="bgr"))
    np.testing.assert_array_equal(rgb[..., ::-1], bgr)
    assert rgb.flags.c_contiguous


@pytest.mark.parametrize(
    ("matrix", "turns", "mirrored"),
    [
        ((0, 1, -1, 0), -1, False),
        ((0, -1, 1, 0), 1, False),
        ((-1, 0, 0, -1), 2, False),
        ((1, 0, 0, 1), 0, False),
        ((-1, 0, 0, 1), 0, True),
        ((1, 0, 0, -1), 2, True),
        ((0, 1, 1, 0), 1, True),
        ((0, -1, -1, 0), -1, True),
    ],
)
def test_orientation_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int, mirrored: bool) -> None:
    path = write_video(tmp_path / "a.mp4")
    want = read(path)[:, :, :: -1 if mirrored else 1]
    path.write_bytes(turned(path.read_bytes(), matrix))
    np.testing.assert_array_equal(read(path), np.rot90(want, turns, axes=(1, 2)))


def test_an_orientation_in_the_first_frame_is_that_of_the_video(tmp_path: Path) -> None:
    """H.264 repeats it in key frames only."""
    upright, path = write_video(tmp_path / "upright.mp4"), tmp_path / "a.mp4"
    with av.open(str(upright)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        rotate = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", source.streams.video[0])
        for packet in source.demux(video=0):
            for turned_packet in rotate.filter(packet) if packet.size else ():
                turned_packet.stream = stream
                container.mux(turned_packet)
    with av.open(str(path)) as container:
        assert [frame.rotation for frame in container.decode(video=0)] == [90] + [0] * 9
    np.testing.assert_array_equal(read(path), np.rot90(read(upright), 1, axes=(1, 2)))


def test_the_default_stream_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        preview = add_video_stream(container, "libx264", height=32, width=48)
        default = add_video_stream(container, "libx264", height=64, width=96)
        preview.disposition, default.disposition = Disposition(0), Disposition.default
        for stream, num_frames in ((preview, 2), (default, 10)):
            for i in range(num_frames):
                image = pattern(i, stream.height, stream.width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    assert read(path).shape == (10, 64, 96, 3)


def test_an_edit_list_hides_frames_without_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=40)
    whole, content = read(path), bytearray(path.read_bytes())
    start = content.index(b"elst") + 12  # ISO 14496-12 section 8.6.6: duration in ms, then start in units of the track
    duration, first = struct.unpack_from(">Ii", content, start)
    assert duration == 1600
    struct.pack_into(">Ii", content, start, 400, first + 26 * 512)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path), whole[26:36])


def test_an_empty_packet_shows_the_picture_for_longer(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    content = bytearray(video("mp4", "mpeg4", 8))
    sizes = content.index(b"stsz") + 16  # one for each packet
    struct.pack_into(">I", content, sizes + 7 * 4, 0)
    path.write_bytes(content)
    assert len(read(path)) == 7


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
def test_a_file_that_ends_early_is_damaged_in_any_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"} if suffix == ".mp4" else {}) as container:
        stream = add_video_stream(container, "mpeg4", height=64, width=96)
        for i in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(i % 10), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert len(read(path)) == 100
    path.write_bytes(content[: len(content) * 3 // 8])
    with pytest.raises(VideoError, match=r"damaged \(the video ends after [01]\.\d of 4\.0 seconds\)"):
        read(path)


def test_a_track_that_is_shorter_than_the_sound_is_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, "mpeg4", height=64, width=96)
        sound = container.add_stream("aac", rate=16000)
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(i), format="rgb24")))
        for _ in range(100):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(sound.encode(samples))
        for each in (stream, sound):
            container.mux(each.encode(None))
    with av.open(str(path)) as container:
        assert container.duration and container.duration > 6 * av.time_base
    assert len(read(path)) == 10


@pytest.mark.parametrize(
    ("shape", "short_side", "want"),
    [
        ((240, 320), 128, (128, 171)),
        ((320, 240), 128, (171, 128)),
        ((240, 320), 0, (240, 320)),
        ((240, 320), 300, (240, 320)),  # never enlarged
        ((2, 4000), 1, (1, 2000)),
    ],
)
def test_short_side(shape: tuple[int, int], short_side: int, want: tuple[int, int]) -> None:
    assert resize_short_side(np.zeros((*shape, 3), np.uint8), short_side).shape == (*want, 3)


def test_reducing_averages_areas(tmp_path: Path) -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(254)
    reduced = resize_short_side(np.stack([checkers] * 3, -1).astype(np.uint8), 32)
    assert (reduced == 127).all()  # without averaging this would be 0 or 254: aliasing
    path = write_video(tmp_path / "a.mp4")
    np.testing.assert_array_equal(
        read(path, 32),
        np.stack([cv2.resize(f, (48, 32), interpolation=cv2.INTER_AREA) for f in read(path)]),
    )


def test_metadata_that_is_not_utf_8(tmp_path: Path) -> None:
    """PyAV 18 is asked to bear it, PyAV 19 does by itself."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "hello"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(0), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.count(b"hello") == 1
    path.write_bytes(content.replace(b"hello", b"he\xff\xfeo"))
    assert len(read(path)) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    """Files that are no video are in tests/hostile/bad_files."""
    for path, message in [
        (tmp_path / "nothing.avi", r"nothing\.avi: cannot be read \(No such file or directory\)"),
        (tmp_path / "zero\0byte.avi", r"cannot be read \(.*embedded null (byte|character)"),
        (tmp_path, r": is a folder, not a video"),
    ]:
        with pytest.raises(VideoError, match=message):
            read(path)


def test_a_header_that_claims_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr("r23d_jax.data.make.video.MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(VideoError, match=r"a\.mp4: claims frames of 96x64 pixels; at most 6143 pixels are decoded"):
        read(path)


@pytest.mark.real_clips
def test_real_clips(real_data: Path) -> None:
    odd = real_data / "odd_videos"
    avi, mp4 = read(odd / "v_Diving_g01_c01.avi"), read(odd / "v_Diving_g01_c01.mp4")
    assert avi.shape == mp4.shape == (259, 240, 320, 3)
    assert np.abs(avi[::20].astype(int) - mp4[::20]).mean() < 6  # the same clip, encoded twice
    bare = odd / "v_CliffDiving_g03_c01.mp4"  # a bare MPEG-4 stream, whatever its name says
    assert read(bare).shape == (92, 256, 340, 3)
    clip = sorted((real_data / "ucf5/UCF-101/HandstandPushups").iterdir())[0]
    assert read(clip, 128).shape[1:] == (128, 171, 3)
