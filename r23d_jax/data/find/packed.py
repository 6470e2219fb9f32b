"""Videos packed into TFRecord shards of encoded frames: finding every frame's bytes, to read them at random.

Reading 16 frames through `tensorflow_datasets` means reading and parsing the whole video. Here the shards are scanned
once for where each frame lies; after that a clip costs the bytes of its own frames.

What `prepare --format packed` writes is read, and so is any other tensorflow-datasets folder whose examples hold a
`Video` feature of encoded images and a `label`. For tensorflow-datasets' own UCF101, of which each configuration is one
official split:

    python -c "import tensorflow_datasets as tfds; tfds.builder('ucf101/ucf101_1').download_and_prepare()"
    python launch.py --config=configs/r23d.py --config.data.source=packed \\
        --config.data.root=~/tensorflow_datasets/ucf101/ucf101_1/2.0.0
"""

import contextlib
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.find.index_cache import load, prepare_folder, save
from r23d_jax.data.find.splits import CONTROL, DataError, Entry, Subset, VideoList, group_of, without_suffix
from r23d_jax.data.find.tfrecord import Record, parse_example, records
from r23d_jax.runtime.program import command
from r23d_jax.runtime.progress import Progress

_CACHE = "packed"
_CACHE_LAYOUT = {  # of a _Table
    **{"class_names": "str C", "shards": "str S", "sizes": "int64 S", "times": "int64 S", "split": "str M"},
    **{"record": "int64 M", "names": "str M", "labels": "int32 M", "num_frames": "int32 M", "shard": "int32 M"},
    **{"row": "int64 M", "offset": "int64 K", "length": "int64 K", "notes": "str N"},
}
_INFO, _FEATURES = "dataset_info.json", "features.json"
_REMEDY = (
    f"Make one: {command('prepare')} --videos UCF-101 --out data/ucf101 --format packed, and set "
    "--config.data.root=data/ucf101/packed; or --config.data.source=frames for folders of frames"
)
_NAME_FEATURES = ("name", "video_name", "filename")


def index_packed(root: Path, videos: VideoList | None, subset: Subset, cache: bool = True) -> VideoIndex:
    """Finds every encoded frame of a packed dataset.

    The first call reads all shards, checking each record's checksum, and saves what it found beside them; later calls
    read that, as long as no shard has changed in size or time.

    Args:
      root: the dataset's folder (`dataset_info.json`, `features.json`, shards), or one above it.
      videos: where records have names: which of them, and their labels. Where they have none: which classes, and the
        order of the labels; the videos are then called `<subset>/<row>`. None: all, with the dataset's own labels.
      subset: where records have no names, or `videos` is None: the dataset's split to take, "train" or "test".
      cache: save the result, and use it.

    Returns:
      One row per video. Damaged records are left out and reported in `notes`.

    Raises:
      DataError: there is no such dataset, it holds no video, or it does not fit the lists.
    """
    root = Path(root).expanduser()
    folder = _find_dataset(root)
    table = None
    if cache:
        prepare_folder(folder)
        table = _from_cache(folder, load(folder, _CACHE, _CACHE_LAYOUT))
    if table is None:
        table = _read_table(folder)
        if cache:
            save(folder, _CACHE, {field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
    if not len(table.names):
        raise DataError(f"{folder}: no record of it can be read{_notes_text(table)}")
    selection = _select_listed(folder, table, videos) if videos and table.named else None
    if selection is None:
        selection = _select_split(folder, table, videos, subset)
    if not len(selection.rows):
        what = (
            f"none of the {len(videos.entries)} listed videos, e.g. {videos.entries[0].name}" if videos else "no video"
        )
        have = f"; it holds e.g. {table.names[0]}" if table.named and len(table.names) else ""
        raise DataError(f"{folder}: holds {what}{have}{_notes_text(table)}")
    return VideoIndex(
        class_names=selection.class_names,
        names=np.array(selection.names),
        labels=np.array(selection.labels, np.int32),
        num_frames=table.num_frames[selection.rows],
        frames=PackedFrames(
            shards=tuple(os.path.join(os.path.abspath(folder), name) for name in table.shards.tolist()),
            shard=table.shard[selection.rows],
            row=table.row[selection.rows],
            offset=table.offset,
            length=table.length,
        ),
        layout=f"packed: {len(table.shards)} TFRecord shard(s) in {folder}",
        missing=selection.missing,
        notes=tuple(table.notes.tolist()),
    )


@dataclasses.dataclass(frozen=True)
class _Table:
    """All videos of a packed dataset, M of them with K frames in S shards; saved as it is."""

    class_names: np.ndarray  # (C,) str
    shards: np.ndarray  # (S,) str, file names
    sizes: np.ndarray  # (S,) int64, bytes; with the times, what makes a saved table valid
    times: np.ndarray  # (S,) int64, ns
    split: np.ndarray  # (M,) str
    record: np.ndarray  # (M,) int64, place in the split
    names: np.ndarray  # (M,) str; "" where records have no names
    labels: np.ndarray  # (M,) int32
    num_frames: np.ndarray  # (M,) int32
    shard: np.ndarray  # (M,) int32
    row: np.ndarray  # (M,) int64
    offset: np.ndarray  # (K,) int64
    length: np.ndarray  # (K,) int64
    notes: np.ndarray  # str

    @property
    def named(self) -> bool:
        return any(self.names.tolist())


@dataclasses.dataclass(frozen=True)
class _Selection:
    rows: np.ndarray  # (N,) of the table
    names: list[str]
    labels: list[int]
    class_names: tuple[str, ...]
    missing: tuple[str, ...] = ()


# -- choosing videos ---------------------------------------------------------------------------------------------------


def _select_listed(folder: Path, table: _Table, videos: VideoList) -> _Selection:
    rows_of: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(table.names.tolist()):
        rows_of[_last(name)].append(i)
    found: list[tuple[Entry, int]] = []
    for entry in videos.entries:
        row = _choose(folder, table, entry, rows_of.get(_last(entry.name), []))
        if row is not None:
            found.append((entry, row))
    have = {entry for entry, _ in found}
    return _Selection(
        rows=np.array([row for _, row in found], np.int64),
        names=[entry.name for entry, _ in found],
        labels=[entry.label for entry, _ in found],
        class_names=videos.class_names,
        missing=tuple(entry.name for entry in videos.entries if entry not in have),
    )


def _choose(folder: Path, table: _Table, entry: Entry, candidates: list[int]) -> int | None:
    ranked: dict[int, list[int]] = defaultdict(list)
    for row in candidates:
        same_class = str(table.class_names[table.labels[row]]).casefold() == entry.class_name.casefold()
        if table.names[row].casefold() == entry.name.casefold():
            ranked[0 if same_class else 2].append(row)
        elif same_class:
            ranked[1].append(row)
        elif group_of(entry.name) is not None:  # v_Diving_g01_c01 says what it is
            ranked[3].append(row)
    if not ranked:
        return None
    best = ranked[min(ranked)]
    if len(best) > 1:
        raise DataError(f"{folder}: holds {entry.name} more than once (records {best[0]} and {best[1]})")
    return best[0]


def _select_split(folder: Path, table: _Table, videos: VideoList | None, subset: str) -> _Selection:
    """One of the dataset's own splits."""
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
        if len(rows) != len(videos.entries) and not len(table.notes):
            raise DataError(
                f"{folder}: its split {subset!r} has {len(rows)} videos of the chosen classes, the lists name "
                f"{len(videos.entries)}: is it another official split (config.data.split)?"
            )
    names = table.names[rows].tolist() if table.named else [f"{subset}/{record}" for record in table.record[rows]]
    return _Selection(rows, names, labels.tolist(), class_names)


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()


def _notes_text(table: _Table) -> str:
    return "".join(f". {note}" for note in table.notes.tolist())


# -- reading the shards ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Shard:
    """What one shard holds: its videos as (record, name, label, frame offsets, frame lengths), and what is wrong."""

    path: Path
    split: str
    num_records: int  # that the dataset says it has
    videos: list[tuple[int, str, int, list[int], list[int]]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def _find_dataset(root: Path) -> Path:
    """The folder of the one packed dataset at or below root."""
    if not os.path.isdir(root):
        raise DataError(f"config.data.root={root}: no such folder. {_REMEDY}")
    level, found = [root], []
    for _ in range(4):
        found = [folder for folder in level if all(os.path.isfile(folder / name) for name in (_INFO, _FEATURES))]
        if found:
            break
        level = [below for folder in level for below in _folders_in(folder)]
    if not found:
        raise DataError(f"config.data.root={root}: holds no packed dataset ({_INFO} and {_FEATURES}). {_REMEDY}")
    if len(found) > 1:
        raise DataError(
            f"config.data.root={root}: holds {len(found)} packed datasets; choose one: {found[0]}, {found[1]}"
        )
    return found[0]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [p for p in sorted(folder.iterdir()) if os.path.isdir(p) and not p.name.startswith(".")]
    except OSError:  # it may not be read
        return []


def _read_table(folder: Path) -> _Table:
    class_names, shards, keys = _describe_dataset(folder)
    show = Progress(len(shards), "shards", "index packed videos") if len(shards) >= 8 else None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, show or contextlib.nullcontext():
        for _ in pool.map(lambda shard: _scan_shard(shard, keys, len(class_names)), shards):
            if show is not None:
                show.update()

    videos, notes, base = [], [], defaultdict(int)
    offsets, lengths, num_frames = [], [], 0
    for number, shard in enumerate(shards):
        for record, name, label, offset, length in shard.videos:
            row = (shard.split, base[shard.split] + record, name, label, len(offset), number, num_frames)
            videos.append(row)
            offsets += offset
            lengths += length
            num_frames += len(offset)
        base[shard.split] += shard.num_records
        lost = shard.num_records - len(shard.videos)
        if shard.problems:
            notes.append(f"{shard.path}: {lost} damaged video(s) left out: {'; '.join(shard.problems[:3])}")
    split, record, names, labels, counts, shard_of, row = zip(*videos, strict=True) if videos else ((),) * 7
    stats = [os.stat(shard.path) for shard in shards]
    return _Table(
        class_names=np.array(class_names, str),
        shards=np.array([shard.path.name for shard in shards], str),
        sizes=np.array([stat.st_size for stat in stats], np.int64),
        times=np.array([stat.st_mtime_ns for stat in stats], np.int64),
        split=np.array(split, str),
        record=np.array(record, np.int64),
        names=np.array(names, str),
        labels=np.array(labels, np.int32),
        num_frames=np.array(counts, np.int32),
        shard=np.array(shard_of, np.int32),
        row=np.array(row, np.int64),
        offset=np.array(offsets, np.int64),
        length=np.array(lengths, np.int64),
        notes=np.array(notes, str),
    )


def _describe_dataset(folder: Path) -> tuple[list[str], list[_Shard], tuple[str, str, str]]:
    """Class names, shards, and the names of the features that hold the frames, the label and the video's name."""
    _refuse_foreign_features(folder / _FEATURES)
    import tensorflow_datasets as tfds  # takes seconds; not needed when the index is cached

    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:
        raise DataError(f"{folder}: tensorflow-datasets cannot read it ({error})") from error
    file_format = info.file_format.value if info.file_format else "tfrecord"
    if file_format != "tfrecord":
        raise DataError(f"{folder}: is stored as {file_format}; only tfrecord can be read")
    features: dict[str, Any] = dict(cast(Any, info.features) or {})
    video_key = next((key for key, value in features.items() if isinstance(value, tfds.features.Video)), None)
    label = features.get("label")
    if video_key is None or not isinstance(label, tfds.features.ClassLabel):
        raise DataError(
            f"{folder}: its examples must hold a Video and a ClassLabel named 'label'; they hold "
            + ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
        )
    name_key = next((key for key in _NAME_FEATURES if isinstance(features.get(key), tfds.features.Text)), "")
    shards = [
        _Shard(Path(os.fspath(path)), split.name, num_records)
        for split in info.splits.values()
        for path, num_records in zip(split.filepaths, split.shard_lengths, strict=True)
    ]
    outside = [shard.path for shard in shards if os.path.abspath(shard.path.parent) != os.path.abspath(folder)]
    if outside:
        raise DataError(f"{folder / _INFO}: names a shard outside of its folder: {outside[0]}")
    lacking = [shard.path for shard in shards if not shard.path.is_file()]
    if lacking:
        raise DataError(f"{lacking[0]}: this shard is missing, and {len(lacking) - 1} more; copy or make it again")
    return list(label.names), shards, (video_key, "label", name_key)


def _refuse_foreign_features(path: Path) -> None:
    """tensorflow-datasets imports whatever module the file names as the home of a feature: here only its own."""

    def names(node: Any) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                yield from names(value)
            elif key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        foreign = [name for name in names([content]) if not name.startswith("tensorflow_datasets.core.features.")]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or make the dataset again") from error
    if foreign:
        raise DataError(
            f"{path}: refused, because reading it would run code: it asks for {foreign[0]!r}, which is no feature of "
            "tensorflow-datasets"
        )


def _scan_shard(shard: _Shard, keys: tuple[str, str, str], num_classes: int) -> None:
    if not shard.path.stat().st_size:
        shard.problems.append("the file is empty")
        return
    try:
        data = np.memmap(shard.path, np.uint8, mode="r")
    except OSError as error:
        shard.problems.append(f"the file cannot be read ({error.strerror})")
        return
    for number, record in enumerate(records(data)):
        if record.problem:
            shard.problems.append(record.problem)
            continue
        try:
            shard.videos.append((number, *_parse_video(data, record, keys, num_classes)))
        except ValueError as error:
            shard.problems.append(f"record {number}: {error}")
    found = len(shard.videos)
    if not shard.problems and found != shard.num_records:
        shard.problems.append(f"the shard holds {found} records instead of {shard.num_records}")


def _parse_video(
    data: np.ndarray, record: Record, keys: tuple[str, str, str], num_classes: int
) -> tuple[str, int, list[int], list[int]]:
    features = parse_example(data, record.start, record.end)
    frames, labels, names = (features.get(key) or [] for key in keys)
    pairs = [pair for pair in frames if isinstance(pair, tuple)]
    if not pairs:
        raise ValueError("holds no encoded frame")
    if len(labels) != 1 or not isinstance(labels[0], int) or not 0 <= labels[0] < num_classes:
        raise ValueError(f"its label {labels} is none of the {num_classes} classes")
    name = ""
    if len(names) == 1 and isinstance(names[0], tuple):
        start, length = names[0]
        name = without_suffix(data[start : start + length].tobytes().decode("utf-8", errors="surrogateescape"))
        if CONTROL.search(name):
            raise ValueError(f"its name {name!r} holds a control character")
    return name, labels[0], [offset for offset, _ in pairs], [length for _, length in pairs]


def _from_cache(folder: Path, arrays: dict[str, np.ndarray] | None) -> _Table | None:
    if arrays is None:
        return None
    table = _Table(**arrays)
    try:
        stats = [os.stat(folder / name) for name in table.shards.tolist()]
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return None
    same = [stat.st_size for stat in stats] == table.sizes.tolist()
    same = same and [stat.st_mtime_ns for stat in stats] == table.times.tolist()
    return table if same and _is_sound(table) else None


def _is_sound(table: _Table) -> bool:
    """Whether numbers point at what there is: a saved table comes with the data, which may come from anywhere."""
    return bool(
        np.all((table.labels >= 0) & (table.labels < len(table.class_names)))
        and np.all((table.shard >= 0) & (table.shard < len(table.shards)))
        and np.all((table.num_frames > 0) & (table.row >= 0) & (table.row <= len(table.offset) - table.num_frames))
        and np.all((table.offset >= 0) & (table.length >= 0))
        and not any("/" in name for name in table.shards.tolist())
    )
