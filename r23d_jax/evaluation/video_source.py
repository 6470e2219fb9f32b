"""The clips of one video: of a file, of a folder of frames or of an array, as frames or as the optical flow between."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from r23d_jax.config import Preprocessing
from r23d_jax.data.find.frame_folder import read_folder
from r23d_jax.data.make.flow import as_channels, flow_between
from r23d_jax.data.make.record import how_made
from r23d_jax.data.make.video import VideoError, claimed_seconds, iter_frames, resize_short_side, video_rate
from r23d_jax.data.read import plain
from r23d_jax.data.read.views import clip_steps

# A reader of video files keeps so many bytes of crops while it counts frames, so that most files are decoded once.
HELD_BYTES = 2**25
Needed = Callable[[int], bool]  # whether the frame of a number is needed


class Source(Protocol):
    """A video whose clips can be read.

    Attributes:
      rate: frames per second that the stride follows; 0 if it is not known or the network has no use for it.
      own_rate: frames per second of `crops`; 0 if not known.
    """

    @property
    def rate(self) -> float: ...

    @property
    def own_rate(self) -> float: ...

    def seconds(self) -> float:
        """The duration that a header or a record states; 0 if there is none. Nothing is decoded."""
        ...

    def crops(self, needed: Needed) -> Iterator[np.ndarray | None]:
        """All frames in order, (crop_size, crop_size, C) uint8, or None where not `needed`; memory stays bounded."""
        ...

    def count(self) -> int:
        """The number of its frames, or of the pictures of its optical flow."""
        ...

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        """Clips that begin at `starts`, (V,) rising, each (read_frames, crop_size, crop_size, C) uint8.

        Raises:
          VideoError: if a frame cannot be read.
        """
        ...


def stride_of(pre: Preprocessing, rate: float) -> float:
    """Frames from one of a clip to the next, at a rate of the video in frames per second; 0 if it is not known."""
    if pre.frame_seconds and not (rate or pre.frame_rate):
        raise VideoError(
            f"its frames per second are not known, and the network reads a frame every {pre.frame_seconds:g} s; give "
            "the video file, or frames made by `prepare`"
        )
    return pre.stride_at(rate)


def open_source(video: Path | str | np.ndarray, pre: Preprocessing, rate: float = 0.0, even: bool = False) -> Source:
    """An array or a folder is read as frames, anything else as a video file; optical flow is computed if necessary.

    Args:
      video: an array, a path, or an address that is a str.
      rate: of an array, in frames per second; 0 if not known.
      even: whether frames of a video file come at even times, the nearest at each, rather than as they are stored.

    Raises:
      VideoError: if an array or a folder holds no frames, or flow cannot be computed. A bad file is noticed when it is
        read.
    """
    if isinstance(video, np.ndarray):
        return FrameArray(video, pre, rate)
    if isinstance(video, str) or not os.path.isdir(video):
        return FlowOfFile(video, pre, even) if pre.input == "flow" else VideoFile(video, pre, even)
    made = how_made(video)
    if made.flow.method and pre.input != "flow":
        raise VideoError(
            f"{video}: holds {made.flow}, and the network reads {pre.input}; give the video, or its frames"
        )
    kind = FlowOfFolder if pre.input == "flow" and not made.flow.method else FrameFolder
    return kind(video, pre, made.rates.get(made.target, 0.0))


class FrameArray:
    """A video as an array of frames, (T, H, W, C) uint8."""

    def __init__(self, video: np.ndarray, pre: Preprocessing, rate: float = 0.0):
        channels = len(pre.mean)
        if pre.input == "flow" and video.ndim == 4 and video.shape[3] == 3 and video.dtype == np.uint8:
            frames = (resize_short_side(frame[..., ::-1], pre.flow.short_side) for frame in video)
            video = np.stack([picture for picture in flow_of(frames, pre, rate, "frames") if picture is not None])
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != channels or not video.size:
            raise VideoError(f"frames are {video.dtype} {video.shape}; expected uint8 (T, H, W, {channels})")
        self._video, self._pre, self.rate, self.own_rate = video, pre, rate, rate

    def seconds(self) -> float:
        return self.count() / self.rate if self.rate else 0.0

    def count(self) -> int:
        return len(self._video)

    def crops(self, needed: Needed) -> Iterator[np.ndarray | None]:
        return (self._cut(np.array([number]))[0] if needed(number) else None for number in range(self.count()))

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        return map(self._cut, _clip_frames(starts, self.count(), self._pre, self.rate))

    def _cut(self, numbers: np.ndarray) -> np.ndarray:
        frames = [resize_short_side(self._video[k], self._pre.reduced_to) for k in numbers]  # views, if not reduced
        top, left, height, width = plain.center_window(self._pre, *frames[0].shape[:2])
        windows = np.stack([frame[top : top + height, left : left + width] for frame in frames])
        return plain.resize(windows, self._pre.crop_size, self._pre.antialias)


class FrameFolder:
    """A video as a folder of numbered frames, chosen as in training (`frame_folder.read_folder`).

    Clips are decoded by the function that evaluation uses, or by OpenCV where TensorFlow is not installed.
    """

    def __init__(self, path: Path, pre: Preprocessing, rate: float = 0.0):
        numbering = read_folder(path)
        if isinstance(numbering, str):
            raise VideoError(f"{path}: {numbering}")
        self.numbering, self.rate, self.own_rate = numbering, rate, rate
        self._path, self._pre = path, pre

    def count(self) -> int:
        """Frames in the folder; a hole in their numbering counts as one that cannot be read."""
        return self.numbering.count

    def seconds(self) -> float:
        return self.count() / self.rate if self.rate else 0.0

    def crops(self, needed: Needed) -> Iterator[np.ndarray | None]:
        return (self._cut([number])[0] if needed(number) else None for number in range(self.count()))

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        return map(self._cut, _clip_frames(starts, self.count(), self._pre, self.rate).tolist())

    def _cut(self, numbers: list[int]) -> np.ndarray:
        files = [self._path / self.numbering.name(number) for number in numbers]
        try:
            windows = _decode_windows([file.read_bytes() for file in files], self._pre)
        except (OSError, plain.PictureError) as error:
            raise VideoError(frame_fault(files)) from error
        return plain.resize(windows, self._pre.crop_size, self._pre.antialias)


class VideoFile:
    """A video file or an address.

    Its frames are counted by decoding them, because counts in headers are unreliable. Crops are kept meanwhile, up to
    `HELD_BYTES`; clips of a longer video are cut while it is decoded again, so memory does not grow with the video.
    """

    _keeps_crops = True

    def __init__(self, path: Path | str, pre: Preprocessing, even: bool = False):
        self._path, self._pre, self._even = path, pre, even
        self._count = 0
        self._kept: list[np.ndarray] = []

    @functools.cached_property
    def _file_rate(self) -> float:
        return video_rate(self._path)

    @property
    def own_rate(self) -> float:
        return self._file_rate

    @property
    def rate(self) -> float:
        return self.own_rate if self._pre.frame_seconds or self._pre.frame_rate else 0.0

    def seconds(self) -> float:
        return claimed_seconds(self._path)

    def count(self) -> int:
        """Frames that can be decoded; raises VideoError if the video cannot be."""
        if not self._count:
            most = HELD_BYTES // (self._pre.crop_size**2 * len(self._pre.mean)) if self._keeps_crops else 0
            count, crops = 0, []
            for count, crop in enumerate(self.crops(lambda number: number < most), start=1):  # noqa: B007
                if crop is not None:
                    crops.append(crop)
            self._count, self._kept = count, crops if count <= most else []
        return self._count

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        """The same as for a `Source`. Keeps only the frames that later clips need."""
        wanted = _clip_frames(starts, self.count(), self._pre, self.rate)
        if self._kept:
            yield from (np.stack([self._kept[k] for k in numbers]) for numbers in wanted.tolist())
            return
        complete = wanted.max(axis=1)  # the last frame of each clip
        # The first frame that this clip or a later one needs.
        earliest = np.append(np.minimum.accumulate(wanted.min(axis=1)[::-1])[::-1], self._count)
        held: dict[int, np.ndarray] = {}
        row = 0
        for number, crop in enumerate(self.crops(frozenset(wanted.ravel().tolist()).__contains__)):
            if row == len(starts):
                return
            if crop is not None:
                held[number] = crop
            while row < len(starts) and complete[row] <= number:
                yield np.stack([held[k] for k in wanted[row].tolist()])
                row += 1
                held = {k: kept for k, kept in held.items() if k >= earliest[row]}
        if row < len(starts):
            raise VideoError(f"{self._path}: changed while it was being read; it had {self._count} frames")

    def crops(self, needed: Needed) -> Iterator[np.ndarray | None]:
        return crops_of(self._pictures(needed), needed, self._pre)

    def _pictures(self, needed: Needed) -> Iterator[np.ndarray | None]:
        """(H, W, C) uint8 of every number that is needed, and None or a picture for every other."""
        del needed
        return iter_frames(self._path, self._pre.reduced_to, rate=self._file_rate if self._even else 0.0)


class FlowOfFile(VideoFile):
    """The optical flow of a video file, computed where a clip needs it; the file is decoded once more to count frames.

    A video of a higher rate than the training's is thinned to every second, third, ... frame, whichever comes nearest.
    """

    _keeps_crops = False

    def __init__(self, path: Path | str, pre: Preprocessing, even: bool = False):
        super().__init__(path, pre, even)
        check_flow(pre, path)

    @property
    def own_rate(self) -> float:
        return self._file_rate / self._every

    @property
    def rate(self) -> float:
        return self.own_rate

    @property
    def _every(self) -> int:
        return max(round(self._file_rate / self._pre.frame_rate), 1) if self._pre.frame_rate else 1

    def _images(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR."""
        rate = self._file_rate if self._even else 0.0
        return iter_frames(self._path, self._pre.flow.short_side, channels="bgr", rate=rate)

    def _pictures(self, needed: Needed) -> Iterator[np.ndarray | None]:
        images = itertools.islice(self._images(), 0, None, self._every)
        return flow_of(images, self._pre, self.rate, self._path, needed)


class FlowOfFolder(FlowOfFile):
    """The optical flow of a folder of numbered frames."""

    def __init__(self, path: Path, pre: Preprocessing, rate: float):
        super().__init__(path, pre)
        self._folder, self._frames = FrameFolder(path, pre, rate), path
        self._file_rate = rate

    def seconds(self) -> float:
        return self._folder.seconds()

    def _images(self) -> Iterator[np.ndarray]:
        shape = None
        for number in range(self._folder.count()):
            file = self._frames / self._folder.numbering.name(number)
            try:
                (image,) = plain.decode_windows([file.read_bytes()], lambda height, width: (0, 0, height, width))
            except (OSError, plain.PictureError) as error:
                raise VideoError(frame_fault([file])) from error
            shape = shape or image.shape
            if image.shape != shape:
                raise VideoError(frame_fault([self._frames / self._folder.numbering.name(0), file]))
            yield resize_short_side(np.ascontiguousarray(image[..., ::-1]), self._pre.flow.short_side)


def crops_of(pictures: Iterable[np.ndarray | None], needed: Needed, pre: Preprocessing) -> Iterator[np.ndarray | None]:
    """The center of each (H, W, C) uint8 picture that is needed as the network sees it; None for others."""
    window = None
    for number, picture in enumerate(pictures):
        if picture is None or not needed(number):
            yield None
            continue
        window = window or plain.center_window(pre, *picture.shape[:2])
        top, left, height, width = window
        crop = plain.resize(picture[None, top : top + height, left : left + width], pre.crop_size, pre.antialias)[0]
        yield np.ascontiguousarray(crop)  # no view, which would keep the whole picture


def check_flow(pre: Preprocessing, name: object) -> None:
    if not pre.flow.method:
        raise VideoError(
            f"{name}: the network reads optical flow, and its checkpoint does not say how that was computed; give "
            "a folder of flow that `prepare --flow` made"
        )


def flow_of(
    images: Iterable[np.ndarray], pre: Preprocessing, rate: float, name: object, needed: Needed = lambda number: True
) -> Iterator[np.ndarray | None]:
    """The flow between neighboring (H, W, 3) uint8 BGR images, (H, W, 2) uint8; None if its number is not needed.

    Displacements are brought to the time between two frames of the training, if both rates are known.
    """
    check_flow(pre, name)
    scale = pre.frame_rate / rate if rate and pre.frame_rate else 1.0
    between, number = flow_between(pre.flow.method, pre.flow.bound * scale), -1
    for number, (before, after) in enumerate(itertools.pairwise(images)):
        yield as_channels(between(before, after)) if needed(number) else None
    if number < 0:
        raise VideoError(f"{name}: one frame only, which has no optical flow")


def _clip_frames(starts: np.ndarray, num_frames: int, pre: Preprocessing, rate: float) -> np.ndarray:
    """(V, read_frames) frame numbers; a clip that passes the end continues at frame 0."""
    return (starts[:, None] + clip_steps(pre.read_frames, stride_of(pre, rate))[None, :]) % num_frames


def _decode_windows(contents: list[bytes], pre: Preprocessing) -> np.ndarray:
    flow = pre.input == "flow"

    def window_of(height: Any, width: Any) -> plain.Window:
        return plain.center_window(pre, int(height), int(width))

    try:
        import tensorflow as tf
    except ModuleNotFoundError:
        return plain.decode_windows(contents, window_of, flow)
    from r23d_jax.data.read import decode

    try:
        tensors = [tf.constant(content) for content in contents]
        window = lambda height, width: tf.constant(window_of(height, width))  # noqa: E731
        return decode.decode_windows(tensors, window, flow).numpy()
    except tf.errors.OpError as error:
        raise plain.PictureError(str(error)) from error


def frame_fault(files: list[Path]) -> str:
    """The first fault in the frames of a clip."""
    try:
        from r23d_jax.data.read.broken import examine_picture
    except ModuleNotFoundError:
        from r23d_jax.data.read.plain import examine_picture
    sizes = {}
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            return f"{file}: cannot be read ({error.strerror})"
        if not content:
            return f"{file}: is empty (0 bytes)"
        problem, size = examine_picture(content)
        if size is None:
            return f"{file}: {problem}"
        sizes[file] = size
    first = files[0]
    for file, size in sizes.items():
        if size != sizes[first]:
            return f"{file}: is {size[1]}x{size[0]}, unlike {first.name}, which is {sizes[first][1]}x{sizes[first][0]}"
    return f"{first.parent}: its frames cannot be decoded together"
