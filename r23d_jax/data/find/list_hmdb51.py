"""HMDB51's own lists: a file `brush_hair_test_split1.txt` for each class and split.

Its lines are `video.avi 1`: 1 is for training, 2 for testing, and 0 for neither.
"""

import re
from pathlib import Path

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_format import (
    Listed,
    ListFormat,
    Sides,
    Subset,
    by_name,
    lines,
    refuse_escape,
    relative_parts,
    shown,
)
from r23d_jax.data.find.video_names import without_suffix

FILE = r"(.+)_test_split([1-9])\.txt"
_LINE = re.compile(r"(.*\S)\s+([012])")
_SIDES = {"1": "train", "2": "test"}


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    sides: dict[str, list[Listed]] = {"train": [], "test": []}
    class_names = []
    for class_name, number, path in _files(lists):
        if number != split:
            continue
        refuse_escape(class_name, path.name)
        class_names.append(class_name)
        for where, line in lines(path):
            found = _LINE.fullmatch(line)
            parts = relative_parts(found[1], where) if found else []
            if not found or len(parts) != 1:
                raise DataError(f"{where}: malformed line {shown(line)}; expected 'video.avi 1' (or 2, or 0)")
            name = without_suffix(parts[0])
            if found[2] in _SIDES:
                # FILM_CLASS_body_motion_people_view_quality_NUMBER
                film = name.split(f"_{class_name}_")[0]
                sides[_SIDES[found[2]]].append(Listed(f"{class_name}/{name}", name, class_name, where, film=film))
    if not class_names:
        have = ", ".join(map(str, _splits(lists))) or "none"
        raise DataError(f"{lists}: holds no CLASS_test_split{split}.txt (splits found: {have})")
    return tuple(class_names), sides


def _files(lists: Path) -> list[tuple[str, int, Path]]:
    """Class, split and path of every list, sorted by class."""
    found = ((re.fullmatch(FILE, path.name), path) for path in lists.iterdir())
    return sorted((match[1], int(match[2]), path) for match, path in found if match)


def _splits(lists: Path) -> tuple[int, ...]:
    return tuple(sorted({split for _, split, _ in _files(lists)}))


HMDB51 = ListFormat(
    example="CLASS_test_split1.txt",
    find=by_name(FILE),
    splits=_splits,
    read=_read,
)
