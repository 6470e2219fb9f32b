"""The numbered frames among the files of a folder: one rule for training and for `predict`."""

import dataclasses
import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
FRAME = re.compile(r"(.*?)([0-9]{1,18})(\.[^.]+)", re.DOTALL)  # prefix, number, suffix
UNREADABLE = "cannot be read"  # begins the reason if it may be another one the next time
_FLOW_PREFIXES = ("x_", "y_", "u_", "v_")


@dataclasses.dataclass(frozen=True)
class Numbering:
    """How one video's frame files are named: `prefix`, then first + step * i padded to `digits`, then `suffix`."""

    prefix: str
    suffix: str
    first: int
    step: int
    count: int  # holes included
    digits: int
    left_out: str = ""  # other numbered pictures, in words

    def name(self, frame: int) -> str:
        """The file name of a frame; in a hole of the numbering there is no such file."""
        return f"{self.prefix}{self.first + self.step * frame:0{self.digits}d}{self.suffix}"


def walk(
    root: Path | str, without: str = "", onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` behind links too: every folder once, except `without`, and no hidden entries; in the order of names."""
    seen = {os.path.realpath(without)} if without else set[str]()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield folder, folders, sorted(name for name in files if not name.startswith("."))
        seen.add(real)


def read_folder(path: Path) -> Numbering | str:
    """The frames of the video in a folder, or why they are unclear. Hidden files, such as `._1.jpg`, do not count."""
    try:
        with os.scandir(path) as entries:
            files = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        return f"{UNREADABLE} ({error.strerror})"
    special = next((entry.name for entry in files if is_special(entry)), "")
    return number_files([entry.name for entry in files], special)


def is_special(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a pipe, a socket or a device, which could block a reader forever."""
    if entry.is_file(follow_symlinks=False):  # known without asking the disk
        return False
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nothing
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def number_files(files: Sequence[str], special: str = "") -> Numbering | str:
    """Determines how frames are numbered, or why that is unclear.

    Optical flow beside frames is left out, and so are a few other numbered pictures among many frames.

    Args:
      files: names of files, in any order.
      special: one of them that is a pipe or a device.
    """
    if special:
        return f"{special} is no file, but a pipe or a device; remove it"
    kinds = _same_kind(files) or _kinds(files)
    if not kinds:
        return "holds no numbered .jpg, .jpeg or .png"
    rgb = [kind for kind in kinds if not kind[0].startswith("flow") and kind[0] not in _FLOW_PREFIXES]
    ordered = sorted(rgb or kinds, key=lambda kind: len(kinds[kind]), reverse=True)
    if len(ordered) > 1 and len(kinds[ordered[0]]) < 10 * len(kinds[ordered[1]]):
        return f"holds files of several kinds ({' and '.join(p + 'N' + s for p, s in ordered[:2])})"
    prefix, suffix = ordered[0]
    texts = kinds.pop(ordered[0])
    left_out = ", ".join(f"{p}N{s} ({len(numbers)} files)" for (p, s), numbers in sorted(kinds.items()))

    lengths = set(map(len, texts))
    padded = {len(text) for text in (texts if len(lengths) > 1 else [min(texts)]) if text[0] == "0" and len(text) > 1}
    if len(padded) > 1 or (padded and min(lengths) < max(padded)):
        return "numbers are padded to different lengths"
    if len(lengths) == 1:  # text order is number order
        first, last = int(min(texts)), int(max(texts))
    else:
        numbers = [int(text) for text in texts]
        first, last = min(numbers), max(numbers)
    step = 1
    if last - first + 1 != len(texts):
        step = math.gcd(*(int(text) - first for text in texts)) or 1
    count = (last - first) // step + 1
    if count > 2 * len(texts):
        return f"has {len(texts)} frames and {count - len(texts)} holes in their numbering ({first} to {last})"
    return Numbering(prefix, suffix, first, step, count, max(padded, default=1), left_out)


def _same_kind(files: Sequence[str]) -> dict[tuple[str, str], list[str]] | None:
    """Does the same as `_kinds`, five times as fast, for files that differ only in their numbers, as nearly all do."""
    match = FRAME.fullmatch(files[0]) if files else None
    if not match or match[3].lower() not in IMAGE_SUFFIXES:
        return None
    prefix, suffix = match[1], match[3]
    start, end = len(prefix), -len(suffix)
    texts = [file[start:end] for file in files if file.startswith(prefix) and file.endswith(suffix)]
    joined = "".join(texts)
    ok = len(texts) == len(files) and all(texts) and joined.isdecimal() and joined.isascii()
    return {(prefix, suffix): texts} if ok and max(map(len, texts)) <= 18 else None


def _kinds(files: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Groups the numbers of image files, as text, by (prefix, suffix)."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        match = FRAME.fullmatch(file)
        if match and match[3].lower() in IMAGE_SUFFIXES:
            kinds[match[1], match[3]].append(match[2])
    return kinds
