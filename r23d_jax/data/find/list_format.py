"""Parts that all formats of split lists share: listed videos, and checks of untrusted text."""

import codecs
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r23d_jax.config import nearest
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.video_names import CONTROL, group_of

Subset = Literal["train", "test"]
_DRIVE = re.compile(r"[A-Za-z]:")
_PLAIN = re.compile(r"[A-Za-z0-9_(), -]+(?:[/.][A-Za-z0-9_(), -]+)*")  # a path that is safe, and has no part to drop
# Limits of a list and of a line in it; a larger file is something else
_MOST_BYTES, _MOST_CHARACTERS = 1 << 27, 1 << 12


class Listed(NamedTuple):
    """One listed video, before classes are restricted and renumbered."""

    path: str  # as listed, without suffix
    name: str
    class_name: str
    where: str  # "trainlist01.txt:12"
    ids: tuple[str, ...] = ()  # see `splits.Entry`
    recording: str = ""  # what the list itself says about its group
    film: str = ""  # that the clip was cut from, where official lists may have clips of one film on both sides

    @property
    def group(self) -> str:
        """What must be on one side of a split."""
        if self.recording:
            return self.recording
        group = group_of(self.name)
        return f"{self.class_name}_{group}" if group else self.path


# Class names in label order, and the listed videos of "train" and "test" as far as these lists exist
Sides = tuple[tuple[str, ...], dict[str, list[Listed]]]


@dataclasses.dataclass(frozen=True)
class ListFormat:
    """A format of split lists."""

    example: str  # name of the file that tells the format, for messages
    # (folder, names of its files) -> name of the file that tells the format; "" if the folder has another format
    find: Callable[[Path, Sequence[str]], str]
    # (folder, subset, split) -> both sides of the split. The list of `subset` must exist. Raises DataError, which names
    # the file and the line.
    read: Callable[[Path, Subset, int], Sides]
    splits: Callable[[Path], tuple[int, ...]] | None = None  # folder -> the numbers of its splits; None: split 1 alone


def by_name(pattern: str, holds: Callable[[Path], bool] = lambda path: True) -> Callable[[Path, Sequence[str]], str]:
    """A `ListFormat.find`: the first file whose whole name matches a pattern and whose content fits the format."""

    def find(folder: Path, names: Sequence[str]) -> str:
        fitting = (name for name in sorted(names) if re.fullmatch(pattern, name) and os.path.isfile(folder / name))
        return next((name for name in fitting if holds(folder / name)), "")

    return find


def beginning(path: Path) -> str:
    """The first characters of a file, to tell its format; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_CHARACTERS)
    except OSError:
        return ""
    utf_16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return content.decode("utf-16" if utf_16 else "utf-8-sig", errors="replace").strip()


def first_line(path: Path) -> str:
    """The first line of a file that is not blank, or its first characters; "" if it cannot be read."""
    return re.split(r"[\r\n]", beginning(path))[0].strip()


def choose_file(lists: Path, pattern: str, what: str) -> Path | None:
    """The file of a folder whose whole name matches a pattern, or None; raises DataError if there are several."""
    found = sorted(path for path in lists.iterdir() if re.fullmatch(pattern, path.name) and path.is_file())
    if len(found) > 1:
        raise DataError(f"{lists}: {found[0].name} and {found[1].name} both list {what}; keep one in this folder")
    return found[0] if found else None


def read_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """The content of a JSON file, which must be a list or an object."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); copy or download it again") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: must hold a JSON {'list' if kind is list else 'object'}, not {shown(repr(content))}")
    return content


def items(path: Path, fields: str) -> Iterable[tuple[str, Any, list[str]]]:
    """Yields (place, item, values of the fields) for every object in a JSON list; numbers become text."""
    for number, item in enumerate(read_json(path, list), start=1):
        where = f"{path.name}: item {number}"
        values = [item.get(field) if isinstance(item, dict) else None for field in fields.split()]
        texts = [str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool)]
        if len(texts) < len(values) or not all(texts):
            raise DataError(f"{where}: {shown(json.dumps(item))} must have the fields {fields.replace(' ', ' and ')}")
        yield where, item, texts


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


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown class name, cut to the length of a message."""
    text = nearest(name, known)
    return text if len(text) <= 500 else text[:497] + "..."


def relative_path(text: str, where: str) -> str:
    """A listed path with slashes. It must stay inside the data folder, because a list may come from anywhere."""
    return text if _PLAIN.fullmatch(text) else "/".join(relative_parts(text, where))


def relative_parts(text: str, where: str) -> list[str]:
    """Parts of a path as `relative_path` gives it."""
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
