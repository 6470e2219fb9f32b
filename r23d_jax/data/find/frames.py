"""Where the frames of videos are: numbered files in any layout, or parts of shards."""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Protocol

import numpy as np

from r23d_jax.config import NO_FLOW, Flow
from r23d_jax.data.find.errors import DataError, remedy
from r23d_jax.data.find.frame_scan import Scan, scan_frames
from r23d_jax.data.find.index_cache import load, prepare_folder, save
from r23d_jax.data.find.splits import VideoList
from r23d_jax.data.find.tfrecord import header_bytes
from r23d_jax.runtime.blocks import Blocks


class Frames(Protocol):
    """The encoded frames of N videos."""

    def read(self, video: int, frame: int) -> bytes:
        """Reads one encoded picture; raises OSError if the file cannot be read."""
        ...

    def locate(self, video: int, frame: int) -> str:
        """Names the place of one frame, for messages."""
        ...

    def problem(self, video: int, frame: int) -> str | None:
        """Checks one frame without reading it: None, or why the file cannot hold it."""
        ...

    def take(self, rows: np.ndarray) -> "Frames":
        """The frames of some videos, in this order; a video may come several times."""
        ...


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """Frame i of video v is the file folder[v]/prefix[v]{first[v] + step[v] * i, zero-padded to digits[v]}suffix[v].

    So 13,320 rows describe the 2.5 million files of UCF101. A hole in the numbering is a frame that cannot be read.
    """

    folder: np.ndarray  # (N,) str, absolute
    prefix: np.ndarray  # (N,) str, e.g. `image_`
    suffix: np.ndarray  # (N,) str, e.g. `.jpg`
    first: np.ndarray  # (N,) int64, number of the first frame
    step: np.ndarray  # (N,) int64, from one frame's number to the next
    digits: np.ndarray  # (N,) int32, minimum number of digits; 1: not padded

    def path(self, video: int, frame: int) -> str:
        """The file of one frame. In a hole of the numbering it does not exist."""
        return self.paths(video, np.array([frame]))[0]

    locate = path

    def paths(self, video: int, frames: np.ndarray) -> list[str]:
        """The files of some frames, (t,) int32."""
        head, tail = f"{self.folder[video]}/{self.prefix[video]}", self.suffix[video]
        numbers = self.first[video] + self.step[video] * frames.astype(np.int64)
        digits = int(self.digits[video])
        return [f"{head}{number:0{digits}d}{tail}" for number in numbers.tolist()]

    def read(self, video: int, frame: int) -> bytes:
        with open(self.path(video, frame), "rb") as file:
            return file.read()

    def problem(self, video: int, frame: int) -> str | None:
        size, problem = _size(self.path(video, frame))
        return problem or (None if size else "empty file (0 bytes)")

    def take(self, rows: np.ndarray) -> "FrameFiles":
        return dataclasses.replace(self, **{name: column[rows] for name, column in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class PackedFrames:
    """Frame i of video v is a part of shards[shard[v]], length[row[v] + i] bytes long.

    The frames of a video follow one another from byte begin[v] on, each behind the tag and the length that protobuf
    writes before a value. Four bytes a frame are therefore enough: Kinetics has 72 million frames.
    """

    shards: tuple[str, ...]  # file names, absolute
    shard: np.ndarray  # (N,) int32
    begin: np.ndarray  # (N,) int64
    row: np.ndarray  # (N,) int64
    length: np.ndarray  # (K,) uint32, K frames in total
    names: np.ndarray  # (N,) str, names of the videos, for messages
    blocks: Blocks | None = None  # reads shards that are in an object store; `shards` then has URLs

    def spans(self, video: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where some frames begin in the shard, and their lengths, (t,) int64 each; `frames` is (t,) of integers."""
        row = int(self.row[video])
        lengths = self.length[row : row + int(frames.max()) + 1].astype(np.int64)
        ends = int(self.begin[video]) + np.cumsum(lengths + header_bytes(lengths))
        return (ends - lengths)[frames], lengths[frames]

    def _place(self, video: int, frame: int) -> tuple[str, int, int]:
        """Shard, offset and length."""
        starts, lengths = self.spans(video, np.array([frame]))
        return self.shards[self.shard[video]], int(starts[0]), int(lengths[0])

    def locate(self, video: int, frame: int) -> str:
        return f"{self.shards[self.shard[video]]} (frame {frame} of {self.names[video]})"

    def read(self, video: int, frame: int) -> bytes:
        path, offset, length = self._place(video, frame)
        if self.blocks:
            return self.blocks.read_all([(int(self.shard[video]), [(offset, length)])])[0]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def problem(self, video: int, frame: int) -> str | None:
        path, offset, length = self._place(video, frame)
        size, problem = (self.blocks.size(int(self.shard[video])), None) if self.blocks else _size(path)
        if problem is None and length == 0:
            return "empty frame (0 bytes)"
        if problem is None and size < offset + length:
            return f"the shard ends at byte {size}, before the frame does ({offset + length})"
        return problem

    def take(self, rows: np.ndarray) -> "PackedFrames":
        columns = {name: getattr(self, name)[rows] for name in ("shard", "begin", "row", "names")}
        return dataclasses.replace(self, **columns)


def _size(path: str) -> tuple[int, str | None]:
    """The bytes of a file, and why it cannot be read if that is known without opening it."""
    try:
        status = os.stat(path)
    except OSError as error:
        return 0, os_reason(error)
    if stat.S_ISREG(status.st_mode):
        return status.st_size, None
    return 0, "is a directory" if stat.S_ISDIR(status.st_mode) else "is no file, but a pipe or a device"


def os_reason(error: OSError) -> str:
    """The reason of an error, to follow the name of a file in a message."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or type(error).__name__)
    return reason[0].lower() + reason[1:]


@dataclasses.dataclass(frozen=True)
class VideoIndex:
    """Where N videos are, and their classes: one row per video."""

    class_names: tuple[str, ...]  # `class_names[labels[v]]`
    names: np.ndarray  # (N,) str
    labels: np.ndarray  # (N,) int32
    num_frames: np.ndarray  # (N,) int32, counted on disk
    frames: Frames
    layout: str  # for the log
    missing: tuple[str, ...] = ()  # names of listed videos without usable frames
    notes: tuple[str, ...] = ()  # further lines for the log, such as why a folder is not used
    rates: np.ndarray | None = None  # (N,) float64, frames per second, 0 where not known; None: all of them unknown
    flow: Flow = NO_FLOW  # how it was made, if the pictures are optical flow
    reduced_to: int = (
        0  # short side in pixels to which `prepare` reduced other pictures; 0: their own size, or not known
    )
    named: bool = True  # whether the videos have names of their own, not only numbers in a split

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "VideoIndex":
        """Some of the videos, in this order; one may come several times."""
        columns = {name: getattr(self, name)[rows] for name in ("names", "labels", "num_frames")}
        rates = None if self.rates is None else self.rates[rows]
        return dataclasses.replace(self, **columns, rates=rates, frames=self.frames.take(rows))


def index_frames(root: Path, videos: VideoList, cache: bool = True, num_workers: int = 0) -> VideoIndex:
    """Finds the frame files of listed videos.

    The layout is detected for each video: a folder per video, `<video>/`, `<Class>/<video>/` or deeper
    (`train/<Class>/<video>/`); or frames side by side in a class folder, `<Class>/<video>-0001.jpg` or
    `<video>_0001.jpg`. File names hold any prefix, a number (padded or not, with any first number and any step) and
    .jpg, .jpeg or .png. Upper and lower case match, because UCF101 itself spells HandstandPushups in two ways. Frames
    are ordered by number, not by text.

    Args:
      cache: whether to save the result, unless a folder could not be read, and to use a saved one while neither the
        list nor any folder has changed.
      num_workers: threads that read folders; 0 chooses a number.

    Returns:
      One row per video found, in list order. A hole in the numbering counts as a frame that cannot be read.

    Raises:
      DataError: nothing was found (the message lists the files that are there), or a video was found in two places.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise DataError(f"config.data.root={root}: no such folder. {remedy()}")
    if cache:
        prepare_folder(root)
    arrays = load(root, _cache_name(videos), _LAYOUT) if cache else None
    if arrays is None or not _is_current(root, arrays) or not _is_plausible(arrays):
        scan = scan_frames(root, videos, num_workers)
        arrays = to_arrays(videos, scan)
        if cache and not scan.unreadable:
            save_scan(root, videos, arrays)
    return _to_index(root, arrays)


def save_scan(root: Path, videos: VideoList, arrays: dict[str, np.ndarray]) -> None:
    """Saves the result of `to_arrays` for the next `index_frames` of the same list."""
    with contextlib.suppress(OSError):  # a folder has gone since it was read
        save(root, _cache_name(videos), arrays | {"times": _times(root, arrays["folders"])})


def _to_index(root: Path, arrays: dict[str, np.ndarray]) -> VideoIndex:
    above = os.path.abspath(root)
    folder = np.array([f"{above}/{part}".rstrip("/") for part in arrays["folder"].tolist()])
    return VideoIndex(
        class_names=tuple(arrays["class_names"].tolist()),
        names=arrays["names"],
        labels=arrays["labels"],
        num_frames=arrays["num_frames"],
        frames=FrameFiles(folder=folder, **{name: arrays[name] for name in _NUMBERING}),
        layout=str(arrays["layout"]),
        missing=tuple(arrays["missing"].tolist()),
        notes=tuple(arrays["notes"].tolist()),
    )


_SEARCH = 2  # another number for another way to find folders, so that the index is made again
_NUMBERING = ("prefix", "suffix", "first", "step", "digits")
_LAYOUT = {
    **{"folder": "str N", "prefix": "str N", "suffix": "str N", "first": "int64 N", "step": "int64 N"},
    **{"digits": "int32 N", "names": "str N", "labels": "int32 N", "num_frames": "int32 N"},
    **{"class_names": "str C", "layout": "str", "missing": "str M", "notes": "str K"},
    **{"folders": "str F", "times": "int64 F"},
}


def _cache_name(videos: VideoList) -> str:
    rows = [_SEARCH, videos.class_names, [(e.name, e.label, e.class_name) for e in videos.entries]]
    return f"frames-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}"


def _times(root: Path, folders: np.ndarray) -> np.ndarray:
    return np.array([os.stat(f"{root}/{folder}").st_mtime_ns for folder in folders.tolist()], np.int64)


def to_arrays(videos: VideoList, scan: Scan) -> dict[str, np.ndarray]:
    """The arrays of `_LAYOUT` without the times. Folders are relative, so that a data folder can be moved."""
    have = {video.entry for video in scan.found}
    values = {
        "folder": [video.folder for video in scan.found],
        "names": [video.entry.name for video in scan.found],
        "labels": [video.entry.label for video in scan.found],
        "num_frames": [video.numbering.count for video in scan.found],
        "class_names": videos.class_names,
        "layout": scan.layout,
        "missing": [entry.name for entry in videos.entries if entry not in have],
        "notes": scan.notes,
        "folders": scan.folders,
    }
    values |= {name: [getattr(video.numbering, name) for video in scan.found] for name in _NUMBERING}
    return {name: np.array(value, _LAYOUT[name].split()[0]) for name, value in values.items()}


def _is_current(root: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Whether no folder has changed since the arrays were saved."""
    try:
        return np.array_equal(_times(root, arrays["folders"]), arrays["times"])
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return False


def _is_plausible(arrays: dict[str, np.ndarray]) -> bool:
    """Whether `scan_frames` could have found these values; a cache comes with the data and may be forged."""
    labels, first, step, digits = (arrays[name] for name in ("labels", "first", "step", "digits"))
    numbers = (labels >= 0, labels < len(arrays["class_names"]), arrays["num_frames"] > 0, first >= 0, step > 0)
    inside = not any(os.path.isabs(part) or ".." in part.split("/") for part in arrays["folder"].tolist())
    plain = not any("/" in part for name in ("prefix", "suffix") for part in arrays[name].tolist())
    return len(labels) > 0 and bool(np.all(numbers)) and bool(np.all((digits > 0) & (digits < 19))) and inside and plain
