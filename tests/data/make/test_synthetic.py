"""The synthetic set: its classes hold the same pictures, and differ in how they move."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from r23d_jax.config import UserError
from r23d_jax.data.find.frames import FrameFiles, index_frames
from r23d_jax.data.find.splits import read_list
from r23d_jax.data.make import synthetic

SMALL = {"num_groups": 3, "clips_per_group": 2, "test_groups": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "synthetic"
    synthetic.write_synthetic(root, **SMALL)
    return root


def _video(root: Path, class_name: str, group: int, clip: int) -> list[np.ndarray]:
    folder = root / "frames" / class_name / f"v_{class_name}_g{group:02d}_c{clip:02d}"
    files = sorted(folder.glob("image_*.jpg"))
    assert [f.name for f in files] == [f"image_{k:05d}.jpg" for k in range(1, len(files) + 1)]
    frames = [cv2.imread(str(file)) for file in files]
    assert all(frame is not None for frame in frames)
    return [frame for frame in frames if frame is not None]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_any_16_frames_of_any_class_are_the_same_16_pictures(root: Path, group: int) -> None:
    """The proof that appearance does not suffice: on decoded pixels, for every window of every class."""
    for clip in (1, 2):
        whole = Counter(frame.tobytes() for frame in _video(root, "Right", group, clip)[:16])
        assert len(whole) == 16
        for class_name in synthetic.CLASSES:
            frames = [frame.tobytes() for frame in _video(root, class_name, group, clip)]
            assert 24 <= len(frames) <= 40
            for start in range(len(frames) - 15):
                assert Counter(frames[start : start + 16]) == whole


def test_groups_and_clips_look_different(root: Path) -> None:
    pictures = {
        frame.tobytes() for group in (1, 2, 3) for clip in (1, 2) for frame in _video(root, "Right", group, clip)
    }
    assert len(pictures) == 3 * 2 * 16


def _shift(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """By how many quarters of a period of 12 pixels the wallpaper has moved, (right, down), each modulo 4.

    The light and the far edges, where JPEG blocks are cut, do not move; the correlation is far larger than either.
    """
    before, after = (frame[:48, :48].astype(np.float32).mean(-1) for frame in (before, after))
    before, after = before - before.mean(), after - after.mean()
    scores = {
        (x, y): float((np.roll(before, (3 * y, 3 * x), (0, 1)) * after).sum()) for x in range(4) for y in range(4)
    }
    return max(scores, key=lambda move: scores[move])


@pytest.mark.parametrize("class_name", synthetic.CLASSES)
def test_a_class_moves_as_its_name_says(root: Path, class_name: str) -> None:
    for group in (1, 2, 3):
        frames = _video(root, class_name, group, 1)[:17]
        moves = [_shift(before, after) for before, after in itertools.pairwise(frames)]
        horizontal = class_name in ("Left", "Right", "Sway")
        fast, slow = (np.array([move[i if horizontal else 1 - i] for move in moves]) for i in (0, 1))
        if class_name in ("Right", "Down"):
            assert np.all(fast == 1)
        elif class_name in ("Left", "Up"):
            assert np.all(fast == 3)
        else:
            assert [np.count_nonzero(fast == k) for k in range(4)] == [4, 6, 0, 6]
        # Of 16 steps, four move the slow factor, all the same way
        assert np.count_nonzero(slow) == 4 and len(set(slow[slow != 0].tolist())) == 1


def test_slow_direction_and_phase_do_not_depend_on_the_class() -> None:
    """Any class shows all 16 pictures, from every phase, in both slow directions."""
    for class_name in synthetic.CLASSES:
        for direction in (-1, 1):
            for phase in range(16):
                order = synthetic.visiting_order(class_name, direction, phase, 32)
                assert order.shape == (32, 2) and order.min() == 0 and order.max() == 3
                assert all(len(set(map(tuple, order[k : k + 16].tolist()))) == 16 for k in range(17))


def test_lists_hold_out_groups(root: Path) -> None:
    for split in (1, 2, 3):
        train, test = (read_list(root / "lists", subset, split) for subset in ("train", "test"))
        assert train.class_names == test.class_names == synthetic.CLASSES
        assert {entry.group[-2:] for entry in test.entries} == {f"{split:02d}"}
        assert (len(train.entries), len(test.entries)) == (6 * 2 * 2, 6 * 2)
    index = index_frames(root / "frames", read_list(root / "lists", "test", 1), cache=False)
    assert isinstance(index.frames, FrameFiles) and not index.missing
    assert index.names[0] == "v_Bounce_g01_c01" and index.num_frames.min() >= 24


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_arguments_same_bytes_and_another_seed_other_ones(root: Path, tmp_path: Path) -> None:
    synthetic.write_synthetic(tmp_path / "again", **SMALL)
    assert _files(tmp_path / "again") == _files(root)
    synthetic.write_synthetic(tmp_path / "other", seed=1, **SMALL)
    assert _files(tmp_path / "other") != _files(root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing left beside


def test_a_complete_set_is_left_alone_and_another_one_replaced(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    before = (copy / "frames").stat().st_mtime_ns
    synthetic.write_synthetic(copy, **SMALL)
    assert (copy / "frames").stat().st_mtime_ns == before
    synthetic.write_synthetic(copy, **SMALL, seed=5)
    assert json.loads((copy / synthetic.MARKER).read_text())["arguments"]["seed"] == 5
    assert not synthetic.is_complete(copy, {"seed": 0}) and synthetic.is_complete(copy)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    (tmp_path / "empty").mkdir()
    synthetic.write_synthetic(tmp_path / "empty", **SMALL)
    assert synthetic.is_complete(tmp_path / "empty")


def test_a_foreign_folder_is_refused_and_not_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(
        UserError, match=r"holds something that is not the synthetic dataset \(photo\.jpg\).*new folder"
    ):
        synthetic.write_synthetic(tmp_path, **SMALL)
    mixed = tmp_path / "mixed"
    shutil.copytree(root, mixed)
    (mixed / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        synthetic.write_synthetic(mixed, **SMALL, seed=9)
    assert (mixed / "notes.txt").read_text() == "mine" and (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "_write_lists", fail)
    with pytest.raises(OSError, match="No space left"):
        synthetic.write_synthetic(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_groups": 1}, "num_groups=1: must be 2 to 99"),
        ({"clips_per_group": 0}, "clips_per_group=0: must be 1 to 99"),
        ({"num_groups": 4, "test_groups": 4}, "test_groups=4: must be at least 1 and below num_groups=4"),
        ({"height": 8}, "height=8: must be a multiple of 16 pixels, at least 32"),
        ({"height": 48, "width": 40}, "width=40: must be at least height=48"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        synthetic.write_synthetic(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()
