"""UCF101's own lists."""

import re
from pathlib import Path

from r23d_jax.config import nearest
from r23d_jax.data.find.errors import UCF101_URL, DataError
from r23d_jax.data.find.list_format import Listed, Subset, lines, refuse_escape, relative_parts, shown
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES, without_suffix

_CLASS_LINE = re.compile(r"([0-9]{1,9})[ \t]+(\S.*)")
_NUMBERED = re.compile(r"(.*\S)[ \t]+([0-9]{1,9})")


def read_ucf101(lists: Path, subset: Subset, split: int) -> tuple[tuple[str, ...], dict[str, list[Listed]]]:
    number_of = _read_class_ind(lists / "classInd.txt")
    sides = {}
    for side in ("train", "test"):
        path = lists / f"{side}list{split:02d}.txt"
        if path.is_file():
            sides[side] = _read_ucf101_list(path, number_of, numbered=side == "train")
        elif side == subset:
            have = ", ".join(map(str, ucf101_splits(lists))) or "none"
            raise DataError(
                f"{path}: no such file (splits found in {lists}: {have}). UCF101's lists are in the archive "
                f"'ucfTrainTestlist' at {UCF101_URL}"
            )
    return tuple(number_of), sides


def _read_class_ind(path: Path) -> dict[str, int]:
    number_of: dict[str, int] = {}
    folded: set[str] = set()
    last = -1
    for where, line in lines(path):
        found = _CLASS_LINE.fullmatch(line)
        if not found:
            raise DataError(
                f"{where}: malformed line {shown(line)}; expected a number and a class name, e.g. '12 Diving'"
            )
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


def _read_ucf101_list(path: Path, number_of: dict[str, int], numbered: bool) -> list[Listed]:
    by_fold = {name.casefold(): name for name in number_of}
    listed = []
    for where, line in lines(path):
        found = _NUMBERED.fullmatch(line)
        # Test lists have no number; one that has is read too, but a file name may itself end in a number.
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
            hint = nearest(parts[0], number_of)
            raise DataError(f"{where}: class {shown(parts[0])} is not in classInd.txt; {hint}")
        if found and int(found[2]) != number_of[class_name]:
            raise DataError(
                f"{where}: label {found[2]} for {class_name}, which classInd.txt numbers {number_of[class_name]} "
                "(UCF101 counts from 1)"
            )
        name = without_suffix(parts[1])
        listed.append(Listed(f"{class_name}/{name}", name, class_name, where))
    return listed


def ucf101_splits(lists: Path) -> tuple[int, ...]:
    """Numbers of the splits whose lists are in the folder."""
    found = (re.fullmatch(r"(?:train|test)list([0-9]{2})\.txt", p.name) for p in sorted(lists.iterdir()))
    return tuple(sorted({int(m[1]) for m in found if m}))
