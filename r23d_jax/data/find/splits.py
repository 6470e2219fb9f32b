"""Which videos there are, what they show, and which are for training: the official UCF101 lists, or CSV files.

Two forms are read, told apart by the files in the folder:

* UCF101's: `classInd.txt` (`12 Diving`), `trainlist01.txt` (`Diving/v_Diving_g08_c01.avi 12`), `testlist01.txt` (the
  same without the number), with LF or CRLF line ends. The numbers count from 1 and are checked against classInd.txt.
* `train.csv` and `val.csv` (or `test.csv`): `path,label` with or without a header; the label is a class name or a
  number from 0. An optional `classes.txt` (one name a line) gives the classes their order; otherwise they are sorted.

Clips of UCF101 with one group id (`v_Diving_g08_c01`: group 8) are cut from one recording, so a split with a group on
both sides measures memory of the recording: accuracy doubles or more. Such a split is refused.
"""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from r23d_jax.config import UserError, nearest
from r23d_jax.runtime.program import command

Subset = Literal["train", "test"]

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm")
UCF101_URL = "https://www.crcv.ucf.edu/data/UCF101.php"

_GROUP = re.compile(r"_(g[0-9]+)_c[0-9]+$", re.IGNORECASE)
_CLASS_LINE = re.compile(r"([0-9]{1,9})[ \t]+(\S.*)")
_NUMBERED = re.compile(r"(.*\S)[ \t]+([0-9]{1,9})")
_PATH_HEADERS = ("path", "video", "video_path", "file", "filename", "name")
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")  # in a name: it would clear a terminal, or forge a line of the log
_LABEL_HEADERS = ("label", "class", "class_name", "target")
_NUMBER = re.compile(r"[0-9]{1,9}")
# Of a list, and of a line in it: beyond these it is some other file.
_MOST_BYTES, _MOST_CHARACTERS = 1 << 27, 1 << 12


class DataError(UserError, ValueError):
    """Something about the data on disk is wrong; the message names the file and the remedy."""


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


@dataclasses.dataclass(frozen=True)
class _Listed:
    """A line of a list, before classes are restricted and renumbered."""

    path: str  # as listed, without suffix
    name: str
    class_name: str
    where: str  # "trainlist01.txt:12"

    @property
    def group(self) -> str:
        found = _GROUP.search(self.name)
        return f"{self.class_name}_{found[1].lower()}" if found else self.path


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
        class_names, sides = _read_ucf101(lists, subset, split)
    elif any(os.path.isfile(lists / name) for name in ("train.csv", *_TEST_CSV)):
        class_names, sides = _read_csv(lists, subset, split)
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
        found = (re.fullmatch(r"(?:train|test)list([0-9]{2})\.txt", p.name) for p in sorted(lists.iterdir()))
        return tuple(sorted({int(m[1]) for m in found if m}))
    return (1,) if any((lists / name).is_file() for name in ("train.csv", *_TEST_CSV)) else ()


# -- UCF101 ------------------------------------------------------------------------------------------------------------


def _read_ucf101(lists: Path, subset: Subset, split: int) -> tuple[tuple[str, ...], dict[str, list[_Listed]]]:
    number_of = _read_class_ind(lists / "classInd.txt")
    sides = {}
    for side in ("train", "test"):
        path = lists / f"{side}list{split:02d}.txt"
        if path.is_file():
            sides[side] = _read_ucf101_list(path, number_of, numbered=side == "train")
        elif side == subset:
            have = ", ".join(map(str, available_splits(lists))) or "none"
            raise DataError(
                f"{path}: no such file (splits found in {lists}: {have}). UCF101's lists are in the archive "
                f"'ucfTrainTestlist' at {UCF101_URL}"
            )
    return tuple(number_of), sides


def _read_class_ind(path: Path) -> dict[str, int]:
    number_of: dict[str, int] = {}
    folded: set[str] = set()
    last = -1
    for where, line in _lines(path):
        found = _CLASS_LINE.fullmatch(line)
        if not found:
            raise DataError(
                f"{where}: malformed line {_shown(line)}; expected a number and a class name, e.g. '12 Diving'"
            )
        number, name = int(found[1]), found[2]
        _refuse_escape(name, where)
        if name.casefold() in folded:
            raise DataError(f"{where}: class {_shown(name)} is named twice")
        if number <= last:
            raise DataError(f"{where}: class number {number} does not rise ({_shown(line)})")
        number_of[name] = last = number
        folded.add(name.casefold())
    if not number_of:
        raise DataError(f"{path}: names no class")
    return number_of


def _read_ucf101_list(path: Path, number_of: dict[str, int], numbered: bool) -> list[_Listed]:
    by_fold = {name.casefold(): name for name in number_of}
    listed = []
    for where, line in _lines(path):
        found = _NUMBERED.fullmatch(line)
        # Test lists have no number; one that has is read too, but a file name may itself end in a number.
        if found and not numbered and not found[1].lower().endswith(VIDEO_SUFFIXES):
            found = None
        if not found and numbered:
            raise DataError(f"{where}: malformed line {_shown(line)}; expected 'Class/video.avi 12'")
        parts = _relative_parts(found[1] if found else line, where)
        if len(parts) != 2:
            expected = f"'Class/video.avi{' 12' if numbered else ''}'"
            raise DataError(f"{where}: malformed line {_shown(line)}; expected {expected}")
        class_name = by_fold.get(parts[0].casefold())
        if class_name is None:
            hint = nearest(parts[0], number_of)
            raise DataError(f"{where}: class {_shown(parts[0])} is not in classInd.txt; {hint}")
        if found and int(found[2]) != number_of[class_name]:
            raise DataError(
                f"{where}: label {found[2]} for {class_name}, which classInd.txt numbers {number_of[class_name]} "
                "(UCF101 counts from 1)"
            )
        name = without_suffix(parts[1])
        listed.append(_Listed(f"{class_name}/{name}", name, class_name, where))
    return listed


# -- CSV ---------------------------------------------------------------------------------------------------------------

_TEST_CSV = ("val.csv", "test.csv")


def _read_csv(lists: Path, subset: Subset, split: int) -> tuple[tuple[str, ...], dict[str, list[_Listed]]]:
    if split != 1:
        raise DataError(f"{lists}: holds train.csv and val.csv, which have no split {split}; use split 1")
    names = {"train": ("train.csv",), "test": _TEST_CSV}
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for side, candidates in names.items():
        path = next((lists / name for name in candidates if (lists / name).is_file()), None)
        if path is not None:
            rows[side] = _read_csv_rows(path)
        elif side == subset:
            raise DataError(f"{lists / candidates[0]}: no such file; it lists the {side} videos as lines 'path,label'")
    every = [row for side in rows.values() for row in side]

    classes_file = lists / "classes.txt"
    if classes_file.is_file():
        lines = list(_lines(classes_file))
        for where, name in lines:
            _refuse_escape(name, where)
        class_names = tuple(name for _, name in lines)
        if len({name.casefold() for name in class_names}) != len(class_names) or not class_names:
            raise DataError(f"{classes_file}: must name each class once, one a line")
    else:
        labels = {label for _, label, _ in every}
        numbers = {label for label in labels if _NUMBER.fullmatch(label)}
        if numbers and numbers != labels:
            raise DataError(
                f"{lists}: labels mix numbers ({min(numbers)}) and names ({_shown(min(labels - numbers))}); "
                "write classes.txt, one class name a line, or use one kind"
            )
        ordered = sorted(labels, key=(lambda text: (int(text), text)) if numbers else None)
        spelled: dict[str, str] = {}
        for label in ordered:
            spelled.setdefault(label.casefold(), label)
        class_names = tuple(spelled.values())
    by_fold = {name.casefold(): name for name in class_names}

    def class_of(label: str, where: str) -> str:
        if label.casefold() in by_fold:
            return by_fold[label.casefold()]
        number = _NUMBER.fullmatch(label)
        if number and int(label) < len(class_names):
            return class_names[int(label)]
        hint = f"numbers go from 0 to {len(class_names) - 1}" if number else nearest(label, class_names)
        raise DataError(f"{where}: label {_shown(label)} is not in classes.txt; {hint}")

    sides = {}
    for side, side_rows in rows.items():
        sides[side] = []
        for text, label, where in side_rows:
            path = without_suffix("/".join(_relative_parts(text, where)))
            sides[side].append(_Listed(path, path, class_of(label, where), where))
    return class_names, sides


def _read_csv_rows(path: Path) -> list[tuple[str, str, str]]:
    """(path, label, where) of every row."""
    rows: list[tuple[str, str, str]] = []
    path_column, label_column, width = 0, 1, 2
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            where = f"{path.name}:{reader.line_num}"
            _refuse_long(",".join(cells), where)
            lower = [cell.lower() for cell in cells]
            if not rows and width == 2 and any(c in _PATH_HEADERS for c in lower) and reader.line_num == 1:
                path_column = next(i for i, c in enumerate(lower) if c in _PATH_HEADERS)
                label_column = next((i for i, c in enumerate(lower) if c in _LABEL_HEADERS), -1)
                if label_column < 0:
                    raise DataError(f"{where}: header {_shown(','.join(cells))} has no column 'label'")
                width = len(cells)
                continue
            if len(cells) != width or not cells[path_column] or not cells[label_column]:
                raise DataError(f"{where}: malformed line {_shown(','.join(cells))}; expected 'path,label'")
            _refuse_escape(cells[label_column], where)
            rows.append((cells[path_column], cells[label_column], where))
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: not CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: lists no video")
    return rows


# -- both forms --------------------------------------------------------------------------------------------------------


def without_suffix(name: str) -> str:
    """The name without a video suffix; any other dot belongs to the name."""
    for suffix in VIDEO_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def group_of(name: str) -> str | None:
    """`g08` of `v_Diving_g08_c01`; None where the name holds no group."""
    found = _GROUP.search(name)
    return found[1].lower() if found else None


def _lines(path: Path) -> Iterable[tuple[str, str]]:
    """(file:line, text) of every line that is not blank."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", _text(path)), start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            _refuse_long(line, where)
            yield where, line.strip()


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"{path}: {size} bytes, more than {_MOST_BYTES}: this is no list")
        return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _refuse_long(line: str, where: str) -> None:
    if len(line) > _MOST_CHARACTERS:
        raise DataError(f"{where}: a line of {len(line)} characters, more than {_MOST_CHARACTERS}: is this a list?")


def _shown(text: str) -> str:
    """For a message: what is wrong may be long, or hold line ends."""
    return repr(text if len(text) <= 100 else text[:97] + "...")


def _relative_parts(text: str, where: str) -> list[str]:
    """Parts of a listed path, which must stay inside the data folder: a list is data and may come from anywhere."""
    parts = _refuse_escape(text, where)
    parts = [part for part in parts if part not in ("", ".")]
    if not parts:
        raise DataError(f"{where}: path {_shown(text)} names no video")
    return parts


def _refuse_escape(text: str, where: str) -> list[str]:
    """Parts of a path or of a class name, which `prepare` makes folders of."""
    if CONTROL.search(text):
        raise DataError(f"{where}: {_shown(text)} holds a control character; rename it")
    parts = text.replace("\\", "/").split("/")
    if not parts[0] or re.fullmatch(r"[A-Za-z]:", parts[0]) or ".." in parts:
        raise DataError(f"{where}: path {_shown(text)} leaves the data folder; paths must be relative, without '..'")
    return parts


def _refuse_duplicates(listed: list[_Listed]) -> None:
    first: dict[str, _Listed] = {}
    for video in listed:
        other = first.setdefault(video.path.casefold(), video)
        if other is not video:
            raise DataError(f"{video.where}: {video.path} is listed twice (first in {other.where})")


def _refuse_leak(lists: Path, train: list[_Listed], test: list[_Listed]) -> None:
    in_train: dict[str, _Listed] = {}
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


def remedy() -> str:
    """What to do about missing data."""
    return (
        f"Download UCF101 from {UCF101_URL}, then make frames of it: {command('prepare')} --videos UCF-101 --out "
        f"data/ucf101, and set --config.data.root=data/ucf101/frames. To try without data: {command('train')} "
        "--config=configs/quickstart.py"
    )
