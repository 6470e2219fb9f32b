"""Reads the frames of a clip and decodes a window of them, inside a TensorFlow graph.

Whatever is wrong with a frame (not there, empty, damaged, of another size than its neighbours) makes an operation fail;
`broken.diagnose` then finds out which frame and why.
"""

import contextlib
import functools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from r23d_jax.data.augment import to_uint8
from r23d_jax.data.frames import FrameFiles, PackedFrames
from r23d_jax.data.picture_header import MAX_PIXELS, is_safe

# (video () int32, frames (t,) int32) -> t encoded pictures, () string each
Reader = Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]
# (height () int32, width () int32) -> window (4,) int32: top, left, height, width
WindowOf = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_DCT_RATIOS = (1, 2, 4, 8)  # what libjpeg can decode a picture at, one over
_MAX_DIGITS = 20
_JPEG_MAGIC = b"\xff\xd8\xff"
# One read for the whole clip pays until it fetches this many times the bytes that are needed.
_MOST_WASTE = 3
_MOST_OPEN = 64  # shards that a reader keeps open


def frame_reader(frames: FrameFiles | PackedFrames) -> Reader:
    """The function that fetches the encoded frames of a clip."""
    return _file_reader(frames) if isinstance(frames, FrameFiles) else _packed_reader(frames)


def decode_clip(
    contents: list[tf.Tensor],
    window_of: WindowOf,
    size: int,
    antialias: bool,
    flow: bool = False,
    fewest_pixels: float = math.inf,
) -> tf.Tensor:
    """Decodes one window of every frame and resizes it; arguments as `decode_windows` and `resize` have them.

    Returns:
      (t, size, size, 3) uint8; (t, size, size, 2) for flow.
    """
    return resize(decode_windows(contents, window_of, flow, fewest_pixels), size, antialias)


def resize(windows: tf.Tensor, size: int, antialias: bool) -> tf.Tensor:
    """(t, h, w, c) uint8 -> (t, size, size, c) uint8, bilinear with half-pixel centres.

    Args:
      windows: pictures.
      size: side of the square that comes out, pixels.
      antialias: whether to filter when a window is reduced.
    """
    resized = tf.cond(  # a window that has the size already need not become floats and bytes again
        tf.reduce_all(tf.shape(windows)[1:3] == size),
        lambda: windows,
        lambda: to_uint8(tf.image.resize(windows, [size, size], antialias=antialias)),
    )
    return tf.ensure_shape(resized, (windows.shape[0], size, size, windows.shape[3]))


def decode_windows(
    contents: list[tf.Tensor], window_of: WindowOf, flow: bool = False, fewest_pixels: float = math.inf
) -> tf.Tensor:
    """Decodes one window of every frame.

    Of JPEG pictures only the window is decoded, so damage below it goes unnoticed; anything else (PNG, GIF, WebP and
    BMP, whatever the file is called) is decoded whole and cut. Gray and CMYK become RGB. The inverse DCT is the exact
    one, which gives what libjpeg gives everywhere else.

    Args:
      contents: t encoded pictures of one size.
      window_of: gives the window for a size.
      flow: whether each picture holds x above y of optical flow (see `flow.py`); the window is cut out of both.
      fewest_pixels: JPEG pictures are decoded at a half, a quarter or an eighth of their size, by an inverse DCT of
        fewer coefficients, which is quick and also a good filter, as long as the shorter side of the window keeps this
        many pixels. Never for flow.

    Returns:
      (t, height, width, 3) uint8; (t, height, width, 2) for flow.
    """
    magic = tf.strings.substr(tf.stack(contents), 0, len(_JPEG_MAGIC))
    windows = tf.cond(
        tf.reduce_all(magic == _JPEG_MAGIC),
        lambda: _decode_jpeg_windows(contents, window_of, flow, fewest_pixels),
        lambda: _decode_whole(contents, window_of, flow),
    )
    return tf.ensure_shape(windows, (len(contents), None, None, 2 if flow else 3))


def _decode_jpeg_windows(contents: list[tf.Tensor], window_of: WindowOf, flow: bool, fewest_pixels: float) -> tf.Tensor:
    shapes = tf.stack([tf.io.extract_jpeg_shape(content) for content in contents])[:, :2]
    with tf.control_dependencies([_check_shapes(shapes, flow)]):
        height = shapes[0, 0] // (2 if flow else 1)
        window = window_of(height, shapes[0, 1])

    def decode(content: tf.Tensor, window: tf.Tensor, ratio: int = 1) -> tf.Tensor:
        # The window is in pixels of the picture as it comes out
        return tf.raw_ops.DecodeAndCropJpeg(
            contents=content,
            crop_window=window // ratio,
            channels=1 if flow else 3,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        )

    def decode_all(ratio: int) -> tf.Tensor:
        return tf.stack([decode(content, window, ratio) for content in contents])

    if flow:
        below = window + tf.stack([height, 0, 0, 0])
        return tf.stack([tf.concat([decode(content, window), decode(content, below)], -1) for content in contents])
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
    return tf.debugging.Assert(same & fits, ["frames of different or unreasonable sizes:", shapes])


# -- files -------------------------------------------------------------------------------------------------------------


def _file_reader(frames: FrameFiles) -> Reader:
    # Bytes, because a file name need not be UTF-8
    heads = _strings([f"{folder}/{prefix}" for folder, prefix in zip(frames.folder, frames.prefix, strict=True)])
    tails = _strings(list(frames.suffix))
    first, step = tf.constant(frames.first, tf.int64), tf.constant(frames.step, tf.int64)
    digits = tf.constant(np.minimum(frames.digits, _MAX_DIGITS), tf.int32)

    def read(video: tf.Tensor, numbers: tf.Tensor) -> list[tf.Tensor]:
        text = tf.strings.as_string(first[video] + step[video] * tf.cast(numbers, tf.int64))
        missing = tf.maximum(digits[video] - tf.strings.length(text), 0)
        zeros = tf.strings.substr(tf.fill(tf.shape(missing), "0" * _MAX_DIGITS), tf.zeros_like(missing), missing)
        paths = tf.strings.join([heads[video], zeros, text, tails[video]])
        return [tf.io.read_file(path) for path in tf.unstack(paths, num=numbers.shape[0])]

    return read


def _strings(values: list[str]) -> tf.Tensor:
    return tf.constant([os.fsencode(value) for value in values], tf.string)


# -- shards ------------------------------------------------------------------------------------------------------------


def _packed_reader(frames: PackedFrames) -> Reader:
    # The bytes come through Python, because TensorFlow has no operation that reads part of a file: a dataset of
    # fixed-length records comes near, but reads through everything before the record (18 ms for one at 90 MB).
    # All else is done outside of Python, whose lock the readers would wait for.
    shard, row = tf.constant(frames.shard, tf.int32), tf.constant(frames.row, tf.int64)
    offset, length = tf.constant(frames.offset, tf.int64), tf.constant(frames.length, tf.int64)
    shards = _Shards(frames.shards)

    def read(video: tf.Tensor, numbers: tf.Tensor) -> list[tf.Tensor]:
        rows = row[video] + tf.cast(numbers, tf.int64)
        starts, counts = tf.gather(offset, rows), tf.gather(length, rows)
        begin, end = tf.reduce_min(starts), tf.reduce_max(starts + counts)
        one_read = end - begin <= _MOST_WASTE * tf.reduce_sum(counts)
        span = tf.stack([begin, end - begin])[None]
        parts = tf.cond(one_read, lambda: span, lambda: tf.stack([starts, counts], 1))
        content = tf.numpy_function(shards.read, [shard[video], parts], tf.string, stateful=False)[0]
        places = tf.where(one_read, starts - begin, tf.cumsum(counts, exclusive=True))
        pairs = zip(tf.unstack(places, num=numbers.shape[0]), tf.unstack(counts, num=numbers.shape[0]), strict=True)
        return [tf.strings.substr(content, place, count) for place, count in pairs]

    return read


class _Shards:
    """Parts of files. The first few stay open, because to open one is another wait for Python's lock."""

    def __init__(self, paths: tuple[str, ...]):
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        # Not at the end of the interpreter, where threads may still read; the system closes them then.
        weakref.finalize(self, _close_all, self._open).atexit = False

    def read(self, shard: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """The bytes of (start, count) parts (n, 2), one after the other: (1,) object.

        "S" would drop zeros at the end, and what a () object holds is never freed by TensorFlow (2.21).
        """
        with self._descriptor(int(shard)) as file:
            contents = [_read_exactly(file, start, count, self._paths[shard]) for start, count in parts.tolist()]
        joined = np.empty(1, object)
        joined[0] = contents[0] if len(contents) == 1 else b"".join(contents)
        return joined

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


def _read_exactly(file: int, start: int, count: int, path: str) -> bytes:
    content = os.pread(file, count, start)
    while len(content) < count:  # a signal, or a file system that gives less than was asked for
        more = os.pread(file, count - len(content), start + len(content))
        if not more:
            raise EOFError(f"{path}: ends before the frame does")
        content += more
    return content
