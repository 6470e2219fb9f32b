"""Windows of frames of every kind, decoded and resized; and reading parts of shards."""

import dataclasses
import io
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from r23d_jax.data.find.frames import FrameFiles, PackedFrames
from r23d_jax.data.find.picture_header import MAX_PIXELS
from r23d_jax.data.read import decode
from r23d_jax.data.read.decode import decode_clip, decode_windows, frame_reader, read_clip
from tests.data.find.frame_sets import as_value, encode, pack, picture, write_videos
from tests.hostile.bad_files.corpus import HUGE, png_bomb, with_jpeg_size


def _photo(height: int = 60, width: int = 80) -> np.ndarray:
    """(height, width, 3) uint8, smooth, with a different value everywhere."""
    ys, xs = np.mgrid[:height, :width]
    red, green, blue = 40 + 2 * xs, 30 + 3 * ys, 128 + 60 * np.sin(xs / 9) * np.cos(ys / 7)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def _pillow(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _decode(contents: list[bytes], window: list[int], size: int, antialias: bool = False) -> np.ndarray:
    run = tf.function(lambda c: decode_clip(tf.unstack(c), lambda h, w: tf.constant(window), size, antialias))
    return run(tf.constant(contents)).numpy()


def test_a_jpeg_window_without_resizing_is_what_pillow_gives() -> None:
    content = encode(_photo())
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    got = _decode([content, content], [16, 16, 32, 32], 32)
    assert got.shape == (2, 32, 32, 3) and got.dtype == np.uint8
    # The outermost pixels see other neighbours when chroma is enlarged; the rest is equal to the bit.
    np.testing.assert_array_equal(got[0, 1:-1, 1:-1], whole[17:47, 17:47])
    np.testing.assert_array_equal(got[0], got[1])


def test_resizing_is_bilinear_with_half_pixel_centres() -> None:
    """On a ramp, bilinear resizing gives the ramp at the new pixels' centres."""
    ys, xs = np.mgrid[:40, :40]
    ramp = np.stack([4 * xs, 4 * ys, 0 * xs], -1).astype(np.uint8)
    got = _decode([encode(ramp, ".png")], [4, 8, 20, 30], 10)[0]
    centers_x, centers_y = 8 + (np.arange(10) + 0.5) * 3 - 0.5, 4 + (np.arange(10) + 0.5) * 2 - 0.5
    np.testing.assert_allclose(got[..., 0], np.broadcast_to(4 * centers_x, (10, 10)), atol=0.5)
    np.testing.assert_allclose(got[..., 1], np.broadcast_to(4 * centers_y[:, None], (10, 10)), atol=0.5)
    enlarged = _decode([encode(ramp, ".png")], [0, 0, 40, 40], 80)[0]
    np.testing.assert_allclose(
        enlarged[1:-1, 1:-1, 0], np.broadcast_to((np.arange(80) * 2 - 1)[1:-1], (78, 78)), atol=1
    )


def test_antialias_removes_what_the_smaller_picture_cannot_show() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    content = [encode(stripes, ".png")]
    smooth = _decode(content, [0, 0, 64, 64], 13, antialias=True)
    plain = _decode(content, [0, 0, 64, 64], 13, antialias=False)
    assert np.abs(smooth - 127.5)[:, 1:-1, 1:-1].max() < 16
    assert np.abs(plain - 127.5).max() > 100


def test_dct_scaling_decodes_what_libjpeg_gives_at_a_fraction_of_the_size() -> None:
    """And takes the smallest size that leaves enough pixels. Pillow's `draft` is libjpeg's own scaling."""
    ys, xs = np.mgrid[:240, :320]
    content = encode(np.stack([xs * 2 // 3, ys, 255 - xs * 2 // 3], -1).astype(np.uint8))

    def decoded(window: list[int], fewest: float) -> np.ndarray:
        return decode_windows([tf.constant(content)], lambda h, w: tf.constant(window), False, fewest).numpy()[0]

    for ratio, fewest in ((1, 51), (2, 50), (2, 26), (4, 25), (8, 12)):
        file = Image.open(io.BytesIO(content))
        file.draft("RGB", (320 // ratio, 240 // ratio))
        whole = np.asarray(file)
        got = decoded([40, 80, 100, 120], fewest)
        top, left, height, width = 40 // ratio, 80 // ratio, 100 // ratio, 120 // ratio
        assert got.shape == (height, width, 3)
        inner = whole[top + 1 : top + height - 1, left + 1 : left + width - 1]
        np.testing.assert_array_equal(got[1:-1, 1:-1], inner)
    assert decoded([40, 80, 100, 120], math.inf).shape == (100, 120, 3)


@pytest.mark.parametrize("kind", ["gray", "cmyk", "progressive", "png", "png16", "gif", "webp", "bmp"])
def test_other_pictures_are_decoded_too(kind: str) -> None:
    photo = _photo()
    if kind == "gray":
        photo = np.repeat(photo[..., :1], 3, -1)
    content = {
        "gray": lambda: _pillow(photo, "JPEG", "L", quality=98),
        "cmyk": lambda: _pillow(photo, "JPEG", "CMYK", quality=98),
        "progressive": lambda: _pillow(photo, "JPEG", progressive=True, quality=98),
        "png": lambda: _pillow(photo, "PNG", "RGBA"),
        "png16": lambda: encode(photo.astype(np.uint16) * 257, ".png"),
        "gif": lambda: _pillow(photo, "GIF", "P"),
        "webp": lambda: _pillow(photo, "WEBP", lossless=True),
        "bmp": lambda: _pillow(photo, "BMP"),
    }[kind]()
    got = _decode([content] * 2, [10, 20, 40, 40], 40)
    assert got.shape == (2, 40, 40, 3)
    difference = np.abs(got[0].astype(int) - photo[10:50, 20:60])
    typical, worst = (24, 60) if kind == "gif" else (8, 25)  # a GIF has 256 colors
    assert np.median(difference) <= typical and difference.max() < worst
    mixed = _decode([encode(photo), content], [10, 20, 40, 40], 40)  # one clip may hold both kinds
    assert np.median(np.abs(mixed[0].astype(int) - mixed[1])) <= typical


def test_damage_below_the_window_does_no_harm() -> None:
    content = encode(_photo(240, 320))
    half = content[: len(content) * 6 // 10]
    np.testing.assert_array_equal(_decode([half], [0, 0, 64, 64], 64), _decode([content], [0, 0, 64, 64], 64))


@pytest.mark.parametrize(
    "contents",
    [
        [b""],
        [b"hello, this is no picture"],
        [encode(picture(0, 0))[:200]],
        [encode(picture(0, 0), ".png")[:60]],
        [encode(picture(0, 0)), encode(picture(0, 0, 20, 20))],
        [encode(picture(0, 0), ".png"), encode(picture(0, 0, 20, 20), ".png")],
        [with_jpeg_size(encode(picture(0, 0)), HUGE, HUGE)],
        [png_bomb()],
    ],
    ids=["empty", "text", "short_jpeg", "short_png", "two_sizes", "two_sizes_png", "bomb", "bomb_png"],
)
def test_what_is_no_frame_is_an_error(contents: list[bytes]) -> None:
    assert HUGE * HUGE > MAX_PIXELS
    with pytest.raises(tf.errors.InvalidArgumentError):
        _decode(contents, [0, 0, 16, 16], 16)


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(frames: FrameFiles | PackedFrames, video: int, numbers: list[int]) -> list[bytes]:
    reader = frame_reader(frames)
    run = tf.function(lambda v, n: tf.stack(read_clip(reader, v, tf.ensure_shape(n, len(numbers)))))
    return run(tf.constant(video), tf.constant(numbers)).numpy().tolist()


@pytest.mark.parametrize(
    ("name", "prefix", "suffix", "first", "step", "digits"),
    [
        ("video", "image_", ".jpg", 1, 1, 5),
        ("video", "", ".jpg", 0, 1, 3),
        ("video", "frame", ".png", 1, 1, 6),
        ("two words ünd", "frame_", ".jpeg", 7, 5, 1),
        ("flat", "v_Diving_g01_c01-", ".jpg", 998, 1, 4),
        ("long", "a", ".jpg", 99999, 1, 3),
    ],
)
def test_file_names_are_built_in_the_graph(
    tmp_path: Path, name: str, prefix: str, suffix: str, first: int, step: int, digits: int
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    columns = [np.array([c]) for c in (str(folder), prefix, suffix)]
    numbers = [np.array([first]), np.array([step]), np.array([digits], np.int32)]
    frames = FrameFiles(*columns, *numbers)
    for frame in range(12):
        Path(frames.path(0, frame)).write_bytes(f"frame {frame}".encode())
    assert _read(frames, 0, [0, 3, 11, 3]) == [b"frame 0", b"frame 3", b"frame 11", b"frame 3"]
    with pytest.raises(tf.errors.NotFoundError):
        _read(frames, 0, [12])


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/1.jpg", "wb") as file:
        file.write(b"found")
    one = np.array([1])
    frames = FrameFiles(np.array([os.fsdecode(folder)]), np.array([""]), np.array([".jpg"]), one, one, one)
    assert _read(frames, 0, [0]) == [b"found"]


def test_shards_give_the_bytes_of_the_frames(tmp_path: Path) -> None:
    index = write_videos(tmp_path / "files", [3, 30, 4])
    packed = pack(index, tmp_path / "packed").frames
    assert isinstance(index.frames, FrameFiles) and isinstance(packed, PackedFrames)
    clips = [(0, [0, 1, 2]), (1, [5, 6, 7, 8]), (2, [3, 0, 1, 2]), (1, [29, 0, 1]), (1, [0, 29]), (1, [4])]
    for video, numbers in clips:  # in one piece and, where the gaps are wide, frame by frame
        assert _read(packed, video, numbers) == _read(index.frames, video, numbers)


def test_of_a_shard_that_is_cut_short_or_gone_only_what_is_missing_is_empty(tmp_path: Path) -> None:
    frames = pack(write_videos(tmp_path / "files", [4]), tmp_path / "packed").frames
    assert isinstance(frames, PackedFrames)
    content = Path(frames.shards[0]).read_bytes()
    Path(frames.shards[0]).write_bytes(content[: int(frames.spans(0, np.array([2]))[0][0])])
    reader = frame_reader(frames)
    numbers = tf.constant([[0, 1], [1, 2], [3, 2], [1, 0]])
    fetched = reader.fetch({"video": tf.zeros(4, tf.int32), "frames": numbers})
    first, second = _read(frames, 0, [0, 1])
    assert first.startswith(b"\xff\xd8\xff")
    clips = [reader.open({name: value[row] for name, value in fetched.items()}) for row in (0, 3)]
    assert [[picture.numpy() for picture in clip] for clip in clips] == [[first, second], [second, first]]
    assert fetched["content"][1:3].numpy().tolist() == [b"", b""]
    with pytest.raises(tf.errors.OpError):
        _read(frames, 0, [1, 2])
    gone = dataclasses.replace(frames, shards=(str(tmp_path / "gone"), ""))
    assert _read(gone, 0, [0]) == [b""]


def test_what_was_read_is_freed(tmp_path: Path) -> None:
    path, size = tmp_path / "shard", 1 << 20
    path.write_bytes(as_value(bytes(size)))
    zero = np.zeros(1, np.int64)
    size_of = np.array([size], np.uint32)
    frames = PackedFrames((str(path),), zero.astype(np.int32), zero, zero, size_of, np.array(["v"]))
    reader = frame_reader(frames)

    @tf.function
    def length(video: tf.Tensor) -> tf.Tensor:
        return tf.strings.length(read_clip(reader, video, tf.constant([0]))[0])

    def held() -> int:
        """MiB that Python holds."""
        return tracemalloc.get_traced_memory()[0] >> 20

    tracemalloc.start()
    try:
        assert length(tf.constant(0)) == size
        before = held()
        for _ in range(20):
            length(tf.constant(0))
        assert held() - before < 5
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_only_so_many_shards_stay_open_and_none_without_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_shards() -> list[str]:
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if os.path.islink(link)]
        return sorted(target for target in targets if target.startswith(str(tmp_path)))

    paths = tuple(str(tmp_path / f"shard{number}") for number in range(4))
    for path in paths:
        Path(path).write_bytes(path.encode() + b"\0")
    monkeypatch.setattr(decode, "_MOST_OPEN", 2)
    shards = decode._Shards(paths)
    for _ in range(2):
        for number, path in enumerate(paths):
            end = path[-1:].encode() + b"\0"
            assert shards.read(number, [(len(path) - 1, 2), (0, 3)]) == end + path[:3].encode()
    assert open_shards() == list(paths[:2])
    del shards
    assert not open_shards()
