"""Shows the maps of an explanation on the frames: a strip of frames, and a video that plays both side by side."""

import collections
import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.codec.codec import UnknownCodecError

from r23d_jax.config import EvalConfig, Preprocessing, UserError
from r23d_jax.data.make.record import how_made
from r23d_jax.data.make.video import video_rate
from r23d_jax.data.read.views import clip_steps, make_views
from r23d_jax.evaluation.explain import upsample
from r23d_jax.evaluation.video_source import FlowOfFile, FlowOfFolder, Needed, Source, open_source
from r23d_jax.runtime.disk import write_atomically

CODEC = "libx264"  # every browser plays it
Pair = tuple[np.ndarray, np.ndarray]  # a frame, and the same with its map on it; (S, S, 3) uint8
_SHOWN_SIZE = 224  # least height and width in pixels of a crop in a picture or a video
_CURVE_HEIGHT = 44
_BLUE, _ORANGE = (0, 114, 178), (213, 94, 0)


def whole_video(count: int, pre: Preprocessing, stride: float) -> np.ndarray:
    """Starts of the fewest clips that cover a video of `count` frames to its end, (K,) int32; they may overlap."""
    run = pre.num_frames * stride
    clips = max(-(-count // max(int(run), 1)), 1)
    views = EvalConfig(views="uniform", num_clips=clips)
    return make_views(np.array([count]), pre, views, np.array([stride])).start


@dataclasses.dataclass(frozen=True)
class Moments:
    """The frames of a video that the clips show, each once, in order."""

    # clip, place: (N,) int64, the clip that shows a frame, and its place there
    clip: np.ndarray
    place: np.ndarray
    number: np.ndarray  # (N,) int64, the frame's number in the video
    heat: np.ndarray  # (N,) float64, the mean of the map at that moment


def moments(maps: np.ndarray, starts: np.ndarray, count: int, pre: Preprocessing, stride: float) -> Moments:
    """The frames under the maps (K, T, H, W) of clips of a video of `count` frames; `starts` (K,) rises."""
    numbers = ((starts[:, None] + clip_steps(pre.num_frames, stride)).astype(np.int64) % count).ravel()
    later = numbers > np.maximum.accumulate(np.concatenate([[-1], numbers[:-1]]))  # clips overlap, and short ones loop
    heat = np.concatenate([upsample(one.mean((1, 2), keepdims=True), pre.num_frames, 1).ravel() for one in maps])
    clip, place = np.divmod(np.flatnonzero(later), pre.num_frames)
    most = heat[later].astype(np.float64)
    if len(starts) == 1:  # a short video may loop: the most of all times that a frame is shown
        again = np.isin(numbers, numbers[later])
        np.maximum.at(most, np.searchsorted(numbers[later], numbers[again]), heat[again])
    return Moments(clip, place, numbers[later], most)


def enlarged(pre: Preprocessing) -> Preprocessing:
    """The same crop of a frame with more pixels, for people to look at."""
    scale = -(-_SHOWN_SIZE // pre.crop_size)
    return dataclasses.replace(pre, crop_size=scale * pre.crop_size, short_side=scale * pre.short_side, reduced_to=0)


def open_frames(video: Path | str, pre: Preprocessing) -> Source:
    """The frames to show under the maps, enlarged; for optical flow those that it was computed from."""
    source = open_source(video, enlarged(pre))
    if isinstance(source, FlowOfFolder):
        made = how_made(Path(video))
        return _FramesOfFolder(Path(video), enlarged(pre), made.rates.get(made.target, 0.0))
    return _FramesOfFile(video, enlarged(pre)) if isinstance(source, FlowOfFile) else source


class _FramesOfFile(FlowOfFile):
    """The frame before each picture of optical flow."""

    def _pictures(self, needed: Needed) -> Iterator[np.ndarray | None]:
        del needed
        images = itertools.islice(self._images(), 0, None, self._every)
        return (before[..., ::-1] for before, _ in itertools.pairwise(images))


class _FramesOfFolder(_FramesOfFile, FlowOfFolder):
    """The same of a folder of frames."""


def rate_of(video: Path | str, source: Source) -> float:
    """Frames per second of a video; 25 if not known."""
    return source.rate or (0.0 if Path(video).is_dir() else video_rate(video)) or 25.0


def as_picture(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 as it is; optical flow (H, W, 2) in colors: the hue is its direction, the brightness its size."""
    if frame.shape[-1] == 3:
        return frame
    x, y = np.moveaxis(frame.astype(np.float32) - 128, -1, 0)
    size, angle = cv2.cartToPolar(x, y, angleInDegrees=True)
    hsv = np.stack([angle / 2, np.full_like(x, 255), np.minimum(4 * size, 255)], -1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def overlay(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colors over a gray frame (H, W, 3) uint8: none where the heat, (H, W) float32, is 0, yellow where it is 1."""
    gray = np.repeat(frame @ np.array([0.299, 0.587, 0.114], np.float32), 3).reshape(frame.shape)
    heat = np.clip(heat, 0, 1)
    color = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = 0.8 * heat[..., None]
    return (gray * (1 - share) + color * share).astype(np.uint8)


def overlaid(clips: Iterator[np.ndarray], maps: np.ndarray, seen: Moments, pre: Preprocessing) -> Iterator[Pair]:
    """Each frame of `seen`, taken from the clips, beside the same with its map on it.

    Where the maps have no places, both are the frame as it is.
    """
    held, clip, heat = -1, np.zeros(0), np.zeros(0)
    for number, place in zip(seen.clip.tolist(), seen.place.tolist(), strict=True):
        while held < number:
            clip, held = next(clips), held + 1
            heat = upsample(maps[held], pre.num_frames, clip.shape[1])
        picture = as_picture(clip[place])
        yield picture, overlay(picture, heat[place]) if maps.shape[2:] != (1, 1) else picture


def chosen_moments(seen: Moments, count: int = 8) -> np.ndarray:
    """Rows of at most `count` evenly spaced frames of `seen`, with the first and the last."""
    return np.unique(np.linspace(0, len(seen.number) - 1, count).round().astype(int))


def picture_of(pairs: Sequence[Pair], seen: Moments, rows: np.ndarray) -> np.ndarray:
    """Frames over the same frames with their maps, their numbers, and the heat over the whole time; (H, W, 3) uint8.

    The pairs are of the `rows` of `seen`, (n,), which rise.
    """
    columns = []
    for (frame, heated), number in zip(pairs, seen.number[rows].tolist(), strict=True):
        label = np.full((20, frame.shape[1], 3), 255, np.uint8)
        cv2.putText(label, f"frame {number}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)
        columns += [np.concatenate([frame, heated, label]), np.full((2 * len(frame) + 20, 3, 3), 255, np.uint8)]
    strip = np.concatenate(columns[:-1], axis=1)
    return np.concatenate([strip, curve(seen, strip.shape[1], rows)])


def curve(seen: Moments, width: int, marked: np.ndarray | None = None) -> np.ndarray:
    """The heat over time as a filled curve, with a line at the rows `marked`; (_CURVE_HEIGHT, width, 3) uint8."""
    band = np.full((_CURVE_HEIGHT, width, 3), 255, np.uint8)
    share = seen.heat / max(seen.heat.max(), 1e-12)
    x = np.linspace(2, width - 3, len(share)) if len(share) > 1 else np.array([width / 2])
    points = np.stack([x, _CURVE_HEIGHT - 3 - (_CURVE_HEIGHT - 8) * share], 1)
    ends = np.array([[x[-1], _CURVE_HEIGHT - 3], [x[0], _CURVE_HEIGHT - 3]])
    cv2.fillPoly(band, [np.concatenate([points, ends]).round().astype(np.int32)], _BLUE, cv2.LINE_AA)
    for at in x[[] if marked is None else marked].round().astype(int).tolist():
        cv2.line(band, (at, 2), (at, _CURVE_HEIGHT - 3), _ORANGE, 1)
    return band


def write_maps(
    source: Source,
    starts: np.ndarray,
    maps: np.ndarray,
    seen: Moments,
    pre: Preprocessing,
    rate: float,
    *,
    picture: Path | None = None,
    video: Path | None = None,
) -> None:
    """Writes eight frames with their maps as a PNG, and all as an MP4; the source is read once.

    Args:
      source: from `open_frames`.
      starts: (K,) of the clips.
      maps: (K, T, H, W) of the clips.
      seen: from `moments`.
      rate: frames per second of the MP4.
      picture: the PNG; None: do not write it.
      video: the MP4; None: do not write it.

    Raises:
      VideoError: the video cannot be read.
      disk.WriteError: a file cannot be written.
    """
    rows, kept = chosen_moments(seen), []

    def pairs() -> Iterator[Pair]:
        for row, pair in enumerate(overlaid(source.clips(starts), maps, seen, pre)):
            if row in rows:
                kept.append(pair)
            yield pair

    if video:
        write_atomically(video, video_of(pairs(), seen, rate))
    else:
        collections.deque(pairs(), maxlen=0)
    if picture:
        write_atomically(picture, png(picture_of(kept, seen, rows)))


def video_of(pairs: Iterator[Pair], seen: Moments, rate: float) -> bytes:
    """An MP4: each frame beside the same with its map, above the heat over time with the present moment."""

    def frames() -> Iterator[np.ndarray]:
        for row, pair in enumerate(pairs):
            both = np.concatenate(pair, axis=1)
            yield np.concatenate([both, curve(seen, both.shape[1], np.array([row]))])

    return mp4(frames(), rate)


def mp4(frames: Iterable[np.ndarray], rate: float, quality: int = 20) -> bytes:
    """Encodes frames (H, W, 3) uint8 as H.264; an odd last row or column is cut off.

    Args:
      frames: at least one.
      rate: frames per second.
      quality: constant rate factor; 18 looks like the original, 35 is coarse.

    Raises:
      UserError: if PyAV was built without the encoder.
    """
    frames = iter(frames)
    first = next(frames)
    height, width = (side // 2 * 2 for side in first.shape[:2])
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream(CODEC, rate=Fraction(rate).limit_denominator(1000))
            stream.options = {"crf": str(quality), "preset": "veryfast"}
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in itertools.chain([first], frames):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except UnknownCodecError as error:
        raise UserError(f"a video cannot be written: PyAV has no {CODEC}; install it with `pip install av`") from error
    return buffer.getvalue()


def png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a PNG file."""
    return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()
