"""Lists in CSV files: `train.csv` and `val.csv` (or `test.csv`).

Each line is `path,label`. A header may name these columns, in any order and among others. The label is a class name,
or a number from 0; 01 and 1 are one class. A column `group` names the recording or the person of each video, which must
not be on both sides. An optional `classes.txt` (one name a line) gives the order of the classes; otherwise they are
sorted.
"""

import csv
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_format import (
    Listed,
    ListFormat,
    Sides,
    Subset,
    by_name,
    first_line,
    lines,
    read_text,
    refuse_escape,
    refuse_long,
    relative_path,
    shown,
    suggest,
)
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES, without_suffix

_TEST_FILES = ("val.csv", "test.csv")
# Without underscores, hyphens and spaces
_PATH_HEADERS = ("path", "video", "videopath", "videoname", "file", "filename", "filepath", "name", "clip", "clippath")
_LABEL_HEADERS = ("label", "labelname", "class", "classname", "target", "category")
_GROUP_HEADERS = ("group", "groupname", "recording")
_NUMBER = re.compile(r"[0-9]{1,9}")


class Row(NamedTuple):
    """One line of a list."""

    path: str
    label: str
    where: str  # "train.csv:12"
    group: str = ""  # "": told by the name of the video


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    del split  # there is one
    rows: dict[str, list[Row]] = {}
    for side, names in {"train": ("train.csv",), "test": _TEST_FILES}.items():
        path = next((lists / name for name in names if (lists / name).is_file()), None)
        if path is not None:
            rows[side] = _read_rows(path)
        elif side == subset:
            raise DataError(f"{lists / names[0]}: no such file; it lists the {side} videos as lines 'path,label'")
    first, *others = (side[0] for side in rows.values())
    if others and first[:2] == others[0][:2] and not first.path.lower().endswith(VIDEO_SUFFIXES):
        other = others[0].where.split(":")[0]
        raise DataError(
            f"{first.where}: {shown(','.join(first[:2]))} is also the first line of {other}: if it "
            "names the columns, call them 'path' and 'label'; if it is a video, keep it on one side"
        )
    return sides_of(lists, rows, lists / "classes.txt")


def sides_of(lists: Path, rows: dict[str, list[Row]], classes_file: Path) -> Sides:
    """Both sides of a split from its rows, whose labels are class names, or numbers from 0.

    Args:
      lists: the folder, for messages.
      rows: the rows of each side.
      classes_file: names the classes in the order of their numbers, if it exists.
    """
    distinct = {row.label for side in rows.values() for row in side}
    if classes_file.is_file():
        named = list(lines(classes_file))
        for where, name in named:
            refuse_escape(name, where)
        class_names = tuple(name for _, name in named)
        if len({_folded(name) for name in class_names}) != len(class_names) or not class_names:
            raise DataError(f"{classes_file}: must name each class once, one a line")
    else:
        numbers = {label for label in distinct if _NUMBER.fullmatch(label)}
        if numbers and numbers != distinct:
            raise DataError(
                f"{lists}: labels mix numbers ({min(numbers)}) and names ({shown(min(distinct - numbers))}); "
                f"write {classes_file.name}, one class name a line, or use one kind"
            )
        ordered = sorted(distinct, key=(lambda text: (int(text), text)) if numbers else None)
        spelled: dict[str, str] = {}
        for label in ordered:
            spelled.setdefault(_folded(label), label)
        class_names = tuple(spelled.values())
    by_fold = {_folded(name): name for name in class_names}

    spelling = {label: by_fold[_folded(label)] for label in distinct if _folded(label) in by_fold}

    def class_of(label: str, where: str) -> str:
        number = _NUMBER.fullmatch(label)
        if number and int(label) < len(class_names):
            return class_names[int(label)]
        hint = f"numbers go from 0 to {len(class_names) - 1}" if number else suggest(label, class_names)
        raise DataError(f"{where}: label {shown(label)} is not in {classes_file.name}; {hint}")

    sides: dict[str, list[Listed]] = defaultdict(list)
    for side, side_rows in rows.items():
        for text, label, where, group in side_rows:
            path = without_suffix(relative_path(text, where))
            class_name = spelling.get(label) or class_of(label, where)
            sides[side].append(Listed(path, path, class_name, where, recording=group))
    return class_names, sides


def _folded(label: str) -> str:
    """The same text for all spellings of a label."""
    return str(int(label)) if _NUMBER.fullmatch(label) else label.casefold()


def _read_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    name = path.name
    path_column, label_column, group_column, width = 0, 1, None, 2
    checked: set[str] = set()  # labels
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    first = True
    try:
        for cells in reader:
            cells = list(map(str.strip, cells))
            if not any(cells):
                continue
            where = f"{name}:{reader.line_num}"
            refuse_long(",".join(cells), where)
            is_first, first = first, False
            if is_first and (columns := _header(cells, where)):
                path_column, label_column, group_column = columns
                width = len(cells)
                continue
            if len(cells) != width or not cells[path_column] or not cells[label_column]:
                raise DataError(f"{where}: malformed line {shown(','.join(cells))}; expected 'path,label'")
            if cells[label_column] not in checked:
                refuse_escape(cells[label_column], where)
                checked.add(cells[label_column])
            group = "" if group_column is None else cells[group_column]
            rows.append(Row(cells[path_column], cells[label_column], where, group))
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: not CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: lists no video")
    first_is_video, *others = [cells[0].lower().endswith(VIDEO_SUFFIXES) for cells in rows]
    if others and all(others) and not first_is_video:
        raise DataError(
            f"{rows[0].where}: {shown(','.join(rows[0][:2]))} names no video; name its columns 'path' and 'label'"
        )
    return rows


def _header(cells: list[str], where: str) -> tuple[int, int, int | None] | None:
    """The columns of the path, the label and, if there is one, the group, if the first line is a header."""
    names = [re.sub(r"[-_ ]", "", cell.lower()) for cell in cells]
    known = [
        next((i for i, name in enumerate(names) if name in headers), None)
        for headers in (_PATH_HEADERS, _LABEL_HEADERS, _GROUP_HEADERS)
    ]
    path_column, label_column, group_column = known
    if path_column is not None and label_column is not None:
        return path_column, label_column, group_column
    if (path_column is None and label_column is None) or any(cell.lower().endswith(VIDEO_SUFFIXES) for cell in cells):
        return None
    lacks = "path" if path_column is None else "label"
    raise DataError(f"{where}: header {shown(','.join(cells))} has no column {lacks!r}")


def is_kinetics(path: Path) -> bool:
    """Whether a CSV file has the columns of Kinetics, which name a YouTube video instead of a path."""
    return {"youtube_id", "time_start", "time_end"} <= set(re.split(r"[\s\"',]+", first_line(path).lower()))


CSV = ListFormat(
    example="train.csv",
    find=by_name(r"(train|val|test)\.csv", lambda path: not is_kinetics(path)),
    read=_read,
)
