"""Reads the frames of a clip and decodes a window of them, inside a TensorFlow graph.

A frame that is missing, empty, damaged or of another size than its neighbors makes an operation fail;
`broken.diagnose` then finds that frame and the reason.
"""

import contextlib
import errno
import functools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from r23d_jax.data.find.frames import FrameFiles, Frames, PackedFrames
from r23d_jax.data.find.generated import GeneratedFrames
from r23d_jax.data.find.picture_header import MAX_PIXELS, is_safe
from r23d_jax.data.read.augment import to_uint8

# Tensors that describe a sample before its frames are read
Plan = dict[str, tf.Tensor]
# (height () int32, width () int32) -> window (4,) int32: top, left, height, width
WindowOf = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_DCT_RATIOS = (1, 2, 4, 8)  # libjpeg can decode a picture at 1/1, 1/2, 1/4 and 1/8 of its size
# A JPEG of at most this many pixels is decoded whole, which then takes less time than one window (128 x 171: a tenth).
_SMALL = 1 << 15
_JPEG_MAGIC = b"\xff\xd8\xff"
# One read for the whole clip is faster until it fetches this many times the bytes that are needed.
_MOST_WASTE = 3
_MOST_OPEN = 64  # shards that a reader keeps open


class Reader(Protocol):
    """Finds the encoded frames of a clip and reads them.

    Reading has two steps. `fetch` is a Python call for many clips, so that decoding threads do not contend for the GIL.
    It alone looks into the index, of which TensorFlow would need a second copy.

    Attributes:
      waits: whether fetching waits for an object store, so that many threads should do it.
      failed: the error after which nothing more can be read, such as an object store's that no longer answers.
    """

    waits: bool

    @property
    def failed(self) -> Exception | None: ...

    def fetch(self, plans: Plan) -> Plan:
        """The plans of n clips -> the same, with the places or the bytes of their frames.

        Args:
          plans: "video" (n,) int32, rows of the index; "frames" (n, t) int32; and others.
        """
        ...

    def open(self, plan: Plan) -> list[tf.Tensor]:
        """The t encoded pictures of a plan, () string each; other entries of the plan are ignored."""
        ...


def frame_reader(frames: Frames) -> Reader:
    """Builds the reader for the frames of an index."""
    return _READERS[type(frames)](frames)


def read_clip(reader: Reader, video: tf.Tensor, frames: tf.Tensor) -> list[tf.Tensor]:
    """Takes both steps for one clip: t encoded pictures, () string each."""
    fetched = reader.fetch({"video": video[None], "frames": frames[None]})
    return reader.open({name: value[0] for name, value in fetched.items()})


def decode_clip(
    contents: list[tf.Tensor],
    window_of: WindowOf,
    size: int,
    antialias: bool,
    flow: bool = False,
    fewest_pixels: float = math.inf,
) -> tf.Tensor:
    """`resize(decode_windows(...))`: (t, size, size, 3) uint8; (t, size, size, 2) for flow."""
    return resize(decode_windows(contents, window_of, flow, fewest_pixels), size, antialias)


def resize(windows: tf.Tensor, size: int, antialias: bool, rounded: bool = True) -> tf.Tensor:
    """(t, h, w, c) uint8 -> (t, size, size, c) uint8, bilinear; `antialias`: with a filter if a window is reduced.

    Not `rounded`, it is float32 in 0..255.
    """

    def larger_or_smaller() -> tf.Tensor:
        resized = tf.image.resize(windows, [size, size], antialias=antialias)
        return to_uint8(resized) if rounded else resized

    resized = tf.cond(  # a window of this size need not be resized, nor converted to floats and back
        tf.reduce_all(tf.shape(windows)[1:3] == size),
        lambda: windows if rounded else tf.cast(windows, tf.float32),
        larger_or_smaller,
    )
    return tf.ensure_shape(resized, (windows.shape[0], size, size, windows.shape[3]))


def to_canvas(windows: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """(t, h, w, c) uint8 -> (t, height, width, c) uint8, with zeros below and to the right."""
    frames, rows, columns, channels = tf.unstack(tf.shape(windows))

    def padded() -> tf.Tensor:
        # tf.pad moves single bytes; tf.concat copies whole rows.
        flat = tf.reshape(windows, tf.stack([frames, rows, columns * channels]))
        flat = tf.concat([flat, tf.zeros(tf.stack([frames, rows, (width - columns) * channels]), tf.uint8)], 2)
        flat = tf.concat([flat, tf.zeros(tf.stack([frames, height - rows, width * channels]), tf.uint8)], 1)
        return tf.reshape(flat, tf.stack([frames, height, width, channels]))

    full = (rows == height) & (columns == width)
    return tf.ensure_shape(tf.cond(full, lambda: windows, padded), (windows.shape[0], height, width, windows.shape[3]))


def decode_windows(
    contents: list[tf.Tensor], window_of: WindowOf, flow: bool = False, fewest_pixels: float = math.inf
) -> tf.Tensor:
    """Decodes one window of every frame: (t, height, width, 3) uint8; (t, height, width, 2) for flow.

    Only the window of a large JPEG is decoded, so damage below it is not noticed. Other formats (PNG, GIF, WebP, BMP,
    under any file name) are decoded whole and then cropped. Gray and CMYK become RGB. The inverse DCT is the exact one,
    which gives the same pixels as libjpeg elsewhere.

    Args:
      contents: t encoded pictures of one size.
      window_of: gives the window for a size.
      flow: whether each picture holds x above y of optical flow (see `flow.py`); the window is cropped from both.
      fewest_pixels: JPEG pictures are decoded at 1/2, 1/4 or 1/8 of their size as long as the shorter side of the
        window keeps this many pixels. An inverse DCT of fewer coefficients is fast and also filters well. Flow is
        always decoded at full size.
    """
    return decode_parts(contents, window_of, flow, fewest_pixels)[0]


def decode_parts(
    contents: list[tf.Tensor],
    window_of: WindowOf,
    flow: bool = False,
    fewest_pixels: float = math.inf,
    canvas: tuple[int, int] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`decode_windows`, but a JPEG that is decoded whole may give a part that is as large as `canvas`.

    One copy then makes what is given to a device, instead of one for the window and others for what is around it. A
    part is the window itself where pictures are large, smaller than the canvas, reduced, of flow, or no JPEG.

    Args:
      canvas: height and width, pixels; None: the windows alone.

    Returns:
      The parts, as the windows of `decode_windows`; and the window in them, (4,) int32: top, left, height, width.
    """
    magic = tf.strings.substr(tf.stack(contents), 0, len(_JPEG_MAGIC))
    parts, window = tf.cond(
        tf.reduce_all(magic == _JPEG_MAGIC),
        lambda: _decode_jpeg_parts(contents, window_of, flow, fewest_pixels, canvas),
        lambda: _and_window(_decode_whole(contents, window_of, flow)),
    )
    return tf.ensure_shape(parts, (len(contents), None, None, 2 if flow else 3)), tf.ensure_shape(window, (4,))


def _and_window(windows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return windows, tf.concat([[0, 0], tf.shape(windows)[1:3]], 0)


def _decode_jpeg_parts(
    contents: list[tf.Tensor], window_of: WindowOf, flow: bool, fewest_pixels: float, canvas: tuple[int, int] | None
) -> tuple[tf.Tensor, tf.Tensor]:
    shapes = tf.stack([tf.io.extract_jpeg_shape(content) for content in contents])[:, :2]
    with tf.control_dependencies([_check_shapes(shapes, flow)]):
        height = shapes[0, 0] // (2 if flow else 1)
        window = window_of(height, shapes[0, 1])

    def decode(content: tf.Tensor, window: tf.Tensor, ratio: int = 1) -> tf.Tensor:
        # DecodeAndCropJpeg takes the window in pixels of the reduced picture.
        return tf.raw_ops.DecodeAndCropJpeg(
            contents=content,
            crop_window=window // ratio if ratio > 1 else window,
            channels=1 if flow else 3,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        )

    def decode_all(ratio: int) -> tuple[tf.Tensor, tf.Tensor]:
        if ratio > 1:
            return _and_window(tf.stack([decode(content, window, ratio) for content in contents]))
        small, size = height * shapes[0, 1] <= _SMALL, tf.stack([height, shapes[0, 1]])
        area = tf.where(small, tf.concat([[0, 0], size], 0), window)
        part = window
        if canvas is not None:
            corner = tf.minimum(window[:2], size - canvas)
            has_room = small & tf.reduce_all(corner >= 0) & tf.reduce_all(window[2:] <= canvas)
            part = tf.where(has_room, tf.concat([corner, canvas], 0), window)
        (top, left), (high, wide) = tf.unstack((part - area)[:2]), tf.unstack(part[2:])
        parts = tf.stack([decode(content, area) for content in contents])[:, top : top + high, left : left + wide]
        return parts, tf.concat([(window - part)[:2], window[2:]], 0)

    if flow:
        below = window + tf.stack([height, 0, 0, 0])
        both = [tf.concat([decode(content, window), decode(content, below)], -1) for content in contents]
        return _and_window(tf.stack(both))
    if math.isinf(fewest_pixels):
        return decode_all(1)
    side = tf.minimum(window[2], window[3])
    enough = [side // ratio >= math.ceil(fewest_pixels) for ratio in _DCT_RATIOS[1:]]
    halvings = tf.reduce_sum(tf.cast(enough, tf.int32))
    return tf.switch_case(halvings, [functools.partial(decode_all, ratio) for ratio in _DCT_RATIOS])


def _decode_whole(contents: list[tf.Tensor], window_of: WindowOf, flow: bool) -> tf.Tensor:
    channels = 1 if flow else 3
    safe = tf.numpy_function(lambda encoded: all(map(is_safe, encoded)), [tf.stack(contents)], tf.bool, stateful=False)
    with tf.control_dependencies([tf.debugging.Assert(safe, ["a frame claims no size, or too many pixels"])]):
        pictures = [tf.io.decode_image(content, channels=channels, expand_animations=False) for content in contents]
    shapes = tf.stack([tf.shape(picture)[:2] for picture in pictures])
    with tf.control_dependencies([_check_shapes(shapes, flow)]):
        whole = shapes[0, 0] // (2 if flow else 1)
        top, left, height, width = tf.unstack(window_of(whole, shapes[0, 1]))
    windows = [picture[top : top + height, left : left + width] for picture in pictures]
    if not flow:
        return tf.stack(windows)
    below = [picture[whole + top : whole + top + height, left : left + width] for picture in pictures]
    return tf.concat([tf.stack(windows), tf.stack(below)], -1)


def _check_shapes(shapes: tf.Tensor, flow: bool) -> tf.Operation:
    same = tf.reduce_all(shapes == shapes[:1])
    fits = tf.reduce_prod(tf.cast(shapes[0], tf.int64)) <= MAX_PIXELS
    if flow:
        fits &= tf.math.floormod(shapes[0, 0], 2) == 0
    # tf.debugging.Assert would put a condition around it, which takes longer.
    return tf.raw_ops.Assert(condition=same & fits, data=["frames of different or unreasonable sizes:", shapes])


class _FileReader:
    waits, failed = False, None

    def __init__(self, frames: FrameFiles):
        self._frames = frames

    def fetch(self, plans: Plan) -> Plan:
        paths = tf.numpy_function(self._paths, [plans["video"], plans["frames"]], tf.string, stateful=False)
        return plans | {"paths": tf.ensure_shape(paths, plans["frames"].shape)}

    def open(self, plan: Plan) -> list[tf.Tensor]:
        return [tf.io.read_file(path) for path in tf.unstack(plan["paths"])]

    def _paths(self, videos: np.ndarray, frames: np.ndarray) -> np.ndarray:
        paths = [self._frames.paths(*clip) for clip in zip(videos.tolist(), frames, strict=True)]
        # Bytes, because a file name may not be UTF-8
        return np.array([[os.fsencode(path) for path in clip] for clip in paths], object)


class _ShardReader:
    """Reads through Python, because TensorFlow has no operation that reads part of a file.

    A dataset of fixed-length records reads everything before the record (18 ms for one at 90 MB). With a memory-mapped
    file, a disk error would kill the process.
    """

    def __init__(self, frames: PackedFrames):
        self._frames, self._shards = frames, frames.blocks or _Shards(frames.shards)
        self.waits = frames.blocks is not None

    @property
    def failed(self) -> Exception | None:
        return self._shards.failed

    def fetch(self, plans: Plan) -> Plan:
        """Adds "content" (n,) string, empty for an unreadable clip, so that only this clip fails when it is decoded;
        and "parts" (n, t, 2) int64, the first byte of each frame in the content and its length."""
        given = [plans["video"], plans["frames"]]
        content, parts = tf.numpy_function(self._read, given, [tf.string, tf.int64], stateful=False)
        count, length = plans["frames"].shape
        return plans | {"content": tf.ensure_shape(content, count), "parts": tf.ensure_shape(parts, (count, length, 2))}

    def open(self, plan: Plan) -> list[tf.Tensor]:
        parts = zip(*(tf.unstack(column) for column in tf.unstack(plan["parts"], axis=1)), strict=True)
        return [tf.strings.substr(plan["content"], first, length) for first, length in parts]

    def _read(self, videos: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        contents, parts = np.empty(len(videos), object), np.empty((*frames.shape, 2), np.int64)
        requests = []
        for clip, video in enumerate(videos.tolist()):
            starts, counts = self._frames.spans(video, frames[clip])
            begin, end = int(starts.min()), int((starts + counts).max())
            one_read = end - begin <= _MOST_WASTE * counts.sum()
            spans = [(begin, end - begin)] if one_read else list(zip(starts.tolist(), counts.tolist(), strict=True))
            requests.append((int(self._frames.shard[video]), spans))
            parts[clip] = np.stack([starts - begin if one_read else np.cumsum(counts) - counts, counts], 1)
        contents[:] = self._shards.read_all(requests)
        return contents, parts


class _Shards:
    """Reads parts of files. The first few files stay open, because opening one means another wait for the GIL."""

    failed = None

    def __init__(self, paths: tuple[str, ...]):
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        # Not when the interpreter exits, because threads may still read then; the system closes the files.
        weakref.finalize(self, _close_all, self._open).atexit = False

    def read_all(self, requests: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> list[bytes]:
        """`read` for several clips."""
        return [self.read(*request) for request in requests]

    def read(self, shard: int, spans: Sequence[tuple[int, int]]) -> bytes:
        """Reads spans (first byte, length) of one file, joined; b"" if one of them cannot be read."""
        try:
            with self._descriptor(shard) as file:
                return b"".join([_read_exactly(file, *span) for span in spans])
        except OSError:
            return b""

    @contextlib.contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        file = self._open.get(shard)
        if file is not None:
            yield file
            return
        file = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        with self._lock:
            keep = shard not in self._open and len(self._open) < _MOST_OPEN
            if keep:
                self._open[shard] = file
        try:
            yield file
        finally:
            if not keep:
                os.close(file)


def _close_all(files: dict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _read_exactly(file: int, start: int, count: int) -> bytes:
    """Reads `count` bytes; raises OSError also if the file ends too early."""
    content = os.pread(file, count, start)
    while len(content) < count:  # after a signal, or on a file system with short reads
        more = os.pread(file, count - len(content), start + len(content))
        if not more:
            raise OSError(errno.ENODATA, "the file ends before the frame does")
        content += more
    return content


class _Drawing:
    """Draws pictures in Python; they are not kept."""

    waits, failed = False, None

    def __init__(self, frames: GeneratedFrames):
        self._frames = frames

    def fetch(self, plans: Plan) -> Plan:
        pictures = tf.numpy_function(self._draw, [plans["video"], plans["frames"]], tf.string, stateful=False)
        return plans | {"pictures": tf.ensure_shape(pictures, plans["frames"].shape)}

    def open(self, plan: Plan) -> list[tf.Tensor]:
        return tf.unstack(plan["pictures"])

    def _draw(self, videos: np.ndarray, frames: np.ndarray) -> np.ndarray:
        clips = zip(videos.tolist(), frames.tolist(), strict=True)
        return np.array([[self._frames.read(video, frame) for frame in clip] for video, clip in clips], object)


_READERS: dict[type, Callable[[Any], Reader]] = {
    FrameFiles: _FileReader,
    PackedFrames: _ShardReader,
    GeneratedFrames: _Drawing,
}
