"""The videos that a user's arguments mean: files, folders, patterns and addresses."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from r23d_jax.data.find.frame_folder import FRAME, IMAGE_SUFFIXES, walk
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES


def expand(names: Sequence[str]) -> list[str]:
    """The names of all videos, in order.

    A folder that holds numbered pictures and no video file is one video. Any other folder stands for the videos in it
    and in its subfolders, in the order of their names; hidden ones are left out. A name that does not exist and has
    `*`, `?` or `[` is a pattern, in which `**` stands for any folders. What stands for nothing is kept, so that its
    reader, or `unmatched`, can say why.
    """
    found: list[str] = []
    for name in names:
        matches = [name]
        if _is_pattern(name):
            matches = _once(glob.glob(name, recursive=True)) or matches
        for match in matches:
            found += list(_inside(match)) or [match] if os.path.isdir(match) else [match]
    return found


def unmatched(name: str) -> str:
    """Why a pattern that `expand` has kept stands for no video; "" if it is no pattern."""
    if not _is_pattern(name):
        return ""
    parts = Path(name).parts
    first = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:first]).absolute()
    if not folder.is_dir():
        return f"{name}: the pattern matches no video, because there is no folder {folder}"
    return (
        f"{name}: the pattern matches no video: nothing in {folder} is called {os.path.join(*parts[first:])}; check "
        "its spelling and case, or name the folder itself for all videos in it and its subfolders"
    )


def _is_pattern(name: str) -> bool:
    return not os.path.lexists(name) and glob.has_magic(name) and "://" not in name


def _once(paths: list[str]) -> list[str]:
    """The paths in order, without those that lead to another's folder through a link."""
    places = {(os.path.realpath(os.path.dirname(path)), os.path.basename(path)): path for path in sorted(paths)[::-1]}
    return list(places.values())[::-1]


def _inside(root: str) -> Iterator[str]:
    for folder, folders, files in walk(root):
        videos = [os.path.join(folder, name) for name in files if name.lower().endswith(VIDEO_SUFFIXES)]
        if not videos and any(FRAME.fullmatch(name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)):
            videos = [folder]
            folders.clear()
        yield from videos
