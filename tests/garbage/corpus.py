"""Files as they must not be, made by code: pictures, videos, weights, and names and places on disk.

Each entry of `PICTURES`, `VIDEOS` and `WEIGHTS` is a `Garbage`: how its content is made, and what a user must be told
of it. Some are odd and yet sound; these have no reason and must simply work.
"""

import dataclasses
import functools
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from r23d_jax.data.tfrecord import crc32c, masked

HUGE = 20_000  # pixels, each side of a decompression bomb


@dataclasses.dataclass(frozen=True)
class Garbage:
    """One file that a program may meet.

    Attributes:
      suffix: of its name.
      make: its content.
      reason: regular expression of what is said about it; "" where it is odd, and yet usable.
    """

    suffix: str
    make: Callable[[], bytes]
    reason: str = ""

    def write(self, folder: Path, stem: str = "garbage") -> Path:
        """Writes it as `folder/stem.suffix`."""
        path = folder / f"{stem}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.make())
        return path


def flip_bits(content: bytes, count: int, seed: int = 0, start: int = 0) -> bytes:
    """The content with bits flipped at random behind `start`."""
    flipped = bytearray(content)
    random = np.random.default_rng(seed)
    for place in random.integers(start, len(content), count).tolist():
        flipped[place] ^= 1 << int(random.integers(8))
    return bytes(flipped)


# -- pictures ----------------------------------------------------------------------------------------------------------


def pixels(height: int = 48, width: int = 64, shift: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth."""
    ys, xs = np.mgrid[:height, :width]
    return np.stack([xs * 3 + shift, ys * 4, 128 + 60 * np.sin((xs + shift) / 9)], -1).round().astype(np.uint8)


def picture(kind: str = "JPEG", mode: str = "RGB", image: np.ndarray | None = None, **options: object) -> bytes:
    """A picture as Pillow writes it."""
    file = io.BytesIO()
    Image.fromarray(pixels() if image is None else image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_jpeg_size(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    start = content.index(b"\xff\xc0")
    return content[: start + 5] + struct.pack(">HH", height, width) + content[start + 9 :]


def png(height: int, width: int, rows: bytes, bits: int = 1) -> bytes:
    """A gray PNG of these rows (each a filter byte, then its pixels), which may lack some."""

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
    """An animation; in a large one all frames but the first are small in the file."""
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
    "zero_byte": Garbage(".jpg", lambda: b"", r"empty"),
    "text": Garbage(
        ".jpg", lambda: b"hello, this is no picture\n" * 9, r"not a picture \(it begins with b'hello, t'\)"
    ),
    "zeros": Garbage(".jpg", lambda: bytes(4096), r"not a picture"),
    "truncated": Garbage(".jpg", lambda: picture()[:300], r"truncated JPEG"),
    "truncated_png": Garbage(".png", lambda: picture("PNG")[:200], r"damaged picture"),
    "header_only": Garbage(".jpg", lambda: picture()[:2], r"truncated JPEG|not a picture"),
    "flipped_header": Garbage(".jpg", lambda: picture().replace(b"\xff\xdb", b"\xff\x01"), r"damaged JPEG"),
    "no_end": Garbage(".jpg", lambda: b"\xff\xd8\xff" + bytes(600), r"truncated JPEG"),
    "jpeg_bomb": Garbage(
        ".jpg", lambda: with_jpeg_size(picture(), HUGE, HUGE), r"20000x20000 pixels, more than the \d+ that are decoded"
    ),
    "png_bomb": Garbage(".png", png_bomb, r"20000x20000 pixels, more than"),
    "png_bomb_called_jpg": Garbage(".jpg", png_bomb, r"20000x20000 pixels, more than"),
    "png_bomb_header": Garbage(".png", lambda: png(HUGE, HUGE, b"\0"), r"20000x20000 pixels, more than"),
    "gif_bomb": Garbage(".jpg", gif_bomb, r"8x50000000 pixels, more than"),
    "gif_frames_bomb": Garbage(".jpg", lambda: gif(40, 1500, 1500), r"1500x60000 pixels, more than"),
    "webp_bomb": Garbage(".jpg", webp_bomb, r"16384x16384 pixels, more than"),
    "other_size": Garbage(".jpg", lambda: picture(image=pixels(40, 64)), r"64x40 pixels, where the video began with"),
    "one_pixel": Garbage(".jpg", lambda: picture(image=pixels(1, 1)), r"1x1 pixels, where the video began with"),
    "png_called_jpg": Garbage(".jpg", lambda: picture("PNG")),
    "jpeg_called_png": Garbage(".png", picture),
    "grayscale": Garbage(".jpg", lambda: picture(mode="L")),
    "cmyk": Garbage(".jpg", lambda: picture(mode="CMYK")),
    "progressive": Garbage(".jpg", lambda: picture(progressive=True)),
    "16_bit": Garbage(".png", sixteen_bit_png),
    "transparent": Garbage(".png", lambda: picture("PNG", "RGBA")),
    "animated_gif": Garbage(".jpg", gif),
    "bytes_behind": Garbage(".jpg", lambda: picture() + bytes(1000)),
}


# -- videos ------------------------------------------------------------------------------------------------------------


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
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = width, height
        stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
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
        stream = container.add_stream(codec, rate=16000)
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
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}[codec]
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
    "zero_byte": Garbage(".avi", lambda: b"", r"is empty \(0 bytes\)"),
    "text": Garbage(".avi", lambda: b"This is no video.\n" * 99, r"not a readable video"),
    "random": Garbage(".mkv", lambda: np.random.default_rng(0).bytes(20_000), r"not a readable video"),
    "truncated_mp4": Garbage(".mp4", lambda: video()[:1500], r"not a readable video"),
    "truncated_avi": Garbage(
        ".avi",
        lambda: (whole := video("avi", "mpeg4", 200))[: len(whole) // 2],
        r"damaged \((\d+ frames can be decoded of about 200|Invalid)",
    ),
    "header_only": Garbage(".avi", lambda: video("avi", "mpeg4")[:400], r"not a readable video"),
    "playlist": Garbage(".mp4", lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", r"not a readable video"),
    "no_video_stream": Garbage(".avi", lambda: sound("wav", "pcm_s16le"), r"has no video stream"),
    "audio_only": Garbage(".mp4", sound, r"has no video stream"),
    "picture": Garbage(".avi", lambda: picture("PNG"), r"not a readable video"),
    "no_frames": Garbage(".avi", lambda: video("avi", "mpeg4")[:5700], r"damaged \(Invalid data"),
    "claims_huge": Garbage(
        ".avi",
        lambda: avi_claims(video("avi", "rawvideo"), HUGE, HUGE),
        r"damaged \(Invalid data",
    ),
    "jpeg_bomb": Garbage(
        ".avi", lambda: video_bomb("avi", "mjpeg", with_jpeg_size(picture(), HUGE, HUGE)), r"damaged \(Invalid data"
    ),
    "png_bomb": Garbage(".avi", lambda: video_bomb("avi", "png", large_png()), r"frames of more than \d+ pixels"),
    "no_rate": Garbage(".avi", lambda: avi_without_rate(video("avi", "mpeg4"))),
    "bare_stream": Garbage(".mp4", lambda: video("m4v", "mpeg4")),  # reported as 0/0 frames a second by ffprobe
    "variable_rate": Garbage(".mkv", lambda: video("matroska", times=[0, 40, 50, 400, 410, 2000, 2001, 9000])),
    "rotated": Garbage(".mp4", lambda: turned(video(), (0, 1, -1, 0))),
    "one_frame": Garbage(".avi", lambda: video("avi", "mpeg4", 1)),
    "one_pixel": Garbage(".avi", lambda: video("avi", "png", height=1, width=1)),
}


# -- records -----------------------------------------------------------------------------------------------------------


def framed(data: bytes) -> bytes:
    """One TFRecord."""

    def checksum(content: bytes) -> bytes:
        return struct.pack("<I", masked(crc32c(np.frombuffer(content, np.uint8))))

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protocol buffer of (number, bytes or integer) fields."""

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
    """A safetensors file of any header, true or not; `length` is what it claims of the header."""
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
    """A .pth of one vector as torch writes it, without torch; what it claims of the vector need not be true."""

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
