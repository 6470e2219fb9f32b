"""Splits of videos that come in class folders without lists. The split is written as CSV lists, so that it stays.

Folders `train/<Class>/` and `val/<Class>/` are a split already. The videos of other class folders are divided: in every
class that has two groups or more, about a fifth of the groups is for testing. A group is a number as in UCF101's names
(`_g01_`), or the first folder below that of the class, such as a person's. Without these, each file is a group. The
lists have a column `group`, so that a part of the training videos is held out by the same groups.
"""

import csv
import dataclasses
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from r23d_jax.data.find.errors import DataError, remedy
from r23d_jax.data.find.frame_folder import IMAGE_SUFFIXES, walk
from r23d_jax.data.find.splits import choose_groups, read_list
from r23d_jax.data.find.video_names import CONTROL, group_of, without_suffix
from r23d_jax.runtime.disk import replacing

SIDES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # folder -> name of list
LISTS = "lists"  # the folder of lists beside that of the frames
_SHARE = 0.2  # of a class's groups, for testing
_SEED = 0  # another number makes another split
_FILE = "/"  # starts the names of groups of one file


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video without lists."""

    path: str  # as it will be listed
    class_name: str
    parts: tuple[str, ...]  # its path below the folder that was searched, without suffix
    group: str = ""  # its recording or person, if it is known; "": by its name and folder
    side: str = ""  # the value of `SIDES` for its first folder; "": that is its class

    @property
    def below(self) -> tuple[str, ...]:
        """Its path below the folder of its class."""
        return self.parts[2:] if self.side else self.parts[1:]

    @property
    def key(self) -> str:
        """Its group in words, as `Listed.group` has it once it is listed."""
        number = group_of(self.parts[-1])
        return self.group or (f"{self.class_name}_{number}" if number else self.path)


@dataclasses.dataclass(frozen=True)
class Division:
    """Videos divided into lists."""

    sides: dict[str, list[Clip]]  # name of the list -> its videos, each with the group that it is listed with
    notes: tuple[str, ...]  # lines for the log


def sides_of(videos: Sequence[Sequence[str]]) -> list[str]:
    """The side of each video, `Clip.side`, from the parts of their paths.

    Folders called train/, val/ and test/ are the sides of a split. One of them alone, beside other folders as deep, is
    a class itself, such as of vehicles.
    """
    sides = [SIDES.get(parts[0].lower(), "") if len(parts) > 2 else "" for parts in videos]
    found = set(sides) - {""}
    beside = any(not side and len(parts) > 2 for parts, side in zip(videos, sides, strict=True))
    is_class = beside and not ("train" in found and len(found) > 1)
    return [""] * len(sides) if is_class else sides


def class_of(parts: Sequence[str], side: str = "") -> str:
    """The class of `Walk/p1/001`: its first folder, but the second below that of a side."""
    return parts[1] if side else parts[0]


def write_lists(folder: Path, clips: Sequence[Clip]) -> tuple[str, ...]:
    """Divides videos and writes `train.csv`, `val.csv` and `classes.txt`, unless the folder exists.

    Args:
      folder: where to write. Existing lists stay as they are.

    Returns:
      Lines for the log: how the videos were divided, and what to mind.

    Raises:
      DataError: nothing can be divided, or existing lists are wrong.
      WriteError: the folder cannot be written.
    """
    if folder.exists():
        listed = {entry.name.casefold() for side in ("train", "test") for entry in read_list(folder, side).entries}
        new = [clip.path for clip in clips if not {clip.path.casefold(), clip.parts[-1].casefold()} & listed]
        note = f"; {len(new)} videos are not in them, e.g. {new[0]}: delete the folder to divide anew" if new else ""
        return (f"the split is that of the lists in {folder}{note}",)
    divided = divide(clips)
    notes = list(divided.notes)
    named = [clip for side in divided.sides.values() for clip in side]
    spelled = {clip.class_name.casefold(): clip.class_name for clip in named}
    files = {"classes.txt": "".join(f"{name}\n" for name in sorted(spelled.values()))}
    files |= {f"{name}.csv": _csv(side) for name, side in divided.sides.items()}
    try:
        with replacing(folder) as partial:
            partial.mkdir(parents=True)
            for name, content in files.items():
                (partial / name).write_text(content, encoding="utf-8")
    except OSError:
        if not folder.exists():  # else another process of the same job was first, with the same lists
            raise
    counts = ", ".join(f"{len(side)} in {name}.csv" for name, side in sorted(divided.sides.items()))
    return (f"no lists were given, so the videos were divided ({counts}) and listed in {folder}", *notes)


def find_clips(root: Path) -> list[Clip]:
    """The folders of frames below class folders, `<Class>/<video>/` or deeper; raises DataError if there are none."""
    if not os.path.isdir(root):
        raise DataError(f"config.data.root={root}: no such folder. {remedy()}")
    pictures = {}
    for folder, _, files in walk(root):
        parts = Path(folder).relative_to(root).parts
        count = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in files)
        if len(parts) > 1 and count:
            pictures[parts] = count
    found = _videos(pictures)
    clips = [
        Clip("/".join(parts), class_of(parts, side), parts, side=side)
        for parts, side in zip(found, sides_of(found), strict=True)
    ]
    if not clips:
        raise DataError(
            f"config.data.root={root}: without lists (config.data.lists='') it must hold a folder for each class, and "
            "in it a folder of frames for each video; or train/ and val/ with such folders"
        )
    return clips


def _videos(pictures: dict[tuple[str, ...], int]) -> list[tuple[str, ...]]:
    """The folders that are videos, from the number of pictures in each.

    A folder above several others, with fewer pictures than these are, holds a cover or the like. In one with more, the
    others hold something else, such as small copies.
    """
    above: dict[tuple[str, ...], int] = defaultdict(int)
    for parts in pictures:
        for length in range(1, len(parts)):
            above[parts[:length]] += parts[:length] in pictures
    videos = {parts for parts, count in pictures.items() if count > above[parts]}
    inside = {parts for parts in videos if any(parts[:length] in videos for length in range(1, len(parts)))}
    return [parts for parts in pictures if parts in videos - inside]


def _is_listable(path: str) -> bool:
    """Whether a list can hold the path and give it back."""
    is_text = path.isprintable() or path.encode(errors="ignore").decode() == path
    return is_text and not CONTROL.search(path) and "\\" not in path and all(p == p.strip() for p in path.split("/"))


def divide(clips: Sequence[Clip]) -> Division:
    """Divides videos into lists as the top of this file says; raises DataError if nothing can be kept for testing."""
    named = sorted((clip for clip in clips if _is_listable(clip.path)), key=lambda clip: clip.path)
    sides, notes = _by_sides(named) or _by_groups(named)
    if taken := [clip for clip in named if not clip.side and len(clip.parts) > 2 and clip.parts[0].lower() in SIDES]:
        folder = taken[0].parts[0]
        other = next(clip.parts[0] for clip in named if clip.parts[0] != folder and len(clip.parts) > 2)
        notes.append(
            f"WARNING: the folder {folder} is taken for a class, because {other} is beside it; if it is a side of a "
            f"split, move {other} elsewhere, and delete the lists"
        )
    if len(named) < len(clips):
        odd = next(clip.path for clip in clips if not _is_listable(clip.path))
        notes.append(
            f"{len(clips) - len(named)} video(s) are left out: a folder's name holds a control character, a backslash, "
            f"bytes that are not text, or a space at an end, e.g. {odd!r}; rename it, and delete the lists"
        )
    return Division(sides, tuple(notes))


def _by_sides(clips: Sequence[Clip]) -> tuple[dict[str, list[Clip]], list[str]] | None:
    """The videos of each list and lines for the log, if folders such as train/ and val/ say so."""
    by_folder: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_folder[clip.side].append(clip)
    if "train" not in by_folder or ("val" not in by_folder and "test" not in by_folder):
        return None
    notes = []
    if outside := by_folder.pop("", []):
        notes.append(f"{len(outside)} video(s) outside train/, val/ and test/ are not used, e.g. {outside[0].path}")
    if "val" in by_folder and "test" in by_folder:
        notes.append("test.csv is not used while there is val.csv")
    # A folder of one name on both sides, such as 01/, need not be one recording: the folders' split is taken as it is.
    groups = {clip: group for clip, (group, _) in _groups(by_folder["train"], by_folder=True).items()}
    sides = {
        name: [dataclasses.replace(clip, group=groups.get(clip, "")) for clip in side]
        for name, side in by_folder.items()
    }
    return sides, notes


def _by_groups(clips: Sequence[Clip]) -> tuple[dict[str, list[Clip]], list[str]]:
    """The videos of each list, with a share of the groups of every class for testing, and lines for the log."""
    groups = _groups(clips, by_folder=True)
    if all(len(own) == 1 for own in _in_classes(groups).values()):  # all videos of a class may be in one more folder
        groups = _groups(clips, by_folder=False)
    ordered = {name: sorted(own, key=_order) for name, own in _in_classes(groups).items()}
    held = choose_groups(ordered, _SHARE)
    if not held:
        raise DataError("no class has two videos (or groups of videos), so none can be kept for testing")
    listed = {clip: dataclasses.replace(clip, group=group) for clip, (group, _) in groups.items()}
    sides = {
        name: [listed[clip] for clip in clips if (groups[clip] in held) is (name == "val")] for name in ("val", "train")
    }
    notes = []
    if single := [name for name, own in ordered.items() if len(own) == 1]:
        notes.append(f"{len(single)} class(es) have one group of videos only and no test video, e.g. {single[0]}")
    if shared := [name for name, own in ordered.items() if len(own) > 1 and not held & set(own)]:
        notes.append(
            f"{len(shared)} class(es) have no test video, because their groups are also those of other classes, e.g. "
            f"{shared[0]}"
        )
    if files := sum(key.startswith(_FILE) for _, (_, key) in groups.values()):
        were = "videos were" if files > 1 else "video was"
        notes.append(
            f"WARNING: {files} {were} divided file by file, so clips of one recording may be on both sides, and the "
            "accuracy too high: put those of a recording into a folder of their own, or edit the lists"
        )
    return sides, notes


# What a video is listed with, "" where its name tells, and what tells its group from all others
_Group = tuple[str, tuple[str, str]]


def _groups(clips: Sequence[Clip], by_folder: bool) -> dict[Clip, _Group]:
    groups = {}
    for clip in clips:
        number = group_of(clip.parts[-1])
        if clip.group:
            groups[clip] = clip.group, ("", clip.group)
        elif number:  # the number of a recording of this class
            groups[clip] = "", (clip.class_name.casefold(), number)
        elif by_folder and len(clip.below) > 1:  # a person, who may be in other classes too
            groups[clip] = clip.below[0], ("", clip.below[0])
        else:
            groups[clip] = "", (clip.class_name.casefold(), f"{_FILE}{'/'.join(clip.below or clip.parts)}")
    return groups


def _in_classes(groups: dict[Clip, _Group]) -> dict[str, list[_Group]]:
    """The groups of each class, each once."""
    of_class: dict[str, dict[_Group, None]] = defaultdict(dict)
    for clip, group in groups.items():
        of_class[clip.class_name.casefold()][group] = None
    return {name: list(own) for name, own in of_class.items()}


def _order(group: _Group) -> bytes:
    """A random place that does not depend on the class: a number is on the same side in most classes."""
    return hashlib.sha256(f"{_SEED}/{group[1][1]}".encode()).digest()


def _csv(clips: Sequence[Clip]) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "group"))
    for clip in clips:  # a suffix of a video would be taken off when the list is read
        path = clip.path if without_suffix(clip.path) == clip.path else f"{clip.path}.avi"
        rows.writerow((path, clip.class_name, clip.group))
    return text.getvalue()
