"""Lists of 3D-ResNets-PyTorch: one JSON file, such as `kinetics.json`, or one for each split, `ucf101_01.json`.

Its `labels` are the classes in order. Its `database` maps the name of a video to its `subset` (training, validation or
testing) and `annotations`, which hold the `label`.
"""

import re
from pathlib import Path

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_format import (
    Listed,
    ListFormat,
    Sides,
    Subset,
    beginning,
    by_name,
    read_json,
    refuse_escape,
    relative_path,
    shown,
    suggest,
)

_SIDES = {"training": "train", "validation": "test"}  # videos for "testing" have no labels


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    del subset  # a file has both sides
    paths = [path for path in _files(lists) if _split(path) == split]
    if len(paths) != 1:
        have = ", ".join(path.name for path in paths or _files(lists))
        problem = "several files have" if paths else "no file has"
        raise DataError(f"{lists}: {problem} split {split} ({have}); keep one for each split, such as ucf101_01.json")
    content = read_json(paths[0], dict)
    labels, database = content.get("labels"), content.get("database")
    if not isinstance(labels, list) or not isinstance(database, dict):
        raise DataError(f"{paths[0]}: must hold a list 'labels' and an object 'database'")
    class_names = tuple(map(str, labels))
    for name in class_names:
        refuse_escape(name, paths[0].name)
    if len({name.casefold() for name in class_names}) < len(class_names):
        raise DataError(f"{paths[0]}: 'labels' must name each class once")
    sides: dict[str, list[Listed]] = {"train": [], "test": []}
    known = frozenset(class_names)
    for key, video in database.items():
        where = f"{paths[0].name}: {shown(key)}"
        used = video.get("subset") if isinstance(video, dict) else None
        if used == "testing":
            continue
        note = video.get("annotations") if isinstance(video, dict) else None
        label = note.get("label") if isinstance(note, dict) else None
        if used not in _SIDES or not isinstance(label, str):
            raise DataError(f"{where}: must have a 'subset' (training, validation or testing) and annotations.label")
        if label not in known:
            raise DataError(f"{where}: label {shown(label)} is not among the labels; {suggest(label, class_names)}")
        name = relative_path(key, where)
        sides[_SIDES[used]].append(Listed(f"{label}/{name}", name, label, where))
    return class_names, sides


def _files(lists: Path) -> list[Path]:
    return sorted(path for path in lists.glob("*.json") if path.is_file() and _fits(path))


def _fits(path: Path) -> bool:
    # Its own script writes the labels first. ActivityNet's file, which lists segments, begins in another way.
    return re.match(r'\{\s*"(labels|database)"\s*:', beginning(path)) is not None


def _split(path: Path) -> int:
    number = re.search(r"_0?([1-9])$", path.stem)
    return int(number[1]) if number else 1


RESNETS = ListFormat(
    example="a .json file with 'labels' and 'database'",
    find=by_name(r".+\.json", _fits),
    splits=lambda lists: tuple(sorted({_split(path) for path in _files(lists)})),
    read=_read,
)
