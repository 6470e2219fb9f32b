"""What happens to frames that cannot be read: they are counted, named once, and stop the run when they are too many."""

import contextlib
import dataclasses
import math
import os
import stat
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from r23d_jax.config import DataConfig
from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.find.picture_header import MAX_PIXELS, claimed_size
from r23d_jax.data.find.splits import DataError

# Before this many videos were tried a fraction says little.
LEAST_VIDEOS = 20
_MOST_LISTED = 5


class BrokenVideoError(DataError):
    """Frames cannot be read, and the run may not go on without them; names files, reasons and the remedy."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One video that cannot be used.

    Attributes:
      video: its name.
      file: the frame's file, or the shard and the place in it.
      reason: in words.
    """

    video: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class BrokenLog:
    """Keeps account of broken videos over training and evaluation together.

    Each is looked into and named in the log once. With `on_broken="error"` the first one stops the run; with "skip"
    the run stops when more than `max_broken_fraction` of the distinct videos are broken, or so many of those tried so
    far that it is no chance.

    Args:
      cfg: the policy.
      log: takes one line at a time.

    Attributes:
      count: training clips that were replaced, and views that were left out.
      faults: by name of the video, in the order found.
    """

    def __init__(self, cfg: DataConfig, log: Callable[[str], None] = print):
        self._cfg, self._log = cfg, log
        self._tried: set[str] = set()
        self._indexes: list[VideoIndex] = []
        self.count = 0
        self.faults: dict[str, Fault] = {}

    @property
    def videos(self) -> dict[str, str]:
        """Name of the video -> "file: reason"."""
        return {name: str(fault) for name, fault in self.faults.items()}

    @property
    def files(self) -> list[tuple[str, str]]:
        """(file, reason) of every broken video."""
        return [(fault.file, fault.reason) for fault in self.faults.values()]

    def observe(self, index: VideoIndex, tried: np.ndarray, delivered: np.ndarray, replaced: bool) -> None:
        """Takes note of how a batch came about.

        Args:
          index: the videos.
          tried: (b, k) int32, the videos that were to be tried for each row of the batch, in this order.
          delivered: (b,) int32, which of the k could be read; k where none could, -1 for padding.
          replaced: whether a row must have something in it (training), or may be left out (evaluation).

        Raises:
          BrokenVideoError: the policy says stop.
        """
        real = delivered >= 0
        self._tried.update(index.names[np.unique(tried[real, 0])].tolist())
        failing = np.flatnonzero(delivered > 0)
        self.count += len(failing)
        for row in failing:
            for video in tried[row, : delivered[row]].tolist():
                self._add(index, video, replaced)
        if replaced and np.any(delivered == tried.shape[1]):
            row = int(np.argmax(delivered == tried.shape[1]))
            names = dict.fromkeys(index.names[tried[row]].tolist())
            raise BrokenVideoError(
                f"{len(names)} videos in turn could not be read, so there is nothing to train on:\n"
                + self._list([self.faults[name] for name in names])
            )
        self._check_fraction(index)

    def _add(self, index: VideoIndex, video: int, replaced: bool) -> None:
        name = str(index.names[video])
        self._tried.add(name)
        if name in self.faults:
            return
        fault = self.faults[name] = diagnose(index, video)
        if self._cfg.on_broken == "error":
            raise BrokenVideoError(
                f"{fault} (video {name}), and config.data.on_broken='error'. Make the frames anew, remove the video "
                "from the lists, or go on without it: --config.data.on_broken=skip"
            )
        what = "its clips are replaced by those of other videos" if replaced else "its views are left out"
        self._log(f"broken: {fault} (video {name}; {what})")

    def _check_fraction(self, index: VideoIndex) -> None:
        if not any(index is known for known in self._indexes):
            self._indexes.append(index)
        broken, tried = len(self.faults), len(self._tried)
        in_all = self._cfg.max_broken_fraction * sum(len(known) for known in self._indexes)
        so_far = self._cfg.max_broken_fraction * tried
        # The first that are tried may by chance hold more of the broken ones: four standard deviations are let pass.
        no_chance = tried >= LEAST_VIDEOS and broken > so_far + 4 * math.sqrt(so_far)
        if broken <= in_all and not no_chance:
            return
        raise BrokenVideoError(
            f"{broken} of the {tried} videos tried so far cannot be read, more than "
            f"config.data.max_broken_fraction={self._cfg.max_broken_fraction} allows:\n"
            + self._list(list(self.faults.values()))
            + "\nMake the frames anew, or raise --config.data.max_broken_fraction"
        )

    @staticmethod
    def _list(faults: list[Fault]) -> str:
        lines = [f"  {fault}" for fault in faults[:_MOST_LISTED]]
        if len(faults) > _MOST_LISTED:
            lines.append(f"  and {len(faults) - _MOST_LISTED} more")
        return "\n".join(lines)


# -- finding the fault -------------------------------------------------------------------------------------------------


def diagnose(index: VideoIndex, video: int) -> Fault:
    """Finds the first frame of a video that cannot be used, and why.

    Args:
      index: the videos.
      video: row.
    """
    name, count = str(index.names[video]), int(index.num_frames[video])
    where = _place(index, video, 0) if count else name
    if count == 0:
        return Fault(name, where, "the video has no frames")
    # What is missing or empty is told without decoding; most faults are of this kind.
    for check in (_file_problem, _picture_problem):
        size = None
        for frame in range(count):
            problem, found = check(index, video, frame)
            if problem is None and found is not None:
                size = size or found
                if found != size:
                    problem = f"{found[1]}x{found[0]} pixels, where the video began with {size[1]}x{size[0]}"
            if problem is not None:
                return Fault(name, _place(index, video, frame), problem)
    return Fault(name, where, f"one of the {count} frames could not be read, but all can be now: a fault of the disk?")


def _place(index: VideoIndex, video: int, frame: int) -> str:
    frames = index.frames
    if isinstance(frames, PackedFrames):
        return f"{frames.shards[frames.shard[video]]} (frame {frame} of {index.names[video]})"
    return frames.path(video, frame)


def _file_problem(index: VideoIndex, video: int, frame: int) -> tuple[str | None, None]:
    frames = index.frames
    if isinstance(frames, PackedFrames):
        path, row = frames.shards[frames.shard[video]], int(frames.row[video]) + frame
        least = int(frames.offset[row] + frames.length[row])
        empty = "empty frame (0 bytes)" if frames.length[row] == 0 else None
    else:
        path, least, empty = frames.path(video, frame), 1, "empty file (0 bytes)"
    try:
        status = os.stat(path)
    except OSError as error:
        return _os_reason(error), None
    if not stat.S_ISREG(status.st_mode):
        return ("is a directory" if stat.S_ISDIR(status.st_mode) else "is no file, but a pipe or a device"), None
    size = status.st_size
    if size < least:
        return empty or f"the shard ends at byte {size}, before the frame does ({least})", None
    return (empty if isinstance(frames, PackedFrames) else None), None


def _picture_problem(index: VideoIndex, video: int, frame: int) -> tuple[str | None, tuple[int, int] | None]:
    try:
        content = _content(index, video, frame)
    except OSError as error:
        return _os_reason(error), None
    return examine_picture(content)


def examine_picture(content: bytes) -> tuple[str | None, tuple[int, int] | None]:
    """What is wrong with an encoded picture, or None and its (height, width)."""
    size = claimed_size(content)
    if size is not None and size[0] * size[1] > MAX_PIXELS:  # it is not decoded here either
        return f"{size[1]}x{size[0]} pixels, more than the {MAX_PIXELS} that are decoded", None
    if size is not None:
        with contextlib.suppress(tf.errors.OpError):
            return None, tuple(tf.io.decode_image(content, channels=3, expand_animations=False).shape[:2])
    if content.startswith(b"\xff\xd8"):
        return ("damaged JPEG" if content.rstrip(b"\0").endswith(b"\xff\xd9") else "truncated JPEG"), None
    if size is not None or content.startswith(b"\x89PNG"):
        return "damaged picture", None
    return f"not a picture (it begins with {content[:8]!r})", None


def _content(index: VideoIndex, video: int, frame: int) -> bytes:
    frames = index.frames
    if isinstance(frames, PackedFrames):
        row = int(frames.row[video]) + frame
        with open(frames.shards[frames.shard[video]], "rb") as file:
            file.seek(int(frames.offset[row]))
            return file.read(int(frames.length[row]))
    with open(frames.path(video, frame), "rb") as file:
        return file.read()


def _os_reason(error: OSError) -> str:
    reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or type(error).__name__)
    return reason[0].lower() + reason[1:]
