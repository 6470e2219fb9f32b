"""Which videos there are, what they show, and which are for training: the official UCF101 lists, or CSV files.

Two forms are read, told apart by the files in the folder:

* UCF101's: `classInd.txt` (`12 Diving`), `trainlist01.txt` (`Diving/v_Diving_g08_c01.avi 12`), `testlist01.txt` (the
  same without the number), with LF or CRLF line ends. The numbers count from 1 and are checked against classInd.txt.
* `train.csv` and `val.csv` (or `test.csv`): `path,label` with or without a header; the label is a class name or a
  number from 0. An optional `classes.txt` (one name a line) gives the classes their order; otherwise they are sorted.

Clips of UCF101 with one group id (`v_Diving_g08_c01`: group 8) are cut from one recording, so a split with a group on
both sides measures memory of the recording: accuracy doubles or more. Such a split is refused.
"""

import dataclasses
import os
from pathlib import Path

from r23d_jax.config import nearest
from r23d_jax.data.find.errors import UCF101_URL, DataError, remedy
from r23d_jax.data.find.list_csv import TEST_CSV, read_csv
from r23d_jax.data.find.list_format import Listed, Subset
from r23d_jax.data.find.list_ucf101 import read_ucf101, ucf101_splits


@dataclasses.dataclass(frozen=True)
class Entry:
    """One listed video.

    Attributes:
      name: `v_Diving_g01_c01`: the file name without folder and suffix; from a CSV file, the path without suffix.
      label: class number, from 0.
      class_name: `Diving`.
      group: what must not be on both sides of a split: `Diving_g01`, or the listed path where names hold no group.
    """

    name: str
    label: int
    class_name: str
    group: str


@dataclasses.dataclass(frozen=True)
class VideoList:
    """The videos of one side of a split; `class_names[label]` names a label."""

    class_names: tuple[str, ...]
    entries: tuple[Entry, ...]


def hold_out(videos: VideoList, fraction: float) -> tuple[VideoList, VideoList]:
    """Divides a training list by groups: what is trained on, and what is held out to choose something by.

    Of every class the last groups in the order of their names are held out, at least one and never all.

    Args:
      videos: a training list.
      fraction: of the groups of a class, above 0 and below 1.

    Raises:
      DataError: if a class has one group only.
    """
    groups: dict[str, set[str]] = {}
    for entry in videos.entries:
        groups.setdefault(entry.class_name, set()).add(entry.group)
    held: set[str] = set()
    for class_name, names in groups.items():
        if len(names) < 2:
            raise DataError(f"config.data.hold_out={fraction:g}: class {class_name} has one group only, {min(names)}")
        count = min(len(names) - 1, max(1, round(fraction * len(names))))
        held |= set(sorted(names)[-count:])
    kept, out = (tuple(entry for entry in videos.entries if (entry.group in held) is side) for side in (False, True))
    return VideoList(videos.class_names, kept), VideoList(videos.class_names, out)


def read_list(lists: Path, subset: Subset, split: int = 1, classes: tuple[str, ...] = ()) -> VideoList:
    """Reads one side of a split, having checked that no group is on both sides.

    Args:
      lists: folder of classInd.txt, trainlist0N.txt and testlist0N.txt, or of train.csv and val.csv (or test.csv).
        Where both forms are present, classInd.txt decides.
      subset: "train" or "test".
      split: N; CSV files have split 1 only.
      classes: names to keep; () keeps all. Labels are renumbered in the order that the whole list has, so the order
        of `classes` does not matter, nor does upper or lower case.

    Returns:
      The listed videos in file order.

    Raises:
      DataError: a file is missing or a line malformed, a class unknown, a path leaves the folder, a video is listed
        twice, a group is on both sides.
    """
    lists = Path(lists)
    if subset not in ("train", "test"):
        raise DataError(f"subset {subset!r}: must be 'train' or 'test'")
    # os.path, because a Path raises an error where a folder may not be read
    if os.path.isfile(lists / "classInd.txt"):
        class_names, sides = read_ucf101(lists, subset, split)
    elif any(os.path.isfile(lists / name) for name in ("train.csv", *TEST_CSV)):
        class_names, sides = read_csv(lists, subset, split)
    else:
        raise DataError(_nothing_found(lists))
    for listed in sides.values():
        _refuse_duplicates(listed)
    if len(sides) == 2:
        _refuse_leak(lists, sides["train"], sides["test"])

    kept = _restrict(lists, class_names, classes)
    label = {name: i for i, name in enumerate(kept)}
    entries = tuple(
        Entry(v.name, label[v.class_name], v.class_name, v.group) for v in sides[subset] if v.class_name in label
    )
    if not entries:
        some = ", ".join(kept[:5]) + (", ..." if len(kept) > 5 else "")
        raise DataError(f"{lists}: the {subset} list of split {split} names no video of {some or 'any class'}")
    return VideoList(kept, entries)


def available_splits(lists: Path) -> tuple[int, ...]:
    """Numbers of the splits whose lists are in the folder; (1,) for CSV files, () if there are none."""
    lists = Path(lists)
    if (lists / "classInd.txt").is_file():
        return ucf101_splits(lists)
    return (1,) if any((lists / name).is_file() for name in ("train.csv", *TEST_CSV)) else ()


def _refuse_duplicates(listed: list[Listed]) -> None:
    first: dict[str, Listed] = {}
    for video in listed:
        other = first.setdefault(video.path.casefold(), video)
        if other is not video:
            raise DataError(f"{video.where}: {video.path} is listed twice (first in {other.where})")


def _refuse_leak(lists: Path, train: list[Listed], test: list[Listed]) -> None:
    in_train: dict[str, Listed] = {}
    for video in train:
        in_train.setdefault(video.group.casefold(), video)
    pairs = {}
    for video in test:
        other = in_train.get(video.group.casefold())
        if other is not None:
            pairs.setdefault(video.group, (other, video))
    if pairs:
        examples = [f"{a.path} ({a.where}) and {b.path} ({b.where})" for a, b in list(pairs.values())[:3]]
        raise DataError(
            f"{lists}: the split cuts through {len(pairs)} group(s): clips of one recording are in both the train and "
            "the test list, so the test accuracy would be far too high. For example "
            + "; ".join(examples)
            + ". Keep each group on one side, or use the official lists"
        )


def _restrict(lists: Path, class_names: tuple[str, ...], classes: tuple[str, ...]) -> tuple[str, ...]:
    if not classes:
        return class_names
    by_fold = {name.casefold(): name for name in class_names}
    unknown = [name for name in classes if name.casefold() not in by_fold]
    if unknown:
        hints = "; ".join(f"{name!r}: {nearest(name, class_names)}" for name in unknown)
        raise DataError(f"config.data.classes: not among the {len(class_names)} classes of {lists}: {hints}")
    wanted = {by_fold[name.casefold()] for name in classes}
    return tuple(name for name in class_names if name in wanted)


def _nothing_found(lists: Path) -> str:
    if not os.path.isdir(lists):
        problem = f"{lists}: no such folder"
    elif not os.access(lists, os.R_OK | os.X_OK):
        return f"{lists}: cannot be read (Permission denied)"
    else:
        inside = sorted(p.name for p in lists.iterdir())
        problem = f"{lists}: holds neither classInd.txt nor train.csv (it holds: {', '.join(inside[:5]) or 'nothing'})"
        nested = next((p for p in sorted(lists.glob("*/classInd.txt"))), None)
        if nested is not None:
            return f"{problem}. Did you mean --config.data.lists={nested.parent}?"
    return (
        f"{problem}. config.data.lists is the folder of classInd.txt, trainlist01.txt and testlist01.txt (UCF101's "
        f"archive 'ucfTrainTestlist' at {UCF101_URL}), or of train.csv and val.csv. {remedy()}"
    )
