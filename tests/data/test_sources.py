"""What a config names as its source becomes an index."""

import dataclasses
import functools
from pathlib import Path

import pytest

from r23d_jax.config import DataConfig
from r23d_jax.config.motion import MOTIONS
from r23d_jax.data import sources
from r23d_jax.data.find.picture_header import claimed_size
from r23d_jax.data.make import synthetic
from tests.data.find.frame_sets import write_videos


def test_open_index_writes_the_synthetic_set_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(synthetic.write_synthetic, num_groups=2, clips_per_group=1, test_groups=1)
    monkeypatch.setattr(sources, "write_synthetic", small)
    cfg = DataConfig(source="synthetic", root=str(tmp_path / "set"), lists="nowhere")
    train, test = sources.open_index(cfg, "train"), sources.open_index(cfg, "test")
    assert train.class_names == test.class_names == synthetic.CLASSES
    assert len(train) == len(test) == 6 and not set(train.names) & set(test.names)
    some = sources.open_index(dataclasses.replace(cfg, classes=("Right", "Left"), split=2), "test")
    assert some.class_names == ("Left", "Right") and len(some) == 2


def test_open_index_reads_frames_by_the_lists(tmp_path: Path) -> None:
    write_videos(tmp_path / "frames", [3, 4])
    (tmp_path / "train.csv").write_text("v_Class0_g00_c01.avi,Class0\nv_Class1_g02_c01.avi,Class1\n")
    (tmp_path / "val.csv").write_text("v_Class1_g01_c01.avi,Class1\n")
    cfg = DataConfig(root=str(tmp_path / "frames"), lists=str(tmp_path))
    index = sources.open_index(cfg, "test")
    assert index.names.tolist() == ["v_Class1_g01_c01"] and index.num_frames.tolist() == [4]


def test_open_index_of_packed_data_takes_lists_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, index = [], write_videos(tmp_path / "videos", [1])
    monkeypatch.setattr(sources, "index_packed", lambda *args: calls.append(args) or index)
    cfg = DataConfig(source="packed", root=str(tmp_path / "shards"), lists=str(tmp_path / "lists"))
    sources.open_index(cfg, "train")
    assert calls.pop() == (tmp_path / "shards", None, "train")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.csv").write_text("a.avi,Class0\n")
    sources.open_index(cfg, "train")
    root, videos, subset = calls.pop()
    assert (root, subset, videos.entries[0].name) == (tmp_path / "shards", "train", "a")
    # Without a setting: the lists beside the shards, which `prepare` writes there, or the dataset's own split
    (tmp_path / "lists").rename(tmp_path / "others")
    sources.open_index(dataclasses.replace(cfg, lists=""), "train")
    assert calls.pop()[1] is None
    (tmp_path / "others").rename(tmp_path / "lists")
    sources.open_index(dataclasses.replace(cfg, lists=""), "train")
    assert calls.pop()[1].entries[0].name == "a"


def test_pseudo_motion_is_evaluated_on_groups_of_the_training_list(tmp_path: Path) -> None:
    """Each with every class; neither those that are trained on nor those of the test list."""
    write_videos(tmp_path / "frames", [3] * 9)
    listed = [f"v_Class{n % 3}_g{n:02d}_c01.avi,Class{n % 3}\n" for n in range(9)]
    (tmp_path / "train.csv").write_text("".join(listed[:6]))
    (tmp_path / "val.csv").write_text("".join(listed[6:]))
    cfg = DataConfig(root=str(tmp_path / "frames"), lists=str(tmp_path), hold_out=0.5)
    cfg.motion.speeds = (2, 4)
    train, test, held = (sources.open_index(cfg, subset) for subset in ("train", "test", "held_out"))
    assert train.class_names == test.class_names == MOTIONS
    assert train.names.tolist() == [f"v_Class{n}_g{n:02d}_c01" for n in range(3)] and not train.labels.any()
    assert (
        test.names.tolist()
        == held.names.tolist()
        == [f"v_Class{n % 3}_g{n:02d}_c01 {m}" for n in (3, 4, 5) for m in MOTIONS]
    )
    assert test.labels.tolist() == list(range(9)) * 3 and test.num_frames.tolist() == [3] * 27
    assert [test.frames.locate(row, 0) for row in (0, 9)] == [held.frames.locate(row, 0) for row in (8, 17)]
    assert "v_Class1_g04_c01" in test.frames.locate(10, 0)


def test_pseudo_motion_needs_no_labels(tmp_path: Path) -> None:
    """All videos in one folder, and no lists."""
    write_videos(tmp_path / "frames" / "all", [3] * 10)
    cfg = DataConfig(root=str(tmp_path / "frames"), lists="", hold_out=0.25)
    cfg.motion.speeds = (2, 4)
    train, test = sources.open_index(cfg, "train"), sources.open_index(cfg, "test")
    listed = (tmp_path / "lists" / "val.csv").read_text()
    assert (len(train), len(test)) == (6, 9 * 2) and train.class_names == MOTIONS
    assert not any(name.split()[0] in listed for name in [*train.names, *test.names])


def test_generated_pictures_are_held_out_too() -> None:
    cfg = DataConfig(source="pictures", hold_out=0.25, short_side=40)
    cfg.motion.speeds = (2, 4)
    train, test = sources.open_index(cfg, "train"), sources.open_index(cfg, "test")
    assert len(train) == 1500 and len(test) == 9 * 500 and train.class_names == test.class_names == MOTIONS
    seen, held = ({frames.read(row, 0) for row in range(0, 90, 9)} for frames in (train.frames, test.frames))
    assert len(seen) == len(held) == 10 and not seen & held
    assert test.frames.read(0, 7) == test.frames.read(8, 7) != test.frames.read(9, 7)
    assert claimed_size(train.frames.read(0, 0)) == (40, 53)
