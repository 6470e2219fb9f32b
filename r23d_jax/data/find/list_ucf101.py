"""UCF101's own lists.

`classInd.txt` holds lines such as `12 Diving`, `trainlist01.txt` `Diving/v_Diving_g08_c01.avi 12`, and `testlist01.txt`
the same without the number. The numbers count from 1 and are checked against classInd.txt.
"""

import re
from pathlib import Path

from r23d_jax.data.find.errors import UCF101_URL, DataError
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
    suggest,
)
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES, without_suffix

_CLASS_LINE = re.compile(r"([0-9]{1,9})[ \t]+(\S.*)")
_ARCHIVE = f"the archive 'ucfTrainTestlist' at {UCF101_URL}"
_NUMBERED = re.compile(r"(.*\S)[ \t]+([0-9]{1,9})")


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    number_of = _read_classes(lists / "classInd.txt")
    sides = {}
    for side in ("train", "test"):
        path = lists / f"{side}list{split:02d}.txt"
        if path.is_file():
            sides[side] = _read_side(path, number_of, numbered=side == "train")
        elif side == subset:
            have = ", ".join(map(str, _splits(lists))) or "none"
            raise DataError(f"{path}: no such file (splits found in {lists}: {have}). UCF101's lists are in {_ARCHIVE}")
    return tuple(number_of), sides


def _read_classes(path: Path) -> dict[str, int]:
    number_of: dict[str, int] = {}
    folded: set[str] = set()
    last = -1
    for where, line in lines(path):
        found = _CLASS_LINE.fullmatch(line)
        if not found:
            raise DataError(f"{where}: malformed line {shown(line)}; expected a number and a class, e.g. '12 Diving'")
        number, name = int(found[1]), found[2]
        refuse_escape(name, where)
        if name.casefold() in folded:
            raise DataError(f"{where}: class {shown(name)} is named twice")
        if number <= last:
            raise DataError(f"{where}: class number {number} does not rise ({shown(line)})")
        number_of[name] = last = number
        folded.add(name.casefold())
    if not number_of:
        raise DataError(f"{path}: names no class")
    return number_of


def _read_side(path: Path, number_of: dict[str, int], numbered: bool) -> list[Listed]:
    by_fold = {name.casefold(): name for name in number_of}
    listed = []
    for where, line in lines(path):
        found = _NUMBERED.fullmatch(line)
        # A test list has no numbers, but one that has them is read too. A file name may itself end in a number.
        if found and not numbered and not found[1].lower().endswith(VIDEO_SUFFIXES):
            found = None
        if not found and numbered:
            raise DataError(f"{where}: malformed line {shown(line)}; expected 'Class/video.avi 12'")
        parts = relative_parts(found[1] if found else line, where)
        if len(parts) != 2:
            expected = f"'Class/video.avi{' 12' if numbered else ''}'"
            raise DataError(f"{where}: malformed line {shown(line)}; expected {expected}")
        class_name = by_fold.get(parts[0].casefold())
        if class_name is None:
            hint = suggest(parts[0], number_of)
            raise DataError(f"{where}: class {shown(parts[0])} is not in classInd.txt; {hint}")
        if found and int(found[2]) != number_of[class_name]:
            raise DataError(
                f"{where}: label {found[2]} for {class_name}, which classInd.txt numbers {number_of[class_name]} "
                "(UCF101 counts from 1)"
            )
        name = without_suffix(parts[1])
        listed.append(Listed(f"{class_name}/{name}", name, class_name, where))
    return listed


def _splits(lists: Path) -> tuple[int, ...]:
    """Numbers of the splits whose lists are in the folder."""
    found = (re.fullmatch(r"(?:train|test)list([0-9]{2})\.txt", p.name) for p in sorted(lists.iterdir()))
    return tuple(sorted({int(m[1]) for m in found if m}))


UCF101 = ListFormat(
    example="classInd.txt",
    find=by_name(r"classInd\.txt"),
    splits=_splits,
    read=_read,
)
