"""Packed datasets: what is written can be read by tensorflow-datasets, and frame by frame; damage is left out."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from r23d_jax.data.find import packed, packed_scan
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.data.make.packed_builder import PackSource, write_packed
from tests.hostile.bad_files.corpus import framed

CLASSES = ("Diving", "HandstandPushups")
VIDEOS = [  # (name, class, frames)
    ("v_Diving_g01_c01", 0, 3),
    ("v_Diving_g02_c01", 0, 5),
    ("v_HandStandPushups_g01_c01", 1, 4),
    ("v_HandStandPushups_g02_c01", 1, 1),
    ("001", 0, 2),
    ("001", 1, 6),  # the same name in another class
]


def jpegs(number: int) -> list[bytes]:
    random = np.random.default_rng(number)
    frames = [random.integers(0, 256, (16, 24, 3), np.uint8) for _ in range(VIDEOS[number][2])]
    return [cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames]


def listed(*rows: int, class_names: tuple[str, ...] = CLASSES) -> VideoList:
    entries = [(VIDEOS[i][0], CLASSES[VIDEOS[i][1]]) for i in rows]
    return VideoList(class_names, tuple(Entry(n, class_names.index(c), c, n) for n, c in entries))


def read(index: VideoIndex, video: int) -> list[bytes]:
    """The frames of a video as a reader of the contract gets them."""
    frames = index.frames
    assert isinstance(frames, PackedFrames)
    with open(frames.shards[frames.shard[video]], "rb") as file:
        result = []
        for i in range(int(index.num_frames[video])):
            (start,), (length,) = frames.spans(video, np.array([i]))
            file.seek(int(start))
            result.append(file.read(int(length)))
    return result


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [PackSource(n, CLASSES[c], lambda i=i: jpegs(i)) for i, (n, c, _) in enumerate(VIDEOS)]
    return write_packed(tmp_path_factory.mktemp("made") / "packed", sources, CLASSES, num_shards=2)


@pytest.fixture
def dataset(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "packed" / "r23d_videos" / "1.0.0", copy_function=shutil.copy2))


def test_tensorflow_datasets_reads_it(written: Path) -> None:
    assert not (written.parents[1] / "downloads").exists()
    builder = tfds.builder_from_directory(written)
    assert builder.info.features["label"].names == list(CLASSES)  # pyright: ignore
    assert len(builder.info.splits["videos"].filepaths) == 2
    found = {}
    read_all: Any = builder.as_dataset
    for row in read_all(split="videos"):
        found[row["name"].numpy().decode(), int(row["label"])] = row["video"].numpy()
    assert found.keys() == {(name, label) for name, label, _ in VIDEOS}
    for i, (name, label, _) in enumerate(VIDEOS):
        decoded = np.stack([tf.io.decode_jpeg(jpeg).numpy() for jpeg in jpegs(i)])
        np.testing.assert_array_equal(found[name, label], decoded)


def test_every_frame_is_found_byte_by_byte(dataset: Path) -> None:
    order = [4, 1, 5, 0, 3, 2]
    index = index_packed(dataset.parents[1], listed(*order), "train")
    assert index.names.tolist() == [VIDEOS[i][0] for i in order]
    assert index.labels.tolist() == [VIDEOS[i][1] for i in order]
    assert index.num_frames.tolist() == [VIDEOS[i][2] for i in order]
    for row, i in enumerate(order):
        assert read(index, row) == jpegs(i)
    assert index.layout == f"packed: 2 TFRecord shard(s) in {dataset}"
    assert (index.missing, index.notes) == ((), ())


def test_an_index_holds_the_lengths_of_its_own_videos_only(dataset: Path) -> None:
    """Training and test index of a run together are no larger than the dataset's."""
    for rows in ([3], [5, 2], [0, 4]):
        index = index_packed(dataset, listed(*rows), "train")
        assert isinstance(index.frames, PackedFrames)
        assert len(index.frames.length) == sum(VIDEOS[i][2] for i in rows) and index.frames.length.dtype == np.uint32
        assert [read(index, row) for row in range(len(rows))] == [jpegs(i) for i in rows]


def test_labels_come_from_the_lists(dataset: Path) -> None:
    videos = listed(3, class_names=("HandstandPushups",))
    videos = VideoList(videos.class_names, (*videos.entries, Entry("V_HANDSTANDPUSHUPS_G07_c01", 0, "x", "")))
    index = index_packed(dataset, videos, "test")
    assert (index.class_names, index.labels.tolist()) == (("HandstandPushups",), [0])
    assert index.missing == ("V_HANDSTANDPUSHUPS_G07_c01",)


def test_names_that_are_paths_and_unknown_names(dataset: Path) -> None:
    entries = (Entry("Diving/001", 0, "Diving", ""), Entry("train/v_diving_g02_c01", 0, "Dive", ""))
    index = index_packed(dataset, VideoList(("Diving",), entries), "train")
    assert [read(index, 0), read(index, 1)] == [jpegs(4), jpegs(1)]
    with pytest.raises(DataError, match=r"holds none of the 1 listed videos, e\.g\. other; it holds e\.g\. "):
        index_packed(dataset, VideoList(("Diving",), (Entry("other", 0, "Diving", ""),)), "train")


def test_a_listed_path_is_not_another_record_of_the_class(dataset: Path) -> None:
    """`Walk/p1/001` was not packed; `Walk/p2/001` is the video of another person."""
    table = packed_scan.read_table(dataset)
    rows = list(range(len(table.names)))[:3]
    names = np.array(["Walk/p2/001", "Walk/p3/001", "p4/001"])
    label = int(table.labels[0])
    table = dataclasses.replace(table, names=names, labels=np.full(3, label, np.int32))

    def choose(name: str) -> int | None:
        return packed._choose(dataset, table, Entry(name, 0, str(table.class_names[label]), name), rows)

    assert choose("Walk/p1/001") is None
    assert (choose("Walk/p3/001"), choose("train/Walk/p2/001"), choose("Walk/p4/001")) == (1, 0, 2)


def test_named_videos_need_lists(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'train' \(it has: videos\); set config\.data\.lists"):
        index_packed(dataset, None, "train")


def test_cache(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    real = packed_scan._scan_shard
    monkeypatch.setattr(packed_scan, "_scan_shard", lambda *args: (scanned.append(args), real(*args)))

    def index() -> VideoIndex:
        return index_packed(dataset, listed(0, 5), "train")

    first = index()
    assert len(scanned) == 2
    assert read(index(), 1) == read(first, 1) == jpegs(5)
    assert len(scanned) == 2
    index_packed(dataset, listed(0), "train", cache=False)
    assert len(scanned) == 4
    (cached,) = (dataset / ".r23d_jax").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    index()
    assert len(scanned) == 6
    shard = next(iter(sorted(dataset.glob("*.tfrecord-*"))))
    shard.write_bytes(shard.read_bytes())  # same content, another time
    assert read(index(), 1) == jpegs(5)
    assert len(scanned) == 8


def test_a_shard_that_could_not_be_read_is_read_again(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as while a disk is away: neither its size nor its time changes when it is back."""
    with monkeypatch.context() as patch:
        patch.setattr(
            np, "memmap", lambda *args, **options: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        with pytest.raises(
            DataError, match=r"no record of it can be read.*the file cannot be read \(Permission denied\)"
        ):
            index_packed(dataset, listed(0, 5), "train")
    assert read(index_packed(dataset, listed(0, 5), "train"), 1) == jpegs(5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", 7), ("shard", 2), ("num_frames", 99), ("begin", -1), ("names", 1.5)],
)
def test_a_cache_that_points_nowhere_is_built_again(dataset: Path, name: str, value: float) -> None:
    wanted = read(index_packed(dataset, listed(0, 5), "train"), 1)
    (cached,) = (dataset / ".r23d_jax").iterdir()
    with np.load(cached) as arrays:
        wrong = np.full(arrays[name].shape, value, np.float64 if name == "names" else arrays[name].dtype)
        changed: dict[str, Any] = dict(arrays) | {name: wrong}
    np.savez(cached, **changed)
    assert read(index_packed(dataset, listed(0, 5), "train"), 1) == wanted


def test_damaged_records_are_left_out_and_reported(dataset: Path) -> None:
    index = index_packed(dataset, listed(*range(6)), "train", cache=False)
    frames = index.frames
    assert isinstance(frames, PackedFrames)
    shard = Path(frames.shards[frames.shard[1]])
    content = bytearray(shard.read_bytes())
    content[int(frames.begin[1]) + 9] ^= 0x20  # one bit in one frame of the second video
    shard.write_bytes(content)
    index = index_packed(dataset, listed(*range(6)), "train")
    assert index.missing == (VIDEOS[1][0],)
    assert [read(index, row) for row in range(5)] == [jpegs(i) for i in (0, 2, 3, 4, 5)]
    (note,) = index.notes
    assert f"{shard}: 1 damaged video(s) left out: the checksum of the record at byte" in note

    shard.write_bytes(content[:20])
    index = index_packed(dataset, listed(*range(6)), "train")
    assert len(index) + len(index.missing) == 6
    assert "damaged video(s) left out: the file ends inside the record at byte 0" in index.notes[0]
    shard.write_bytes(b"")
    assert "the file is empty" in index_packed(dataset, listed(*range(6)), "train").notes[0]
    for other in dataset.glob("*.tfrecord-*"):
        other.write_bytes(b"no shard" * 99)
    with pytest.raises(DataError, match=r"no record of it can be read.*record length at byte 0 is damaged"):
        index_packed(dataset, listed(*range(6)), "train")


def test_frames_that_do_not_follow_one_another_are_reported(tmp_path: Path) -> None:
    """The index has no place for what stands between two frames; no known writer puts anything there."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def scan(values: bytes) -> packed_scan._Shard:
        video = field(1, field(1, b"video") + field(2, field(1, values)))
        label = field(1, field(1, b"label") + field(2, field(3, field(1, b"\0"))))
        (tmp_path / "shard").write_bytes(framed(field(1, video + label)))
        shard = packed_scan._Shard(tmp_path / "shard", "train", 1)
        packed_scan._scan_shard(shard, ("video", "label", "name"), 1, packed_scan.Local(tmp_path))
        return shard

    ((_, _, _, begin, lengths, rate),) = scan(field(1, b"one") + field(1, b"three")).videos
    assert lengths.tolist() == [3, 5] and rate == 0
    assert (tmp_path / "shard").read_bytes()[begin:].startswith(field(1, b"one") + field(1, b"three"))
    apart = scan(field(1, b"one") + field(9, b"?") + field(1, b"three"))
    assert (apart.videos, apart.problems) == ([], ["record 0: its frames do not follow one another"])


def test_what_cannot_be_read(dataset: Path, tmp_path: Path) -> None:
    videos = listed(0)
    with pytest.raises(
        DataError, match=r"nowhere: no such folder\. Make one: python -m r23d_jax prepare .*--format pac"
    ):
        index_packed(tmp_path / "nowhere", videos, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no packed dataset \(dataset_info\.json and features\.json\)"):
        index_packed(tmp_path / "empty", videos, "train")
    shutil.copytree(dataset, dataset.with_name("1.0.1"))
    with pytest.raises(DataError, match=r"holds 2 packed datasets; choose one: .*1\.0\.0, .*1\.0\.1"):
        index_packed(tmp_path / "packed", videos, "train")
    next(dataset.glob("*.tfrecord-*")).unlink()
    with pytest.raises(DataError, match=r"tfrecord-0000\d-of-00002: this shard is missing, and 0 more"):
        index_packed(dataset, videos, "train")
    info = json.loads((dataset / "dataset_info.json").read_text())
    (dataset / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    with pytest.raises(DataError, match=r"is stored as riegeli; only tfrecord can be read"):
        index_packed(dataset, videos, "train")
    (dataset / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"1\.0\.0: tensorflow-datasets cannot read it \("):
        index_packed(dataset, videos, "train")


# -- somebody else's dataset -------------------------------------------------------------------------------------------


class Other(tfds.core.GeneratorBasedBuilder):
    """Like tensorflow-datasets' own ucf101: PNG frames, labels, no names, two splits."""

    VERSION = tfds.core.Version("2.0.0")
    pkg_dir_path = epath.Path(__file__).parent
    with_label = True

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"video": tfds.features.Video(shape=(None, 8, 8, 3))}
        if self.with_label:
            features["label"] = tfds.features.ClassLabel(names=["Archery", "Diving", "Rowing"])
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count: int):
        for i in range(count):
            row: dict = {"video": np.full((i + 1, 8, 8, 3), 10 * i, np.uint8)}
            yield i, row | ({"label": i % 3} if self.with_label else {})


class Unlabelled(Other):
    """Without labels there is nothing to learn."""

    with_label = False


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = Other(data_dir=str(tmp_path_factory.mktemp("other")))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return Path(builder.data_dir)


def test_another_dataset_without_names(other: Path) -> None:
    train, test = (index_packed(other, None, side, cache=False) for side in ("train", "test"))
    assert train.names.tolist() == [f"train/{i}" for i in range(5)]
    assert test.names.tolist() == ["test/0", "test/1"]
    assert train.class_names == ("Archery", "Diving", "Rowing")
    assert sorted(train.num_frames.tolist()) == [1, 2, 3, 4, 5]
    in_order = [int(row["label"]) for row in tfds.builder_from_directory(other).as_dataset(split="train")]  # pyright: ignore
    assert train.labels.tolist() == in_order  # so that "train/3" is the row that tensorflow-datasets counts as 3
    for row in range(5):
        number = int(train.num_frames[row]) - 1
        for png in read(train, row):
            assert png.startswith(b"\x89PNG")
            assert (tf.io.decode_image(png).numpy() == 10 * number).all()


def test_classes_of_another_dataset_are_chosen_and_renumbered(other: Path) -> None:
    entries = tuple(Entry(f"v_{i}", i % 2, "", "") for i in range(3))
    videos = VideoList(("ROWING", "Archery"), entries)
    index = index_packed(other, videos, "train", cache=False)
    # Labels 0, 1, 2, 0, 1 were written: three videos of Archery and Rowing.
    assert sorted(zip(index.labels.tolist(), index.num_frames.tolist(), strict=True)) == [(0, 3), (1, 1), (1, 4)]
    too_many = dataclasses.replace(videos, entries=(*entries, Entry("v_3", 0, "", "")))
    with pytest.raises(DataError, match=r"'train' has 3 videos of the chosen classes, the lists name 4: is it another"):
        index_packed(other, too_many, "train", cache=False)


def test_videos_without_names_are_not_divided(other: Path, tmp_path: Path) -> None:
    """With a damaged record, the whole split was on both sides of a fold."""
    folder = tmp_path / "copy"
    shutil.copytree(other, folder)
    shard = sorted(folder.glob("*train.tfrecord-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert index_packed(folder, None, "train").notes
    part = VideoList(("Archery", "Diving", "Rowing"), (Entry("v_0", 0, "", ""), Entry("v_1", 1, "", "")))
    with pytest.raises(DataError, match=r"have no names, so config\.data\.fold and hold_out cannot divide them"):
        index_packed(folder, part, "train")


def test_a_dataset_without_labels(tmp_path: Path) -> None:
    builder = Unlabelled(data_dir=str(tmp_path))
    builder.download_and_prepare()
    with pytest.raises(DataError, match=r"must hold a Video and a ClassLabel named 'label'; they hold video \(Video\)"):
        index_packed(Path(builder.data_dir), None, "train")
