"""A video again, with what the network says drawn into each frame."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from r23d_jax.data.find.frame_folder import read_folder
from r23d_jax.data.make.record import how_made
from r23d_jax.data.make.video import VideoError, open_video, start_of, timed_frames
from r23d_jax.data.read import plain
from r23d_jax.evaluation.answer import Answer
from r23d_jax.evaluation.video_source import frame_fault
from r23d_jax.runtime.disk import replacing
from r23d_jax.runtime.progress import Progress, printable

BEST = 5  # classes with a bar
# With their options; the first one that FFmpeg has
_ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {}}
_TICKS = 60_000  # a second; MPEG-4 allows no more, and the usual rates are whole numbers of them
_WHITE, _BLACK, _FIRST, _OTHER = (255, 255, 255), (0, 0, 0), (0, 114, 178), (110, 118, 128)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def annotate(video: Path | str, answer: Answer, path: Path) -> str:
    """Writes a video with its class at each moment, and bars of the five best.

    Size, times, which count from the start of the file, and orientation are those that a player shows. The sound is
    copied. A row or a column is repeated where a size is odd, because the usual pixel format has none.

    Args:
      video: a file, an address, or a folder of frames.
      answer: with a timeline.
      path: ends in .mp4, .mkv or .mov.

    Returns:
      Why there is no sound, in words; "" if there is, or if the video has none.

    Raises:
      VideoError: the video cannot be read, or this FFmpeg has no encoder.
      disk.WriteError: the file cannot be written.
    """
    encoder = next((name for name in _ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise VideoError(f"{path}: FFmpeg has none of the encoders {', '.join(_ENCODERS)}; install PyAV's wheel")
    timeline = answer.prediction.timeline
    assert timeline is not None
    pictures = timed_pictures(video, answer)
    begin, image = next(pictures)
    # The files of a broadcast may begin at any hour
    start = start_of(video) if isinstance(video, str) or not os.path.isdir(video) else 0.0
    progress = Progress(round(timeline.seconds), "seconds", path.name, after=5.0)
    with progress, replacing(path) as partial, av.open(str(partial), "w") as container:
        rate = Fraction(answer.prediction.num_frames / timeline.seconds).limit_denominator(1001)
        stream: Any = container.add_stream(encoder, rate=rate, options=_ENCODERS[encoder])
        stream.height, stream.width = (length + length % 2 for length in image.shape[:2])
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, _TICKS)
        if encoder == "mpeg4":
            stream.bit_rate = 4 * stream.width * stream.height
        sound = _Sound(video, container, path.suffix, start)
        converter, tick = VideoReformatter(), -1

        def write(time: float, image: np.ndarray) -> None:
            nonlocal tick
            drawn = draw(image, answer, time - begin)
            odd = [(0, length % 2) for length in drawn.shape[:2]]
            frame = av.VideoFrame.from_ndarray(np.pad(drawn, [*odd, (0, 0)], mode="edge"), format="rgb24")
            frame = converter.reformat(frame, format="yuv420p", threads=1)
            tick = max(round((time - start) * _TICKS), tick + 1)
            frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
            sound.copy_until(time)
            progress.update(max(int(time - begin) - progress.done, 0))

        write(begin, image)
        for time, image in pictures:
            write(time, image)
        container.mux(stream.encode(None))
        sound.copy_until(float("inf"))
    return sound.missing


def timed_pictures(video: Path | str, answer: Answer) -> Iterator[tuple[float, np.ndarray]]:
    """Frames (H, W, 3) uint8 RGB with their times in seconds, in order."""
    if isinstance(video, str) or not os.path.isdir(video):
        yield from timed_frames(video)
        return
    if made := how_made(video).flow.method:
        raise VideoError(f"{video}: holds optical flow by {made}, which shows no picture; give the video or its frames")
    numbering, timeline = read_folder(video), answer.prediction.timeline
    assert not isinstance(numbering, str) and timeline is not None, "it was read before"
    step = timeline.seconds / answer.prediction.num_frames
    for number in range(numbering.count):
        file = video / numbering.name(number)
        try:
            picture = plain.decode_windows([file.read_bytes()], lambda height, width: (0, 0, height, width))[0]
        except (OSError, plain.PictureError) as error:
            raise VideoError(frame_fault([file])) from error
        yield number * step, picture


class _Sound:
    """Copies the sound of a video into another, as it is, with times from `start` on."""

    def __init__(self, video: Path | str, container: Any, suffix: str, start: float):
        self.missing, self._packets, self._next, self._start = "", iter(()), None, start
        if not isinstance(video, str) and os.path.isdir(video):
            return
        source = open_video(video)
        stream = source.streams.best("audio")
        if stream is None:
            source.close()
            return
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else "of an unknown kind"
        if not {codec, stream.codec_context and stream.codec_context.name} & container.supported_codecs:
            self.missing = f"without the sound, which is {codec}: {suffix} cannot hold it"
            source.close()
            return
        self._copy, self._container = container.add_stream_from_template(stream), container
        self._packets = source.demux(stream)
        self._next = next(self._packets, None)

    def copy_until(self, time: float) -> None:
        """Copies what is heard up to a time in seconds."""
        while (packet := self._next) is not None:
            if packet.dts is not None:
                if float(packet.dts * packet.time_base) > time:
                    return
                earlier = round(self._start / packet.time_base)
                packet.dts -= earlier
                packet.pts = packet.pts if packet.pts is None else packet.pts - earlier
                packet.stream = self._copy
                self._container.mux(packet)
            try:
                self._next = next(self._packets, None)
            except av.error.FFmpegError:  # damage; what came before stays
                self._next = None


def draw(image: np.ndarray, answer: Answer, time: float) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 RGB frame with the class at a time, and bars of the best classes."""
    timeline = answer.prediction.timeline
    assert timeline is not None
    height, width = image.shape[:2]
    size = max(min(height, width) // 20, 8)  # of letters, in pixels
    row, edge = round(1.7 * size), max(size // 2, 3)
    canvas = np.ascontiguousarray(image)
    if canvas is image:
        canvas = image.copy()
    scores = timeline.at(time)
    best = np.argsort(-scores, kind="stable")[:BEST].tolist()
    current = scores[best[0]] >= timeline.options.min_score
    title = answer.class_names[best[0]] if current else "(no action)"
    _shade(canvas, 0, 0, min(_text_width(title, 1.3 * size) + 2 * edge, width), row + edge)
    _write(canvas, title, edge, round(1.3 * size) + edge, 1.3 * size, width - 2 * edge)
    panel = min(max(round(0.55 * width), 16 * size), width)
    top = height - row * len(best) - edge
    _shade(canvas, 0, top, panel, height)
    for k, label in enumerate(best):
        upper, share = top + edge // 2 + k * row, float(scores[label])
        end = edge + max(round(share * (panel - 2 * edge)), 1)
        color = _FIRST if k == 0 and current else _OTHER
        cv2.rectangle(canvas, (edge, upper + 1), (end, upper + row - 2), color, cv2.FILLED)
        percent = f"{100 * share:.0f} %"
        room = panel - 3 * edge - _text_width(percent, size)
        _write(canvas, answer.class_names[label], edge + 2, upper + round(1.3 * size), size, room - edge)
        _write(canvas, percent, room + edge, upper + round(1.3 * size), size, width)
    return canvas


def _shade(canvas: np.ndarray, left: int, top: int, right: int, bottom: int) -> None:
    part = canvas[max(top, 0) : bottom, left:right]
    part[:] = part * 0.4


def _scale(size: float) -> float:
    return size / cv2.getTextSize("H", _FONT, 1.0, 1)[0][1]


def _text_width(text: str, size: float) -> int:
    return cv2.getTextSize(printable(text), _FONT, _scale(size), 1)[0][0]


def _write(canvas: np.ndarray, text: str, left: int, base: int, size: float, most: int) -> None:
    """Writes white text, shortened to `most` pixels, whose letters stand on the row `base`."""
    shown = text = printable(text)
    while len(text) > 1 and _text_width(shown, size) > most:
        text = text[:-1]
        shown = f"{text}..."
    thickness = max(round(size / 12), 1)
    cv2.putText(canvas, shown, (left, base), _FONT, _scale(size), _WHITE, thickness, cv2.LINE_AA)
