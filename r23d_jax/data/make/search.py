"""Finds the video files below a folder, and the names of their videos in the dataset."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from etils import epath

from r23d_jax.config import UserError
from r23d_jax.data.find.class_folders import Clip, class_of, sides_of
from r23d_jax.data.find.frame_folder import walk
from r23d_jax.data.find.splits import Entry, available_splits, read_list
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES, class_in_name, folded_class, group_of, without_suffix
from r23d_jax.runtime import remote


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A video file and its names."""

    path: Path
    target: str  # its frame folder, relative
    name: str  # in the lists and in packed records
    class_name: str


@dataclasses.dataclass(frozen=True)
class Search:
    """The videos below a folder, the names of all classes, and files that cannot be used, each with the reason."""

    videos: list[VideoFile]
    class_names: list[str]
    broken: dict[str, str]


def folder_of_videos(videos: str) -> Path:
    """The path, or the like for a URL; raises UserError for a store whose URLs etils does not know."""
    try:
        return epath.Path(videos) if remote.is_remote(videos) else Path(videos)  # pyright: ignore[reportReturnType]
    except KeyError:
        raise UserError(f"--videos {videos}: videos may be at s3://, gs:// and az://; copy these to a folder") from None


def find_videos(root: Path, out: Path, lists: str = "", log: Callable[[str], None] = print, option: str = "") -> Search:
    """Looks for videos, in subfolders and behind links too.

    Without lists the class of `Walk/p1/001.mp4` is Walk, its first folder below `root` (or below train/, val/, ...:
    `class_folders.SIDES`). Its path stays the name, as in a list, because another class may hold p1/001.mp4 too.

    Args:
      root: the folder to search, from `folder_of_videos`.
      out: a folder to leave out, because the results go there.
      lists: folder of split lists; if given, only the videos that they name are used.
      log: receives how many videos were found, and how many other files.
      option: that named the folder, with a space behind it; errors begin with it.

    Raises:
      UserError: there is no video, or none that is listed.
    """
    if not remote.is_remote(root) and os.path.realpath(out) == os.path.realpath(root):
        raise UserError(f"--out {out}: is also --videos; give another folder for the results")
    broken: dict[str, str] = {}
    others: dict[str, list[Path]] = defaultdict(list)  # by suffix
    paths = list(_walk(root, out, broken, others))
    most = sorted(others.items(), key=lambda item: -len(item[1]))[:5]
    unused = ", ".join(f"{len(files)} {suffix or 'other'} (e.g. {files[0]})" for suffix, files in most)
    unused = f"{sum(map(len, others.values()))} files: {unused}"
    if not paths:
        found = f"; found instead: {unused}" if others else ""
        raise UserError(f"{option}{root}: holds no video ({' '.join(VIDEO_SUFFIXES)}){found}")
    if others:
        log(f"not used, because the suffix is not that of a video: {unused}")
    entries, class_names = _listed(Path(lists)) if lists else ([], [])
    listed = _by_name(entries) if lists else None
    classes = {name.casefold() for name in class_names}
    videos: dict[str, VideoFile] = {}
    not_listed = 0
    names = [_parts(path, root) for path in paths]
    # v_Diving_g01_c01 in a folder Diving says that all with such names are in that of their class; else the last of
    # several folders may be a person's
    by_last = any(len(parts) > 2 and folded_class(parts[-1]) == parts[-2].casefold() for parts in names)
    for path, side in zip(paths, sides_of(names), strict=True):
        video = _identify(root, path, side, by_last) if listed is None else _find_listed(root, path, listed, classes)
        if video is None:
            not_listed += 1
        elif reason := _problem(video):
            broken[str(path)] = reason
        else:
            other = videos.setdefault(video.target.casefold(), video)
            if other is not video:
                broken[str(path)] = f"has the same class and name as {other.path}; rename one of them"
    for key, video in list(videos.items()):
        above = next((videos[str(part)] for part in PurePosixPath(key).parents if str(part) in videos), None)
        if above is not None:
            broken[str(video.path)] = f"its frames would be among those of {above.path}; rename one of them"
            del videos[key]
    if listed is None:
        class_names = sorted({video.class_name for video in videos.values()})
        some = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
        log(f"{len(videos)} videos of {len(class_names)} classes found ({some})")
        loose = [video for video in videos.values() if len(_parts(video.path, root)) == 1]
        if loose and len(loose) < len(videos):
            log(
                f"{len(loose)} of them in no class folder, taken as of class {loose[0].class_name}, e.g. "
                f"{loose[0].path}: move what is no clip of a class"
            )
    else:
        missing = [entry.name for entry in entries if _target(entry).casefold() not in videos]
        some = f"; missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}" if missing else ""
        log(f"{len(videos)} of the {len(entries)} listed videos found; {not_listed} not listed{some}")
        if not videos:
            raise UserError(f"{option}{root}: none of its {len(paths)} videos is named by the lists in {lists}")
    return Search(list(videos.values()), class_names, broken)


def clips_of(videos: Iterable[VideoFile], root: Path) -> list[Clip]:
    """Videos found below `root`, as `class_folders` divides them."""
    videos = list(videos)
    names = [_parts(video.path, root) for video in videos]
    return [
        Clip(video.target, video.class_name, parts, side=side)
        for video, parts, side in zip(videos, names, sides_of(names), strict=True)
    ]


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    """The folders of a video below the root, and its name without suffix."""
    *above, file = path.relative_to(root).parts
    return (*above, without_suffix(file))


def _walk(root: Path, out: Path, broken: dict[str, str], others: dict[str, list[Path]]) -> Iterator[Path]:
    found = _walk_disk(root, out, broken)
    if remote.is_remote(root):
        names = remote.files(str(root))
        found = (root / name for name in names if not any(part.startswith(".") for part in name.split("/")))
    for path in found:
        if path.name.lower().endswith(VIDEO_SUFFIXES):
            yield path
        else:
            others[path.suffix.lower()].append(path)


def _walk_disk(root: Path, out: Path, broken: dict[str, str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        broken[str(error.filename)] = f"cannot be read ({error.strerror})"

    for folder, _, files in walk(root, str(out), unreadable):
        yield from (Path(folder) / name for name in files)


def _problem(video: VideoFile) -> str | None:
    try:
        video.target.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if ".." in video.target.split("/") or video.target.startswith("/"):
        return f"would be written to {video.target}, outside of --out; rename it or its class"
    return None


def _listed(lists: Path) -> tuple[list[Entry], list[str]]:
    """Entries of all splits, and the class names."""
    entries: dict[tuple[str, str], Entry] = {}
    class_names: list[str] = []
    for split in available_splits(lists) or (1,):
        sides = [read_list(lists, subset, split) for subset in ("train", "test")]
        class_names = list(sides[0].class_names)
        entries |= {(entry.class_name, entry.name.casefold()): entry for side in sides for entry in side.entries}
    return list(entries.values()), class_names


def _by_name(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by the video's own names in lower case."""
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        for name in {entry.name.rsplit("/", 1)[-1].casefold(), *map(str.casefold, entry.ids)}:
            by_name[name].append(entry)
    return by_name


def _target(entry: Entry) -> str:
    return entry.name if "/" in entry.name else f"{entry.class_name}/{entry.name}"


def _identify(root: Path, path: Path, side: str, by_last: bool) -> VideoFile:
    """A video without lists, by its folders; `by_last`: by the last one, if its name has a group."""
    *above, stem = _parts(path, root)
    if len(above) > 1 and not (by_last and group_of(stem)):
        target = "/".join([*above, stem])
        return VideoFile(path, target, target, class_of((*above, stem), side))
    class_name = above[-1] if above else class_in_name(stem) or root.resolve().name
    return VideoFile(path, f"{class_name}/{stem}", stem, class_name)


def _find_listed(root: Path, path: Path, listed: dict[str, list[Entry]], classes: set[str]) -> VideoFile | None:
    """A video by the lists, whose `classes` are in lower case; None if they do not name it."""
    *above, stem = _parts(path, root)
    here = "/".join(["", root.resolve().name, *above, stem]).casefold()
    entries = listed.get(stem.casefold(), [])
    for entry in entries:
        of_class = f"/{entry.class_name}/".casefold() in here
        of_another = not of_class and any(part.casefold() in classes - {folded_class(stem)} for part in above)
        in_place = here.endswith((f"/{entry.class_name}/{entry.name}".casefold(), f"/{entry.name}".casefold())) and (
            "/" in entry.name or of_class or (len(entries) == 1 and not of_another)
        )
        if in_place or stem in entry.ids:
            return VideoFile(path, _target(entry), entry.name, entry.class_name)
    return None
