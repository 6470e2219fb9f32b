"""Split lists: the official ones, other people's, and wrong ones."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_format import relative_path
from r23d_jax.data.find.splits import Entry, available_splits, fold, hold_out, read_list

CLASS_IND = "1 Archery\n2 Diving\n4 HandstandPushups\n"
TRAIN = (
    "Archery/v_Archery_g08_c01.avi 1\nDiving/v_Diving_g08_c01.avi 2\nDiving/v_Diving_g08_c02.avi 2\n"
    "HandstandPushups/v_HandStandPushups_g09_c01.avi 4\n"
)
TEST = "Archery/v_Archery_g01_c01.avi\nHandstandPushups/v_HandStandPushups_g01_c01.avi\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode())
    return folder


def ucf101(folder: Path, class_ind: str = CLASS_IND, train: str = TRAIN, test: str = TEST) -> Path:
    return write(folder, classInd__txt=class_ind, trainlist01__txt=train, testlist01__txt=test)


@pytest.mark.real_clips
@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_official_lists(real_data: Path, split: int, train: int, test: int) -> None:
    lists = real_data / "ucf101_splits"
    sides = [read_list(lists, side, split) for side in ("train", "test")]
    assert [len(side.entries) for side in sides] == [train, test]
    assert all(len(side.class_names) == 101 for side in sides)
    entries = [entry for side in sides for entry in side.entries]
    assert len({entry.name for entry in entries}) == 13320
    assert {entry.label for entry in entries} == set(range(101))
    groups = {entry.group for entry in entries}
    assert len(groups) == 101 * 25
    assert available_splits(lists) == (1, 2, 3)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, line_end: str) -> None:
    ucf101(tmp_path, *("\ufeff" + text.replace("\n", line_end) for text in (CLASS_IND, TRAIN, TEST)))
    train, test = (read_list(tmp_path, side) for side in ("train", "test"))
    assert train.class_names == ("Archery", "Diving", "HandstandPushups")
    assert train.entries[1] == Entry("v_Diving_g08_c01", 1, "Diving", "Diving_g08")
    # The folder and the files of this class are spelled differently; the label counts from 0 without holes.
    assert test.entries[1] == Entry("v_HandStandPushups_g01_c01", 2, "HandstandPushups", "HandstandPushups_g01")


def test_subset_of_classes_is_renumbered_in_list_order(tmp_path: Path) -> None:
    ucf101(tmp_path)
    videos = read_list(tmp_path, "train", classes=("handstandpushups", "Archery"))
    assert videos.class_names == ("Archery", "HandstandPushups")
    assert [(entry.class_name, entry.label) for entry in videos.entries] == [("Archery", 0), ("HandstandPushups", 1)]


def test_unknown_class_names_the_nearest(tmp_path: Path) -> None:
    ucf101(tmp_path)
    with pytest.raises(
        DataError, match=r"config\.data\.classes.*'Divng': did you mean Diving.*'--config\.data\.classes=\(\)'"
    ):
        read_list(tmp_path, "train", classes=("Divng",))


def test_a_test_list_may_have_labels_and_names_may_have_spaces_and_dots(tmp_path: Path) -> None:
    ucf101(tmp_path, test="Diving/my clip 7.5.MP4\nDiving/other 3\nArchery/x.avi 1\n")
    names = [entry.name for entry in read_list(tmp_path, "test").entries]
    assert names == ["my clip 7.5", "other 3", "x"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": "Diving/v_Diving_g08_c01.avi\n"},
            r"trainlist01\.txt:1: malformed line 'Diving/v_Diving_g08_c01.avi'",
        ),
        ({"train": "\nv_Diving_g08_c01.avi 2\n"}, r"trainlist01\.txt:2: malformed line 'v_Diving_g08_c01.avi 2'"),
        ({"train": "Diving/v.avi 1\n"}, r"trainlist01\.txt:1: label 1 for Diving, which classInd\.txt numbers 2"),
        (
            {"train": "Dving/v.avi 1\n"},
            r"trainlist01\.txt:1: class 'Dving' is not in classInd\.txt; did you mean Diving",
        ),
        (
            {"train": "Diving/v.avi 2\nDiving/V.mp4 2\n"},
            r"trainlist01\.txt:2: Diving/V is listed twice \(first in .*:1",
        ),
        ({"class_ind": "one Archery\n"}, r"classInd\.txt:1: malformed line 'one Archery'"),
        ({"class_ind": "1 A\n2 a\n"}, r"classInd\.txt:2: class 'a' is named twice"),
        ({"class_ind": "2 A\n1 B\n"}, r"classInd\.txt:2: class number 1 does not rise"),
        ({"class_ind": "\n"}, r"classInd\.txt: names no class"),
        ({"train": "\n"}, r"the train list of split 1 names no video of Archery, Diving"),
    ],
)
def test_malformed_lists(tmp_path: Path, files: dict[str, str], message: str) -> None:
    ucf101(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path, "train")


@pytest.mark.parametrize(
    "path", ["/etc/v.avi", "../Diving/v.avi", "Diving/../../v.avi", "C:/Diving/v.avi", "\\\\host\\v.avi", "..\\v.avi"]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    ucf101(tmp_path, train=f"{path} 2\n")
    with pytest.raises(DataError, match=r"trainlist01\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "csv").mkdir()
    write(tmp_path / "csv", train__csv=f"{path},Diving\n")
    with pytest.raises(DataError, match=r"train\.csv:1: path .* leaves the data folder"):
        read_list(tmp_path / "csv", "train")


@given(text=st.text(st.sampled_from("/.\\: Cc_-(),0é\n\x1b"), max_size=12))
def test_a_listed_path_keeps_its_parts_and_stays_in_the_folder(text: str) -> None:
    parts = text.replace("\\", "/").split("/")
    kept = [part for part in parts if part not in ("", ".")]
    leaves = parts[0] in ("", "C:", "c:") or ".." in parts
    if leaves or not kept or not text.isprintable():
        with pytest.raises(DataError, match=r"^list\.csv:3: "):
            relative_path(text, "list.csv:3")
    else:
        assert relative_path(text, "list.csv:3") == "/".join(kept)


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_split_through_a_group_is_refused(tmp_path: Path, side: str) -> None:
    ucf101(tmp_path, test=TEST + "Diving/v_Diving_G08_c03.avi\n")
    with pytest.raises(DataError, match=r"cuts through 1 group.*v_Diving_g08_c01 .*and Diving/v_Diving_G08_c03"):
        read_list(tmp_path, side)  # pyright: ignore[reportArgumentType]


def test_the_same_group_number_in_two_classes_is_no_leak(tmp_path: Path) -> None:
    ucf101(tmp_path, test="Archery/v_Archery_g09_c01.avi\n")  # g09 of HandstandPushups is in the training list
    assert len(read_list(tmp_path, "test").entries) == 1


def test_missing_files(tmp_path: Path) -> None:
    lists = tmp_path / "above" / "lists"
    lists.mkdir(parents=True)
    ucf101(lists)
    with pytest.raises(DataError, match=r"trainlist02\.txt: no such file \(splits found in .*: 1\).*crcv\.ucf\.edu"):
        read_list(lists, "train", split=2)
    with pytest.raises(DataError, match=r"nowhere: no such folder.*ucfTrainTestlist.*crcv\.ucf\.edu/data/UCF101\.php"):
        read_list(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"holds neither classInd\.txt nor train\.csv .*lists=.*/above/lists"):
        read_list(lists.parent, "train")
    with pytest.raises(DataError, match="subset 'val': must be 'train' or 'test'"):
        read_list(lists, "val")  # pyright: ignore[reportArgumentType]


# -- CSV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_name", ["val__csv", "test__csv"])
@pytest.mark.parametrize("header", ["", "path,label\n", "label,frames,video\n"])
def test_csv(tmp_path: Path, test_name: str, header: str) -> None:
    row = "{label},30,{path}\n" if "frames" in header else "{path},{label}\n"
    train = [("run/b 1.mp4", "running"), ('"run/a,2.avi"', "Running"), ("x.y.mov", "jumping")]
    write(tmp_path, train__csv=header + "".join(row.format(path=p, label=n) for p, n in train))
    write(tmp_path, **{test_name: header + row.format(path="z.mp4", label="jumping")})
    if header:
        with pytest.raises(DataError, match="class"):
            write(tmp_path, classes__txt="jumping\n")
            read_list(tmp_path, "train")
    write(tmp_path, classes__txt="running\njumping\n")
    videos = read_list(tmp_path, "train")
    assert videos.class_names == ("running", "jumping")
    assert [entry.name for entry in videos.entries] == ["run/b 1", "run/a,2", "x.y"]
    assert [entry.label for entry in videos.entries] == [0, 0, 1]
    assert videos.entries[0].group == "run/b 1"
    assert read_list(tmp_path, "test").entries == (Entry("z", 1, "jumping", "z"),)


def test_csv_classes_are_sorted_and_shared_by_both_sides(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,walk\nb.mp4,jump\nd.mp4,run\n", val__csv="c.mp4,run\n")
    assert read_list(tmp_path, "train").class_names == ("jump", "run", "walk")
    assert read_list(tmp_path, "test").entries[0].label == 1


def test_csv_labels_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,10\nb.mp4,2\n", val__csv="c.mp4,2\n")
    assert read_list(tmp_path, "train").class_names == ("2", "10")
    write(tmp_path, classes__txt="jump\nrun\nwalk\n", train__csv="a.mp4,2\nb.mp4,run\n")
    assert [entry.class_name for entry in read_list(tmp_path, "train").entries] == ["walk", "run"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train__csv": "a.mp4,run\nb.mp4\n"}, r"train\.csv:2: malformed line 'b\.mp4'; expected 'path,label'"),
        ({"train__csv": "a.mp4,run\nb.mp4,\n"}, r"train\.csv:2: malformed line"),
        ({"train__csv": "path,frames\na.mp4,3\n"}, r"train\.csv:1: header 'path,frames' has no column 'label'"),
        ({"train__csv": "\n"}, r"train\.csv: lists no video"),
        ({"train__csv": "a.mp4,run\nb.mp4,3\n"}, r"labels mix numbers \(3\) and names \(.run.\); write classes\.txt"),
        ({"train__csv": "a.mp4,run\nA.avi,run\n"}, r"train\.csv:2: A is listed twice \(first in train\.csv:1\)"),
        ({"train__csv": "a.mp4,run\n", "val__csv": "a.mp4,run\n"}, r"cuts through 1 group.*train\.csv:1.*val\.csv:1"),
        (
            {"train__csv": "v_Run_g01_c01.avi,run\n", "val__csv": "other/v_Run_g01_c02.avi,run\n"},
            r"cuts through 1 group.*v_Run_g01_c01 .*v_Run_g01_c02",
        ),
        ({"train__csv": 'a.mp4,"run\n'}, r"train\.csv:\d: not CSV"),
        ({"train__csv": "a.mp4,rum\n", "classes__txt": "run\n"}, r"train\.csv:1: label 'rum' .*did you mean run"),
        ({"train__csv": "a.mp4,7\n", "classes__txt": "run\n"}, r"train\.csv:1: label '7' .*numbers go from 0 to 0"),
        ({"train__csv": "a.mp4,run\n", "classes__txt": "run\nRun\n"}, r"classes\.txt: must name each class once"),
        ({"val__csv": "a.mp4,run\n"}, r"train\.csv: no such file; it lists the train videos"),
    ],
)
def test_malformed_csv(tmp_path: Path, files: dict[str, str], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path, "train")


def test_csv_has_one_split(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,run\n")
    assert available_splits(tmp_path) == (1,)
    with pytest.raises(DataError, match="no split 2; use split 1"):
        read_list(tmp_path, "train", split=2)


# -- properties --------------------------------------------------------------------------------------------------------

names = st.text(string.ascii_letters + string.digits + "_-. é語", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text not in (".", "..")
)


@given(
    classes=st.lists(names, min_size=1, max_size=5, unique_by=str.casefold),
    videos=st.lists(st.tuples(st.integers(0, 4), names), min_size=1, max_size=8, unique_by=lambda v: v[1].casefold()),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], videos: list[tuple[int, str]], line_end: str
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    listed = [(classes[number % len(classes)], name) for number, name in videos]
    ucf101(
        folder,
        class_ind=line_end.join(f"{i} {name}" for i, name in enumerate(classes, start=1)),
        train=line_end.join(f"{c}/{name}.avi {classes.index(c) + 1}" for c, name in listed),
        test="",
    )
    read = read_list(folder, "train")
    assert read.class_names == tuple(classes)
    assert [(entry.class_name, entry.name) for entry in read.entries] == listed
    assert all(read.class_names[entry.label] == entry.class_name for entry in read.entries)


texts = st.one_of(
    st.binary(max_size=80).map(lambda content: content.decode("utf-8", "surrogateescape")),
    st.text(max_size=80),
    st.lists(st.sampled_from([*"/ 2\n,\\\0\r", "Diving", "v.avi", '"', "..", "9" * 12]), max_size=20).map("".join),
)
FILES = ("classInd.txt", "trainlist01.txt", "testlist01.txt", "train.csv", "val.csv", "classes.txt")


@given(text=texts, name=st.sampled_from(FILES))
def test_any_text_gives_a_list_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    if name in FILES[:3]:
        ucf101(folder)
    else:
        write(folder, train__csv="a.mp4,run\n", val__csv="b.mp4,run\n")
    (folder / name).write_bytes(
        text.encode("utf-8", "surrogateescape" if "\udc80" <= max(text, default="") else "replace")
    )
    for subset in ("train", "test"):
        try:
            videos = read_list(folder, subset)
        except DataError as error:
            # Where one line is wrong it is named; what lacks altogether, or does not fit together, by the folder.
            assert re.search(rf"^(\w+\.(txt|csv):\d+|{re.escape(str(folder))})", str(error)), str(error)
            assert len(str(error)) < 2000
        else:
            assert videos.entries and len({n.casefold() for n in videos.class_names}) == len(videos.class_names)
            assert not any({"..", ""} & set(entry.name.split("/")[:-1]) for entry in videos.entries)


# -- what is no list ---------------------------------------------------------------------------------------------------


def test_other_files_are_refused_in_short_words(tmp_path: Path) -> None:
    ucf101(tmp_path, class_ind="1 " + "A" * 5000)
    with pytest.raises(DataError, match=r"classInd\.txt:1: a line of 5002 characters, more than 4096: is this a list"):
        read_list(tmp_path, "train")
    ucf101(tmp_path, class_ind="A" * 3000)
    with pytest.raises(DataError, match=r"classInd\.txt:1: malformed line 'AAA") as caught:
        read_list(tmp_path, "train")
    assert len(str(caught.value)) < 300
    with open(tmp_path / "classInd.txt", "wb") as file:
        file.truncate((1 << 27) + 1)  # takes no room on disk
    with pytest.raises(DataError, match=r"classInd\.txt: 134217729 bytes, more than 134217728: this is not a list"):
        read_list(tmp_path, "train")


def test_many_classes_take_no_time(tmp_path: Path) -> None:
    """60,000 of them; comparing each with all before took minutes."""
    ucf101(tmp_path, class_ind="".join(f"{k} c{k}\n" for k in range(60_000)), train="c7/v.avi 7\n", test="")
    assert read_list(tmp_path, "train").entries[0].label == 7
    ucf101(tmp_path, class_ind="".join(f"{k} c{k}\n" for k in range(60_000)), train="", test="")
    with pytest.raises(DataError, match=r"names no video of c0, c1, c2, c3, c4, \.\.\.$"):
        read_list(tmp_path, "train")


def test_csv_labels_that_only_look_like_numbers(tmp_path: Path) -> None:
    write(tmp_path, train__csv=f"a.mp4,{'9' * 5000}\n")
    with pytest.raises(DataError, match=r"train\.csv:1: a line of \d+ characters"):
        read_list(tmp_path, "train")
    write(tmp_path, train__csv=f"a.mp4,{'9' * 4000}\nb.mp4,1\n")
    with pytest.raises(DataError, match="labels mix numbers"):
        read_list(tmp_path, "train")
    write(tmp_path, train__csv="a.mp4,٣\nb.mp4,²\n")
    assert read_list(tmp_path, "train").class_names == ("²", "٣")


def test_csv_labels_in_two_spellings_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,run\nb.mp4,Run\nc.mp4,jump\n")
    videos = read_list(tmp_path, "train")
    assert videos.class_names == ("Run", "jump")
    assert [entry.label for entry in videos.entries] == [0, 0, 1]


def test_csv_labels_with_and_without_zeros_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,01\nb.mp4,02\nc.mp4,2\n", val__csv="d.mp4,1\ne.mp4,2\n")
    train, test = (read_list(tmp_path, side) for side in ("train", "test"))
    assert train.class_names == test.class_names == ("01", "02")
    assert [entry.label for entry in (*train.entries, *test.entries)] == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("header", ["file_name,label", "Video Path,class-name", "clip,Category"])
def test_headers_of_other_tools(tmp_path: Path, header: str) -> None:
    write(tmp_path, train__csv=f"{header}\na.mp4,run\n", val__csv=f"{header}\nb.mp4,run\n")
    assert [read_list(tmp_path, side).entries[0].name for side in ("train", "test")] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,action\na.mp4,run\nb.mp4,jump\n", r"train\.csv:1: 'id,action' names no video; name its columns 'path'"),
        ("youtube,label\na.mp4,run\n", r"train\.csv:1: header 'youtube,label' has no column 'path'"),
    ],
)
def test_unknown_headers_are_not_videos(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, train__csv=text)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path, "train")


def test_a_first_line_of_data_is_no_header(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,target\nb.mp4,run\n")
    assert [entry.class_name for entry in read_list(tmp_path, "train").entries] == ["target", "run"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_lists_in_utf_16(tmp_path: Path, encoding: str) -> None:
    content = "path,label\nä.mp4,run\n"
    (tmp_path / "train.csv").write_bytes(("\ufeff" + content).encode(encoding))
    assert read_list(tmp_path, "train").entries[0].name == "ä"
    (tmp_path / "train.csv").write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match=r"train\.csv: seems to be UTF-16 without its mark; save it as UTF-8"):
        read_list(tmp_path, "train")
    (tmp_path / "train.csv").write_bytes(("\ufeff" + content).encode(encoding)[:-1])
    with pytest.raises(DataError, match=r"train\.csv: is not valid UTF-16 \(.*\); save it as UTF-8"):
        read_list(tmp_path, "train")


def test_a_test_class_without_training_videos(tmp_path: Path) -> None:
    write(tmp_path, train__csv="a.mp4,run\nb.mp4,jump\n", val__csv="c.mp4,run\nd.mp4,runs\n")
    for side in ("train", "test"):
        with pytest.raises(
            DataError, match=r"1 class\(es\) of the test list have no training video, e\.g\. runs \(val\.csv:2"
        ):
            read_list(tmp_path, side)
    assert len(read_list(tmp_path, "test", classes=("run", "jump")).entries) == 1


CSV_GROUPS = "path,label,group\na/0,a,p0\na/1,a,p1\na/2,a,p2\nb/0,b,p2\nb/1,b,p3\n"


def test_a_column_of_groups_decides_what_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, train__csv=CSV_GROUPS, val__csv="path,label,group\na/9,a,p9\nb/9,b,\n")
    train, test = (read_list(tmp_path, side) for side in ("train", "test"))
    assert [entry.group for entry in (*train.entries, *test.entries)] == ["p0", "p1", "p2", "p2", "p3", "p9", "b/9"]
    kept, held = hold_out(train, 0.4)
    # With the last group of each class, which are p2 and p3, nothing would be left of b.
    assert {entry.name for entry in held.entries} == {"a/1", "b/1"}
    assert {entry.class_name for entry in kept.entries} == {entry.class_name for entry in held.entries} == {"a", "b"}
    assert not {entry.group for entry in kept.entries} & {entry.group for entry in held.entries}


def test_a_group_on_both_sides_is_refused(tmp_path: Path) -> None:
    write(tmp_path, train__csv=CSV_GROUPS, val__csv="group,path,label\np1,b/9,b\n")
    with pytest.raises(DataError, match=r"cuts through 1 group\(s\).* a/1 \(train.csv:3\) and b/9 \(val.csv:2\)"):
        read_list(tmp_path, "train")


@pytest.mark.parametrize("other", ["", ",p7"])
def test_a_video_on_both_sides_is_refused_whatever_its_group(tmp_path: Path, other: str) -> None:
    header = "path,label,group\n" if other else "path,label\n"
    write(tmp_path, train__csv=CSV_GROUPS, val__csv=f"{header}A/1.mp4,a{other}\n")
    with pytest.raises(DataError, match=r"cuts through 1 group\(s\).* a/1 \(train.csv:3\) and A/1 \(val.csv:2\)"):
        read_list(tmp_path, "train")


def test_groups_are_the_same_in_upper_and_lower_case(tmp_path: Path) -> None:
    rows = "".join(f"{c}/{k},{c},{name}\n" for c in "ab" for k, name in enumerate(("Ann", "ann", "Bob", "bob", "ANN")))
    write(tmp_path, train__csv=f"path,label,group\n{rows}", val__csv="a/9,a\nb/9,b\n")
    kept, held = hold_out(read_list(tmp_path, "train"), 0.4)
    assert {entry.group for entry in kept.entries} == {"Ann"} and {entry.group for entry in held.entries} == {"Bob"}
    assert len(kept.entries) == 6 and len(held.entries) == 4


def test_videos_of_one_name_have_their_paths(tmp_path: Path) -> None:
    """As in lists of UCF101's format where each class has its 001."""
    ucf101(
        tmp_path, "1 Run\n2 Walk\n", "Run/001.avi 1\nWalk/001.avi 2\nWalk/002.avi 2\n", "Run/003.avi\nWalk/004.avi\n"
    )
    assert [entry.name for entry in read_list(tmp_path, "train").entries] == ["Run/001", "Walk/001", "002"]


def test_a_header_of_other_words(tmp_path: Path) -> None:
    write(tmp_path, train__csv="\npath,label\na/0,a\n", val__csv="path,label\na/1,a\n")
    assert [entry.name for entry in read_list(tmp_path, "train").entries] == ["a/0"]
    write(tmp_path, train__csv="folder,action\na/0,a\n", val__csv="folder,action\na/1,a\n")
    message = r"^train\.csv:1: 'folder,action' is also the first line of val\.csv: if it names the columns, call them"
    with pytest.raises(DataError, match=message):
        read_list(tmp_path, "train")


def test_a_class_whose_groups_all_belong_to_classes_of_one_group(tmp_path: Path) -> None:
    rows = "path,label,group\na/0,a,p0\na/1,a,p1\nb/0,b,p0\nb/1,b,p2\nc/0,c,p1\nc/1,c,p2\n"
    write(tmp_path, train__csv=rows, val__csv="a/9,a\nb/9,b\nc/9,c\n")
    with pytest.raises(DataError, match=r"config.data.hold_out=0.5: no group of class \w can be held out, because"):
        hold_out(read_list(tmp_path, "train"), 0.5)


def test_a_group_of_several_classes_stays_in_one_fold(tmp_path: Path) -> None:
    rows = "path,label,group\n" + "".join(f"{c}/{n},{c},p{n}\n" for c in "abc" for n in range(6))
    write(tmp_path, train__csv=rows, val__csv="a/9,a\nb/9,b\nc/9,c\n")
    train = read_list(tmp_path, "train")
    folds = [fold(train, number) for number in (1, 2, 3)]
    for kept, held in folds:
        assert not {entry.group for entry in kept.entries} & {entry.group for entry in held.entries}
        assert len(held.entries) == 6
    assert sorted(entry.name for _, held in folds for entry in held.entries) == sorted(e.name for e in train.entries)


def test_a_class_that_cannot_be_divided_into_folds(tmp_path: Path) -> None:
    """The groups of a are dealt to folds 1, 2 and 3; those of b are the fourth, seventh and tenth, all in fold 1."""
    rows = "".join(f"a/{n:02},a,p{n:02}\n" for n in range(10)) + "".join(f"b/{n:02},b,p{n:02}\n" for n in (0, 3, 6))
    write(tmp_path, train__csv="path,label,group\n" + rows, val__csv="a/99,a\nb/99,b\n")
    with pytest.raises(DataError, match="config.data.fold=1: class b shares its groups with other classes and cannot"):
        fold(read_list(tmp_path, "train"), 1)
