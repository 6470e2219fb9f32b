"""Makes bad files: pictures, videos and weights with wrong content, and odd names and places on disk.

Each entry of `PICTURES`, `VIDEOS` and `WEIGHTS` is a `BadFile`: how to make its content, and the message a user must
see. A few are odd but valid; they have no reason and must work.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image

from r23d_jax.data.find.tfrecord import masked_crc32c

HUGE = 20_000  # pixels, each side of a decompression bomb


@dataclasses.dataclass(frozen=True)
class BadFile:
    """One kind of file that a program may meet.

    Attributes:
      what: description, as in docs/robustness.md.
      suffix: suffix of the file name.
      make: returns the content.
      reason: regular expression that the message about it matches; "" for an odd file that must work.
    """

    what: str
    suffix: str
    make: Callable[[], bytes]
    reason: str = ""

    def write(self, folder: Path, stem: str = "bad") -> Path:
        """Writes it as `folder/stem.suffix`."""
        path = folder / f"{stem}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.make())
        return path


def flip_bits(content: bytes, count: int, seed: int = 0, start: int = 0) -> bytes:
    """Returns the content with `count` random bits flipped from byte `start` on."""
    flipped = bytearray(content)
    random = np.random.default_rng(seed)
    for place in random.integers(start, len(content), count).tolist():
        flipped[place] ^= 1 << int(random.integers(8))
    return bytes(flipped)


# -- places ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pipe(path: Path, patience: float = 20) -> Iterator[Path]:
    """Makes a named pipe; readers are released after `patience` seconds, so that a test fails instead of hanging."""
    os.mkfifo(path)
    stop = threading.Event()

    def release() -> None:
        while not stop.wait(patience):
            with contextlib.suppress(OSError):  # nobody is waiting
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def forbidden(*paths: Path) -> Iterator[None]:
    """Makes files and folders unreadable for a while; skips the test if this user can read everything (root)."""
    modes = [path.stat().st_mode for path in paths]
    for path in reversed(paths):
        path.chmod(0)
    try:
        if any(os.access(path, os.R_OK) for path in paths):
            pytest.skip("this user may read everything")
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


# -- pictures ----------------------------------------------------------------------------------------------------------


def pixels(height: int = 48, width: int = 64, shift: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth."""
    ys, xs = np.mgrid[:height, :width]
    return np.stack([xs * 3 + shift, ys * 4, 128 + 60 * np.sin((xs + shift) / 9)], -1).round().astype(np.uint8)


def picture(kind: str = "JPEG", mode: str = "RGB", image: np.ndarray | None = None, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    file = io.BytesIO()
    Image.fromarray(pixels() if image is None else image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_jpeg_size(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    start = content.index(b"\xff\xc0")
    return content[: start + 5] + struct.pack(">HH", height, width) + content[start + 9 :]


def png(height: int, width: int, rows: bytes, bits: int = 1) -> bytes:
    """A gray PNG with the given rows (a filter byte, then pixels, each); rows may be missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@functools.cache
def png_bomb() -> bytes:
    """A whole PNG of 20,000 x 20,000 pixels in 50 kB: 1.2 GB once it is decoded as RGB."""
    return png(HUGE, HUGE, bytes(HUGE * (1 + HUGE // 8)))


@functools.cache
def large_png() -> bytes:
    """A whole PNG of 12,000 x 12,000 pixels in 140 kB, which ffmpeg by itself would decode: 144 MB."""
    return png(12_000, 12_000, bytes(12_000 * 12_001), bits=8)


@functools.cache
def gif(frames: int = 3, height: int = 48, width: int = 64) -> bytes:
    """An animated GIF; all frames but the first take little space in the file."""
    first, *rest = [Image.new("P", (width, height), k % 2) for k in range(frames)]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, optimize=False)
    return file.getvalue()


def gif_bomb() -> bytes:
    """A GIF whose screen is small, and whose one frame claims 20,000 x 20,000 pixels."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    return screen + b"," + struct.pack("<HHHHB", 0, 0, HUGE, HUGE, 0) + b"\2\2\x44\1\0;"


def webp_bomb() -> bytes:
    """A WebP that claims the largest size there is, 16,384 x 16,384 pixels."""
    body = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(16)
    return b"RIFF" + struct.pack("<I", 12 + len(body) + 1) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0"


def sixteen_bit_png() -> bytes:
    return cv2.imencode(".png", pixels().astype(np.uint16) * 257)[1].tobytes()


PICTURES = {
    "zero_byte": BadFile("an empty file", ".jpg", lambda: b"", r"empty( file| frame)? \(0 bytes\)"),
    "text": BadFile(
        "text called .jpg", ".jpg", lambda: b"hello, world\n" * 9, r"not a picture \(it begins with b'hello, "
    ),
    "zeros": BadFile("zeros, as a full disk leaves", ".jpg", lambda: bytes(4096), r"not a picture \(it begins with b'"),
    "truncated": BadFile("a JPEG cut short", ".jpg", lambda: picture()[:300], r"truncated JPEG"),
    "truncated_png": BadFile("a PNG cut short", ".png", lambda: picture("PNG")[:150], r"damaged picture"),
    "two_bytes": BadFile("the first two bytes of a JPEG", ".jpg", lambda: picture()[:2], r"truncated JPEG"),
    "flipped_bits": BadFile(
        "a JPEG with flipped bits in its tables",
        ".jpg",
        lambda: picture().replace(b"\xff\xdb", b"\xff\1"),
        r"damaged JPEG",
    ),
    "no_end": BadFile(
        "a JPEG's beginning, then zeros", ".jpg", lambda: b"\xff\xd8\xff" + bytes(600), r"truncated JPEG"
    ),
    "jpeg_bomb": BadFile(
        "a JPEG that claims 20,000 x 20,000 pixels",
        ".jpg",
        lambda: with_jpeg_size(picture(), HUGE, HUGE),
        r"20000x20000 pixels, more than the 67108864 that are decoded",
    ),
    "png_bomb": BadFile(
        "a PNG of 20,000 x 20,000 pixels in 50 kB", ".png", png_bomb, r"20000x20000 pixels, more than the 67108864"
    ),
    "png_bomb_called_jpg": BadFile(
        "the same called .jpg", ".jpg", png_bomb, r"20000x20000 pixels, more than the 67108864"
    ),
    "gif_bomb": BadFile(
        "a GIF whose one frame is larger than its screen", ".jpg", gif_bomb, r"8x50000000 pixels, more"
    ),
    "gif_frames_bomb": BadFile(
        "a GIF of 90 megapixels over all its frames",
        ".jpg",
        lambda: gif(40, 1500, 1500),
        r"1500x60000 pixels, more than",
    ),
    "webp_bomb": BadFile(
        "a WebP that claims 16,384 x 16,384 pixels", ".jpg", webp_bomb, r"16384x16384 pixels, more than"
    ),
    "other_size": BadFile(
        "a frame of another size",
        ".jpg",
        lambda: picture(image=pixels(40, 64)),
        r"64x40 pixels, where the video began with",
    ),
    "one_pixel": BadFile(
        "one frame of 1x1", ".jpg", lambda: picture(image=pixels(1, 1)), r"1x1 pixels, where the video began with 64x48"
    ),
    "png_called_jpg": BadFile("a PNG called .jpg", ".jpg", lambda: picture("PNG")),
    "jpeg_called_png": BadFile("a JPEG called .png", ".png", picture),
    "grayscale": BadFile("a gray JPEG", ".jpg", lambda: picture(mode="L")),
    "cmyk": BadFile("a CMYK JPEG", ".jpg", lambda: picture(mode="CMYK")),
    "progressive": BadFile("a progressive JPEG", ".jpg", lambda: picture(progressive=True)),
    "16_bit": BadFile("a 16-bit PNG", ".png", sixteen_bit_png),
    "transparent": BadFile("a PNG with transparency", ".png", lambda: picture("PNG", "RGBA")),
    "animated_gif": BadFile("an animated GIF called .jpg (its first frame counts)", ".jpg", gif),
    "bytes_behind": BadFile("a JPEG with other bytes behind its end", ".jpg", lambda: picture() + bytes(1000)),
}


# -- videos ------------------------------------------------------------------------------------------------------------


def add_video_stream(
    container: OutputContainer, codec: str, *, height: int, width: int, options: dict[str, str] | None = None
) -> VideoStream:
    """A new stream of 25 frames a second, in the pixel format that the codec takes."""
    stream = cast(VideoStream, container.add_stream(codec, rate=25, options=options))
    stream.width, stream.height = width, height
    stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
    return stream


def video(
    form: str = "mp4",
    codec: str = "libx264",
    num_frames: int = 8,
    *,
    height: int = 48,
    width: int = 64,
    times: list[int] | None = None,
) -> bytes:
    """A video in memory; `times` are when its frames are shown, in milliseconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = add_video_stream(container, codec, height=height, width=width)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(pixels(height, width, 2 * number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def sound(form: str = "mp4", codec: str = "aac") -> bytes:
    """A file without a video stream."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = cast(AudioStream, container.add_stream(codec, rate=16000))
        kind = {"aac": ("fltp", np.float32), "pcm_s16le": ("s16", np.int16)}[codec]
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), kind[1]), format=kind[0], layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def turned(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 with a display matrix (a, b, c, d) in its track header, ISO 14496-12 section 8.3.2."""
    a, b, c, d = (value << 16 for value in matrix)
    start = content.index(b"tkhd") + 44
    return content[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[start + 36 :]


def video_bomb(form: str, codec: str, bomb: bytes) -> bytes:
    """A video whose header names a small size, and whose frames are pictures of 20,000 x 20,000 pixels."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = add_video_stream(container, codec, height=48, width=64)
        for number in range(4):
            packet = av.Packet(bomb)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            container.mux(packet)
    return file.getvalue()


def avi_claims(content: bytes, height: int, width: int) -> bytes:
    """An AVI whose headers claim another size of frames."""
    start = content.index(b"strf") + 8  # BITMAPINFOHEADER
    return content[: start + 4] + struct.pack("<II", width, height) + content[start + 12 :]


def avi_without_rate(content: bytes) -> bytes:
    """An AVI whose headers give 0/0 frames a second."""
    stream, main = content.index(b"strh") + 8 + 20, content.index(b"avih") + 8
    content = content[:stream] + bytes(8) + content[stream + 8 :]
    return content[:main] + bytes(4) + content[main + 4 :]


VIDEOS = {
    "zero_byte": BadFile("an empty file", ".avi", lambda: b"", r"is empty \(0 bytes\)"),
    "text": BadFile("text called .avi", ".avi", lambda: b"This is no video.\n" * 99, r"not a readable video \(Invalid"),
    "random": BadFile(
        "random bytes", ".mkv", lambda: np.random.default_rng(0).bytes(20_000), r"not a readable video \(Invalid data"
    ),
    "truncated_mp4": BadFile("an MP4 cut short", ".mp4", lambda: video()[:1500], r"not a readable video \("),
    "truncated_avi": BadFile(
        "an AVI cut in half",
        ".avi",
        lambda: (whole := video("avi", "mpeg4", 200))[: len(whole) // 2],
        r"damaged \((the video ends after \d\.\d of 8\.0 seconds|Invalid)",
    ),
    "header_only": BadFile(
        "the first bytes of an AVI", ".avi", lambda: video("avi", "mpeg4")[:400], r"not a readable video \(Invalid data"
    ),
    "no_frames": BadFile(
        "an AVI cut before its frames",
        ".avi",
        lambda: video("avi", "mpeg4")[:5700],
        r"not a readable video|damaged|no frame",
    ),
    "playlist": BadFile(
        "a playlist called .mp4",
        ".mp4",
        lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        r"not a readable video \(Invalid data",
    ),
    "sound": BadFile("a sound file called .avi", ".avi", lambda: sound("wav", "pcm_s16le"), r"has no video stream"),
    "audio_only": BadFile("an MP4 with a sound track alone", ".mp4", sound, r"has no video stream"),
    "picture": BadFile("a PNG called .avi", ".avi", lambda: picture("PNG"), r"not a readable video \(Invalid"),
    "claims_huge": BadFile(
        "an AVI whose header claims 20,000 x 20,000 pixels",
        ".avi",
        lambda: avi_claims(video("avi", "rawvideo"), HUGE, HUGE),
        r"damaged \(Invalid data|claims frames of 20000x20000 pixels",
    ),
    "jpeg_bomb": BadFile(
        "an AVI of JPEGs that claim 20,000 x 20,000 pixels",
        ".avi",
        lambda: video_bomb("avi", "mjpeg", with_jpeg_size(picture(), HUGE, HUGE)),
        r"damaged \(Invalid",
    ),
    "png_bomb": BadFile(
        "an AVI of PNGs of 12,000 x 12,000 pixels",
        ".avi",
        lambda: video_bomb("avi", "png", large_png()),
        r"perhaps frames of more than 67108864 pixels, the most that are decoded",
    ),
    "no_rate": BadFile(
        "an AVI that names 0/0 frames a second", ".avi", lambda: avi_without_rate(video("avi", "mpeg4"))
    ),
    "bare_stream": BadFile("a bare MPEG-4 stream called .mp4", ".mp4", lambda: video("m4v", "mpeg4")),
    "variable_rate": BadFile(
        "a variable frame rate", ".mkv", lambda: video("matroska", times=[0, 40, 50, 400, 410, 2000, 2001, 9000])
    ),
    "rotated": BadFile("a display matrix that turns the picture", ".mp4", lambda: turned(video(), (0, 1, -1, 0))),
    "one_frame": BadFile("a video of one frame", ".avi", lambda: video("avi", "mpeg4", 1)),
    "one_pixel": BadFile("a video of 1x1 pixels", ".avi", lambda: video("avi", "png", height=1, width=1)),
}


# -- records -----------------------------------------------------------------------------------------------------------


def framed(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protocol buffer with the given (number, bytes or integer) fields."""

    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])

    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )


def example(frames: list[bytes], label: int, name: str) -> bytes:
    """The `tf.train.Example` of one packed video."""
    features = {
        "video": message((1, message(*((1, frame) for frame in frames)))),
        "label": message((3, message((1, label)))),
        "name": message((1, message((1, name.encode())))),
    }
    return message((1, message(*((1, message((1, key.encode()), (2, value))) for key, value in features.items()))))


# -- weights -----------------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, valid or not; `length` is the header length that it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int = 0, end: int = 16, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict:
    """A row of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def torch_file(
    numel: int = 4,
    size: int = 4,
    stride: int = 1,
    data: bytes = bytes(16),
    name: str = "fc.weight",
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A .pth with one vector as torch writes it, made without torch; its claims about the vector may be false."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:  # LONG1
        return b"\x8a\x09" + value.to_bytes(9, "little")

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(numel) + b"tQ"
    vector = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(" + number(size) + b"t(" + number(stride) + b"t"
    vector += b"\x89ccollections\nOrderedDict\n)RtR"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression=compression) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}(" + text(name) + vector + b"u.")
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", data)
        archive.writestr("a/version", b"3\n")
    return file.getvalue()


@functools.cache
def torch_bomb() -> bytes:
    """A .pth of half a megabyte that holds 512 MB of zeros."""
    return torch_file(1 << 27, 1 << 27, data=bytes(1 << 29), compression=zipfile.ZIP_DEFLATED)


def _text() -> bytes:
    return b"These are no weights.\n" * 9


def _random() -> bytes:
    return np.random.default_rng(0).bytes(3000)


WEIGHTS = {
    "zero_byte": BadFile("an empty .safetensors", ".safetensors", lambda: b"", r"is empty \(0 bytes\)"),
    "text": BadFile("text called .safetensors", ".safetensors", _text, r"not a whole safetensors file"),
    "random": BadFile("random bytes called .safetensors", ".safetensors", _random, r"not a whole safetensors file"),
    "truncated": BadFile(
        "a .safetensors cut short",
        ".safetensors",
        lambda: safetensors({"a": tensor()}, bytes(7)),
        r"not a whole safetensors",
    ),
    "huge_header": BadFile(
        "a header that claims 2^60 bytes",
        ".safetensors",
        lambda: safetensors({"a": tensor()}, bytes(16), 1 << 60),
        r"not a whole safetensors file.*header too large",
    ),
    "long_header": BadFile(
        "a header that is longer than the file",
        ".safetensors",
        lambda: safetensors({"a": tensor()}, bytes(16), 1 << 20),
        r"not a whole safetensors file.*invalid header length",
    ),
    "overlapping": BadFile(
        "tensors that overlap",
        ".safetensors",
        lambda: safetensors({"a": tensor(), "b": tensor(8, 24)}, bytes(24)),
        r"not a whole safetensors file.*invalid offset",
    ),
    "outside": BadFile(
        "a tensor that lies behind the end",
        ".safetensors",
        lambda: safetensors({"a": tensor(), "b": tensor(16, 1 << 50, (1 << 48,))}, bytes(16)),
        r"not a whole safetensors file",
    ),
    "overflow": BadFile(
        "a shape of 2^66 values",
        ".safetensors",
        lambda: safetensors({"a": tensor(0, 16, (1 << 33, 1 << 33))}, bytes(16)),
        r"not a whole safetensors file.*overflow",
    ),
    "float8": BadFile(
        "a dtype that numpy lacks",
        ".safetensors",
        lambda: safetensors({"a": tensor(0, 4, (4,), "F8_E4M3")}, bytes(4)),
        r"not a whole safetensors file of bfloat16, float16, float32 or float64",
    ),
    "unknown_dtype": BadFile(
        "a dtype that does not exist",
        ".safetensors",
        lambda: safetensors({"a": tensor(0, 4, (4,), "X9")}, bytes(4)),
        r"not a whole safetensors file.*unknown variant `X9`",
    ),
    "deep": BadFile(
        "JSON nested 5,000 deep",
        ".safetensors",
        lambda: safetensors(b'{"a":' * 5000),
        r"not a whole safetensors.*recursion",
    ),
    "nan": BadFile(
        "values that are NaN",
        ".safetensors",
        lambda: safetensors({"a": tensor()}, np.full(4, np.nan, "<f4").tobytes()),
        r"1 of 1 tensors hold values that are not numbers \(NaN or infinite\), e\.g\. a: .*take an earlier file",
    ),
    "integers": BadFile(
        "whole numbers in place of weights",
        ".safetensors",
        lambda: safetensors({"a": tensor(0, 16, (2,), "I64")}, bytes(16)),
        r"no known code base",
    ),
    "lies_about_itself": BadFile(
        "a config inside that is none",
        ".safetensors",
        lambda: safetensors({"a": tensor(), "__metadata__": {"config": "5", "format": '"r23d_jax"'}}, bytes(16)),
        r"the file's description of its network cannot be used \(config=5: must be the group",
    ),
    "torch_zero_byte": BadFile("an empty .pth", ".pth", lambda: b"", r"is empty \(0 bytes\)"),
    "torch_text": BadFile("text called .pth", ".pth", _text, r"damaged, or not a torch file|refused"),
    "torch_random": BadFile("random bytes called .pth", ".pth", _random, r"damaged, or not a torch file|refused"),
    "torch_truncated": BadFile("a .pth cut short", ".pth", lambda: torch_file()[:300], r"damaged, or not a torch file"),
    "torch_short_string": BadFile(
        "a pickle that ends inside a string",
        ".pth",
        lambda: b"\x80\2X\xff\xff\xff\xffabc",
        r"damaged, or not a torch file",
    ),
    "torch_bomb": BadFile(
        "a .pth of half a megabyte that holds 512 MB",
        ".pth",
        torch_bomb,
        r"its members are compressed, which torch never",
    ),
    "torch_storage": BadFile(
        "a .pth that claims 2^60 values", ".pth", lambda: torch_file(1 << 60, 1 << 60), r"damaged, or not a torch file"
    ),
    "torch_stretched": BadFile(
        "a .pth that repeats one value 2^40 times",
        ".pth",
        lambda: torch_file(4, 1 << 40, 0),
        r"fc\.weight claims 1099511627776 values, more than the file can hold",
    ),
}
