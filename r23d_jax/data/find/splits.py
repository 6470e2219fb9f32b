"""The videos of a dataset, their classes, and which are for training.

The formats of lists are the rows of `FORMATS`; the files in a folder tell which one it has.

Clips of UCF101 with one group number (`v_Diving_g08_c01`: group 8) are cut from one recording. A split with a group on
both sides would measure memory of the recording, and its accuracy would double or more. Such a split is refused.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r23d_jax.config import nearest
from r23d_jax.data.find.errors import UCF101_URL, DataError, remedy
from r23d_jax.data.find.list_csv import CSV
from r23d_jax.data.find.list_diving48 import DIVING48
from r23d_jax.data.find.list_format import Listed, ListFormat, Subset
from r23d_jax.data.find.list_hmdb51 import HMDB51
from r23d_jax.data.find.list_kinetics import KINETICS
from r23d_jax.data.find.list_mmaction import MMACTION
from r23d_jax.data.find.list_resnets import RESNETS
from r23d_jax.data.find.list_something import SOMETHING
from r23d_jax.data.find.list_ucf101 import UCF101

FOLDS = 3  # into which `fold` divides a training list

FORMATS: dict[str, ListFormat] = {
    "ucf101": UCF101,
    "csv": CSV,
    "hmdb51": HMDB51,
    "kinetics": KINETICS,
    "something-something": SOMETHING,
    "diving48": DIVING48,
    "3d-resnets": RESNETS,
    "mmaction2": MMACTION,
}


class Entry(NamedTuple):
    """One listed video."""

    # `v_Diving_g01_c01`, the file name without folder and suffix; the path without suffix from a CSV file, or where
    # several videos have one name
    name: str
    label: int  # class number, from 0
    class_name: str
    group: str  # clips of one recording: `Diving_g01`, or the listed path if nothing tells; folds do not cut through it
    ids: tuple[str, ...] = ()  # names by which it is known in any folder: `name`, then others such as a YouTube id


@dataclasses.dataclass(frozen=True)
class VideoList:
    """The videos of one side of a split; `class_names[label]` names a label."""

    class_names: tuple[str, ...]
    entries: tuple[Entry, ...]
    elsewhere: frozenset[str] = frozenset()  # ids, in lower case, of videos that other sides and classes list


def hold_out(videos: VideoList, fraction: float) -> tuple[VideoList, VideoList]:
    """Divides a training list by groups into videos to train on and videos to tune with.

    The last groups of every class, in the order of their names, are held out: at least one, and never all. A group that
    several classes have, such as a person, is on one side in all of them.

    Args:
      fraction: share of the groups of each class to hold out, above 0 and below 1.

    Raises:
      DataError: a class has only one group, or shares its groups with classes that have only one.
    """
    groups = _groups(videos)
    for class_name, names in groups.items():
        if len(names) < 2:
            raise DataError(f"config.data.hold_out={fraction:g}: class {class_name} has one group only, {names[0]}")
    held = choose_groups({name: names[::-1] for name, names in groups.items()}, fraction)
    if without := [name for name, names in groups.items() if not held & set(names)]:
        raise DataError(
            f"config.data.hold_out={fraction:g}: no group of class {without[0]} can be held out, because other classes "
            "would have none left to train on; name other groups in the list"
        )
    return _divide(videos, held)


def fold(videos: VideoList, number: int) -> tuple[VideoList, VideoList]:
    """Divides a training list by groups into two thirds to train on and one third to test on.

    The groups of every class, in the order of their names, are dealt to the folds in turn. The first fold to get one
    differs from class to class, so that the folds are equally large. A group of several classes stays in one fold.

    Args:
      number: of the fold to test on, 1 to `FOLDS`.

    Raises:
      DataError: a class has fewer groups than there are folds, or shares too many of them with other classes.
    """
    groups = _groups(videos)
    dealt: dict[str, int] = {}  # group -> number of its fold
    for turn, (class_name, names) in enumerate(groups.items()):
        if len(names) < FOLDS:
            raise DataError(
                f"config.data.fold={number}: class {class_name} has {len(names)} group(s) in the training list, and "
                f"{FOLDS} folds need {FOLDS}; leave it out with config.data.classes"
            )
        for place, name in enumerate(names):
            dealt.setdefault(name, (place + turn) % FOLDS + 1)
    held = {name for name, own in dealt.items() if own == number}
    for class_name, names in groups.items():
        if not 0 < len(held & set(names)) < len(names):
            raise DataError(
                f"config.data.fold={number}: class {class_name} shares its groups with other classes and cannot be "
                "divided; name other groups in the list, or leave it out with config.data.classes"
            )
    return _divide(videos, held)


def _groups(videos: VideoList) -> dict[str, list[str]]:
    """The groups of every class, both in order."""
    groups: dict[str, set[str]] = {name: set() for name in videos.class_names}
    for entry in videos.entries:
        groups[entry.class_name].add(entry.group)
    return {name: sorted(found) for name, found in groups.items() if found}


def _divide(videos: VideoList, held: set[str]) -> tuple[VideoList, VideoList]:
    kept, out = (tuple(entry for entry in videos.entries if (entry.group in held) is side) for side in (False, True))
    return dataclasses.replace(videos, entries=kept), dataclasses.replace(videos, entries=out)


def choose_groups(groups: Mapping[str, Sequence[Hashable]], share: float) -> set[Any]:
    """Chooses groups to keep from training, so that each class has about a share of its own among them.

    Args:
      groups: the groups of each class, in the order of preference. A group may belong to several classes.
      share: of the groups of a class: at least one, and never all.

    Returns:
      The chosen groups. A class lacks one only if it has one group, or if other classes would have none left.
    """
    wanted = {name: min(len(own) - 1, max(1, round(share * len(own)))) for name, own in groups.items()}
    classes_of: dict[Any, list[str]] = {}
    for name, own in groups.items():
        for group in own:
            classes_of.setdefault(group, []).append(name)
    chosen: set[Any] = set()
    count = dict.fromkeys(groups, 0)
    # First within the wanted number of every class; then one for a class that got none, if each keeps one to train on
    most, one = {name: len(own) - 1 for name, own in groups.items()}, dict.fromkeys(groups, 1)
    for limit, least in (wanted, wanted), (most, one):
        for name in sorted(groups, key=lambda name: len(groups[name])):
            for group in groups[name]:
                fits = all(count[other] < limit[other] for other in classes_of[group])
                if count[name] < min(least[name], limit[name]) and group not in chosen and fits:
                    chosen.add(group)
                    for other in classes_of[group]:
                        count[other] += 1
    return chosen


def read_list(lists: Path, subset: Subset, split: int = 1, classes: tuple[str, ...] = ()) -> VideoList:
    """Reads one side of a split, after checking that no group is on both sides.

    Args:
      lists: folder of lists in one of `FORMATS`.
      subset: "train" or "test".
      split: number of the split; many formats have split 1 only.
      classes: names to keep; () keeps all. Labels are renumbered in the order of the whole list, so neither the order
        of `classes` nor upper and lower case matter.

    Returns:
      The listed videos in file order.

    Raises:
      DataError: a file is missing, a line is malformed, a class is unknown, a path leaves the folder, a video is listed
        twice, a group is on both sides, a class of the test list has no training video, or the folder has lists of no
        known format or of several.
    """
    lists = Path(lists)
    if subset not in ("train", "test"):
        raise DataError(f"subset {subset!r}: must be 'train' or 'test'")
    form = _find_format(lists)
    if form.splits is None and split != 1:
        raise DataError(f"{lists}: lists of this kind ({form.example}) have no split {split}; use split 1")
    class_names, sides = form.read(lists, subset, split)
    for listed in sides.values():
        _refuse_duplicates(listed)
    if len(sides) == 2:
        _refuse_leak(lists, sides["train"], sides["test"])

    kept = _restrict(lists, class_names, classes)
    label = {name: i for i, name in enumerate(kept)}
    count = Counter(video.name.casefold() for side in sides.values() for video in side)
    repeated = {name for name, number in count.items() if number > 1}
    spelled: dict[str, str] = {}  # groups as first spelled: P1 and p1 are one
    entries = tuple(
        Entry(
            v.path if repeated and v.name.casefold() in repeated else v.name,  # 001 may be a name in each class
            label[v.class_name],
            v.class_name,
            spelled.setdefault((group := v.film or v.group).casefold(), group),
            v.ids,
        )
        for v in sides[subset]
        if v.class_name in label
    )
    if not entries:
        some = ", ".join(kept[:5]) + (", ..." if len(kept) > 5 else "")
        raise DataError(f"{lists}: the {subset} list of split {split} names no video of {some or 'any class'}")
    if len(sides) == 2:
        _refuse_untrained(lists, sides["train"], [video for video in sides["test"] if video.class_name in label])
    ids = (name.casefold() for listed in sides.values() for video in listed for name in video.ids)
    return VideoList(
        kept, entries, frozenset(ids).difference(name.casefold() for entry in entries for name in entry.ids)
    )


def available_splits(lists: Path) -> tuple[int, ...]:
    """Numbers of the splits whose lists are in the folder, or (); raises DataError if it has no known format."""
    form = _find_format(Path(lists))
    return form.splits(Path(lists)) if form.splits else (1,)


def _refuse_duplicates(listed: list[Listed]) -> None:
    first: dict[str, Listed] = {}
    for video in listed:
        other = first.setdefault(video.path.casefold(), video)
        if other is not video:
            raise DataError(f"{video.where}: {video.path} is listed twice (first in {other.where})")


def _refuse_leak(lists: Path, train: list[Listed], test: list[Listed]) -> None:
    in_train: dict[str, Listed] = {}
    for video in train:
        for key in _keys(video):
            in_train.setdefault(key, video)
    pairs = {}
    for video in test:
        other = next((in_train[key] for key in _keys(video) if key in in_train), None)
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


def _keys(video: Listed) -> tuple[str, str]:
    """What must be on one side of a split: its group, and the video itself, whatever group the lists give it."""
    return video.group.casefold(), video.path.casefold()


def _refuse_untrained(lists: Path, train: list[Listed], test: list[Listed]) -> None:
    trained = {video.class_name for video in train}
    untrained = {video.class_name: video for video in reversed(test) if video.class_name not in trained}
    if untrained:
        name, video = min(untrained.items())
        raise DataError(
            f"{lists}: {len(untrained)} class(es) of the test list have no training video, e.g. {name} "
            f"({video.where}); are they spelled alike in both lists? To leave classes out, set config.data.classes"
        )


def _restrict(lists: Path, class_names: tuple[str, ...], classes: tuple[str, ...]) -> tuple[str, ...]:
    if not classes:
        return class_names
    by_fold = {name.casefold(): name for name in class_names}
    unknown = [name for name in classes if name.casefold() not in by_fold]
    if unknown:
        hints = "; ".join(f"{name!r}: {nearest(name, class_names)}" for name in unknown)
        raise DataError(
            f"config.data.classes: not among the {len(class_names)} classes of {lists}: {hints}. To take all classes: "
            "'--config.data.classes=()'"
        )
    wanted = {by_fold[name.casefold()] for name in classes}
    return tuple(name for name in class_names if name in wanted)


def _find_format(lists: Path) -> ListFormat:
    if not os.path.isdir(lists):  # Path.is_dir raises where nothing may be read
        raise DataError(f"{lists}: no such folder. {_wanted()}")
    try:
        names = os.listdir(lists)
    except OSError as error:
        raise DataError(f"{lists}: cannot be read ({error.strerror})") from error
    found = {name: file for name, form in FORMATS.items() if (file := form.find(lists, names))}
    if len(found) > 1:
        both = " and ".join(f"{name} ({file})" for name, file in found.items())
        raise DataError(f"{lists}: holds lists of several formats: {both}; keep those of one in a folder of their own")
    if found:
        return FORMATS[next(iter(found))]
    inside = ", ".join(sorted(names)[:5]) or "nothing"
    problem = f"{lists}: holds neither {' nor '.join(form.example for form in FORMATS.values())} (it holds: {inside})"
    for folder in sorted(path for path in lists.iterdir() if os.path.isdir(path) and os.access(path, os.R_OK)):
        if any(form.find(folder, os.listdir(folder)) for form in FORMATS.values()):
            raise DataError(f"{problem}. Did you mean --config.data.lists={folder}?")
    raise DataError(f"{problem}. {_wanted()}")


def _wanted() -> str:
    return (
        "config.data.lists is a folder of split lists: UCF101's classInd.txt, trainlist01.txt and testlist01.txt (the "
        f"archive 'ucfTrainTestlist' at {UCF101_URL}), or those of another format (docs/datasets.md). {remedy()}"
    )
