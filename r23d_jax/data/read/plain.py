"""The center crop of an evaluation without TensorFlow, for installations that lack it.

`center_window` and `resize` equal `augment.eval_window` and `decode.resize` bit for bit. `decode_windows` differs from
`decode.decode_windows` slightly in the last column of a large JPEG whose colors are stored at half the resolution,
because TensorFlow decodes only the window of it.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from scipy import sparse

from r23d_jax.config import Preprocessing
from r23d_jax.data.find.picture_header import MAX_PIXELS, claimed_size

# (height, width) -> top, left, height, width
Window = tuple[int, int, int, int]


class PictureError(Exception):
    """A picture cannot be decoded, or differs in size from its neighbors."""


def center_window(pre: Preprocessing, height: int, width: int) -> Window:
    """The square in the center that is `crop_size` when the short side is `short_side`; all in pixels of the frame."""
    short = min(height, width)
    side = int(np.round(np.float32(short) * np.float32(pre.crop_size / pre.short_side)))
    side = min(max(side, 1), short)
    return (height - side) // 2, (width - side) // 2, side, side


def resize(windows: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    """(t, h, w, c) uint8 -> (t, size, size, c) uint8, as `decode.resize`."""
    if windows.shape[1:3] == (size, size):
        return windows
    if antialias:
        video = _filter(_filter(windows.astype(np.float32), 1, size), 2, size)
    else:
        top, bottom, down = _neighbors(windows.shape[1], size)
        left, right, across = _neighbors(windows.shape[2], size)

        def lerp_columns(rows: np.ndarray) -> np.ndarray:
            rows = windows.take(rows, axis=1).astype(np.float32)
            return _lerp(rows.take(left, axis=2), rows.take(right, axis=2), across[:, None])

        video = _lerp(lerp_columns(top), lerp_columns(bottom), down[:, None, None])
    return (video + np.float32(0.5)).astype(np.uint8)


def decode_windows(contents: list[bytes], window_of: Callable[[int, int], Window], flow: bool = False) -> np.ndarray:
    """Decodes one window of every frame: (t, height, width, 3) uint8; (t, height, width, 2) for flow.

    Args:
      contents: t encoded pictures of one size; PictureError if one is damaged or has another size.
      flow: whether each picture holds x above y of optical flow; the window is cropped from both.
    """
    windows, first = [], None
    for content in contents:
        picture, problem = _read(content)
        if picture is None:
            raise PictureError(problem)
        first = first or picture.shape
        if picture.shape != first:
            raise PictureError("the frames have different sizes")
        if flow:
            if len(picture) % 2:
                raise PictureError("optical flow has an even number of rows, x above y")
            picture = np.stack(np.split(picture[..., 0], 2), axis=-1)
        top, left, height, width = window_of(*picture.shape[:2])
        windows.append(picture[top : top + height, left : left + width, :: 1 if flow else -1])
    return np.stack(windows)


def examine_picture(content: bytes) -> tuple[str | None, tuple[int, int] | None]:
    """The problem of an encoded picture, or None and its (height, width)."""
    picture, problem = _read(content)
    return (problem, None) if picture is None else (None, picture.shape[:2])


def _read(content: bytes) -> tuple[np.ndarray | None, str]:
    """The decoded picture, (h, w, 3) uint8 BGR, or None and the problem."""
    size = claimed_size(content)
    if size is None:
        return None, f"not a picture (it begins with {content[:8]!r})"
    if size[0] * size[1] > MAX_PIXELS:
        return None, f"{size[1]}x{size[0]} pixels, more than the {MAX_PIXELS} that are decoded"
    # OpenCV fills the rest of a truncated JPEG with gray and reports no error.
    if content.startswith(b"\xff\xd8") and not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return None, "truncated JPEG"
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags), "damaged picture"
    except cv2.error:
        return None, "damaged picture"


def _neighbors(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `size` places along an axis: the pixels before and after, and the fraction between them, (size,) each."""
    step = np.float32(length) / np.float32(size)
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    before = np.floor(place)
    return (
        np.maximum(before, 0).astype(np.int64),
        np.minimum(np.ceil(place), length - 1).astype(np.int64),
        place - before,
    )


def _lerp(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """From `start` towards `end`, which is overwritten."""
    end -= start
    end *= share
    end += start
    return end


def _filter(video: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Resizes one axis of a float32 array with a triangle filter as wide as the reduction."""
    rows = np.moveaxis(video, axis, 0)
    resized = _taps(len(rows), size) @ rows.reshape(len(rows), -1)
    return np.moveaxis(resized.reshape(size, *rows.shape[1:]), 0, axis)


@functools.lru_cache(maxsize=64)
def _taps(length: int, size: int) -> sparse.csr_array:
    """The weights of `length` pixels for each of `size` places, (size, length) float32.

    A sparse matrix adds up the pixels of a place in order, and sums of float32 depend on it.
    """
    one, half = np.float32(1), np.float32(0.5)
    step = np.float32(1.0 / float(np.float32(size) / np.float32(length)))
    radius = max(step, one)
    values, columns, ends = [], [], [0]
    for row in range(size):
        center = np.float32((row + 0.5) * float(step))
        first = max(int(np.ceil(center - radius - half)), 0)
        last = min(int(np.floor(center + radius - half)), length - 1)
        columns.append(np.arange(first, last + 1))
        distances = (columns[-1].astype(np.float32) + half - center) * (one / radius)
        weights = np.maximum(one - np.abs(distances), 0)
        values.append(weights * (one / np.cumsum(weights)[-1]))  # summed in order, unlike np.sum
        ends.append(ends[-1] + len(weights))
    return sparse.csr_array((np.concatenate(values), np.concatenate(columns), ends), shape=(size, length))
