"""Decodes one video file with PyAV.

Headers are not trusted: even in UCF101 their frame counts are off by a few frames, and some files name no frame rate.
Frames are counted by decoding them.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from r23d_jax.config import UserError
from r23d_jax.data.find.picture_header import MAX_PIXELS
from r23d_jax.data.find.video_names import VIDEO_FORMATS

_LEAST_DECODED = 0.5  # of the frames that the header claims; undamaged files are off by a few frames at most

# Metadata that is not UTF-8 must not keep a video from being read. PyAV 19 and later need no option for it.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

# Options of the decoder, which would otherwise allocate a frame before its size can be checked: both when a file is
# opened, to learn about its streams, and when it is decoded.
_LIMITS = {"max_pixels": str(MAX_PIXELS)}


class VideoError(UserError):
    """A video cannot be decoded; the message names the file and the reason."""


def iter_frames(
    path: Path, short_side: int = 0, channels: Literal["rgb", "bgr"] = "rgb", num_threads: int = 1
) -> Iterator[np.ndarray]:
    """Decodes a video frame by frame.

    Args:
      path: a file in one of `VIDEO_FORMATS`.
      short_side: length in pixels to which the shorter side is reduced, by area averaging, with the other side in
        proportion; 0, or a number above the video's own, keeps the size.
      channels: order of the color channels; OpenCV writes "bgr".
      num_threads: threads of the decoder; more than one is faster for large frames only; 0: one per core.

    Yields:
      (H, W, 3) uint8 frames as a player shows them: a rotation that the file asks for is applied.

    Raises:
      VideoError: the file is missing or damaged, has no video stream or no frame, or changes its size midway. The error
        may come after the first frames.
    """
    size, count = None, 0
    converter = VideoReformatter()
    with _open(path) as container:
        stream = _video_stream(path, container)
        claimed = stream.frames
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = num_threads
        stream.codec_context.options = _LIMITS
        try:
            for frame in container.decode(stream):
                image = _to_array(path, frame, converter, channels)
                if size is None:
                    size = image.shape
                elif image.shape != size:
                    raise VideoError(f"{path}: frames change their size from {_text(size)} to {_text(image.shape)}")
                yield resize_short_side(image, short_side)
                count += 1
        except av.error.FFmpegError as error:
            reason = _reason(error)
            if error.errno == errno.EINVAL:  # the decoder's error for a size above the limit, too
                reason += f"; perhaps frames of more than {MAX_PIXELS} pixels, the most that are decoded"
            raise VideoError(f"{path}: damaged ({reason})") from error
    if size is None:
        raise VideoError(f"{path}: holds no frame that can be decoded")
    if count < claimed * _LEAST_DECODED:  # the decoder skips damage silently
        raise VideoError(f"{path}: damaged ({count} frames can be decoded of about {claimed})")


def resize_short_side(image: np.ndarray, short_side: int) -> np.ndarray:
    """Reduces an (H, W, C) uint8 image so that its shorter side has `short_side` pixels; never enlarges; 0: as is."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if short_side <= 0 or shorter <= short_side:
        return image
    scale = short_side / shorter
    new = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, new, interpolation=cv2.INTER_AREA)


def _open(path: Path) -> Any:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise VideoError(f"{path}: cannot be read ({_reason(error)})") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path}: is a folder, not a video")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise VideoError(f"{path}: is no file, but a pipe or a device")
    if status.st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")
    try:
        # Absolute, so that no name can be taken for a protocol such as `concat:`.
        options = {"format_whitelist": ",".join(VIDEO_FORMATS), **_LIMITS}
        return av.open(os.path.abspath(path), options=options, **_METADATA)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)})") from error


def _video_stream(path: Path, container: Any) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: has no video stream")
    context = streams[0].codec_context
    if context is None:
        raise VideoError(f"{path}: its codec is unknown")
    _check_size(path, context.width, context.height)
    return streams[0]


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise VideoError(f"{path}: claims frames of {width}x{height} pixels; at most {MAX_PIXELS} pixels are decoded")


def _to_array(path: Path, frame: Any, converter: VideoReformatter, channels: str) -> np.ndarray:
    _check_size(path, frame.width, frame.height)
    # One converter for all frames, with one thread: `frame.to_ndarray` starts a pool of threads for every frame and
    # takes ten times as long. The colors follow the file (BT.601 or BT.709).
    image = converter.reformat(frame, format=f"{channels}24", threads=1).to_ndarray()
    turns = round(frame.rotation / 90) % 4  # counter-clockwise quarter turns
    return np.ascontiguousarray(np.rot90(image, turns))  # also drops padding at the ends of rows


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
