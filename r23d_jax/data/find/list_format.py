"""Parts that all formats of split lists share: listed videos, and checks of untrusted text."""

import codecs
import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.video_names import CONTROL, group_of

Subset = Literal["train", "test"]
_DRIVE = re.compile(r"[A-Za-z]:")
# Limits of a list and of a line in it; a larger file is something else
_MOST_BYTES, _MOST_CHARACTERS = 1 << 27, 1 << 12


class Listed(NamedTuple):
    """One listed video, before classes are restricted and renumbered."""

    path: str  # as listed, without suffix
    name: str
    class_name: str
    where: str  # "trainlist01.txt:12"

    @property
    def group(self) -> str:
        group = group_of(self.name)
        return f"{self.class_name}_{group}" if group else self.path


# Class names in label order, and the listed videos of "train" and "test" as far as these lists exist
Sides = tuple[tuple[str, ...], dict[str, list[Listed]]]


@dataclasses.dataclass(frozen=True)
class ListFormat:
    """A format of split lists."""

    marks: tuple[str, ...]  # a folder that holds a file of one of these names has lists of this format
    files: str  # the files of the format, for messages
    splits: Callable[[Path], tuple[int, ...]]  # folder -> the numbers of its splits
    # (folder, subset, split) -> both sides of the split. The list of `subset` must exist. Raises DataError, which names
    # the file and the line.
    read: Callable[[Path, Subset, int], Sides]


def lines(path: Path) -> Iterable[tuple[str, str]]:
    """Yields (file:line, text) for every line that is not blank."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path)), start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            refuse_long(line, where)
            yield where, line.strip()


def read_text(path: Path) -> str:
    """Reads a list as UTF-8, where other bytes become surrogates, or as UTF-16 if it begins with that mark."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"{path}: {size} bytes, more than {_MOST_BYTES}: this is not a list")
        content = path.read_bytes()
        if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return content.decode("utf-16")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not valid UTF-16 ({error.reason}); save it as UTF-8") from error
    if b"\0" in content[:2]:
        raise DataError(f"{path}: seems to be UTF-16 without its mark; save it as UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def refuse_long(line: str, where: str) -> None:
    """Raises DataError for a line that is too long to belong to a list."""
    if len(line) > _MOST_CHARACTERS:
        raise DataError(f"{where}: a line of {len(line)} characters, more than {_MOST_CHARACTERS}: is this a list?")


def shown(text: str) -> str:
    """Quotes text for a message; it may be long, or hold line ends."""
    return repr(text if len(text) <= 100 else text[:97] + "...")


def relative_parts(text: str, where: str) -> list[str]:
    """Parts of a listed path. It must stay inside the data folder, because a list may come from anywhere."""
    parts = refuse_escape(text, where)
    parts = [part for part in parts if part not in ("", ".")]
    if not parts:
        raise DataError(f"{where}: path {shown(text)} names no video")
    return parts


def refuse_escape(text: str, where: str) -> list[str]:
    """Parts of a path, or of a class name, which `prepare` turns into folders."""
    if not text.isprintable() and CONTROL.search(text):
        raise DataError(f"{where}: {shown(text)} holds a control character; rename it")
    parts = text.replace("\\", "/").split("/")
    if not parts[0] or _DRIVE.fullmatch(parts[0]) or ".." in parts:
        raise DataError(f"{where}: path {shown(text)} leaves the data folder; paths must be relative, without '..'")
    return parts
