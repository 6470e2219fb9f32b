"""What is fuzzed: each target takes any bytes, and fails only by an exception that a user must never see.

The parsers below read files that come from elsewhere. A file is either read, and what was read is consistent, or it is
refused with an error that is meant for users; memory and time stay in proportion to the file.
"""

import atexit
import dataclasses
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r23d_jax import config
from r23d_jax.config import UserError
from r23d_jax.data.find import frames, index_cache, packed, packed_scan, splits, tfrecord
from r23d_jax.data.find.picture_header import claimed_size
from r23d_jax.weights import state_dicts
from tests.hostile.bad_files.corpus import example, framed, picture, pixels, safetensors, tensor, torch_file

_MEMORY = Path("/dev/shm")
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


# -- split lists -------------------------------------------------------------------------------------------------------

_UCF101 = {
    "classInd.txt": b"1 A\n2 B\n",
    "trainlist01.txt": b"A/v_A_g01_c01.avi 1\nB/v_B_g01_c01.avi 2\n",
    "testlist01.txt": b"A/v_A_g02_c01.avi\n",
}
_CSV = {"train.csv": b"a.avi,x\nb.avi,y\n", "val.csv": b"path,label\nc.avi,x\n", "classes.txt": b"x\ny\n"}
_KINETICS = {
    "train.csv": b"label,youtube_id,time_start,time_end\nx,a,1,2\n",
    "val.csv": b'label,youtube_id,time_start,time_end\n"x",b,1.0,2\n',
}
_HMDB51 = {"x_test_split1.txt": b"a.avi 1\nb.avi 2\n", "y_test_split1.txt": b"c.avi 1\nd.avi 0\n"}
_SOMETHING = {
    "labels.json": b'{"Put something": "0"}',
    "train.json": b'[{"id": "1", "template": "Put [something]"}]',
    "validation.json": b'[{"id": 2, "template": "Put [something]"}]',
}
_DIVING48 = {
    "Diving48_train.json": b'[{"vid_name": "a", "label": 0}]',
    "Diving48_test.json": b'[{"vid_name": "b", "label": 0}]',
    "Diving48_vocab.json": b'[["Back", "15som"], ["Front"]]',
}
_RESNETS = {
    "a_1.json": b'{"labels": ["x"], "database": {"v": {"subset": "training", "annotations": {"label": "x"}}, '
    b'"w": {"subset": "validation", "annotations": {"label": "x"}}}}'
}
_MMACTION = {"train.txt": b"a.avi 0\n", "val.txt": b"b 12 0\n", "label_map.txt": b"x\n"}
_FORMS = (
    *(_UCF101, _CSV, {k: v for k, v in _CSV.items() if ".csv" in k}),
    *(_KINETICS, _HMDB51, _SOMETHING, _DIVING48, _RESNETS, _MMACTION),
)
_LISTS = tuple((number, name) for number, form in enumerate(_FORMS) for name in form)


def lists(data: bytes) -> None:
    """The first byte chooses which file of which form the others are."""
    number, chosen = _LISTS[data[0] % len(_LISTS)] if data else _LISTS[0]
    form = _FORMS[number]
    folder = _FOLDER / f"lists-{number}"
    folder.mkdir(exist_ok=True)
    for name, content in {**form, chosen: data[1:]}.items():
        (folder / name).write_bytes(content)
    for subset in ("train", "test"):
        try:
            videos = splits.read_list(folder, subset)
        except splits.DataError as error:
            assert len(str(error)) < 2000 and any(name in str(error) for name in (*form, str(folder)))
            continue
        assert videos.entries and len(set(videos.class_names)) == len(videos.class_names)
        for entry in videos.entries:
            assert videos.class_names[entry.label] == entry.class_name
            parts = entry.name.split("/")
            assert ".." not in parts and parts[0] and "\0" not in entry.name


# -- caches of indexes -------------------------------------------------------------------------------------------------


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """Arrays under the names of one of the caches: for each, bytes choose type, shape and values."""
    stream, arrays = io.BytesIO(data), {}
    layout = packed.TABLE_LAYOUT if stream.read(1) == b"\1" else frames._LAYOUT
    lengths: dict[str, int] = {}
    for name, text in layout.items():
        how = int.from_bytes(stream.read(1))  # 0: as the layout wants it
        kind, *axes = text.split()
        shape = [lengths.setdefault(axis, lengths.get(axis) or int.from_bytes(stream.read(1)) % 4) for axis in axes]
        if how:
            kind = ("str", "int64", "int32", "float64", "bool", "S3", "complex64", "uint8")[how & 7]
            shape = [how >> 6] * (how >> 4 & 3)
        count = math.prod(shape)
        if kind == "str":
            arrays[name] = np.array([stream.read(2).decode("latin-1") for _ in range(count)], "<U2").reshape(shape)
        else:
            content = np.frombuffer(stream.read(count).ljust(count, b"\0"), np.int8)
            arrays[name] = content.reshape(shape).astype(kind)
    return arrays


def _sound_cache(layout: dict[str, str], first: bytes, values: dict[str, bytes]) -> bytes:
    """What `_arrays` makes arrays of the layout from, one row each."""
    parts, known = [first], set()
    for name, text in layout.items():
        kind, *axes = text.split()
        parts.append(b"\0" + b"\1" * len({*axes} - known))
        known |= {*axes}
        parts.append(values.get(name, b"").ljust(2 if kind == "str" else 1, b"\0"))
    return b"".join(parts)


def index(data: bytes) -> None:
    """A cache file as it is, or one whose arrays are made of the bytes."""
    if data[:1] in b"PR":
        try:
            arrays = index_cache.read(io.BytesIO(data))
        except Exception:  # `load` takes any of them for damage
            return
        arrays.pop("cache_version", None)
    else:
        arrays = _arrays(data)
    root = _FOLDER / "indexed"
    root.mkdir(exist_ok=True)
    os.utime(root, ns=(0, 0))
    (root / "a").touch()
    os.utime(root / "a", ns=(0, 0))
    if index_cache.fits(arrays, frames._LAYOUT):
        if frames._is_current(root, arrays) and frames._is_plausible(arrays):
            found = frames._to_index(root, arrays)
            assert isinstance(found.frames, frames.FrameFiles)
            assert len(found) == len(found.labels) == len(found.frames.folder) > 0
            assert 0 <= found.labels.min() and found.labels.max() < len(found.class_names)
            assert os.path.normpath(found.frames.path(0, 0)).startswith(f"{root}/")
    if index_cache.fits(arrays, packed.TABLE_LAYOUT):
        table = packed._from_cache(packed_scan.Local(root), arrays)
        if table is not None and len(table.names):
            assert table.begin.min() >= 0 and table.num_frames.sum() == len(table.length)


# -- packed records ----------------------------------------------------------------------------------------------------


def records(data: bytes) -> None:
    """A shard as it is, and one whose one record, with right checksums, is the bytes; and pictures in it."""
    for content in (data, framed(b"") + framed(data[:7]) + data):
        position = 0
        for record in tfrecord.records(np.frombuffer(content, np.uint8)):
            assert position <= record.start <= record.end <= len(content)
            position = record.end
    path = _FOLDER / "shard"
    path.write_bytes(framed(data))
    shard = packed_scan._Shard(path, "train", 1)
    packed_scan._scan_shard(shard, ("video", "label", "name"), 3, packed_scan.Local(shard.path.parent))
    for _, name, label, begin, lengths, rate in shard.videos:
        assert isinstance(name, str) and 0 <= label < 3 and len(lengths) > 0 and 0 <= rate < float("inf")
        assert 12 <= begin <= begin + lengths.sum(dtype=np.int64) <= 12 + len(data)
    assert len(shard.videos) + len(shard.problems) == 1
    size = claimed_size(data)
    assert size is None or min(size) >= 0


# -- weights -----------------------------------------------------------------------------------------------------------


def weights(data: bytes) -> None:
    """The first byte chooses: a .pth, a .safetensors, or what a checkpoint or a file says of its network, as JSON."""
    if data[:1] == b"m":
        return _meta(data[1:])
    path = _FOLDER / ("weights.pth" if data[:1] == b"t" else "weights.safetensors")
    path.write_bytes(data[1:])
    try:
        arrays, meta, _ = state_dicts.read_arrays(path)
    except UserError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return
    assert sum(value.nbytes for value in arrays.values()) <= 16 * len(data)
    _meta(json.dumps(meta).encode())


def _meta(text: bytes) -> None:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        return
    for read in (lambda: state_dicts._read_meta(meta), lambda: config.validate(config.from_dict(meta["config"]))):
        if isinstance(meta, dict) and "config" in meta:
            try:
                read()
            except UserError as error:
                assert str(error)


def starting_inputs(target: str) -> list[bytes]:
    """Sound files, from which a run without any inputs begins."""
    if target == "lists":
        return [bytes([k]) + _FORMS[form][name] for k, (form, name) in enumerate(_LISTS)]
    if target == "index":
        file = io.BytesIO()
        np.savez(file, cache_version=np.asarray(1), times=np.arange(3), names=np.array(["a", "b", "c"]))
        one = dict.fromkeys(("step", "digits", "num_frames"), b"\1")
        return [
            file.getvalue(),
            _sound_cache(frames._LAYOUT, b"\0", one | {"folders": b"a", "names": b"v"}),
            _sound_cache(packed.TABLE_LAYOUT, b"\1", one | {"shards": b"a", "names": b"v"}),
        ]
    if target == "records":
        tiny = pixels(4, 4)
        pictures = [picture(kind, image=tiny) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")]
        return [example([pictures[1], b""], 1, "v_A_g01_c01.avi"), example([b"\xff"], 7, ""), *pictures]
    whole = config.Config()
    meta = {
        "config": dataclasses.asdict(whole.model),
        "preprocessing": dataclasses.asdict(config.preprocessing(whole.data)),
        "class_names": ["a", "b"],
    }
    header = {"a": tensor(), "__metadata__": {name: json.dumps(value) for name, value in meta.items()}}
    return [
        b"s" + safetensors(header, bytes(16)),
        b"s" + safetensors({"a": tensor(0, 4, (2,), "F16"), "b": tensor(4, 8, (1,), "I32")}, bytes(8)),
        b"t" + torch_file(),
        b"m" + json.dumps(meta).encode(),
        b"m" + json.dumps({"config": dataclasses.asdict(whole)}).encode(),
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "lists": lists,
    "index": index,
    "records": records,
    "weights": weights,
}
