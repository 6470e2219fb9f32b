"""Lists in CSV files: `train.csv` and `val.csv` (or `test.csv`).

Each line is `path,label`, with or without a header. The label is a class name, or a number from 0. An optional
`classes.txt` (one name a line) gives the order of the classes; otherwise they are sorted.
"""

import csv
import io
import re
from pathlib import Path

from r23d_jax.config import nearest
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_format import (
    Listed,
    ListFormat,
    Sides,
    Subset,
    lines,
    read_text,
    refuse_escape,
    refuse_long,
    relative_parts,
    shown,
)
from r23d_jax.data.find.video_names import without_suffix

_TEST_FILES = ("val.csv", "test.csv")
_PATH_HEADERS = ("path", "video", "video_path", "file", "filename", "name")
_LABEL_HEADERS = ("label", "class", "class_name", "target")
_NUMBER = re.compile(r"[0-9]{1,9}")


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    if split != 1:
        raise DataError(f"{lists}: holds train.csv and val.csv, which have no split {split}; use split 1")
    names = {"train": ("train.csv",), "test": _TEST_FILES}
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for side, candidates in names.items():
        path = next((lists / name for name in candidates if (lists / name).is_file()), None)
        if path is not None:
            rows[side] = _read_rows(path)
        elif side == subset:
            raise DataError(f"{lists / candidates[0]}: no such file; it lists the {side} videos as lines 'path,label'")
    every = [row for side in rows.values() for row in side]

    classes_file = lists / "classes.txt"
    if classes_file.is_file():
        named = list(lines(classes_file))
        for where, name in named:
            refuse_escape(name, where)
        class_names = tuple(name for _, name in named)
        if len({name.casefold() for name in class_names}) != len(class_names) or not class_names:
            raise DataError(f"{classes_file}: must name each class once, one a line")
    else:
        labels = {label for _, label, _ in every}
        numbers = {label for label in labels if _NUMBER.fullmatch(label)}
        if numbers and numbers != labels:
            raise DataError(
                f"{lists}: labels mix numbers ({min(numbers)}) and names ({shown(min(labels - numbers))}); "
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
        raise DataError(f"{where}: label {shown(label)} is not in classes.txt; {hint}")

    sides = {}
    for side, side_rows in rows.items():
        sides[side] = []
        for text, label, where in side_rows:
            path = without_suffix("/".join(relative_parts(text, where)))
            sides[side].append(Listed(path, path, class_of(label, where), where))
    return class_names, sides


def _read_rows(path: Path) -> list[tuple[str, str, str]]:
    """Reads (path, label, where) from every row."""
    rows: list[tuple[str, str, str]] = []
    path_column, label_column, width = 0, 1, 2
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            where = f"{path.name}:{reader.line_num}"
            refuse_long(",".join(cells), where)
            lower = [cell.lower() for cell in cells]
            if not rows and width == 2 and any(c in _PATH_HEADERS for c in lower) and reader.line_num == 1:
                path_column = next(i for i, c in enumerate(lower) if c in _PATH_HEADERS)
                label_column = next((i for i, c in enumerate(lower) if c in _LABEL_HEADERS), -1)
                if label_column < 0:
                    raise DataError(f"{where}: header {shown(','.join(cells))} has no column 'label'")
                width = len(cells)
                continue
            if len(cells) != width or not cells[path_column] or not cells[label_column]:
                raise DataError(f"{where}: malformed line {shown(','.join(cells))}; expected 'path,label'")
            refuse_escape(cells[label_column], where)
            rows.append((cells[path_column], cells[label_column], where))
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: not CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: lists no video")
    return rows


CSV = ListFormat(
    marks=("train.csv", *_TEST_FILES), files="train.csv and val.csv", splits=lambda lists: (1,), read=_read
)
