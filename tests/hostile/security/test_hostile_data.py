"""Data folders and lists are never code, and never lead outside of their folder."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from r23d_jax.__main__ import main
from r23d_jax.config import Config, UserError
from r23d_jax.data.find import packed_scan
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import FrameFiles, index_frames
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.splits import Entry, VideoList, read_list
from r23d_jax.data.find.tfrecord import Record
from r23d_jax.data.make.packed_builder import PackSource, write_packed
from r23d_jax.study.grid import Study, cells
from tests.hostile.security.pickles import plant_code


def write_frames(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"image_{number + 1:05d}.jpg"), np.full((16, 16, 3), 50, np.uint8))


VIDEOS = VideoList(("Diving",), (Entry("v_Diving_g01_c01", 0, "Diving", "g01"),))


def cache_of(root: Path) -> Path:
    (path,) = (root / ".r23d_jax").glob("*.npz")
    return path


@pytest.mark.parametrize("how", ["object array", "bare pickle"])
def test_a_cache_that_would_run_code_is_built_again(how: str, marker: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_frames(root / "v_Diving_g01_c01")
    first = index_frames(root, VIDEOS)
    path = cache_of(root)
    plant_code(path, how, marker)
    again = index_frames(root, VIDEOS)
    assert again.names.tolist() == first.names.tolist() and not marker.exists()


@pytest.mark.parametrize("field", ["folder", "prefix", "suffix"])
@pytest.mark.parametrize("value", ["../other/", "/etc/", "a/../../b"])
def test_a_cache_does_not_point_outside(field: str, value: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_frames(root / "v_Diving_g01_c01")
    first = index_frames(root, VIDEOS)
    with np.load(cache_of(root), allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    arrays[field] = np.array([value])
    np.savez(cache_of(root), **arrays)
    again = index_frames(root, VIDEOS)
    assert isinstance(first.frames, FrameFiles) and isinstance(again.frames, FrameFiles)
    assert again.frames.path(0, 0) == first.frames.path(0, 0)


def test_a_link_that_the_owner_of_the_data_placed_is_followed(tmp_path: Path) -> None:
    write_frames(tmp_path / "elsewhere" / "v_Diving_g01_c01")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Diving").symlink_to(tmp_path / "elsewhere")
    assert len(index_frames(tmp_path / "data", VIDEOS)) == 1
    (tmp_path / "root").symlink_to(tmp_path / "data")
    assert len(index_frames(tmp_path / "root", VIDEOS)) == 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    jpeg = cv2.imencode(".jpg", np.full((16, 16, 3), 50, np.uint8))[1].tobytes()
    sources = [PackSource("v_Diving_g01_c01", "Diving", lambda: [jpeg, jpeg])]
    return write_packed(tmp_path_factory.mktemp("made") / "packed", sources, ("Diving",), num_shards=1)


def with_text(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize(
    "name", ["foreign_data.evil.Feature", "antigravity.Feature", "tensorflow_datasets_evil.core.F"]
)
def test_the_features_of_a_dataset_import_nothing(
    key: str, name: str, shards: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorflow-datasets would import the module, and a folder of data below the working directory is importable."""
    folder = tmp_path / "foreign_data"
    shutil.copytree(shards, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with_text(folder, "features.json", '"tensorflow_datasets.core.features.text_feature.Text"', f'"{name}"')
    with_text(folder, "features.json", '"pythonClassName": "' + name, f'"{key}": "{name}')
    with pytest.raises(DataError, match=rf"features\.json: refused, because reading it would run code: .*'{name}'"):
        index_packed(folder, VIDEOS, "train")
    assert not marker.exists() and "foreign_data.evil" not in sys.modules


def test_a_dataset_that_names_shards_outside_is_refused(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    with_text(folder, "dataset_info.json", "{DATASET}-{SPLIT}", "../{DATASET}-{SPLIT}")
    with pytest.raises(DataError, match=r"dataset_info\.json: names a shard outside of its folder|cannot read it"):
        index_packed(folder, VIDEOS, "train")


def test_a_cache_of_shards_does_not_point_outside(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    index_packed(folder, VIDEOS, "train")
    with np.load(cache_of(folder), allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    (name,) = arrays["shards"].tolist()
    other = tmp_path / name
    shutil.copy2(folder / name, other)
    arrays["shards"] = np.array([f"../{name}"])
    np.savez(cache_of(folder), **arrays)
    index = index_packed(folder, VIDEOS, "train")
    assert [Path(path) for path in index.frames.shards] == [folder / name]  # type: ignore[union-attr]


def test_a_packed_name_with_a_control_character_is_left_out() -> None:
    name = b"v_\x1b[2J"
    data = np.frombuffer(name, np.uint8)

    def parsed(*_: Any) -> dict:
        return {"video": [(0, 1)], "label": [0], "name": [(0, len(name))]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_scan, "parse_example", parsed)
        record = Record(0, len(name), "")
        with pytest.raises(ValueError, match=r"its name 'v_\\x1b\[2J' holds a control character"):
            packed_scan._parse_video(data, record, ("video", "label", "name"), 1)


WAYS_OUT = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b.avi",
    "..\\..\\b.avi",
    "\\\\host\\b.avi",
    "C:\\b.avi",
    "C:/b.avi",
    "..",
]


@pytest.mark.parametrize("path", WAYS_OUT)
def test_listed_paths_stay_in_the_data_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"path,label\n{path},Diving\n")
    with pytest.raises(DataError, match=r"train\.csv:2: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "classInd.txt").write_text("1 Diving\n")
    (tmp_path / "trainlist01.txt").write_text(f"{path} 1\n")
    with pytest.raises(DataError, match=r"trainlist01\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")


@pytest.mark.parametrize("name", WAYS_OUT)
def test_class_names_do_not_leave_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"path,label\nv_a_g01_c01.avi,{name}\n")
    with pytest.raises(DataError, match=r"train\.csv:2: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "train.csv").write_text("path,label\nv_a_g01_c01.avi,0\n")
    (tmp_path / "classes.txt").write_text(f"{name}\n")
    with pytest.raises(DataError, match=r"classes\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "classInd.txt").write_text(f"1 {name}\n")
    (tmp_path / "trainlist01.txt").write_text("a/v_a_g01_c01.avi 1\n")
    with pytest.raises(DataError, match=r"classInd\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")


@pytest.mark.parametrize("text", ["v\0.avi", "v\x1b[2J.avi", "v\r.avi", "v\x9b2J.avi"])
def test_names_hold_no_control_characters(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f'path,label\n"{text}",Diving\n', newline="")
    with pytest.raises(DataError, match=r"holds a control character|not CSV") as error:
        read_list(tmp_path, "train")
    assert str(error.value).isprintable()


def test_a_class_name_with_a_slash_is_a_class_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na.mp4,lie/sleep\n")
    assert read_list(tmp_path, "train").class_names == ("lie/sleep",)


def test_prepare_writes_nothing_outside_of_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, lists, out = tmp_path / "videos", tmp_path / "lists", tmp_path / "in" / "out"
    videos.mkdir()
    lists.mkdir()
    (videos / "v_.._g01_c01.avi").write_bytes(b"of a class that its name calls ..")
    before = sorted(tmp_path.iterdir())
    assert main(["prepare", "--videos", str(videos), "--out", str(out)]) == 3
    assert "outside of --out" in (out / "broken.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == [".prepare.lock", "broken.txt", "prepare.json"]
    (lists / "train.csv").write_text("path,label\nv_.._g01_c01.avi,../../../way/out\n")
    (lists / "test.csv").write_text("path,label\nother.avi,Diving\n")
    assert main(["prepare", "--videos", str(videos), "--out", str(tmp_path / "b"), "--lists", str(lists)]) == 2
    assert "leaves the data folder" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "in"])


def test_a_cell_of_a_study_has_a_folder_of_its_own() -> None:
    for label in ("..", ".", ".hidden"):
        with pytest.raises(UserError, match="folder would be called"):
            cells(Study("A title", Config(), {"a": {label: {}}}))
    (cell,) = cells(Study("A title", Config(), {"a": {"x/../y": {}}}))
    assert "/" not in cell.name
