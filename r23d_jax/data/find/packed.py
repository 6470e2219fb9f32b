"""Finds the videos in TFRecord shards of encoded frames, so that each frame can be read on its own.

The shards are scanned once for the place of every frame. After that a clip costs only the bytes of its own frames,
while `tensorflow_datasets` would read and parse the whole video.

This reads the output of `prepare --format packed`, and any other tensorflow-datasets folder whose examples hold a
`Video` feature of encoded images and a `label`. For tensorflow-datasets' own UCF101, whose configurations are the
official splits:

    python -c "import tensorflow_datasets as tfds; tfds.builder('ucf101/ucf101_1').download_and_prepare()"
    python launch.py --config=configs/r23d.py --config.data.source=packed \\
        --config.data.root=~/tensorflow_datasets/ucf101/ucf101_1/2.0.0
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.find.index_cache import load, prepare_folder, save
from r23d_jax.data.find.list_format import Subset
from r23d_jax.data.find.packed_scan import TABLE_LAYOUT, UNREAD, Local, Remote, Table, find_dataset, read_table
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.data.find.video_names import group_of
from r23d_jax.runtime import remote
from r23d_jax.runtime.blocks import Blocks, num_blocks

CACHE = "packed"  # name of the saved index
# of one that this machine has made for an object store, whose own, copied again at each start, is missing or outdated
_OWN = "packed-own"


def index_packed(
    root: Path,
    videos: VideoList | None,
    subset: Subset,
    cache: bool = True,
    *,
    url: str = "",
    cache_bytes: float = 20e9,
) -> VideoIndex:
    """Finds every encoded frame of a packed dataset.

    The first call reads all shards, checks each record's checksum, and saves the index beside the shards. Later calls
    read the saved index, as long as no shard has changed in size or time.

    Args:
      root: the dataset's folder (`dataset_info.json`, `features.json`, shards), or one above it.
      videos: the videos to take, and their labels. If records have no names, only the classes and the order of the
        labels are used, and the videos are called `<subset>/<row>`. None takes all videos, with the dataset's labels.
      subset: the dataset's own split to take. Used if records have no names, or `videos` is None.
      cache: whether to save the index, and to use a saved one.
      url: of the folder in an object store, if `root` is a copy of its small files (`packed_scan.is_description`).
      cache_bytes: of the disk, for parts of such shards.

    Returns:
      One row per video. Damaged records are left out and reported in `notes`.

    Raises:
      DataError: there is no such dataset, it holds no video, or it does not match the lists.
    """
    root = Path(root).expanduser()
    folder = find_dataset(root, url)
    store = Remote(remote.join(url, folder.relative_to(root).as_posix())) if url else Local(folder)
    names, table = (CACHE, _OWN) if url else (CACHE,), None
    if cache:
        prepare_folder(folder)
        saved = (load(folder, name, TABLE_LAYOUT) for name in names)
        table = next((table for arrays in saved if arrays and (table := _from_cache(store, arrays))), None)
    if table is None:
        table = read_table(folder, store)
        if cache:
            save(folder, names[-1], vars(table))
    if not len(table.names):
        raise DataError(f"{folder}: no record of it can be read{_notes_text(table)}")
    if videos and table.named:
        rows, names, labels, class_names, missing = _select_listed(folder, table, videos)
    else:
        rows, names, labels, class_names, missing = _select_split(folder, table, videos, subset)
    if not len(rows):
        some = (
            f"none of the {len(videos.entries)} listed videos, e.g. {videos.entries[0].name}" if videos else "no video"
        )
        have = f"; it holds e.g. {table.names[0]}" if table.named else ""
        raise DataError(f"{folder}: holds {some}{have}{_notes_text(table)}")
    row, length = _lengths_of(table, rows)
    all_names = np.array(names)
    shards = tuple(map(store.place, table.shards.tolist()))
    return VideoIndex(
        class_names=class_names,
        names=all_names,
        labels=np.array(labels, np.int32),
        num_frames=table.num_frames[rows],
        frames=PackedFrames(
            shards=shards,
            shard=table.shard[rows],
            begin=table.begin[rows],
            row=row,
            length=length,
            names=all_names,
            blocks=Blocks(shards, table.sizes, table.checks, cache_bytes) if url else None,
        ),
        layout=f"packed: {len(table.shards)} TFRecord shard(s) in {url or folder}",
        missing=missing,
        notes=tuple(table.notes.tolist()),
        rates=table.rates[rows],
        named=table.named,
    )


# Rows of the table, (N,) int64; names; labels; class names; names of listed videos that are missing
_Selection = tuple[np.ndarray, list[str], list[int], tuple[str, ...], tuple[str, ...]]


def _select_listed(folder: Path, table: Table, videos: VideoList) -> _Selection:
    names = table.names.tolist()
    # A list for each of many videos would keep Python's garbage collector busy for longer than the rest takes.
    first: dict[str, int] = {}
    more: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        if first.setdefault(_last(name), i) != i:
            more[_last(name)].append(i)
    found: list[Entry] = []
    rows, missing = [], []
    for entry in videos.entries:
        last = _last(entry.name)
        row = first.get(last)
        if row is not None and (last in more or names[row] != entry.name):
            row = _choose(folder, table, entry, [row, *more.get(last, ())])
        if row is None:
            missing.append(entry.name)
        else:
            found.append(entry)
            rows.append(row)
    labels = [entry.label for entry in found]
    return np.array(rows, np.int64), [entry.name for entry in found], labels, videos.class_names, tuple(missing)


def _choose(folder: Path, table: Table, entry: Entry, rows: list[int]) -> int | None:
    ranked: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        same_class = str(table.class_names[table.labels[row]]).casefold() == entry.class_name.casefold()
        name, listed = table.names[row].casefold(), entry.name.casefold()
        if name == listed:
            ranked[0 if same_class else 2].append(row)
        elif "/" in name and "/" in listed and not (name.endswith(f"/{listed}") or listed.endswith(f"/{name}")):
            continue  # `Walk/p2/001` is not `Walk/p1/001`
        elif same_class:
            ranked[1].append(row)
        elif group_of(entry.name) is not None:  # a name such as v_Diving_g01_c01 is unambiguous
            ranked[3].append(row)
    if not ranked:
        return None
    best = ranked[min(ranked)]
    if len(best) > 1:
        raise DataError(f"{folder}: holds {entry.name} more than once (records {best[0]} and {best[1]})")
    return best[0]


def _select_split(folder: Path, table: Table, videos: VideoList | None, subset: str) -> _Selection:
    """Takes one of the dataset's own splits."""
    splits = sorted(set(table.split.tolist()))
    if subset not in splits:
        remedy = "set config.data.lists to the lists that say which videos are for training" if table.named else ""
        raise DataError(
            f"{folder}: has no split {subset!r} (it has: {', '.join(splits) or 'none'}); {remedy}".rstrip("; ")
        )
    rows = np.flatnonzero(table.split == subset)
    labels = table.labels[rows]
    class_names = tuple(table.class_names.tolist())
    if videos is not None:
        new_label = {name.casefold(): i for i, name in enumerate(videos.class_names)}
        mapped = np.array([new_label.get(name.casefold(), -1) for name in class_names], np.int32)
        labels = mapped[labels]
        rows, labels = rows[labels >= 0], labels[labels >= 0]
        class_names = videos.class_names
        more, fewer = len(rows) > len(videos.entries), len(rows) < len(videos.entries)
        if more or (fewer and not len(table.notes)):
            raise DataError(
                f"{folder}: its split {subset!r} has {len(rows)} videos of the chosen classes, the lists name "
                f"{len(videos.entries)}: is it another official split (config.data.split)? Its records have "
                "no names, so config.data.fold and hold_out cannot divide them"
            )
    names = table.names[rows].tolist() if table.named else [f"{subset}/{record}" for record in table.record[rows]]
    return rows, names, labels.tolist(), class_names, ()


def _lengths_of(table: Table, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the lengths of each chosen video begin, (N,) int64, and the lengths, without those of other videos."""
    ends = np.cumsum(table.num_frames, dtype=np.int64)
    if len(rows) == len(ends):
        return (ends - table.num_frames)[rows], table.length
    counts = table.num_frames[rows]
    parts = [table.length[end - count : end] for end, count in zip(ends[rows].tolist(), counts.tolist(), strict=True)]
    return np.cumsum(counts, dtype=np.int64) - counts, np.concatenate(parts)


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()


def _notes_text(table: Table) -> str:
    return "".join(f". {note}" for note in table.notes.tolist())


def _from_cache(store: Local, arrays: dict[str, np.ndarray]) -> Table | None:
    table = Table(**arrays)
    saved = zip(table.shards.tolist(), table.sizes.tolist(), table.times.tolist(), strict=True)
    for name, size, time in saved:
        found = store.stat(name)
        if found is None or time == UNREAD or found not in ((size, time), (size, None)):
            return None
    return table if _is_plausible(table) else None


def _is_plausible(table: Table) -> bool:
    """Whether all numbers are in range; a saved table comes with the data and may be forged."""
    return bool(
        np.all((table.labels >= 0) & (table.labels < len(table.class_names)))
        and np.all((table.shard >= 0) & (table.shard < len(table.shards)))
        and np.all((table.num_frames > 0) & (table.begin >= 0))
        and int(table.num_frames.sum(dtype=np.int64)) == len(table.length)
        and np.all((table.rates >= 0) & np.isfinite(table.rates))
        and not any("/" in name for name in table.shards.tolist())
        and np.all(table.sizes >= 0)
        and len(table.checks) >= num_blocks(table.sizes).sum()
    )
