"""What every format of split lists has in common: the listed videos, and reading text that may come from anywhere."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.video_names import CONTROL, group_of

Subset = Literal["train", "test"]
# Of a list, and of a line in it: beyond these it is some other file.
_MOST_BYTES, _MOST_CHARACTERS = 1 << 27, 1 << 12


@dataclasses.dataclass(frozen=True)
class Listed:
    """A line of a list, before classes are restricted and renumbered."""

    path: str  # as listed, without suffix
    name: str
    class_name: str
    where: str  # "trainlist01.txt:12"

    @property
    def group(self) -> str:
        group = group_of(self.name)
        return f"{self.class_name}_{group}" if group else self.path


def lines(path: Path) -> Iterable[tuple[str, str]]:
    """(file:line, text) of every line that is not blank."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path)), start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            refuse_long(line, where)
            yield where, line.strip()


def read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"{path}: {size} bytes, more than {_MOST_BYTES}: this is no list")
        return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def refuse_long(line: str, where: str) -> None:
    if len(line) > _MOST_CHARACTERS:
        raise DataError(f"{where}: a line of {len(line)} characters, more than {_MOST_CHARACTERS}: is this a list?")


def shown(text: str) -> str:
    """For a message: what is wrong may be long, or hold line ends."""
    return repr(text if len(text) <= 100 else text[:97] + "...")


def relative_parts(text: str, where: str) -> list[str]:
    """Parts of a listed path, which must stay inside the data folder: a list is data and may come from anywhere."""
    parts = refuse_escape(text, where)
    parts = [part for part in parts if part not in ("", ".")]
    if not parts:
        raise DataError(f"{where}: path {shown(text)} names no video")
    return parts


def refuse_escape(text: str, where: str) -> list[str]:
    """Parts of a path or of a class name, which `prepare` makes folders of."""
    if CONTROL.search(text):
        raise DataError(f"{where}: {shown(text)} holds a control character; rename it")
    parts = text.replace("\\", "/").split("/")
    if not parts[0] or re.fullmatch(r"[A-Za-z]:", parts[0]) or ".." in parts:
        raise DataError(f"{where}: path {shown(text)} leaves the data folder; paths must be relative, without '..'")
    return parts
