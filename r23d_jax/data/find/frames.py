"""Videos on disk as frame files, in whatever layout they lie."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from r23d_jax.data.find.frame_scan import Scan, scan_frames
from r23d_jax.data.find.index_cache import load, prepare_folder, save
from r23d_jax.data.find.splits import DataError, VideoList, remedy


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """Frame i of video v is the file folder[v]/prefix[v]{first[v] + step[v] * i, zero-padded to digits[v]}suffix[v].

    So 13,320 rows describe 2.5 million files, and a hole in the numbering is a frame that cannot be read.

    Attributes:
      folder: (N,) str, absolute.
      prefix: (N,) str, e.g. `image_`.
      suffix: (N,) str, e.g. `.jpg`.
      first: (N,) int64, number of the first frame.
      step: (N,) int64, from one frame's number to the next.
      digits: (N,) int32, least number of digits; 1: not padded.
    """

    folder: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    first: np.ndarray
    step: np.ndarray
    digits: np.ndarray

    def path(self, video: int, frame: int) -> str:
        """The file of one frame; it may not exist, where the numbering has a hole."""
        number = int(self.first[video]) + int(self.step[video]) * int(frame)
        return f"{self.folder[video]}/{self.prefix[video]}{number:0{int(self.digits[video])}d}{self.suffix[video]}"


@dataclasses.dataclass(frozen=True)
class PackedFrames:
    """Frame i of video v is bytes [offset[k], offset[k] + length[k]) of shards[shard[v]], with k = row[v] + i.

    Attributes:
      shards: file names, absolute.
      shard: (N,) int32.
      row: (N,) int64.
      offset: (K,) int64, K frames in all.
      length: (K,) int64.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    row: np.ndarray
    offset: np.ndarray
    length: np.ndarray


@dataclasses.dataclass(frozen=True)
class VideoIndex:
    """Where N videos are and what they show: one row per video.

    Attributes:
      class_names: C names; `class_names[labels[v]]`.
      names: (N,) str.
      labels: (N,) int32.
      num_frames: (N,) int32, counted on disk.
      frames: where the frames are.
      layout: the recognised layout, in words, for the log.
      missing: names of listed videos of which no usable frames were found.
      notes: further lines for the log: why a folder that was found is not used, and the like.
    """

    class_names: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    num_frames: np.ndarray
    frames: FrameFiles | PackedFrames
    layout: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def index_frames(root: Path, videos: VideoList, cache: bool = True, num_workers: int = 0) -> VideoIndex:
    """Finds the frame files of listed videos.

    Layouts, recognised video by video: a folder per video, `<video>/`, `<Class>/<video>/` or deeper
    (`train/<Class>/<video>/`); or frames beside each other in a class folder, `<Class>/<video>-0001.jpg` or
    `<video>_0001.jpg`. File names hold any prefix, a number (padded or not, from any first number, in any step) and
    .jpg, .jpeg or .png. Names match without regard to upper and lower case: UCF101 itself spells HandstandPushups
    in two ways. Numbers, not text, give the order.

    Args:
      root: the folder that holds all of it.
      videos: what to look for.
      cache: keep the result on disk, and use it while neither the list nor any folder has changed.
      num_workers: threads that read folders; 0: as many as pay.

    Returns:
      One row per video found, in list order. A hole in a numbering counts as a frame (one that cannot be read).

    Raises:
      DataError: nothing was found (the message says what was there instead), or a video was found in two places.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise DataError(f"config.data.root={root}: no such folder. {remedy()}")
    name = f"frames-{_list_key(videos)}"
    if cache:
        prepare_folder(root)
        index = _from_cache(root, load(root, name, _LAYOUT))
        if index is not None:
            return index
    scan = scan_frames(root, videos, num_workers)
    index = _to_index(root, videos, scan)
    if cache:
        arrays = _to_arrays(root, index, list(scan.folders))
        if arrays is not None:
            save(root, name, arrays)
    return index


def _to_index(root: Path, videos: VideoList, scan: Scan) -> VideoIndex:
    found, numbers = scan.found, [video.numbering for video in scan.found]
    have = {video.entry for video in found}
    return VideoIndex(
        class_names=videos.class_names,
        names=np.array([video.entry.name for video in found]),
        labels=np.array([video.entry.label for video in found], np.int32),
        num_frames=np.array([n.count for n in numbers], np.int32),
        frames=FrameFiles(
            folder=np.array([_absolute(root, video.folder) for video in found]),
            prefix=np.array([n.prefix for n in numbers]),
            suffix=np.array([n.suffix for n in numbers]),
            first=np.array([n.first for n in numbers], np.int64),
            step=np.array([n.step for n in numbers], np.int64),
            digits=np.array([n.digits for n in numbers], np.int32),
        ),
        layout=scan.layout,
        missing=tuple(entry.name for entry in videos.entries if entry not in have),
        notes=scan.notes,
    )


def _absolute(root: Path, folder: str) -> str:
    return os.path.join(os.path.abspath(root), folder).rstrip("/")


# -- cache -------------------------------------------------------------------------------------------------------------

_FILE_ARRAYS = tuple(field.name for field in dataclasses.fields(FrameFiles))
_LAYOUT = {
    **{"folder": "str N", "prefix": "str N", "suffix": "str N", "first": "int64 N", "step": "int64 N"},
    **{"digits": "int32 N", "names": "str N", "labels": "int32 N", "num_frames": "int32 N"},
    **{"class_names": "str C", "layout": "str", "missing": "str M", "notes": "str K"},
    **{"folders": "str F", "times": "int64 F"},
}


def _list_key(videos: VideoList) -> str:
    rows = [videos.class_names, [(e.name, e.label, e.class_name) for e in videos.entries]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _times(root: Path, folders: list[str]) -> np.ndarray:
    return np.array([os.stat(root / folder).st_mtime_ns for folder in folders], np.int64)


def _to_arrays(root: Path, index: VideoIndex, folders: list[str]) -> dict[str, np.ndarray] | None:
    assert isinstance(index.frames, FrameFiles)
    try:
        times = _times(root, folders)
    except OSError:  # a folder went away since it was read
        return None
    arrays = {name: getattr(index.frames, name) for name in _FILE_ARRAYS}
    # Relative, so that a data folder may be moved or mounted elsewhere.
    start = len(_absolute(root, "")) + 1
    arrays["folder"] = np.array([folder[start:] for folder in index.frames.folder])
    arrays |= {"names": index.names, "labels": index.labels, "num_frames": index.num_frames}
    arrays |= {"class_names": np.array(index.class_names), "layout": np.array(index.layout)}
    arrays |= {"missing": np.array(index.missing, str), "notes": np.array(index.notes, str)}
    return arrays | {"folders": np.array(folders), "times": times}


def _from_cache(root: Path, arrays: dict[str, np.ndarray] | None) -> VideoIndex | None:
    if arrays is None:
        return None
    try:
        if not np.array_equal(_times(root, arrays["folders"].tolist()), arrays["times"]):
            return None
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return None
    if not _is_sound(arrays):
        return None
    folder = np.array([_absolute(root, part) for part in arrays["folder"].tolist()])
    return VideoIndex(
        class_names=tuple(arrays["class_names"].tolist()),
        names=arrays["names"],
        labels=arrays["labels"],
        num_frames=arrays["num_frames"],
        frames=FrameFiles(**{name: arrays[name] for name in _FILE_ARRAYS} | {"folder": folder}),
        layout=str(arrays["layout"]),
        missing=tuple(arrays["missing"].tolist()),
        notes=tuple(arrays["notes"].tolist()),
    )


def _is_sound(arrays: dict[str, np.ndarray]) -> bool:
    """Whether values are such as `scan_frames` finds: a cache comes with the data, which may come from anywhere."""
    labels, first, step, digits = (arrays[name] for name in ("labels", "first", "step", "digits"))
    numbers = (labels >= 0, labels < len(arrays["class_names"]), arrays["num_frames"] > 0, first >= 0, step > 0)
    inside = not any(os.path.isabs(part) or ".." in part.split("/") for part in arrays["folder"].tolist())
    plain = not any("/" in part for name in ("prefix", "suffix") for part in arrays[name].tolist())
    return len(labels) > 0 and bool(np.all(numbers)) and bool(np.all((digits > 0) & (digits < 19))) and inside and plain
