"""Decodes one video file with PyAV.

Frame counts in headers are not trusted: even in UCF101 they are off by a few frames, and an edit list hides frames that
they count. Frames are counted by decoding them.
"""

import contextlib
import errno
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from r23d_jax.config import UserError
from r23d_jax.data.find.picture_header import MAX_PIXELS
from r23d_jax.data.find.video_names import ADDRESS, VIDEO_FORMATS

_CLOCK = re.compile(r"([0-9]+):([0-9]+):([0-9]+(?:[.][0-9]+)?)$")  # 00:00:04.000000000
# Least share of packets that must be decoded, and of the claimed duration; intact files lack a few frames at most
_LEAST = 0.5

# A video with metadata that is not UTF-8 is read all the same. PyAV 19 and later need no option for it.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

# An address may lead to other servers, but not to a file of this machine.
_PROTOCOLS = "http,https,httpproxy,tcp,tls"
_PATIENCE = 30.0  # seconds without an answer of a server

# Options of the decoder, which would otherwise allocate a frame before its size can be checked: both when a file is
# opened, to learn about its streams, and when it is decoded.
_LIMITS = {"max_pixels": str(MAX_PIXELS)}


class VideoError(UserError):
    """A video cannot be decoded; the message names the file and the reason."""


def iter_frames(
    path: Path | str,
    short_side: int = 0,
    channels: Literal["rgb", "bgr"] = "rgb",
    rate: float = 0.0,
) -> Iterator[np.ndarray]:
    """Decodes a video frame by frame.

    Args:
      path: a file in one of `VIDEO_FORMATS`, or its address, a str with http:// or https://.
      short_side: length in pixels to which the shorter side is reduced, by area averaging, with the other side in
        proportion; 0, or a number above the video's own, keeps the size.
      channels: order of the color channels; OpenCV writes "bgr".
      rate: frames per second to give, each the nearest in time; 0: every frame of the video.

    Yields:
      (H, W, 3) uint8 frames of the default video stream as a player shows them, in the orientation of the first frame.

    Raises:
      VideoError: the file is missing or damaged, has no video stream or no frame, or changes its size midway. The error
        may come after the first frames.
    """
    frames = timed_frames(path, short_side, channels)
    return at_rate(frames, rate) if rate else (frame for _, frame in frames)


def at_rate(frames: Iterable[tuple[float, np.ndarray]], rate: float) -> Iterator[np.ndarray]:
    """Of frames with their times in rising seconds, gives the nearest to each of 0, 1, 2, ... / `rate` after the first.

    A frame is given again where none is nearer, so the times of the result are even.
    """
    before, number, start, gap = None, 0, 0.0, 0.0
    for time, frame in frames:
        if before is None:
            start = time
        else:
            gap = time - before[0]
            while start + number / rate <= (before[0] + time) / 2 + 1e-6:
                yield before[1]
                number += 1
        before = time, frame
    while before is not None and start + number / rate < before[0] + min(gap, 1 / rate) / 2 + 1e-6:  # files round times
        yield before[1]
        number += 1


def video_rate(path: Path | str) -> float:
    """The frames per second of a video: that of its header if the frames' times agree, their average otherwise.

    An address is not read to its end for this: its header is trusted.

    Returns:
      0.0 if it is not known: a bare stream has no times, and one frame has no rate.

    Raises:
      VideoError: the file is missing, or no video.
    """
    times = []
    with open_video(path) as container:
        stream = video_stream(path, container)
        if not VIDEO_FORMATS.get(container.format.name.partition(",")[0]):
            return 0.0
        claimed = float(stream.average_rate or 0)
        if isinstance(path, str):
            return claimed
        with contextlib.suppress(av.error.FFmpegError):  # damage is reported when the frames are decoded
            for packet in container.demux(stream):
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None and packet.size and not packet.is_discard:
                    times.append(float(time * packet.time_base))
    seconds = max(times) - min(times) if times else 0.0
    if not seconds:
        return 0.0
    return claimed if abs(claimed * seconds - (len(times) - 1)) < 1 else (len(times) - 1) / seconds


def claimed_seconds(path: Path | str) -> float:
    """The duration of a video by its header, 0 if it states none; raises VideoError for a missing file or no video."""
    with open_video(path) as container:
        return _claimed_seconds(container, video_stream(path, container))


def start_of(path: Path | str) -> float:
    """The time in seconds from which a player counts, in the file's own times; 0 if it is not known."""
    with open_video(path) as container:
        return (container.start_time or 0) / av.time_base


def picture_delay(path: Path | str) -> float:
    """Seconds from the start of a file to its first frame, which come later where the sound begins before."""
    begin, _ = next(timed_frames(path))
    return max(begin - start_of(path), 0.0)


def rate_at_most(path: Path, most: float) -> tuple[float, float]:
    """The frames per second that a video has where it may have `most`, 0 for any number; and the `rate` to read it at.

    One that has no more keeps all of its frames, however unevenly they come: its second figure is 0.
    """
    own = video_rate(path)
    return (most, most) if most and own > most else (own, 0.0)


def timed_frames(path: Path | str, short_side: int = 0, channels: str = "rgb") -> Iterator[tuple[float, np.ndarray]]:
    """The frames that `iter_frames` describes, each with its time in seconds, which never falls."""
    size, orient, count, num_packets, end, time_shown = None, None, 0, 0, 0.0, -math.inf
    converter = VideoReformatter()
    with open_video(path) as container:
        stream = video_stream(path, container)
        claimed = _claimed_seconds(container, stream)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = _LIMITS
        try:
            for packet in container.demux(stream):
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None:
                    end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
                    if packet.size == 0:  # repeats the picture; the decoder would refuse it
                        continue
                    num_packets += not packet.is_discard  # an edit list hides the others
                for frame in packet.decode():
                    _check_size(path, frame.width, frame.height)
                    # One converter for all frames, with one thread: `frame.to_ndarray` starts a pool of threads for
                    # every frame and takes ten times as long. The colors follow the file (BT.601 or BT.709).
                    image = converter.reformat(frame, format=f"{channels}24", threads=1).to_ndarray()
                    orient = orient or _orientation(frame)
                    size = size or image.shape
                    if image.shape != size:
                        raise VideoError(f"{path}: frames change their size from {_text(size)} to {_text(image.shape)}")
                    shown = frame.time if frame.time is not None else count / float(stream.average_rate or 25)
                    time_shown = max(time_shown, shown)
                    yield time_shown, resize_short_side(orient(image), short_side)
                    count += 1
        except av.error.FFmpegError as error:
            reason = _reason(error)
            if error.errno == errno.EINVAL:  # the decoder's error for a size above the limit, too
                reason += f"; perhaps frames of more than {MAX_PIXELS} pixels, the most that are decoded"
            raise VideoError(f"{path}: damaged ({reason})") from error
    if size is None:
        raise VideoError(f"{path}: holds no frame that can be decoded")
    if count < num_packets * _LEAST:  # the decoder skips damage silently
        raise VideoError(f"{path}: damaged ({count} frames can be decoded of about {num_packets})")
    if end < claimed * _LEAST:
        raise VideoError(f"{path}: damaged (the video ends after {end:.1f} of {claimed:.1f} seconds)")


def resize_short_side(image: np.ndarray, short_side: int) -> np.ndarray:
    """Reduces an (H, W, C) uint8 image so that its shorter side has `short_side` pixels; never enlarges; 0: as is."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if short_side <= 0 or shorter <= short_side:
        return image
    scale = short_side / shorter
    new = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, new, interpolation=cv2.INTER_AREA)


def open_video(path: Path | str) -> Any:
    """Opens a file, or an address that is a str, as a PyAV container in one of `VIDEO_FORMATS`; raises VideoError."""
    options = {"format_whitelist": ",".join(VIDEO_FORMATS), **_LIMITS}
    try:
        if isinstance(path, str):
            if not ADDRESS.match(path):
                raise VideoError(f"{path}: only addresses with http:// or https:// are read")
            return av.open(path, options=options | {"protocol_whitelist": _PROTOCOLS}, timeout=_PATIENCE, **_METADATA)
        _check_file(path)
        # Absolute, so that no name can be taken for a protocol such as `concat:`.
        return av.open(os.path.abspath(path), options=options, **_METADATA)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)})") from error


def _check_file(path: Path) -> None:
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


def video_stream(path: Path | str, container: Any) -> Any:
    """The stream that a player shows; raises VideoError."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: has no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    context = stream.codec_context
    if context is None:
        raise VideoError(f"{path}: its codec is unknown")
    _check_size(path, context.width, context.height)
    return stream


def _claimed_seconds(container: Any, stream: Any) -> float:
    """The duration of a stream according to the file; 0 if the file does not state it."""
    form = container.format.name.partition(",")[0]
    if not VIDEO_FORMATS.get(form):  # a bare stream: FFmpeg guesses from the bit rate
        return 0.0
    if form == "avi" and stream.average_rate:  # FFmpeg reduces the duration to what the file can hold
        return float(stream.frames / stream.average_rate)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    for name, value in stream.metadata.items():  # Matroska
        if name.startswith("DURATION") and (found := _CLOCK.match(value)):
            return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _check_size(path: Path | str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise VideoError(f"{path}: claims frames of {width}x{height} pixels; at most {MAX_PIXELS} pixels are decoded")


def _orientation(frame: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The function that brings (H, W, 3) frames into the orientation of a frame's display matrix."""
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    # A stored point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist() if matrix else (1, 0, 0, 0, 1)
    swapped = abs(b) > abs(a)
    x_factor, y_factor = (c, b) if swapped else (a, d)
    steps = np.s_[:: -1 if y_factor < 0 else 1, :: -1 if x_factor < 0 else 1]
    return lambda image: np.ascontiguousarray((image.swapaxes(0, 1) if swapped else image)[steps])


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
