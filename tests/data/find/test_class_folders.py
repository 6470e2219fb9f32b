"""Videos in class folders, without lists."""

from pathlib import Path

import pytest

from r23d_jax.config import DataConfig
from r23d_jax.data.find.class_folders import Clip, class_of, find_clips, sides_of, write_lists
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.splits import hold_out, read_list
from r23d_jax.data.sources import open_index
from tests.data.find.frame_sets import encode, picture


def clips(*paths: str) -> list[Clip]:
    parts = [tuple(path.split("/")) for path in paths]
    named = zip(paths, parts, sides_of(parts), strict=True)
    return [Clip(path, class_of(part, side), part, side=side) for path, part, side in named]


def sides(folder: Path) -> tuple[set[str], set[str]]:
    train, test = (
        {entry.name for entry in read_list(folder, "train").entries},
        {entry.name for entry in read_list(folder, "test").entries},
    )
    assert not train & test
    return train, test


def write_frames(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True)
        (root / path / "1.jpg").write_bytes(encode(picture(0, 0)))


def test_groups_of_names_stay_together(tmp_path: Path) -> None:
    paths = [f"{c}/v_{c}_g{g:02d}_c{k:02d}" for c in ("Dive", "Row") for g in range(10) for k in (1, 2)]
    write_lists(tmp_path / "lists", clips(*paths))
    train, test = sides(tmp_path / "lists")  # read_list refuses a split through a group
    assert train | test == set(paths)
    assert [sum(name.startswith(c) for name in test) for c in ("Dive", "Row")] == [4, 4]


def test_a_folder_below_the_class_is_on_the_same_side_in_every_class(tmp_path: Path) -> None:
    paths = [f"{c}/p{p}/{k}" for c in ("Walk", "Run", "Jump") for p in range(5) for k in range(3)]
    notes = write_lists(tmp_path / "lists", clips(*paths))
    _, test = sides(tmp_path / "lists")
    assert len(test) == 9 and len({name.split("/")[1] for name in test}) == 1
    counts = "36 in train.csv, 9 in val.csv"
    assert notes == (f"no lists were given, so the videos were divided ({counts}) and listed in {tmp_path}/lists",)


@pytest.mark.parametrize("below", ["", "videos/"])
def test_single_files_are_divided_with_a_warning(tmp_path: Path, below: str) -> None:
    notes = write_lists(
        tmp_path / "lists", clips(*(f"{c}/{below}{k}.x" for c in "ab" for k in range(2)), f"c/{below}0")
    )
    train, test = sides(tmp_path / "lists")
    assert {len({name for name in side if name.startswith(c)}) for c in "ab" for side in (train, test)} == {1}
    assert f"c/{below}0" in train
    assert "1 class(es) have one group of videos only and no test video, e.g. c" in notes[1]
    assert notes[2].startswith("WARNING: 5 videos were divided file by file, so clips of one recording may be on both")


def test_the_split_is_the_same_in_any_order_and_kept(tmp_path: Path) -> None:
    paths = [f"{c}/{k}" for c in ("1", "02", "Walk, slowly") for k in range(9)]
    write_lists(tmp_path / "a", clips(*paths))
    write_lists(tmp_path / "b", clips(*reversed(paths)))
    for name in ("train.csv", "val.csv", "classes.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert read_list(tmp_path / "a", "train").class_names == ("02", "1", "Walk, slowly")
    (tmp_path / "a/val.csv").write_text("path,label\n1/0,1\n")
    (tmp_path / "a/train.csv").write_text("path,label\n1/1,1\n")
    (note,) = write_lists(tmp_path / "a", clips("1/0", "1/1", "1/2", "1/3"))
    assert note == (
        f"the split is that of the lists in {tmp_path}/a; 2 videos are not in them, e.g. 1/2: delete the folder to "
        "divide anew"
    )
    assert (tmp_path / "a/val.csv").read_text() == "path,label\n1/0,1\n"


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Test"])
def test_folders_of_sides_are_the_split(tmp_path: Path, name: str) -> None:
    paths = ["train/Walk/0", "train/Walk/1", "train/Run/p1/0", f"{name}/Walk/2", f"{name}/Run/p1/1"]
    write_lists(tmp_path / "lists", clips(*paths))
    assert sides(tmp_path / "lists") == (set(paths[:3]), set(paths[3:]))
    assert read_list(tmp_path / "lists", "train").class_names == ("Run", "Walk")


def test_a_test_folder_beside_a_validation_folder_is_listed_but_not_used(tmp_path: Path) -> None:
    notes = write_lists(tmp_path / "lists", clips("train/Walk/0", "val/Walk/1", "test/Walk/2"))
    assert sides(tmp_path / "lists")[1] == {"val/Walk/1"} and "test/Walk/2" in (tmp_path / "lists/test.csv").read_text()
    assert notes[1] == "test.csv is not used while there is val.csv"


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", clips("train/0", "train/1", "bus/0", "bus/1"))
    assert read_list(tmp_path / "lists", "train").class_names == ("bus", "train")
    write_lists(tmp_path / "deeper", clips(*(f"{c}/line{k}/{k}" for c in ("train", "bus") for k in range(3))))
    assert read_list(tmp_path / "deeper", "train").class_names == ("bus", "train")


@pytest.mark.parametrize("beside", ["test/7", "intro", "unlabeled/x", "train/x"])
def test_a_side_alone_is_a_side_beside_what_is_no_class(tmp_path: Path, beside: str) -> None:
    found = clips(*(f"train/{c}/{k}" for c in ("Walk", "Run") for k in range(3)), beside)
    assert {clip.class_name for clip in found} == {"Walk", "Run", beside.split("/")[0]}
    assert [clip.side for clip in found] == ["train"] * 6 + [""]


def test_a_class_called_train_is_told(tmp_path: Path) -> None:
    notes = write_lists(tmp_path / "lists", clips(*(f"{c}/line{k}/{k}" for c in ("train", "bus") for k in range(3))))
    assert any("the folder train is taken for a class, because bus is beside it; if it is a side" in n for n in notes)


def test_a_cover_beside_videos_is_no_video(tmp_path: Path) -> None:
    write_frames(tmp_path, "Walk/p1/0", "Walk/p1/1", "Walk/p2/0", "train/Run/0", "train/Run/1")
    for path in ("Walk/p1/cover1.jpg", "train/Run/cover.jpg", "Walk/p2/0/2.jpg"):
        (tmp_path / path).write_bytes(encode(picture(0, 0)))
    write_frames(tmp_path, "Walk/p2/0/small")  # copies of the frames
    assert {clip.path for clip in find_clips(tmp_path)} == {
        *("Walk/p1/0", "Walk/p1/1", "Walk/p2/0"),
        *("train/Run/0", "train/Run/1"),
    }


def test_names_that_end_like_a_video_are_found_again(tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", clips("Walk/0.mp4", "Walk/1.mp4"))
    assert {name for side in sides(tmp_path / "lists") for name in side} == {"Walk/0.mp4", "Walk/1.mp4"}


def test_persons_are_on_one_side_in_all_classes_even_if_they_are_in_few(tmp_path: Path) -> None:
    paths = [
        f"{c}/p{p}/{k}" for c, most in (("Walk", 12), ("Run", 4), ("Jump", 2)) for p in range(most) for k in (0, 1)
    ]
    write_lists(tmp_path / "lists", clips(*paths))
    train, test = sides(tmp_path / "lists")  # read_list refuses a person on both sides
    assert all({name.split("/")[0] for name in side} == {"Walk", "Run", "Jump"} for side in (train, test))
    listed = (tmp_path / "lists/train.csv").read_text().splitlines()
    assert listed[0] == "path,label,group" and all(line.split(",")[2] == line.split("/")[1] for line in listed[1:])


def test_what_is_held_out_of_the_training_cuts_through_no_folder(tmp_path: Path) -> None:
    write_lists(
        tmp_path / "lists", clips(*(f"{c}/p{p}/{k}" for c in ("Walk", "Run") for p in range(6) for k in range(3)))
    )
    kept, held = hold_out(read_list(tmp_path / "lists", "train"), 0.3)
    persons = [{entry.name.split("/")[1] for entry in part.entries} for part in (kept, held)]
    assert not persons[0] & persons[1] and [len(found) for found in persons] == [3, 2]


def test_groups_that_a_clip_brings(tmp_path: Path) -> None:
    given = [Clip(f"Walk/{k}", "Walk", ("Walk", f"{k}"), group=f"tape {k // 5}") for k in range(20)]
    write_lists(tmp_path / "lists", given)
    _, test = sides(tmp_path / "lists")
    assert len(test) == 5 and len({int(name.split("/")[1]) // 5 for name in test}) == 1


def test_nothing_to_divide(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no class has two videos \(or groups of videos\), so none can be kept"):
        write_lists(tmp_path / "lists", clips("Walk/0", "Run/0"))
    assert not (tmp_path / "lists").exists()


def test_a_training_without_lists_divides_its_frame_folders_once(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    write_frames(root, *(f"{c}/p{p}/0" for c in ("Walk", "Run") for p in range(3)))
    (root / "Walk/up").symlink_to(root)
    cfg = DataConfig(root=str(root), lists="")
    train, test = open_index(cfg, "train"), open_index(cfg, "test")
    assert (len(train), len(test)) == (4, 2) and not train.missing and not test.missing
    assert any("the videos were divided (4 in train.csv, 2 in val.csv)" in note for note in train.notes)
    assert not any("divided" in note for note in test.notes)
    assert {path.name for path in (tmp_path / "lists").iterdir()} == {"train.csv", "val.csv", "classes.txt"}


def test_frames_that_are_not_in_class_folders(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", "0", "1")
    with pytest.raises(
        DataError, match=r"without lists \(config\.data\.lists=''\) it must hold a folder for each class"
    ):
        find_clips(tmp_path / "frames")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        open_index(DataConfig(root=str(tmp_path / "nowhere"), lists=""), "train")


def test_a_video_outside_the_sides_leaves_their_split_alone(tmp_path: Path) -> None:
    paths = [f"train/{c}/{k}" for c in ("Walk", "Run") for k in range(3)] + ["val/Walk/9", "val/Run/9"]
    notes = write_lists(tmp_path / "lists", clips(*paths, "intro/x"))
    train, test = sides(tmp_path / "lists")
    assert test == {"val/Walk/9", "val/Run/9"} and train == set(paths) - test
    assert "1 video(s) outside train/, val/ and test/ are not used, e.g. intro/x" in notes


@pytest.mark.parametrize("name", ["caf\udce9", " x", "a\\b", "a\x1b"])
def test_names_that_a_list_cannot_hold_are_left_out_and_named(tmp_path: Path, name: str) -> None:
    odd = f"Walk/{name}"
    (note,) = [
        note
        for note in write_lists(tmp_path / "lists", clips("Walk/0", "Walk/1", "Run/0", "Run/1", odd))
        if "left out" in note
    ]
    assert note.startswith("1 video(s) are left out: ") and repr(odd) in note
    assert all(set(side) <= {"Walk/0", "Walk/1", "Run/0", "Run/1"} for side in sides(tmp_path / "lists"))
