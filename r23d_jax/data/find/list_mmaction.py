"""Text lists of mmaction2, TSN and TSM: `ucf101_train_split_1_videos.txt` and `..._val_split_1_videos.txt`.

A line is `path label`, or `folder num_frames label` for frames that are extracted already. The label is a number from
0. An optional `label_map.txt`, or `classes.txt`, names the classes, one a line.
"""

import re
from pathlib import Path

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_csv import Row, sides_of
from r23d_jax.data.find.list_format import (
    ListFormat,
    Sides,
    Subset,
    by_name,
    choose_file,
    first_line,
    lines,
    relative_parts,
    shown,
)
from r23d_jax.data.find.list_hmdb51 import FILE as HMDB51_FILE
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES

# `train.txt`, `kinetics400_train_list_videos.txt`, `ucf101_val_split_1_rawframes.txt`, `val_videofolder.txt`
_NAME = rf"(?!{HMDB51_FILE}$)(?:.*[-_])?{{}}(?:[-_].*)?\.txt"
_LINE = re.compile(r"(.*\S)\s+([0-9]{1,9})")
_SPLIT = re.compile(r"split_?([1-9])(?![0-9])")
_SIDES = {"train": ("train",), "test": ("val", "test")}


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    rows: dict[str, list[Row]] = {}
    for side, words in _SIDES.items():
        path = next(filter(None, (_choose(lists, word, split) for word in words)), None)
        if path is not None:
            rows[side] = _read_rows(path)
        elif side == subset:
            have = ", ".join(map(str, _splits(lists))) or "none"
            raise DataError(f"{lists}: holds no {words[0]} list of split {split} (splits found: {have})")
    names = choose_file(lists, r"(?:label_map.*|classes)\.txt", "the classes") or lists / "label_map.txt"
    return sides_of(lists, rows, names)


def _choose(lists: Path, word: str, split: int) -> Path | None:
    """The list of one side. Where there are lists of videos and of frames, which name the same, that of videos."""
    stems = {path.stem for path in _files(lists, word) if _split(path) == split}
    stems -= {stem for stem in stems if "rawframes" in stem and stem.replace("rawframes", "videos") in stems}
    return choose_file(lists, f"(?:{'|'.join(map(re.escape, stems))})\\.txt", f"{word} videos") if stems else None


def _read_rows(path: Path) -> list[Row]:
    rows = []
    for where, line in lines(path):
        found = _LINE.fullmatch(line)
        if not found:
            raise DataError(f"{where}: malformed line {shown(line)}; expected 'path label' or 'folder frames label'")
        text, label = found[1], found[2]
        # A folder is followed by its number of frames; a video is not, though its name may end in a number.
        frames = _LINE.fullmatch(text)
        if frames and not text.lower().endswith(VIDEO_SUFFIXES):
            text = frames[1]
            if text.lower().endswith(VIDEO_SUFFIXES):
                raise DataError(f"{where}: {shown(line)} has several labels; a video has one here: 'path label'")
        relative_parts(text, where)
        rows.append(Row(text, label, where))
    if not rows:
        raise DataError(f"{path}: lists no video")
    return rows


def _files(lists: Path, word: str) -> list[Path]:
    return sorted(path for path in lists.iterdir() if re.fullmatch(_NAME.format(word), path.name) and _fits(path))


def _fits(path: Path) -> bool:
    return path.is_file() and _LINE.fullmatch(first_line(path)) is not None


def _split(path: Path) -> int:
    number = _SPLIT.search(path.stem)
    return int(number[1]) if number else 1


def _splits(lists: Path) -> tuple[int, ...]:
    return tuple(sorted({_split(path) for path in _files(lists, "(?:train|val|test)")}))


MMACTION = ListFormat(
    example="..._train_..._videos.txt",
    find=by_name(_NAME.format("(?:train|val|test)"), _fits),
    splits=_splits,
    read=_read,
)
