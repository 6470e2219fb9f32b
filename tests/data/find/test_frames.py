"""Frame folders in every layout that is about, and the index of them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r23d_jax.data.find import frames as frames_module
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import FrameFiles, PackedFrames, VideoIndex, index_frames
from r23d_jax.data.find.splits import Entry, VideoList
from tests.data.find.frame_sets import encode, pack, picture, write_videos
from tests.hostile.bad_files.corpus import pipe

CLASS, VIDEO = "HandstandPushups", "v_HandStandPushups_g01_c01"


def listed(*names: str, class_name: str = CLASS) -> VideoList:
    return VideoList((class_name,), tuple(Entry(name, 0, class_name, name) for name in names))


def touch(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def files_of(index: VideoIndex, video: int = 0) -> list[str]:
    assert isinstance(index.frames, FrameFiles)
    return [index.frames.path(video, i) for i in range(int(index.num_frames[video]))]


LAYOUTS = {  # (pattern of a frame, first number, what the log says)
    "published code": (f"{CLASS}/{VIDEO}/{{:03d}}.jpg", 0, "<Class>/<video>/000.jpg (3 digits, from 0)"),
    "jpegs_256": ("v_HandstandPushups_g01_c01/frame{:06d}.jpg", 1, "<video>/frame000001.jpg (6 digits, from 1)"),
    "image": (f"{CLASS}/{VIDEO}/image_{{:05d}}.jpg", 1, "<Class>/<video>/image_00001.jpg (5 digits, from 1)"),
    "Kaggle dash": (f"train/{CLASS}/{VIDEO}-{{:04d}}.jpg", 1, "train/<Class>/<video>-0001.jpg (4 digits, from 1)"),
    "Kaggle underscore": (f"test/{CLASS}/{VIDEO}_{{:04d}}.jpg", 1, "test/<Class>/<video>_0001.jpg (4 digits, from 1)"),
    "flat in the root": (f"{VIDEO}_{{:d}}.png", 1, "<video>_1.png (not padded, from 1)"),
    "unpadded": (f"{CLASS}/{VIDEO}/frame_{{:d}}.jpg", 1, "<Class>/<video>/frame_1.jpg (not padded, from 1)"),
    "deep": (
        f"rgb/val/{CLASS}/{VIDEO}/img_{{:05d}}.JPEG",
        1,
        "<folder>/val/<Class>/<video>/img_00001.JPEG (5 digits, ",
    ),
    "other class name": (f"Handstand_Pushups/{VIDEO}/{{:d}}.jpg", 7, "<folder>/<video>/7.jpg (not padded, from 7)"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    pattern, first, words = LAYOUTS[layout]
    paths = [pattern.format(first + i) for i in range(1012)]  # past the padding, so that text order is wrong
    touch(tmp_path, paths)
    touch(tmp_path, [f"{CLASS}/{VIDEO.replace('g01', 'g02')}/1.jpg", "notes.txt"])  # not listed
    index = index_frames(tmp_path, listed(VIDEO, "v_HandStandPushups_g09_c09"), cache=False)
    assert files_of(index) == [str(tmp_path / path) for path in paths]
    assert index.layout.startswith(words)
    assert index.names.tolist() == [VIDEO]
    assert index.missing == ("v_HandStandPushups_g09_c09",)
    assert (index.labels.dtype, index.num_frames.dtype) == (np.int32, np.int32)


def test_two_layouts_are_both_named(tmp_path: Path) -> None:
    touch(tmp_path, ["A/v_A_g01_c01/001.jpg", "A/v_A_g01_c02/001.jpg", "v_A_g02_c01/frame1.jpg"])
    index = index_frames(tmp_path, listed("v_A_g01_c01", "v_A_g01_c02", "v_A_g02_c01", class_name="A"), cache=False)
    assert index.layout == (
        "<Class>/<video>/001.jpg (3 digits, from 1) for 2 of 3 videos; also <video>/frame1.jpg (not padded, from 1) (1)"
    )


def test_steps_and_holes(tmp_path: Path) -> None:
    touch(tmp_path, [f"A/every_fifth/{i:03d}.jpg" for i in range(0, 30, 5)])
    touch(tmp_path, [f"A/hole/{i}.jpg" for i in (8, 9, 11, 12)])
    touch(tmp_path, [f"A/mostly_holes/{i}.jpg" for i in (1, 2, 900)])
    touch(tmp_path, ["A/one/44.jpg", "A/empty/readme.txt", "A/kinds/a1.jpg", "A/kinds/b1.jpg"])
    touch(tmp_path, ["A/padding/1.jpg", "A/padding/002.jpg"])
    names = ("every_fifth", "hole", "mostly_holes", "one", "empty", "kinds", "padding")
    index = index_frames(tmp_path, listed(*names, class_name="A"), cache=False)
    assert index.names.tolist() == ["every_fifth", "hole", "one"]
    assert index.num_frames.tolist() == [6, 5, 1]
    assert files_of(index)[-1].endswith("/025.jpg")
    assert files_of(index, 1)[2] == str(tmp_path / "A/hole/10.jpg")  # the hole: a frame that cannot be read
    assert index.missing == ("mostly_holes", "empty", "kinds", "padding")
    (note,) = index.notes
    for text in (
        "4 frame folder(s) not used",
        "mostly_holes: has 3 frames and 897 holes in their numbering (1 to 900)",
        "empty: holds no numbered .jpg, .jpeg or .png",
        "kinds: holds files of several kinds (",
        "padding: numbers are padded to different lengths",
    ):
        assert text in note


def test_stray_files_and_flow_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, [f"A/x/img_{i:05d}.jpg" for i in range(1, 13)])
    touch(tmp_path, [f"A/x/flow_{axis}_{i:05d}.jpg" for axis in "xy" for i in range(1, 12)])
    touch(tmp_path, ["A/x/._img_00001.jpg", "A/x/thumb1.jpg", "A/x/Thumbs.db", "A/x/2.txt", "A/.x/1.jpg"])
    index = index_frames(tmp_path, listed("x", class_name="A"), cache=False)
    assert index.num_frames.tolist() == [12]
    assert files_of(index)[0] == str(tmp_path / "A/x/img_00001.jpg")
    want = "1 frame folder(s) hold other pictures, which are not used: "
    want += f"{tmp_path}/A/x: flow_x_N.jpg (11 files), flow_y_N.jpg (11 files), thumbN.jpg (1 files)"
    assert index.notes == (want,)


def test_equal_names_in_two_classes(tmp_path: Path) -> None:
    touch(tmp_path, ["A/001/1.jpg", "B/001/1.jpg", "B/001/2.jpg"])
    videos = VideoList(("A", "B"), (Entry("001", 1, "B", "x"), Entry("001", 0, "A", "y")))
    index = index_frames(tmp_path, videos, cache=False)
    assert index.num_frames.tolist() == [2, 1]
    assert index.labels.tolist() == [1, 0]


def test_paths_of_csv_lists(tmp_path: Path) -> None:
    touch(tmp_path, ["run/a/1.jpg", "jump/a/1.jpg", "jump/a/2.jpg"])
    videos = VideoList(("x",), (Entry("jump/a", 0, "x", ""), Entry("run/a", 0, "x", ""), Entry("run/b", 0, "x", "")))
    index = index_frames(tmp_path, videos, cache=False)
    assert index.num_frames.tolist() == [2, 1]
    assert index.missing == ("run/b",)


def test_a_listed_path_with_the_class_is_not_another_path_to_it(tmp_path: Path) -> None:
    """A training video whose frames are missing is not replaced by the test video of the same class and name."""
    touch(tmp_path, ["train/Walk/001/1.jpg", "val/Walk/001/1.jpg", "val/Walk/002/1.jpg", "Walk/003/1.jpg"])
    names = ["train/Walk/001", "train/Walk/002", "train/Walk/003"]
    index = index_frames(tmp_path, listed(*names, class_name="Walk"))
    assert index.missing == ("train/Walk/002",)
    assert [Path(files_of(index, video)[0]).parent.relative_to(tmp_path).as_posix() for video in range(2)] == [
        "train/Walk/001",
        "Walk/003",
    ]


@pytest.mark.parametrize(
    ("name", "there", "taken"),
    [
        ("Walk/cam_g01_c01", "Run/cam_g01_c01", False),  # another class
        ("Walk/p1/cam_g01_c01", "Walk/p2/cam_g01_c01", False),  # another person
        ("Walk/p1/cam_g01_c01", "Walk/cam_g01_c01", True),
        ("Walk/cam_g01_c01", "Walk/p1/cam_g01_c01", True),
        ("Walk/cam_g01_c01", "jpegs_256/cam_g01_c01", True),
        ("Walk/p1/cam_g01_c01", "Walk/p9/cam_g01_c01", False),  # a person of the other list
        ("train/Walk/cam_g01_c01", "Walk/train/cam_g01_c01", True),
        ("clips/cam_g01_c01", "Walk/clips2/cam_g01_c01", True),
        ("v_Run_g01_c01", "Run/v_Run_g01_c01", True),  # a label of one's own; the name says where it is
        ("cam_g01_c01", "Run/cam_g01_c01", False),
        ("cam_g01_c01", "strolls/cam_g01_c01", True),
    ],
)
def test_a_missing_video_is_not_replaced_by_one_of_another_class(
    tmp_path: Path, name: str, there: str, taken: bool
) -> None:
    touch(tmp_path, [f"{there}/1.jpg", "Run/p2/cam_g02_c01/1.jpg"])
    entries = (Entry(name, 0, "Walk", "a"), Entry("Run/p2/cam_g02_c01", 1, "Run", "b"))
    index = index_frames(tmp_path, VideoList(("Walk", "Run"), entries), cache=False)
    assert index.missing == (() if taken else (name,))


def test_listed_paths_are_followed_as_deep_as_they_are(tmp_path: Path) -> None:
    name = "Walk/p1/s1/left/cam2/day3/001"
    touch(tmp_path, [f"{name}/1.jpg"])
    assert files_of(index_frames(tmp_path, listed(name, class_name="Walk"))) == [f"{tmp_path}/{name}/1.jpg"]


def test_a_video_in_two_places(tmp_path: Path) -> None:
    touch(tmp_path, [f"small/{CLASS}/{VIDEO}/1.jpg", f"large/{CLASS}/{VIDEO}/1.jpg"])
    with pytest.raises(DataError, match=r"more than one place: large/.* and small/.*root one level too high"):
        index_frames(tmp_path, listed(VIDEO), cache=False)


def test_one_folder_for_two_listed_videos(tmp_path: Path) -> None:
    touch(tmp_path, ["001/1.jpg"])
    videos = VideoList(("A", "B"), (Entry("001", 1, "B", "x"), Entry("001", 0, "A", "y")))
    with pytest.raises(DataError, match=r"B/001 and A/001, both match 001; put the frames in folders <Class>/<video>"):
        index_frames(tmp_path, videos, cache=False)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["D/v_D_g01_c01.avi", "D/v_D_g01_c02.avi"], r"but 2 \.avi files\..*r23d_jax prepare --videos .*data --out .*"),
        (["x.tfrecord-00000-of-00002"], r"but 1 TFRecord shards: set --config\.data\.source=packed"),
        (["D/v_D_g01_c01/1.jpg"], r"frames of other videos, e\.g\. D/v_D_g01_c01: do the lists"),
        (["D/odd/1.jpg"], r"frames of other videos, e\.g\. D/odd"),
        (["a.zip", "b.zip"], r"Found instead: 2 \.zip files.*crcv\.ucf\.edu/data/UCF101\.php.*configs/quickstart\.py"),
        ([], r"Found instead: no files"),
        ([f"{CLASS}/{VIDEO}/x.txt"], r"no listed video has usable frames.*holds no numbered"),
    ],
)
def test_nothing_found(tmp_path: Path, there: list[str], message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    touch(root, there)
    with pytest.raises(DataError, match=message):
        index_frames(root, listed(VIDEO))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"config\.data\.root=.*nowhere: no such folder.*launch\.py --config=configs/qui"
    ):
        index_frames(tmp_path / "nowhere", listed(VIDEO))


def test_link_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, [f"{CLASS}/{VIDEO}/1.jpg"])
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / CLASS / "nowhere").symlink_to(tmp_path / "nothing")
    index = index_frames(tmp_path, listed(VIDEO), cache=False)
    assert files_of(index) == [str(tmp_path / CLASS / VIDEO / "1.jpg")]


# -- cache -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The roots that were scanned rather than taken from the cache."""
    roots: list[Path] = []
    real = frames_module.scan_frames

    def scan(root: Path, videos: VideoList, num_workers: int = 0):
        roots.append(root)
        return real(root, videos, num_workers)

    monkeypatch.setattr(frames_module, "scan_frames", scan)
    return roots


def same(a: VideoIndex, b: VideoIndex) -> bool:
    assert isinstance(a.frames, FrameFiles) and isinstance(b.frames, FrameFiles)
    texts = ("class_names", "layout", "missing", "notes")
    arrays = [(a.names, b.names), (a.labels, b.labels), (a.num_frames, b.num_frames)]
    arrays += [(getattr(a.frames, f), getattr(b.frames, f)) for f in vars(a.frames)]
    return all(getattr(a, t) == getattr(b, t) for t in texts) and all(
        x.dtype == y.dtype and x.tolist() == y.tolist() for x, y in arrays
    )


def test_second_time_from_the_cache(tmp_path: Path, scans: list[Path]) -> None:
    touch(tmp_path, [f"A/x/{i:03d}.jpg" for i in range(5)])
    touch(tmp_path, ["A/broken/x.txt"])
    videos = listed("x", "broken", "y", class_name="A")
    first = index_frames(tmp_path, videos)
    assert same(index_frames(tmp_path, videos), first)
    assert len(scans) == 1
    index_frames(tmp_path, videos, cache=False)
    assert len(scans) == 2
    index_frames(tmp_path, listed("x", class_name="A"))  # another list, another cache
    index_frames(tmp_path, videos)
    assert len(scans) == 3


def test_what_could_not_be_read_is_looked_at_again(
    tmp_path: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while a disk is away: neither the list nor the time of a folder changes when it is back."""
    touch(tmp_path, ["A/x/1.jpg", "A/y/1.jpg"])
    videos, read = listed("x", "y", class_name="A"), os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("A/y"):
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        assert index_frames(tmp_path, videos).names.tolist() == ["x"]
    assert index_frames(tmp_path, videos).names.tolist() == ["x", "y"]
    index_frames(tmp_path, videos)
    assert len(scans) == 2


def test_the_cache_moves_with_the_data(tmp_path: Path, scans: list[Path]) -> None:
    touch(tmp_path / "here", ["A/x/1.jpg"])
    index_frames(tmp_path / "here", listed("x", class_name="A"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert files_of(index_frames(tmp_path / "there", listed("x", class_name="A"))) == [
        str(tmp_path / "there/A/x/1.jpg")
    ]
    assert len(scans) == 1


@pytest.mark.parametrize("change", ["new frame", "new video", "lost video", "flat"])
def test_a_change_on_disk_is_seen(tmp_path: Path, scans: list[Path], change: str) -> None:
    touch(tmp_path, ["A/x/1.jpg", "A/y/1.jpg", "A/flat-1.jpg"])
    videos = listed("x", "y", "z", "flat", class_name="A")
    index_frames(tmp_path, videos)
    for folder in ("A/x", "A/y", "A", "."):  # long ago, so that the coarse clock of the disk cannot hide the change
        os.utime(tmp_path / folder, (1e9, 1e9))
    index_frames(tmp_path, videos)
    assert len(scans) == 2
    if change == "new frame":
        touch(tmp_path, ["A/x/2.jpg"])
    elif change == "new video":
        touch(tmp_path, ["A/z/1.jpg"])
    elif change == "flat":
        touch(tmp_path, ["A/flat-2.jpg"])
    else:
        (tmp_path / "A/y").rename(tmp_path / "A/.y")
    index = index_frames(tmp_path, videos)
    assert len(scans) == 3
    assert same(index, index_frames(tmp_path, videos, cache=False))


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "other version"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, scans: list[Path], damage: str) -> None:
    touch(tmp_path, ["A/x/1.jpg"])
    videos = listed("x", class_name="A")
    first = index_frames(tmp_path, videos)
    (file,) = (tmp_path / ".r23d_jax").iterdir()
    content = file.read_bytes()
    if damage == "other version":
        with np.load(file) as arrays:
            changed: dict[str, Any] = dict(arrays) | {"cache_version": np.asarray(-1)}
        np.savez(file, **changed)
    else:
        file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": b"PK\x03\x04" * 99}[damage])
    assert same(index_frames(tmp_path, videos), first)
    assert len(scans) == 2
    index_frames(tmp_path, videos)
    assert len(scans) == 2
    assert [path.name for path in (tmp_path / ".r23d_jax").iterdir()] == [file.name]  # no temporary file is left


WRONG = {
    "other type": {"labels": np.zeros(1)},
    "other length": {"names": np.array(["x", "y"])},
    "another axis": {"num_frames": np.ones((1, 1), np.int32)},
    "no class": {"labels": np.ones(1, np.int32)},
    "negative label": {"labels": -np.ones(1, np.int32)},
    "no frames": {"num_frames": np.zeros(1, np.int32)},
    "endless digits": {"digits": np.full(1, 1 << 30, np.int32)},
    "outside": {"folder": np.array(["../../etc"])},
    "absolute": {"folder": np.array(["/etc"])},
    "folders that are numbers": {"folders": np.zeros(1)},
    "a name with a zero byte": {"folders": np.array(["A\0x"]), "times": np.zeros(1, np.int64)},
    "more": {"more": np.zeros(1)},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_cache_that_does_not_fit_together_is_built_again(tmp_path: Path, scans: list[Path], what: str) -> None:
    touch(tmp_path, ["A/x/1.jpg"])
    videos = listed("x", class_name="A")
    first = index_frames(tmp_path, videos)
    (file,) = (tmp_path / ".r23d_jax").iterdir()
    with np.load(file) as arrays:
        np.savez(file, **(dict(arrays) | WRONG[what]))
    assert same(index_frames(tmp_path, videos), first)
    assert len(scans) == 2


def test_a_cache_takes_no_more_memory_than_disk(tmp_path: Path, scans: list[Path]) -> None:
    touch(tmp_path, ["A/x/1.jpg"])
    videos = listed("x", class_name="A")
    index_frames(tmp_path, videos)
    (file,) = (tmp_path / ".r23d_jax").iterdir()
    with np.load(file) as arrays:
        np.savez_compressed(file, **arrays)  # as it would be around a gigabyte of zeros
    index_frames(tmp_path, videos)
    assert len(scans) == 2
    file.unlink()
    with pipe(file):
        index_frames(tmp_path, videos)
    assert len(scans) == 3


def test_read_only_data_is_cached_for_the_user(
    tmp_path: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    touch(root, ["A/x/1.jpg", ".r23d_jax"])  # a file where the cache folder would be: it cannot be made
    for _ in range(2):
        index_frames(root, listed("x", class_name="A"))
    assert len(scans) == 1
    assert len(list((tmp_path / "cache/r23d_jax").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / ".r23d_jax"))  # nowhere to write at all
    assert len(index_frames(root, listed("x", class_name="A"))) == 1


def test_many_folders_in_threads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [f"v_A_g{g:02d}_c{c:02d}" for g in range(1, 26) for c in range(1, 49)]
    touch(tmp_path, [f"A/{name}/{i}.jpg" for name in names for i in (1, 2)])
    one, many = (index_frames(tmp_path, listed(*names, class_name="A"), cache=False, num_workers=n) for n in (1, 8))
    assert same(one, many)
    assert one.names.tolist() == names
    assert "index frames: 1200/1200 folders" in capfd.readouterr().err


# -- frames as objects -------------------------------------------------------------------------------------------------


def test_files_and_shards_give_the_same_frames_and_name_their_places(tmp_path: Path) -> None:
    files = write_videos(tmp_path / "files", [2, 3])
    packed = pack(files, tmp_path / "packed")
    for frame in range(3):
        assert files.frames.read(1, frame) == packed.frames.read(1, frame) == encode(picture(1, frame))
        assert files.frames.problem(1, frame) is packed.frames.problem(1, frame) is None
    assert files.frames.locate(1, 2) == str(tmp_path / "files/v_Class1_g01_c01/image_00003.jpg")
    assert packed.frames.locate(1, 2) == f"{tmp_path}/packed/b.tfrecord (frame 2 of v_Class1_g01_c01)"


def test_problems_of_frames_that_show_without_reading(tmp_path: Path) -> None:
    index = write_videos(tmp_path / "files", [4])
    packed = pack(index, tmp_path / "packed").frames
    assert isinstance(index.frames, FrameFiles) and isinstance(packed, PackedFrames)
    missing, empty, folder, special = (Path(index.frames.path(0, frame)) for frame in range(4))
    for path in (missing, empty, folder, special):
        path.unlink()
    empty.touch()
    folder.mkdir()
    with pipe(special):
        problems = [index.frames.problem(0, frame) for frame in range(4)]
    want = ["no such file", "empty file (0 bytes)", "is a directory", "is no file, but a pipe or a device"]
    assert problems == want

    packed.length[1] = 0
    end = int(packed.spans(0, np.array([3]))[0][0]) + 1
    with open(packed.shards[0], "r+b") as shard:
        shard.truncate(end)
    need = end - 1 + int(packed.length[3])
    want = [None, "empty frame (0 bytes)", None, f"the shard ends at byte {end}, before the frame does ({need})"]
    assert [packed.problem(0, frame) for frame in range(4)] == want
    Path(packed.shards[0]).unlink()
    assert packed.problem(0, 0) == "no such file"


@pytest.mark.parametrize("packed", [False, True], ids=["files", "packed"])
def test_frames_of_some_videos(packed: bool, tmp_path: Path) -> None:
    index = write_videos(tmp_path / "frames", [2, 3, 4])
    index = pack(index, tmp_path / "packed") if packed else index
    some = index.frames.take(np.array([2, 0, 2]))
    for row, video in enumerate([2, 0, 2]):
        assert some.read(row, 1) == index.frames.read(video, 1)
        assert some.locate(row, 1) == index.frames.locate(video, 1) and some.problem(row, 1) is None
