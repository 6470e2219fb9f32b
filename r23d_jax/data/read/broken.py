"""Counts and logs videos with unreadable frames, and stops the run when there are too many."""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from r23d_jax.config import DataConfig
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import VideoIndex, os_reason
from r23d_jax.data.find.picture_header import MAX_PIXELS, claimed_size

# A fraction of fewer videos than this means little.
LEAST_VIDEOS = 20
_MOST_LISTED = 5


class BrokenVideoError(DataError):
    """Frames cannot be read, and the run must stop; the message names files, reasons and the remedy."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One video that cannot be used."""

    video: str
    file: str  # of the frame, or the shard and the place in it
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclasses.dataclass(eq=False)
class _Tried:
    """What has been read of one index so far."""

    index: VideoIndex
    videos: set[str] = dataclasses.field(default_factory=set)
    faults: dict[str, Fault] = dataclasses.field(default_factory=dict)


class BrokenLog:
    """Counts broken videos over training and evaluation together.

    Each one is diagnosed and logged once. With `on_broken="error"` the first one stops the run. With "skip" the run
    stops when more than `max_broken_fraction` of the distinct videos of an index are broken, or when their share of
    those tried so far is too high to be chance: a training list does not make up for a test list.
    """

    def __init__(self, cfg: DataConfig, log: Callable[[str], None] = print):
        self._cfg, self._log = cfg, log
        self._indexes: list[_Tried] = []
        self.count = 0  # rows of training batches whose clip was replaced, and views that were left out
        self.faults: dict[str, Fault] = {}  # by name of the video, in the order found

    @property
    def files(self) -> list[tuple[str, str]]:
        """(file, reason) of every broken video."""
        return [(fault.file, fault.reason) for fault in self.faults.values()]

    def observe(self, index: VideoIndex, tried: np.ndarray, delivered: np.ndarray, replaced: bool) -> None:
        """Records which videos of a batch could be read.

        Args:
          tried: (b, k) int32, the videos tried for each row of the batch, in order.
          delivered: (b,) int32, which of the k could be read; k where none could, -1 for padding.
          replaced: whether another video replaces one that cannot be read (training), or its row is left out
            (evaluation).

        Raises:
          BrokenVideoError: the policy says stop.
        """
        seen = next((known for known in self._indexes if known.index is index), None)
        if seen is None:
            seen = _Tried(index)
            self._indexes.append(seen)
        real = delivered >= 0
        seen.videos.update(index.names[np.unique(tried[real, 0])].tolist())
        failing = np.flatnonzero(delivered > 0)
        self.count += len(failing)
        for row in failing:
            for video in tried[row, : delivered[row]].tolist():
                self._add(seen, video, replaced)
        if replaced and np.any(delivered == tried.shape[1]):
            row = int(np.argmax(delivered == tried.shape[1]))
            names = dict.fromkeys(index.names[tried[row]].tolist())
            raise BrokenVideoError(
                f"{len(names)} videos in turn could not be read, so there is nothing to train on:\n"
                + self._list([self.faults[name] for name in names])
            )
        self._check_fraction(seen)

    def _add(self, seen: "_Tried", video: int, replaced: bool) -> None:
        name = str(seen.index.names[video])
        seen.videos.add(name)
        if name in seen.faults:
            return
        seen.faults[name] = self.faults.get(name) or diagnose(seen.index, video)
        if name in self.faults:
            return
        fault = self.faults[name] = seen.faults[name]
        if self._cfg.on_broken == "error":
            raise BrokenVideoError(
                f"{fault} (video {name}), and config.data.on_broken='error'. Make the frames again, remove the "
                "video from the lists, or continue without it: --config.data.on_broken=skip"
            )
        what = "its clips are replaced by those of other videos" if replaced else "its views are left out"
        self._log(f"broken: {fault} (video {name}; {what})")

    def _check_fraction(self, seen: "_Tried") -> None:
        broken, tried = len(seen.faults), len(seen.videos)
        in_all = self._cfg.max_broken_fraction * max(len(seen.index), LEAST_VIDEOS)
        so_far = self._cfg.max_broken_fraction * tried
        # The first videos may hold more than their share by chance: four standard deviations are tolerated.
        too_many = tried >= LEAST_VIDEOS and broken > so_far + 4 * math.sqrt(so_far)
        if broken <= in_all and not too_many:
            return
        raise BrokenVideoError(
            f"{broken} of the {tried} videos tried so far cannot be read, more than "
            f"config.data.max_broken_fraction={self._cfg.max_broken_fraction} allows:\n"
            + self._list(list(seen.faults.values()))
            + "\nMake the frames again, or raise --config.data.max_broken_fraction"
        )

    @staticmethod
    def _list(faults: list[Fault]) -> str:
        lines = [f"  {fault}" for fault in faults[:_MOST_LISTED]]
        if len(faults) > _MOST_LISTED:
            lines.append(f"  and {len(faults) - _MOST_LISTED} more")
        return "\n".join(lines)


def diagnose(index: VideoIndex, video: int) -> Fault:
    """Finds the first unusable frame of the video in one row of an index, and the reason."""
    frames, name, count = index.frames, str(index.names[video]), int(index.num_frames[video])
    if count == 0:
        return Fault(name, name, "the video has no frames")
    # Most unusable frames are missing or empty, which can be seen without decoding.
    for frame in range(count):
        if problem := frames.problem(video, frame):
            return Fault(name, frames.locate(video, frame), problem)
    size = None
    for frame in range(count):
        try:
            problem, found = examine_picture(frames.read(video, frame))
        except OSError as error:
            problem, found = os_reason(error), None
        if size and found and found != size:
            problem = f"{found[1]}x{found[0]} pixels, where the video began with {size[1]}x{size[0]}"
        if problem:
            return Fault(name, frames.locate(video, frame), problem)
        size = size or found
    reason = f"one of the {count} frames could not be read, but all can be read now; the disk may be faulty"
    return Fault(name, frames.locate(video, 0), reason)


def examine_picture(content: bytes) -> tuple[str | None, tuple[int, int] | None]:
    """The problem of an encoded picture, or None and its (height, width)."""
    size = claimed_size(content)
    if size is not None and size[0] * size[1] > MAX_PIXELS:  # not decoded here either
        return f"{size[1]}x{size[0]} pixels, more than the {MAX_PIXELS} that are decoded", None
    if size is not None:
        with contextlib.suppress(tf.errors.OpError):
            return None, tuple(tf.io.decode_image(content, channels=3, expand_animations=False).shape[:2])
    if content.startswith(b"\xff\xd8"):
        return ("damaged JPEG" if content.rstrip(b"\0").endswith(b"\xff\xd9") else "truncated JPEG"), None
    if size is not None or content.startswith(b"\x89PNG"):
        return "damaged picture", None
    return f"not a picture (it begins with {content[:8]!r})", None
