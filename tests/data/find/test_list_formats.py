"""Lists of other datasets and code bases, in their own formats."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from r23d_jax.data.find import frame_scan
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import index_frames
from r23d_jax.data.find.list_format import Subset
from r23d_jax.data.find.splits import FORMATS, available_splits, fold, hold_out, read_list
from tests.data.find.frame_sets import encode, picture

HMDB51_NAMES = ("#122_Cleaning(HP)_kiss_u_cm_np2_le_med_0", "A&B;[x]_kiss_h_nm_np1_ri_goo_1", "50_FIRST_kiss_2")
TEMPLATES = (
    "Moving [something] from left to right",
    "Pretending or failing to wipe [something] off of [something]",
    "Putting [number of] [something] onto [something]",
)


def write(folder: Path, files: Mapping[str, object]) -> Path:
    """Writes texts, and other values as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())
    return folder


def hmdb51() -> dict:
    first, second, third = HMDB51_NAMES
    return {
        "kiss_test_split1.txt": f"{first}.avi 1 \r\n{second}.avi 2 \r\n{third}.avi 0 \r\n",
        "brush_hair_test_split1.txt": "\ufeffApril_09_brush_hair_u_nm_np1_ba_goo_0.avi 1\n",
        "kiss_test_split2.txt": f"{third}.avi 1\n{first}.avi 2\n",
    }


def kinetics() -> dict:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    return {
        "kinetics-400_train.csv": f"\ufeff{header}tying knot (not on a tie),---QUuC4vJs,84,94,train,0\n"
        '"massaging person\'s head",--3ouPhoy2A,20.0,30.0,train,0\n'
        "massaging person's head,twice_twice,0,10,train,0\nmassaging person's head,twice_twice,10,20,train,0\n",
        "kinetics-400_validate.csv": f"{header}tying knot (not on a tie),_5B0SoC2nW4,4,14,validate,0\r\n",
        "kinetics-400_test.csv": "youtube_id,time_start,time_end,split\nxyz,1,2,test\n",
    }


def something() -> dict:
    labels = {template.replace("[", "").replace("]", ""): str(2 - i) for i, template in enumerate(TEMPLATES)}
    rows = [{"id": f"{78687 + i}", "label": "x", "template": t, "placeholders": []} for i, t in enumerate(TEMPLATES)]
    return {
        "something-something-v2-labels.json": json.dumps(labels, indent=2),
        "something-something-v2-train.json": rows,
        "something-something-v2-validation.json": [{"id": 5, "template": TEMPLATES[1]}],
        "something-something-v2-test.json": [{"id": "1420"}],
    }


def diving48() -> dict:
    return {
        "Diving48_V2_train.json": [
            {"vid_name": "-mfiJ1DTJ1Y_00000", "label": 1, "start_frame": 0, "end_frame": 9},
            {"vid_name": "kSfOLHfJcw4_00001", "label": 0, "start_frame": 0, "end_frame": 9},
        ],
        "Diving48_V2_test.json": [{"vid_name": "kSfOLHfJcw4_00002", "label": 1}],
        "Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]],
    }


def resnets() -> dict:
    def video(subset: str, **notes: object) -> dict:
        return {"subset": subset, "annotations": notes | {"segment": [1, 10]}}

    train, val = video("training", label="Diving"), video("validation", label="Archery")
    database = {"v_Diving_g08_c01": train, "v_Archery_g09_c01": train | {"annotations": {"label": "Archery"}}}
    database |= {"v_Archery_g01_c01": val, "v_Diving_g02_c01": video("testing")}
    return {f"ucf101_0{i}.json": {"labels": ["Diving", "Archery"], "database": database} for i in (1, 2)}


def mmaction() -> dict:
    return {
        "ucf101_train_split_1_videos.txt": "Diving/v_Diving_g08_c01.avi 1\nArchery/my clip 7.avi 0\n",
        "ucf101_val_split_1_videos.txt": "Diving/v_Diving_g01_c01.avi 1\n",
        "ucf101_train_split_1_rawframes.txt": "Diving/v_Diving_g08_c01 240 1\nArchery/my clip 7 30 0\n",
        "ucf101_train_split_2_rawframes.txt": "Diving/v_Diving_g08_c01 240 1\n",
        "ucf101_val_split_2_rawframes.txt": "Diving/v_Diving_g01_c01 240 1\n",
        "label_map.txt": "Archery\nDiving\n",
    }


MAKERS: dict[str, Callable[[], dict]] = {
    "hmdb51": hmdb51, "kinetics": kinetics, "something-something": something, "diving48": diving48,
    "3d-resnets": resnets, "mmaction2": mmaction,
}  # fmt: skip


def names(folder: Path, subset: Subset, split: int = 1) -> list[tuple[str, str]]:
    return [(entry.class_name, entry.name) for entry in read_list(folder, subset, split).entries]


def test_every_format_has_an_example_here() -> None:
    assert {*MAKERS, "ucf101", "csv"} == set(FORMATS)


def test_hmdb51(tmp_path: Path) -> None:
    write(tmp_path, hmdb51())
    assert read_list(tmp_path, "train").class_names == ("brush_hair", "kiss")
    april = "April_09_brush_hair_u_nm_np1_ba_goo_0"
    assert names(tmp_path, "train") == [("brush_hair", april), ("kiss", HMDB51_NAMES[0])]
    assert names(tmp_path, "test") == [("kiss", HMDB51_NAMES[1])]
    assert names(tmp_path, "train", 2) == [("kiss", HMDB51_NAMES[2])]
    assert available_splits(tmp_path) == (1, 2)


def test_a_fold_of_hmdb51_and_diving48_does_not_cut_through_a_film(tmp_path: Path) -> None:
    """A film has clips of both classes."""
    hmdb = {}
    for name in ("kiss", "hug"):
        clips = [f"Film_{film}_{name}_u_nm_np2_fr_med_{clip}.avi 1\n" for film in "abcdef" for clip in range(3)]
        hmdb[f"{name}_test_split1.txt"] = "".join([*clips, f"Film_a_{name}_f_cm_np2_fr_bad_3.avi 2\n"])
    write(tmp_path / "hmdb", hmdb)
    dives = [{"vid_name": f"id_{film}_0000{dive}", "label": dive % 2} for film in "abcdef" for dive in range(6)]
    test = [{"vid_name": f"id_a_0000{dive}", "label": dive % 2} for dive in (8, 9)]
    write(tmp_path / "diving", {"Diving48_V2_train.json": dives, "Diving48_V2_test.json": test})
    for folder in (tmp_path / "hmdb", tmp_path / "diving"):
        for divide in (functools.partial(fold, number=1), functools.partial(hold_out, fraction=0.3)):
            kept, held = divide(read_list(folder, "train"))
            sides = [{"_".join(entry.name.split("_")[:2]) for entry in side.entries} for side in (kept, held)]
            assert len(kept.entries) + len(held.entries) == 36 and len(held.entries) % 6 == 0
            assert all(sides) and not sides[0] & sides[1]


def test_kinetics(tmp_path: Path) -> None:
    write(tmp_path, kinetics())
    train, test = (read_list(tmp_path, side) for side in ("train", "test"))
    assert train.class_names == test.class_names == ("massaging person's head", "tying knot (not on a tie)")
    assert [entry.ids for entry in train.entries] == [
        ("---QUuC4vJs_000084_000094", "---QUuC4vJs"), ("--3ouPhoy2A_000020_000030", "--3ouPhoy2A"),
        ("twice_twice_000000_000010",), ("twice_twice_000010_000020",),
    ]  # fmt: skip
    assert [(entry.name, entry.label) for entry in test.entries] == [("_5B0SoC2nW4_000004_000014", 1)]


def test_kinetics_prefers_the_validation_list_which_has_labels(tmp_path: Path) -> None:
    files = kinetics()
    files["test.csv"] = files.pop("kinetics-400_validate.csv")
    del files["kinetics-400_test.csv"]
    write(tmp_path, files)
    assert names(tmp_path, "test") == [("tying knot (not on a tie)", "_5B0SoC2nW4_000004_000014")]


def test_something_something(tmp_path: Path) -> None:
    write(tmp_path, something())
    train = read_list(tmp_path, "train")
    assert train.class_names == (
        "Putting number of something onto something",
        "Pretending or failing to wipe something off of something",
        "Moving something from left to right",
    )
    assert [(entry.name, entry.label) for entry in train.entries] == [("78687", 2), ("78688", 1), ("78689", 0)]
    assert [(entry.name, entry.label) for entry in read_list(tmp_path, "test").entries] == [("5", 1)]
    short = {name.removeprefix("something-something-v2-"): content for name, content in something().items()}
    assert read_list(write(tmp_path / "short", short), "train") == train


def test_diving48(tmp_path: Path) -> None:
    write(tmp_path, diving48())
    assert names(tmp_path, "train") == [
        ("Back_15som_15Twis_FREE", "-mfiJ1DTJ1Y_00000"), ("Back_15som_05Twis_FREE", "kSfOLHfJcw4_00001"),
    ]  # fmt: skip
    assert names(tmp_path, "test") == [("Back_15som_15Twis_FREE", "kSfOLHfJcw4_00002")]
    (tmp_path / "Diving48_vocab.json").unlink()
    assert read_list(tmp_path, "train").class_names == ("0", "1")


def test_3d_resnets(tmp_path: Path) -> None:
    write(tmp_path, resnets())
    train = read_list(tmp_path, "train")
    assert train.class_names == ("Diving", "Archery") and train.entries[0].group == "Diving_g08"
    assert names(tmp_path, "train", 2) == [("Diving", "v_Diving_g08_c01"), ("Archery", "v_Archery_g09_c01")]
    assert names(tmp_path, "test") == [("Archery", "v_Archery_g01_c01")]
    assert available_splits(tmp_path) == (1, 2)
    one = write(tmp_path / "one", {"kinetics_700.json": resnets()["ucf101_01.json"]})
    assert available_splits(one) == (1,) and len(names(one, "train")) == 2


def test_mmaction2(tmp_path: Path) -> None:
    write(tmp_path, mmaction())
    assert read_list(tmp_path, "train").class_names == ("Archery", "Diving")
    assert names(tmp_path, "train") == [("Diving", "Diving/v_Diving_g08_c01"), ("Archery", "Archery/my clip 7")]
    assert names(tmp_path, "train", 2) == names(tmp_path, "train")[:1]
    assert names(tmp_path, "test", 2) == [("Diving", "Diving/v_Diving_g01_c01")]
    assert available_splits(tmp_path) == (1, 2)
    tsm = {"train_videofolder.txt": "x 73 49\ny 8 0\n", "val_videofolder.txt": "z 5 49\n"}
    assert names(write(tmp_path / "tsm", tsm), "train") == [("49", "x"), ("0", "y")]


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/datasets.md").read_text()
    forms = re.findall(r"^### (\S+)\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in forms] == list(FORMATS)
    for name, section in forms:
        files = dict(re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)```", section, re.MULTILINE | re.DOTALL))
        folder = write(tmp_path / name, files)
        assert FORMATS[name].find(folder, list(files))
        assert names(folder, "train") and names(folder, "test")


# -- wrong lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("hmdb51", {"kiss_test_split1.txt": "a.avi 3\n"}, r"kiss_test_split1\.txt:1: malformed line 'a\.avi 3'"),
        ("hmdb51", {"kiss_test_split1.txt": "../a.avi 1\n"}, r"kiss_test_split1\.txt:1: path '../a\.avi' leaves"),
        ("kinetics", {"kinetics-400_train.csv": "label,youtube_id,time_start,time_end\nx,y,z,9\n"},
         r"kinetics-400_train\.csv:2: malformed line .*expected a label, a YouTube id, and the seconds"),
        ("kinetics", {"kinetics-400_train.csv": "youtube_id,time_start,time_end\ny,1,2\n"},
         r"kinetics-400_train\.csv: has no column 'label' \(a test list without labels cannot be used\)"),
        ("kinetics", {"kinetics-400_train.csv": "label,youtube_id,time_start,time_end\n"}, r"lists no video"),
        ("kinetics", {"kinetics-600_train.csv": kinetics()["kinetics-400_train.csv"]},
         r"kinetics-400_train\.csv and kinetics-600_train\.csv both list the train videos"),
        ("something-something", {"something-something-v2-train.json": [{"id": "1", "template": "Moving [somthing]"}]},
         r"-train\.json: item 1: template 'Moving \[somthing\]' is not in something-something-v2-labels\.json; did"),
        ("something-something", {"something-something-v2-train.json": [{"id": "1"}]},
         r"""-train\.json: item 1: '{"id": "1"}' must have the fields id and template"""),
        ("something-something", {"something-something-v2-train.json": "[{]"}, r"train\.json: not JSON \(.*download it"),
        ("something-something", {"something-something-v2-train.json": "[" * 100_000}, r"-train\.json: not JSON"),
        ("something-something", {"something-something-v2-train.json": {}}, r"-train\.json: must hold a JSON list"),
        ("something-something", {"something-something-v2-labels.json": {"a": "x"}}, r"class 'a' has the number 'x'"),
        ("something-something", {"something-something-v2-labels.json": {"a": "1", "b": "1"}}, r"each number once"),
        ("diving48", {"Diving48_V2_train.json": [{"vid_name": "a", "label": 2}]},
         r"Diving48_V2_train\.json: item 1: label '2'; expected a number from 0 to 1"),
        ("diving48", {"Diving48_V2_train.json": [{"vid_name": "/a", "label": 1}]}, r"item 1: path '/a' leaves"),
        ("diving48", {"Diving48_vocab.json": [["a"], "b"]}, r"Diving48_vocab\.json: class \"'b'\"; expected a list"),
        ("diving48", {"Diving48_train.json": []}, r"Diving48_V2_train\.json and Diving48_train\.json both list"),
        ("3d-resnets", {"ucf101_01.json": '{"labels": ["a"]}'}, r"ucf101_01\.json: must hold a list 'labels' and an"),
        ("3d-resnets", {"ucf101_01.json": {"labels": ["a"], "database": {"x": {"subset": "training"}}}},
         r"ucf101_01\.json: 'x': must have a 'subset' \(training, validation or testing\) and annotations\.label"),
        ("3d-resnets", {"ucf101_01.json": {"labels": ["run"], "database": {
            "x": {"subset": "training", "annotations": {"label": "rum"}}}}}, r"label 'rum' is not among .*did you"),
        ("3d-resnets", {"hmdb51_1.json": resnets()["ucf101_01.json"]},
         r"several files have split 1 \(hmdb51_1\.json, ucf101_01\.json\); keep one for each split"),
        ("mmaction2", {"ucf101_train_split_1_videos.txt": "a.avi 1\nb.avi\n"},
         r"ucf101_train_split_1_videos\.txt:2: malformed line 'b\.avi'; expected 'path label'"),
        ("mmaction2", {"ucf101_train_split_1_videos.txt": "a.avi 0\nb.avi 0 1\n"},
         r"ucf101_train_split_1_videos\.txt:2: 'b\.avi 0 1' has several labels; a video has one here"),
        ("mmaction2", {"label_map.txt": "Archery\n"}, r":1: label '1' is not in label_map\.txt; numbers go from"),
        ("mmaction2", {"k400_train_split_1_videos.txt": "a.avi 1\n"}, r"both list train videos; keep one"),
        ("mmaction2", {"ucf101_train_split_1_videos.txt": "/data/a.avi 1\n"}, r"path '/data/a\.avi' leaves"),
    ],
)  # fmt: skip
def test_wrong_lists(tmp_path: Path, form: str, change: dict, message: str) -> None:
    write(tmp_path, MAKERS[form]() | change)
    with pytest.raises(DataError, match=message) as caught:
        read_list(tmp_path, "train")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("form", MAKERS)
def test_a_split_or_a_side_that_is_not_there(tmp_path: Path, form: str) -> None:
    write(tmp_path, MAKERS[form]())
    with pytest.raises(DataError, match=r"split.?3"):
        read_list(tmp_path, "train", 3)
    if form not in ("hmdb51", "3d-resnets"):  # whose files hold both sides
        for path in tmp_path.iterdir():
            if "train" in path.name:
                path.unlink()
        with pytest.raises(DataError, match="holds no train|train.json: no such file"):
            read_list(tmp_path, "train")


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path, hmdb51() | {"classInd.txt": "1 a\n"})
    with pytest.raises(
        DataError,
        match=r"holds lists of several formats: ucf101 \(classInd\.txt\) and hmdb51 \(brush_hair_test_split1\.txt\); "
        "keep those of one in a folder of their own",
    ):
        read_list(tmp_path, "train")


def test_a_folder_of_no_format_names_what_was_looked_for(tmp_path: Path) -> None:
    # ActivityNet's file lists segments, and notes are no lists
    write(tmp_path, {"activity_net.json": {"version": "1.3", "database": {}}, "train_notes.txt": "by me\n"})
    with pytest.raises(DataError) as caught:
        read_list(tmp_path, "train")
    message = str(caught.value)
    assert all(form.example in message for form in FORMATS.values())
    assert "(it holds: activity_net.json, train_notes.txt)" in message


def test_a_file_name_of_dots_does_not_leave_the_folder(tmp_path: Path) -> None:
    write(tmp_path, hmdb51() | {"kiss_test_split1.txt": "...avi 1\n"})
    assert names(tmp_path, "train")[1] == ("kiss", "...avi")
    assert names(write(tmp_path / "csv", {"train.csv": "a/...avi,x\n"}), "train") == [("x", "a/...avi")]


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    ["---QUuC4vJs", "---QUuC4vJs_000084_000094", "any class/---QUuC4vJs", "train/tying_knot/---QUuC4vJs_000084_000094"],
)
def test_frames_of_kinetics_are_found_by_id_in_any_folder(tmp_path: Path, folder: str) -> None:
    lists = write(tmp_path / "lists", kinetics())
    (tmp_path / "frames" / folder).mkdir(parents=True)
    (tmp_path / "frames" / folder / "1.jpg").write_bytes(encode(picture(0, 0)))
    index = index_frames(tmp_path / "frames", read_list(lists, "train"))
    assert index.names.tolist() == ["---QUuC4vJs_000084_000094"] and len(index.missing) == 3


def test_an_id_of_two_clips_names_neither(tmp_path: Path) -> None:
    lists = write(tmp_path / "lists", kinetics())
    for name in ("twice_twice", "twice_twice_000010_000020"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        (tmp_path / "frames" / name / "1.jpg").write_bytes(encode(picture(0, 0)))
    index = index_frames(tmp_path / "frames", read_list(lists, "train"))
    assert index.names.tolist() == ["twice_twice_000010_000020"]


def test_folders_of_the_other_side_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = write(tmp_path / "lists", something())
    for name in ("78687", "78688", "78689", "5"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        (tmp_path / "frames" / name / "1.jpg").write_bytes(encode(picture(0, 0)))
    read = []
    read_folder = frame_scan._read_folder
    monkeypatch.setattr(frame_scan, "_read_folder", lambda root, parts: read.append(parts) or read_folder(root, parts))
    index = index_frames(tmp_path / "frames", read_list(lists, "test"), cache=False)
    assert index.names.tolist() == ["5"] and read == [()]


def test_a_class_folder_may_have_the_name_of_a_video(tmp_path: Path) -> None:
    lists = write(tmp_path / "lists", {"train.csv": "1/2.avi,1\n2/1.avi,2\n1/1.avi,1\n"})
    for number, name in enumerate(("1/2", "2/1", "1/1"), start=1):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for frame in range(number):
            (tmp_path / "frames" / name / f"{frame}.jpg").write_bytes(encode(picture(0, 0)))
    index = index_frames(tmp_path / "frames", read_list(lists, "train"))
    assert index.layout.startswith("<Class>/<video>/0.jpg ")
    assert (index.names.tolist(), index.num_frames.tolist()) == (["1/2", "2/1", "1/1"], [1, 2, 3])
