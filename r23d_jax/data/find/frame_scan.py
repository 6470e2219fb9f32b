"""Detects how the frames of listed videos are laid out on disk."""

import dataclasses
import os
import re
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from r23d_jax.data.find.errors import DataError, remedy
from r23d_jax.data.find.frame_folder import (
    FRAME,
    IMAGE_SUFFIXES,
    UNREADABLE,
    Numbering,
    is_special,
    number_files,
    read_folder,
)
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES, folded_class, group_of
from r23d_jax.runtime.program import command
from r23d_jax.runtime.progress import Progress

_PART = 64
_SHARD_NUMBER = re.compile(r"(?<=\.tfrecord)-[0-9]+-of-[0-9]+$")
_THREADS = 16
_MIN_DEPTH = 4  # of folders below root that are read, if no listed path is deeper


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one video's frames may be: in a folder of its own, or among the files of a shared folder."""

    parts: tuple[str, ...]  # path below root; the last part is the video's name as written on disk
    files: tuple[str, ...] | None  # frame files in a shared folder; None: all files of the video's own folder
    special: str = ""  # one of `files` that is a pipe or a device

    @property
    def folder(self) -> str:
        return "/".join(self.parts if self.files is None else self.parts[:-1])


@dataclasses.dataclass
class _Listing:
    """The content of the folders above the videos."""

    places: dict[str, list[_Place]]  # by the video's name in lower case
    folders: list[str]  # relative paths of the folders read
    others: Counter[str]  # suffixes of other files
    frame_folders: list[str]  # examples of frame folders that are not listed
    unreadable: list[str]


@dataclasses.dataclass(frozen=True)
class Found:
    """A listed video and its frames; `folder` is relative to the root."""

    entry: Entry
    folder: str
    numbering: Numbering


@dataclasses.dataclass(frozen=True)
class Scan:
    """The result of a scan."""

    found: tuple[Found, ...]  # in list order
    layout: str  # for the log
    notes: tuple[str, ...]
    folders: tuple[str, ...]  # every folder whose change matters
    unreadable: bool = False  # whether a folder could not be read, which may be otherwise the next time


def scan_frames(root: Path, videos: VideoList, num_workers: int = 0) -> Scan:
    """Looks for the frames of listed videos. Call `frames.index_frames`, which caches the result."""
    wanted = {name.casefold() for entry in videos.entries for name in (last_part(entry.name), *entry.ids)}
    # Names of folders above videos, one of which may also be a video's name: 1/2 and 2/1
    paths = (f"{entry.class_name}/{entry.name}".casefold().split("/") for entry in videos.entries)
    above = {part for path in paths for part in path[:-1]}
    with ThreadPoolExecutor(num_workers or _THREADS) as pool:
        depth = max(_MIN_DEPTH, *(entry.name.count("/") for entry in videos.entries))
        listing = _list_folders(root, wanted, above, videos.elsewhere, depth, pool)
        chosen = ((entry, _choose(root, entry, listing, above)) for entry in videos.entries)
        found = [(entry, place) for entry, place in chosen if place is not None]
        _refuse_double_use(root, found)
        if not found:
            raise DataError(_nothing_found(root, videos, listing))
        numbered = _number_all(root, found, pool, num_workers)

    used = [(entry, place, n) for (entry, place), n in zip(found, numbered, strict=True) if isinstance(n, Numbering)]
    notes = [f"cannot read the folder {root / folder}" for folder in listing.unreadable]
    reasons = [f"{root / p.folder}: {n}" for (_, p), n in zip(found, numbered, strict=True) if isinstance(n, str)]
    if reasons:
        notes.append(f"{len(reasons)} frame folder(s) not used: " + "; ".join(reasons[:5]))
    mixed = [f"{root / p.folder}: {n.left_out}" for _, p, n in used if n.left_out]
    if mixed:
        notes.append(f"{len(mixed)} frame folder(s) hold other pictures, which are not used: " + "; ".join(mixed[:5]))
    if not used:
        raise DataError(f"{root}: no listed video has usable frames. {'; '.join(notes)}. {remedy()}")
    return Scan(
        found=tuple(Found(entry, place.folder, n) for entry, place, n in used),
        layout=_describe(used),
        notes=tuple(notes),
        folders=tuple(sorted({*listing.folders, *(place.folder for _, place in found)})),
        unreadable=bool(listing.unreadable) or any(isinstance(n, str) and n.startswith(UNREADABLE) for n in numbered),
    )


def _refuse_double_use(root: Path, found: list[tuple[Entry, _Place]]) -> None:
    claimed: dict[_Place, Entry] = {}
    for entry, place in found:
        other = claimed.setdefault(place, entry)
        if other is not entry:
            raise DataError(
                f"{root}: two listed videos, {other.class_name}/{other.name} and {entry.class_name}/{entry.name}, "
                f"both match {place.folder}; put the frames in folders <Class>/<video>"
            )


def _number_all(
    root: Path, found: list[tuple[Entry, _Place]], pool: ThreadPoolExecutor, num_workers: int
) -> list[Numbering | str]:
    """Reads the folders of all videos, in threads if that is faster.

    On a network or cold disk most time is spent waiting, and threads help. On a warm disk most time is spent in Python
    code, and threads contend for the GIL: they take twice as long (measured). The first folders show which case it is.
    """

    def number(part: list[tuple[Entry, _Place]]) -> list[Numbering | str]:
        return [
            read_folder(root / place.folder) if place.files is None else number_files(place.files, place.special)
            for _, place in part
        ]

    # In parts, because handing a single folder to a thread costs as much as reading it.
    parts = [found[i : i + _PART] for i in range(0, len(found), _PART)]
    with Progress(len(found), "folders", "index frames", shown=len(found) >= 1000) as show:
        wall, cpu = time.perf_counter(), time.thread_time()
        numbered = number(parts[0])
        waiting = time.perf_counter() - wall > 2 * (time.thread_time() - cpu)
        threads = num_workers > 1 or (num_workers == 0 and waiting)
        show.update(len(parts[0]))
        for more in (pool.map if threads else map)(number, parts[1:]):
            numbered += more
            show.update(len(more))
    return numbered


def _list_folders(
    root: Path, wanted: set[str], names_above: set[str], elsewhere: frozenset[str], depth: int, pool: ThreadPoolExecutor
) -> _Listing:
    """Reads folders level by level. The folder of a listed video is noted, but not read."""
    listing = _Listing(defaultdict(list), [], Counter(), [], [])
    # Each with the folders above it: a link that leads back up would otherwise be followed endlessly.
    level: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    for level_depth in range(depth + 1):
        below = []
        contents = pool.map(lambda folder: _read_folder(root, folder[0]), level)
        for (parts, above), content in zip(level, contents, strict=True):
            if content is None:
                listing.unreadable.append("/".join(parts))
                continue
            if content.identity in above:
                continue
            listing.folders.append("/".join(parts))
            listing.others.update(content.others)
            for folder in content.folders:
                name = folder.casefold()
                if name in wanted:
                    listing.places[name].append(_Place((*parts, folder), None))
                # The folder of a clip that is not listed holds no classes
                if name in names_above or not (name in wanted or name in elsewhere or group_of(folder)):
                    below.append(((*parts, folder), above | {content.identity}))
                elif name not in wanted and len(listing.frame_folders) < 3:
                    listing.frame_folders.append("/".join((*parts, folder)))
            shared: dict[str, list[str]] = defaultdict(list)
            for image in content.images:
                match = FRAME.fullmatch(image)
                if match:
                    shared[match[1].rstrip("-_. ")].append(image)
            for video, files in shared.items():
                if video.casefold() in wanted:
                    special = next((file for file in files if file in content.special), "")
                    listing.places[video.casefold()].append(_Place((*parts, video), tuple(files), special))
                elif len(listing.frame_folders) < 3:
                    listing.frame_folders.append("/".join(parts) or ".")
        level = below if level_depth < depth else []
    return listing


@dataclasses.dataclass
class _Content:
    """The content of one folder."""

    identity: tuple[int, int]  # device and inode of the folder
    folders: list[str]
    images: list[str]
    special: set[str]  # images that are pipes or devices
    others: Counter[str]  # suffixes of other files


def _read_folder(root: Path, parts: tuple[str, ...]) -> _Content | None:
    path = os.path.join(root, *parts)
    try:
        status = os.stat(path)
        content = _Content((status.st_dev, status.st_ino), [], [], set(), Counter())
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    content.images.append(entry.name)
                    if is_special(entry):
                        content.special.add(entry.name)
                elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry)):
                    content.folders.append(entry.name)
                else:
                    content.others[os.path.splitext(_SHARD_NUMBER.sub("", entry.name))[1].lower()] += 1
    except OSError:
        return None
    content.folders.sort()
    return content


def _choose(root: Path, entry: Entry, listing: _Listing, names_above: set[str]) -> _Place | None:
    """Finds the only place of a listed video: by its listed path, by class and name, or by an unambiguous name.

    Where the listed path holds the class, as `train/Walk/001` does, `val/Walk/001` is another video. An unambiguous
    name is not taken from a folder of another class or person.
    """
    last = last_part(entry.name)
    listed, of_class = f"/{entry.name}".casefold(), f"/{entry.class_name}/{last}".casefold()
    holds_class = f"/{entry.class_name}/".casefold() in listed
    ranked: dict[int, list[_Place]] = defaultdict(list)
    for place in listing.places.get(last.casefold(), ()):
        path = f"/{'/'.join(place.parts)}".casefold()
        if "/" in entry.name and path.endswith(listed):
            ranked[0].append(place)
        elif path.endswith(of_class) and (listed.endswith(path) or not holds_class):
            ranked[1].append(place)
        elif len(place.parts) == 1:
            ranked[2].append(place)
        elif group_of(last) is not None or last in entry.ids:  # v_Diving_g01_c01 is unambiguous anywhere
            ranked[3].append(place)
    for name in entry.ids[1:]:
        ranked[4] += listing.places.get(name.casefold(), ())
    for rank in (3, 4):
        ranked[rank] = [place for place in ranked[rank] if _may_hold(place, entry, names_above)]
    ranked = {rank: places for rank, places in ranked.items() if places}
    if not ranked:
        return None
    best = sorted(ranked[min(ranked)], key=lambda place: len(place.parts))
    if len({os.path.realpath(root.joinpath(*place.parts)) for place in best}) > 1:  # links to the same place count once
        raise DataError(
            f"{root}: video {entry.name} was found in more than one place: {'/'.join(best[0].parts)} and "
            f"{'/'.join(best[1].parts)}. Is config.data.root one level too high?"
        )
    return best[0]


def _may_hold(place: _Place, entry: Entry, names_above: set[str]) -> bool:
    """Whether a video may be in a folder, by the folders above it, which may be those of another class or person."""
    own = entry.class_name.casefold()
    listed = set(entry.name.casefold().split("/")[:-1])
    here = {part.casefold() for part in place.parts[:-1]}
    if own in listed & here:  # what else is above it must not contradict the list
        return listed <= here or here <= listed
    return not (names_above & here) - listed - {own, folded_class(last_part(entry.name))}


def _describe(rows: list[tuple[Entry, _Place, Numbering]]) -> str:
    counts = Counter(_describe_one(*row) for row in rows)
    (layout, count), *rest = counts.most_common()
    if not rest:
        return layout
    return f"{layout} for {count} of {len(rows)} videos; also " + ", ".join(f"{text} ({n})" for text, n in rest[:2])


def _describe_one(entry: Entry, place: _Place, n: Numbering) -> str:
    above = []
    for part in place.parts[:-1]:
        if part.casefold() == entry.class_name.casefold():
            above.append("<Class>/")
        else:
            above.append(f"{part}/" if part.lower() in ("train", "test", "val") else "<folder>/")
    prefix = re.sub(rf"^{re.escape(place.parts[-1])}(?![^\W_])", "<video>", n.prefix)  # the whole name, not its letters
    file = dataclasses.replace(n, prefix=prefix).name(0)
    video = "<video>/" if place.files is None else ""
    digits = f"{n.digits} digits" if n.digits > 1 else "not padded"
    step = f" in steps of {n.step}" if n.step > 1 else ""
    return f"{''.join(above)}{video}{file} ({digits}, from {n.first}{step})"


def _nothing_found(root: Path, videos: VideoList, listing: _Listing) -> str:
    looked = (
        f"config.data.root={root}: found no frames of the {len(videos.entries)} listed videos (looked for folders such "
        f"as {videos.entries[0].class_name}/{last_part(videos.entries[0].name)}/ with .jpg or .png files)"
    )
    movies = {suffix: n for suffix, n in listing.others.items() if suffix in VIDEO_SUFFIXES}
    if listing.frame_folders:
        return (
            f"{looked}. There are frames of other videos, e.g. {listing.frame_folders[0]}: do the lists "
            "(config.data.lists) belong to this dataset?"
        )
    if movies:
        there = " and ".join(f"{n} {suffix} files" for suffix, n in movies.items())
        return (
            f"{looked}, but {there}. Make frames of them first: "
            f"{command('prepare')} --videos {root} --out {root.with_name(root.name + '-frames')}"
        )
    if listing.others.get(".tfrecord"):
        return f"{looked}, but {listing.others['.tfrecord']} TFRecord shards: set --config.data.source=packed"
    if listing.unreadable:
        return f"{looked}. Cannot read the folder {root / listing.unreadable[0]}: may this user read it?"
    there = ", ".join(f"{n} {suffix or 'other'} files" for suffix, n in listing.others.most_common(3)) or "no files"
    return f"{looked}. Found instead: {there}. {remedy()}"


def last_part(name: str) -> str:
    """The video's own name, if its name is a path."""
    return name.rsplit("/", 1)[-1]
