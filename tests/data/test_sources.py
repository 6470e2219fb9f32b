"""What a config names as its source becomes an index."""

import dataclasses
import functools
from pathlib import Path

import pytest

from r23d_jax.config import DataConfig
from r23d_jax.data import sources
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
    calls = []
    found = write_videos(tmp_path / "frames", [3])
    monkeypatch.setattr(sources, "index_packed", lambda *args: calls.append(args) or found)
    cfg = DataConfig(source="packed", root=str(tmp_path / "shards"), lists=str(tmp_path / "lists"))
    sources.open_index(cfg, "train")
    assert calls.pop() == (tmp_path / "shards", None, "train")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.csv").write_text("a.avi,Class0\n")
    sources.open_index(cfg, "train")
    root, videos, subset = calls.pop()
    assert (root, subset, videos.entries[0].name) == (tmp_path / "shards", "train", "a")
