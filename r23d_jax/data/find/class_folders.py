"""Splits of videos that come in class folders without lists. The split is written as CSV lists, so that it stays.

Folders `train/<Class>/` and `val/<Class>/` are a split already. The videos of other class folders are divided: in every
class that has two groups or more, about a fifth of the groups is for testing. A group is a number as in UCF101's names
(`_g01_`), or the first folder below that of the class, such as a person's. Without these, each file is a group.
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
from r23d_jax.data.find.frame_folder import IMAGE_SUFFIXES
from r23d_jax.data.find.splits import read_list
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


def class_of(parts: Sequence[str]) -> str:
    """The class of `Walk/p1/001`: its first folder, but the second below train/, val/ or test/."""
    return parts[1] if parts[0].lower() in SIDES and len(parts) > 2 else parts[0]


def write_lists(folder: Path, clips: Sequence[Clip]) -> tuple[str, ...]:
    """Divides videos and writes `train.csv`, `val.csv` and `classes.txt`, unless the folder exists.

    Args:
      folder: where to write. Existing lists stay as they are.
      clips: the videos.

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
    named = sorted((clip for clip in clips if _is_listable(clip.path)), key=lambda clip: clip.path)
    sides, notes = _divide(named)
    if len(named) < len(clips):
        odd = next(clip.path for clip in clips if not _is_listable(clip.path))
        notes.append(
            f"{len(clips) - len(named)} video(s) are left out: a folder's name holds a control character, a backslash, "
            f"bytes that are not text, or a space at an end, e.g. {odd!r}; rename it and delete {folder}"
        )
    spelled = {clip.class_name.casefold(): clip.class_name for clip in named}
    files = {"classes.txt": "".join(f"{name}\n" for name in sorted(spelled.values()))}
    files |= {f"{name}.csv": _csv(side) for name, side in sides.items()}
    try:
        with replacing(folder) as partial:
            partial.mkdir(parents=True)
            for name, content in files.items():
                (partial / name).write_text(content, encoding="utf-8")
    except OSError:
        if not folder.exists():  # else another process of the same job was first, with the same lists
            raise
    counts = ", ".join(f"{len(side)} for {name}" for name, side in sides.items())
    return (f"no lists were given, so the videos were divided ({counts}) and listed in {folder}", *notes)


def find_clips(root: Path) -> list[Clip]:
    """Finds the folders of frames below class folders: `<Class>/<video>/` or deeper.

    Raises:
      DataError: there are none, or no such folder.
    """
    if not os.path.isdir(root):
        raise DataError(f"config.data.root={root}: no such folder. {remedy()}")
    clips, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        parts, real = Path(folder).relative_to(root).parts, os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen and len(parts) > 1 and any(name.lower().endswith(IMAGE_SUFFIXES) for name in files):
            folders.clear()
            clips.append(Clip("/".join(parts), class_of(parts), parts))
        seen.add(real)
    if not clips:
        raise DataError(
            f"config.data.root={root}: without lists (config.data.lists='') it must hold a folder for each class, and "
            "in it a folder of frames for each video; or train/ and val/ with such folders"
        )
    return clips


def _is_listable(path: str) -> bool:
    """Whether a list can hold the path and give it back."""
    is_text = path.isprintable() or path.encode(errors="ignore").decode() == path
    return is_text and not CONTROL.search(path) and "\\" not in path and all(p == p.strip() for p in path.split("/"))


def _divide(clips: Sequence[Clip]) -> tuple[dict[str, list[Clip]], list[str]]:
    """The videos of each list, and lines for the log."""
    by_folder: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_folder[SIDES.get(clip.parts[0].lower(), "") if len(clip.parts) > 2 else ""].append(clip)
    if "train" in by_folder and ("val" in by_folder or "test" in by_folder):
        notes = []
        if outside := by_folder.pop("", []):
            notes.append(f"{len(outside)} video(s) outside train/, val/ and test/ are not used, e.g. {outside[0].path}")
        if "val" in by_folder and "test" in by_folder:
            notes.append("test.csv is not used while there is val.csv")
        return dict(by_folder), notes

    groups = _group(clips, by_folder=True)
    if all(len(of_class) == 1 for of_class in groups.values()):  # all videos of a class may be in one more folder
        groups = _group(clips, by_folder=False)
    held: set[Clip] = set()
    for of_class in groups.values():
        # The order does not depend on the class: a person's folder is on the same side in all classes that have it.
        ordered = sorted(of_class, key=lambda group: hashlib.sha256(f"{_SEED}/{group}".encode()).digest())
        count = min(len(ordered) - 1, max(1, round(_SHARE * len(ordered))))
        held.update(clip for group in ordered[:count] for clip in of_class[group])
    if not held:
        raise DataError("no class has two videos (or groups of videos), so none can be kept for testing")
    sides = {"val": [clip for clip in clips if clip in held], "train": [clip for clip in clips if clip not in held]}
    notes = []
    single = [name for name, of_class in groups.items() if len(of_class) == 1]
    if single:
        notes.append(f"{len(single)} class(es) have one group of videos only and no test video, e.g. {single[0]}")
    files = sum(group.startswith(_FILE) for of_class in groups.values() for group in of_class)
    if files:
        notes.append(
            f"WARNING: {files} videos were divided file by file, so clips of one recording may be on both sides, and "
            "the accuracy too high: put those of a recording into a folder of their own, or edit the lists"
        )
    return sides, notes


def _group(clips: Sequence[Clip], by_folder: bool) -> dict[str, dict[str, list[Clip]]]:
    """Videos by class and group."""
    groups: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        group = group_of(clip.parts[-1])
        below = clip.parts[2:] if clip.parts[0].lower() in SIDES and len(clip.parts) > 2 else clip.parts[1:]
        if group is None:
            group = below[0] if by_folder and len(below) > 1 else f"{_FILE}{'/'.join(below or clip.parts)}"
        groups[clip.class_name.casefold()][group].append(clip)
    return groups


def _csv(clips: Sequence[Clip]) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label"))
    for clip in clips:  # a suffix of a video would be taken off when the list is read
        rows.writerow((clip.path if without_suffix(clip.path) == clip.path else f"{clip.path}.avi", clip.class_name))
    return text.getvalue()
