"""Looks at the videos of class folders before they are prepared: sizes, rates, damage, copies, and recordings.

Clips that were cut from one recording look alike. Which ones are is told by the first of these that says something: a
number as in UCF101's names (`_g01_c02`), a folder below that of the class, or a beginning that file names share. Videos
whose first frames look the same are then joined.
"""

import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from r23d_jax.data.find.class_folders import Clip
from r23d_jax.data.find.video_names import group_of
from r23d_jax.data.make.search import VideoFile
from r23d_jax.data.make.video import VideoError, iter_frames, video_rate
from r23d_jax.runtime.progress import Progress

_THREADS = 8
FEW = 4  # a class of at least so many videos must not become one group
# A last number, with a word such as "clip" before it; then two numbers, such as the start and end of a clip
_ENDINGS = (
    re.compile(r"(.+?)[ _.-]*(?:clip|part|seg|segment|cut|take|c|p)?[ _.-]*(?<![0-9])[0-9]+", re.IGNORECASE),
    re.compile(r"(.+?)[ _.-]+[0-9]+[ _.-]+[0-9]+"),
)
_GRID = 8  # the first frame is compared by so many signs a side
_SIGNS_APART = 2  # of 64, in frames that look the same
_FLAT = 8.0  # standard deviation of gray levels below which a frame, such as a black one, tells nothing


@dataclasses.dataclass(frozen=True)
class Seen:
    """One video, looked at without decoding more than its first frame."""

    width: int
    height: int
    rate: float  # frames per second; 0: not known
    signs: int  # of the first frame, see `_signs`; -1 for one that is flat


def look(videos: Sequence[VideoFile]) -> tuple[dict[str, Seen], dict[str, str]]:
    """Looks at videos in parallel: what was seen, by target, and the reason why others cannot be used, by path."""

    def one(video: VideoFile) -> Seen | VideoError:
        try:
            frame = next(iter_frames(video.path))
            return Seen(frame.shape[1], frame.shape[0], video_rate(video.path), _signs(frame))
        except VideoError as error:
            return error

    seen, broken = {}, {}
    with Progress(len(videos), "videos", "look") as progress, ThreadPoolExecutor(_THREADS) as pool:
        for video, found in zip(videos, pool.map(one, videos), strict=True):
            if isinstance(found, Seen):
                seen[video.target] = found
            else:
                broken[str(video.path)] = str(found).removeprefix(f"{video.path}: ")
            progress.update()
    return seen, broken


def _signs(frame: np.ndarray) -> int:
    """64 bits: whether each of 8 x 8 parts is brighter than its right neighbor. -1 for a flat frame."""
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    if gray.std() < _FLAT:
        return -1
    small = cv2.resize(gray, (_GRID + 1, _GRID), interpolation=cv2.INTER_AREA).astype(int)
    return int("".join("01"[int(bit)] for bit in (small[:, 1:] > small[:, :-1]).ravel()), 2)


def find_copies(videos: Sequence[VideoFile]) -> dict[str, str]:
    """Files with the content of another one, by path, each with the reason to leave it out.

    The first of a class is kept. A file that is in two classes is left out of both, because one label must be wrong.
    """
    by_size = defaultdict(list)
    for video in videos:
        by_size[video.path.stat().st_size].append(video)
    by_content = defaultdict(list)
    for same_size in by_size.values():
        for video in same_size if len(same_size) > 1 else ():
            with open(video.path, "rb") as file:
                by_content[hashlib.file_digest(file, "sha256").digest()].append(video)
    left_out = {}
    for first, *others in by_content.values():
        classes = sorted({video.class_name for video in (first, *others)})
        if len(classes) > 1:
            reason = f"the same file is in the classes {' and '.join(classes)}; keep the right one"
            left_out |= {str(video.path): reason for video in (first, *others)}
        else:
            left_out |= {str(video.path): f"is a copy of {first.path}" for video in others}
    return left_out


# -- recordings --------------------------------------------------------------------------------------------------------


def find_groups(clips: Sequence[Clip], seen: dict[str, Seen]) -> tuple[list[Clip], list[str]]:
    """Gives every clip the group that it must stay with, and says how they were found; `seen` is by path."""
    ways = (
        (_by_number, "by the numbers in their names, such as _g01_"),
        (_by_folder, "by the folders in their class folders"),
        *((functools.partial(_by_stem, ending), "by the beginning that file names share") for ending in _ENDINGS),
    )
    groups = {clip: f"{clip.class_name}/{clip.parts[-1]}" for clip in clips}
    notes, alone = [], set(clips)
    for way, words in ways:
        found = {clip: name for clip in alone if (name := way(clip))}
        if not _divides(groups | found, set(found)):
            continue
        groups |= found
        alone -= set(found)
        example = min(found, key=lambda clip: clip.path)
        notes.append(f"{len(set(found.values()))} recordings {words}, e.g. {groups[example]} of {example.path}")
        if len(found) > len(clips) / 2:
            break
    notes += _join_alike(clips, groups, seen)
    sizes = Counter(groups.values())
    if single := sum(sizes[groups[clip]] == 1 for clip in alone):
        notes.append(
            f"{single} of {len(clips)} videos are groups of their own: put clips of one recording into a folder below "
            "that of their class, because with some of them on each side the accuracy is too high"
        )
    return [dataclasses.replace(clip, group=groups[clip]) for clip in clips], notes


def _by_number(clip: Clip) -> str | None:
    number = group_of(clip.parts[-1])
    return number and f"{clip.class_name}_{number}"


def _by_folder(clip: Clip) -> str | None:
    return clip.below[0] if len(clip.below) > 1 else None


def _by_stem(ending: re.Pattern[str], clip: Clip) -> str | None:
    found = ending.fullmatch(clip.parts[-1])
    return found and f"{clip.class_name}/{found[1]}"


def _divides(groups: dict[Clip, str], found: set[Clip]) -> bool:
    """Whether groups join some videos, and no class with a few videos has more than half of them in one of these."""
    by_class: dict[str, Counter[str]] = defaultdict(Counter)
    for clip, group in groups.items():
        by_class[clip.class_name][group] += 1
    names = {groups[clip] for clip in found}
    joins = any(count > 1 for own in by_class.values() for name, count in own.items() if name in names)
    return joins and all(
        own.total() < FEW or max((own[name] for name in own if name in names), default=0) <= own.total() / 2
        for own in by_class.values()
    )


def _join_alike(clips: Sequence[Clip], groups: dict[Clip, str], seen: dict[str, Seen]) -> list[str]:
    """Joins groups whose first frames look the same, in place; returns lines for the log."""
    known = [clip for clip in clips if seen[clip.path].signs >= 0]
    signs = np.array([seen[clip.path].signs for clip in known], np.uint64)
    root = {group: group for group in groups.values()}

    def find(group: str) -> str:
        while root[group] != group:
            group = root[group]
        return group

    pairs = []
    for k in range(len(known)):
        for other in np.flatnonzero(np.bitwise_count(signs[k + 1 :] ^ signs[k]) <= _SIGNS_APART) + k + 1:
            a, b = find(groups[known[k]]), find(groups[known[other]])
            if a != b:
                pairs.append((known[k], known[other]))
                root[max(a, b)] = min(a, b)
    if not pairs:
        return []
    joined = {clip: find(group) for clip, group in groups.items()}
    example = f"e.g. {pairs[0][0].path} and {pairs[0][1].path}"
    if not _divides(joined, set(clips)):
        return [f"first frames of many videos look the same, {example}: a fixed camera, or one recording; not joined"]
    groups |= joined
    return [f"{len(pairs)} more recordings were joined, because their first frames look the same, {example}"]


# -- in words ----------------------------------------------------------------------------------------------------------


def describe(videos: Sequence[VideoFile], seen: dict[str, Seen], num_frames: dict[str, int]) -> list[str]:
    """Lines about the videos that can be used: sizes, rates, and a row for each class; both dicts are by target."""
    lines = []
    kinds: tuple[tuple[str, Callable[[Seen], str]], ...] = (
        ("sizes", lambda one: f"{one.width}x{one.height}"),
        ("frames a second", lambda one: f"{one.rate:.4g}" if one.rate else "unknown"),
    )
    for title, text in kinds:
        counts = Counter(text(seen[video.target]) for video in videos)
        shown = ", ".join(f"{value} ({count})" for value, count in counts.most_common(5))
        lines.append(f"{title}: {shown}{f' and {len(counts) - 5} more' if len(counts) > 5 else ''}")
    by_class = defaultdict(list)
    for video in videos:
        rate = seen[video.target].rate
        by_class[video.class_name].append(num_frames[video.target] / rate if rate else 0.0)
    width = max(map(len, by_class))
    lines.append(f"{'class':<{width}}  videos   seconds each (least, median, most)")
    for name, seconds in sorted(by_class.items()):
        known = sorted(filter(None, seconds)) or [0.0]
        spread = f"{known[0]:8.1f} {np.median(known):8.1f} {known[-1]:8.1f}"
        lines.append(f"{name:<{width}}  {len(seconds):6,}   {spread}")
    return lines
