"""Reads the shards of a packed dataset once, to find the place of every frame."""

import contextlib
import dataclasses
import json
import math
import os
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.tfrecord import Record, header_bytes, parse_example, records
from r23d_jax.data.find.video_names import CONTROL, without_suffix
from r23d_jax.runtime import blocks, disk, remote
from r23d_jax.runtime.program import command
from r23d_jax.runtime.progress import Progress

_INFO, _FEATURES = "dataset_info.json", "features.json"
_REMEDY = (
    f"Make one: {command('prepare')} --videos UCF-101 --out data/ucf101 --format packed, and set "
    "--config.data.root=data/ucf101/packed; or --config.data.source=frames for folders of frames"
)
UNREAD = -1  # in place of the time of a shard that could not be read, so that it is read again
RATE_FEATURE = "frame_rate"  # frames per second
_NAME_FEATURES = ("name", "video_name", "filename")


# Dtypes and axes of the fields of `Table`: C classes, S shards, M videos, K frames
TABLE_LAYOUT = {
    **{"class_names": "str C", "shards": "str S", "sizes": "int64 S", "times": "int64 S", "split": "str M"},
    **{"record": "int64 M", "names": "str M", "labels": "int32 M", "num_frames": "int32 M", "shard": "int32 M"},
    **{"begin": "int64 M", "length": "uint32 K", "notes": "str N", "rates": "float64 M", "checks": "uint32 B"},
}


@dataclasses.dataclass(frozen=True)
class Table:
    """All videos of a packed dataset, in the arrays of `TABLE_LAYOUT`; saved as it is."""

    class_names: np.ndarray
    shards: np.ndarray  # file names
    sizes: np.ndarray  # bytes; a saved table is valid while these and the times match
    times: np.ndarray  # ns; UNREAD of a shard that could not be read
    split: np.ndarray
    record: np.ndarray  # place in the split
    names: np.ndarray  # "" where records have no names
    labels: np.ndarray
    num_frames: np.ndarray
    shard: np.ndarray
    begin: np.ndarray  # byte of the shard at which the video's frames begin; see `PackedFrames`
    length: np.ndarray  # bytes of every frame, all videos in turn
    notes: np.ndarray
    rates: np.ndarray  # frames per second; 0 where records have none
    checks: np.ndarray  # CRC-32C of every block of every shard in turn; see `runtime.blocks`

    @property
    def named(self) -> bool:
        return any(self.names.tolist())


@dataclasses.dataclass
class _Shard:
    """One shard: its videos as (record, name, label, begin, lengths of the frames, rate), and its problems."""

    path: Path
    split: str
    num_records: int  # according to the dataset
    videos: list[tuple[int, str, int, int, np.ndarray, float]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    unreadable: bool = False  # now; it may be otherwise the next time
    checks: list[int] = dataclasses.field(default_factory=list)


class Local:
    """The shards of a dataset, beside its description."""

    def __init__(self, folder: Path):
        self._folder = folder

    def place(self, name: str) -> str:
        """The path, or the URL, of a shard."""
        return os.path.join(os.path.abspath(self._folder), name)

    def stat(self, name: str) -> tuple[int, int | None] | None:
        """Bytes of a shard, and its time in ns, None where sizes and checksums suffice; None if there is no shard."""
        try:
            status = os.stat(self._folder / name)
        except (OSError, ValueError):  # ValueError: a zero byte in a name
            return None
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[np.ndarray]:
        """The content of a shard that is not empty, (size,) uint8."""
        yield np.memmap(self._folder / name, np.uint8, mode="r")


class Remote(Local):
    """The shards of a dataset in an object store."""

    def __init__(self, url: str):
        self._url, self._files = url, remote.files(url)

    def place(self, name: str) -> str:
        return remote.join(self._url, name)

    def stat(self, name: str) -> tuple[int, int | None] | None:
        info = self._files.get(name)
        return None if info is None else (info.size, None)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[np.ndarray]:
        folder = remote.cached("")
        with disk.writing(folder):  # a full disk here is no damage of the shard
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)
        with file:
            with disk.writing(folder):
                remote.write_ranges(self.place(name), self._files[name].size, file)
                file.flush()
            yield np.memmap(file, np.uint8, mode="r")


def is_description(name: str) -> bool:
    """Whether a file of a dataset is small, and so is copied from an object store before anything else."""
    return name.endswith((".json", ".txt", ".npz"))


def find_dataset(root: Path, url: str = "") -> Path:
    """Finds the folder of the only packed dataset at or below root, a copy of `url` if that is given."""
    shown = url or root
    if not os.path.isdir(root):
        raise DataError(f"config.data.root={shown}: no such folder. {_REMEDY}")
    found: list[Path] = []
    for depth in range(4):
        infos = sorted(root.glob("[!.]*/" * depth + _INFO))
        found = found or [info.parent for info in infos if os.path.isfile(info.with_name(_FEATURES))]
    if not found:
        raise DataError(f"config.data.root={shown}: holds no packed dataset ({_INFO} and {_FEATURES}). {_REMEDY}")
    if len(found) > 1:
        raise DataError(
            f"config.data.root={shown}: holds {len(found)} packed datasets; choose one: {found[0]}, {found[1]}"
        )
    return found[0]


def read_table(folder: Path, store: Local | None = None) -> Table:
    """Reads all shards of a dataset; damaged records are left out and named in `notes`.

    Args:
      folder: of the dataset's description.
      store: where the shards are; None: in `folder`.
    """
    store = store or Local(folder)
    class_names, shards, keys = _describe_dataset(folder, store)
    show = Progress(len(shards), "shards", "index packed videos", shown=len(shards) >= 8)
    most = 2 if isinstance(store, Remote) else 8  # shards that are fetched whole take room on the disk
    with ThreadPoolExecutor(min(most, os.cpu_count() or 1)) as pool, show:
        for _ in pool.map(lambda shard: _scan_shard(shard, keys, len(class_names), store), shards):
            show.update()

    videos, lengths, notes, base = [], [np.zeros(0, np.uint32)], [], defaultdict(int)
    for number, shard in enumerate(shards):
        for record, name, label, begin, length, rate in shard.videos:
            videos.append((shard.split, base[shard.split] + record, name, label, len(length), number, begin, rate))
            lengths.append(length)
        base[shard.split] += shard.num_records
        lost = shard.num_records - len(shard.videos)
        if shard.problems:
            place = store.place(shard.path.name) if isinstance(store, Remote) else shard.path
            notes.append(f"{place}: {lost} damaged video(s) left out: {'; '.join(shard.problems[:3])}")
    stats = [store.stat(shard.path.name) or (0, 0) for shard in shards]
    names = ("split", "record", "names", "labels", "num_frames", "shard", "begin", "rates")
    columns = zip(*videos, strict=True) if videos else [()] * len(names)
    values: dict[str, Any] = dict(zip(names, columns, strict=True))
    values |= {"class_names": class_names, "shards": [shard.path.name for shard in shards], "notes": notes}
    times = [UNREAD if shard.unreadable else time or 0 for shard, (_, time) in zip(shards, stats, strict=True)]
    values |= {"sizes": [size for size, _ in stats], "times": times}
    values["length"] = np.concatenate(lengths)
    values["checks"] = [check for shard in shards for check in shard.checks]
    return Table(**{name: np.array(value, TABLE_LAYOUT[name].split()[0]) for name, value in values.items()})


def _describe_dataset(folder: Path, store: Local) -> tuple[list[str], list[_Shard], tuple[str, str, str]]:
    """Class names, shards, and the features that hold the frames, the label and the video's name."""
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
    lacking = [store.place(shard.path.name) for shard in shards if store.stat(shard.path.name) is None]
    if lacking:
        raise DataError(f"{lacking[0]}: this shard is missing, and {len(lacking) - 1} more; copy or make it again")
    return list(label.names), shards, (video_key, "label", name_key)


def _refuse_foreign_features(path: Path) -> None:
    """Allows only tensorflow-datasets' own features, because it imports any module that the file names."""

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


def _scan_shard(shard: _Shard, keys: tuple[str, str, str], num_classes: int, store: Local) -> None:
    size, _ = store.stat(shard.path.name) or (0, 0)
    if not size:
        shard.problems.append("the file is empty")
        return
    try:
        for _ in range(3):  # what comes from a store may be damaged on its way: two fetches must agree about damage
            shard.videos.clear()
            shard.problems.clear()
            with store.open(shard.path.name) as data:
                before, shard.checks = shard.checks, blocks.checksums(data)
                _scan_records(shard, data, keys, num_classes)
            if not shard.problems or not isinstance(store, Remote) or shard.checks == before:
                break
    except UserError:
        raise
    except OSError as error:
        shard.checks = [0] * -(-size // blocks.BLOCK)
        shard.unreadable = True
        shard.problems.append(f"the file cannot be read ({error.strerror})")


def _scan_records(shard: _Shard, data: np.ndarray, keys: tuple[str, str, str], num_classes: int) -> None:
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
) -> tuple[str, int, int, np.ndarray, float]:
    """Name, label, the byte at which the frames begin, the length of each frame in bytes, (t,) uint32, and the rate."""
    features = parse_example(data, record.start, record.end)
    frames, labels, names = (features.get(key) or [] for key in keys)
    rates = features.get(RATE_FEATURE) or []
    rate = rates[0] if len(rates) == 1 and isinstance(rates[0], float) and 0 < rates[0] < math.inf else 0.0
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
    starts, lengths = np.array(pairs, np.int64).T
    whole = lengths + header_bytes(lengths)
    begin = int(starts[0] - whole[0] + lengths[0])
    if not np.array_equal(begin + np.cumsum(whole) - lengths, starts):
        raise ValueError("its frames do not follow one another")
    return name, labels[0], begin, lengths.astype(np.uint32), rate
