"""Clips that the compiled step cuts and changes are those that the host makes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r23d_jax.config import CROPS, DataConfig, EvalConfig, preprocessing
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import augment as on_host
from r23d_jax.data.read import pipeline
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.views import largest_frame, make_views
from r23d_jax.models import augment as on_device
from r23d_jax.runtime import parallel
from tests.data.find.frame_sets import encode

SIZES = [(48, 64), (64, 48), (36, 40), (96, 128)]  # as listed by short_side, tall, smaller, larger than the canvas
CFG = DataConfig(
    num_frames=3, short_side=48, crop_size=40, color_jitter=0.4, hue_jitter=0.1, random_gray=0.3, num_workers=2
)
FLOW: dict[str, Any] = {
    "input": "flow",
    "color_jitter": 0.0,
    "hue_jitter": 0.0,
    "random_gray": 0.0,
    "mean": (0.5, 0.5),
    "std": (0.5, 0.5),
}
INPUTS: dict[str, dict[str, Any]] = {
    "rgb": {},
    "rgb_diff": {"input": "rgb_diff"},
    "rgb_and_diff": {"input": "rgb_and_diff"},
    "flow": FLOW,
}

Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    """Two videos of each size, of smooth noise; half of each picture may serve as flow."""
    from r23d_jax.data.find.frames import index_frames
    from r23d_jax.data.find.splits import Entry, VideoList

    root, generator = tmp_path_factory.mktemp("sizes"), np.random.default_rng(0)
    entries = []
    for number in range(2 * len(SIZES)):
        height, width = SIZES[number % len(SIZES)]
        name = f"v_A_g{number:02d}_c01"
        entries.append(Entry(name, number % 2, "AB"[number % 2], name))
        (root / name).mkdir()
        for frame in range(5):
            coarse = generator.integers(0, 256, (height // 4, width // 4, 3)).repeat(4, 0).repeat(4, 1)
            pixels = (coarse[:height, :width] + 7 * frame).clip(0, 255).astype(np.uint8)
            (root / name / f"{frame}.jpg").write_bytes(encode(pixels))
    return index_frames(root, VideoList(("A", "B"), tuple(entries)), cache=False)


def _train(index: VideoIndex, cfg: DataConfig, on_device: bool, start: int = 0, steps: int = 3, **host: int) -> list:
    broken = BrokenLog(cfg)
    batches = pipeline.train_batches(
        index,
        cfg,
        seed=0,
        global_batch_size=16,
        start_step=start,
        num_steps=steps,
        broken=broken,
        on_device=on_device,
        **host,
    )
    found = list(batches)
    assert len(found) == steps and not broken.count
    return found


def _finish(batch: Batch, cfg: DataConfig) -> Batch:
    finish = jax.jit(lambda rows: on_device.finish_clips(rows, preprocessing(cfg)))
    return jax.tree.map(np.asarray, finish(batch))


def _compare(host: list[Batch], device: list[Batch], cfg: DataConfig) -> None:
    """Everything is equal, and pixels are within one level; nearly all are equal too."""
    for made, decoded in zip(host, device, strict=True):
        assert decoded["video"].shape[0] < len(made["label"]) or decoded["window"].shape[1] == 1
        finished = _finish(decoded, cfg)
        assert finished.keys() == made.keys()
        for name in made.keys() - {"video"}:
            np.testing.assert_array_equal(finished[name], made[name])
        assert finished["video"].dtype == np.uint8 and finished["video"].shape == made["video"].shape
        difference = np.abs(finished["video"].astype(int) - made["video"])
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.01
        assert made["video"].std() > 20  # there is something to see


# Every crop and every input: what cuts the windows knows no channels, and what changes the channels no windows.
PAIRS = [*((crop, "rgb") for crop in CROPS), *zip(CROPS, [name for name in INPUTS if name != "rgb"], strict=False)]


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_frames_of_a_large_batch_come_in_parts(index: VideoIndex, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = dataclasses.replace(CFG, num_frames=4)
    whole = _train(index, cfg, True)
    most = -(-whole[0]["video"].nbytes // parts)
    monkeypatch.setattr(pipeline, "MOST_BYTES", most)
    split = _train(index, cfg, True)
    names = ["video", *(f"video_{part}" for part in range(1, parts))]
    for batch, one in zip(split, whole, strict=True):
        assert sorted(name for name in batch if name.startswith("video") and name != "video_id") == names
        assert [batch[name].shape[1] for name in names] == [4 // parts] * parts
        assert all(batch[name].nbytes <= most for name in names)
        np.testing.assert_array_equal(np.concatenate([batch[name] for name in names], 1), one["video"])
        jax.tree.map(np.testing.assert_array_equal, _finish(batch, cfg), _finish(one, cfg))


@pytest.mark.parametrize(
    ("crop", "source"), [*PAIRS[-3:], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS[:-3])]
)
def test_host_and_device_make_the_same_training_clips(index: VideoIndex, crop: str, source: str) -> None:
    cfg = dataclasses.replace(CFG, crop=crop, **INPUTS[source], short_side=24 if source == "flow" else 48)
    if source == "flow":
        cfg = dataclasses.replace(cfg, crop_size=20)
    _compare(_train(index, cfg, False), _train(index, cfg, True), cfg)


@pytest.mark.parametrize("name", on_host.AUGMENTATIONS)
@pytest.mark.slow
def test_every_augmentation_is_the_same_alone(index: VideoIndex, name: str) -> None:
    switches = {"flip": (False, True)}  # others are strengths
    values: dict[str, Any] = {other: switches.get(other, (0.0, 0.5))[other == name] for other in on_host.AUGMENTATIONS}
    cfg = dataclasses.replace(CFG, **values)
    _compare(_train(index, cfg, False), _train(index, cfg, True), cfg)


@pytest.mark.parametrize("changes", [{"antialias": True}, {"dct_scaling": 1.0}, {"repeats": 4}])
@pytest.mark.slow
def test_options_are_the_same_too(index: VideoIndex, changes: dict[str, Any]) -> None:
    cfg = dataclasses.replace(CFG, **changes)
    _compare(_train(index, cfg, False), _train(index, cfg, True), cfg)


def test_a_window_larger_than_the_canvas_is_resized_by_the_host(index: VideoIndex) -> None:
    (batch,) = _train(index, CFG, True, steps=1)
    assert batch["video"].shape[2:4] == on_host.canvas_size(CFG) == (48, 48)
    sizes = {tuple(window[2:]) for window in batch["window"][:, 0].tolist()}
    larger = batch["video_id"][:, 0] % len(SIZES) == 3
    assert np.all(batch["window"][larger, 0, 2:] <= 48) and (40, 40) in sizes and len(sizes) > 3


@pytest.mark.parametrize(
    ("crops", "source"), [(3, "rgb"), *(pytest.param(10, name, marks=pytest.mark.slow) for name in INPUTS)]
)
def test_host_and_device_cut_the_same_crops(index: VideoIndex, crops: int, source: str) -> None:
    cfg = dataclasses.replace(CFG, **INPUTS[source])
    height, width = largest_frame(index)
    assert (height, width) == (96, 128)
    views = make_views(index.num_frames, preprocessing(cfg), EvalConfig(views="uniform", num_clips=2, crops=crops))

    def batches(canvas: tuple[int, int] | None) -> list[Batch]:
        size = 3 * crops  # the last batch is padded
        given = {"batch_size": size, "crops": crops, "canvas": canvas}
        return list(pipeline.eval_batches(index, views, cfg, broken=BrokenLog(cfg), **given))

    made = batches(None)
    _compare(made, batches((height, width)), cfg)
    assert not made[-1]["mask"].all()


@pytest.mark.slow
def test_batches_for_the_device_depend_on_seed_and_step_alone(index: VideoIndex) -> None:
    cfg = dataclasses.replace(CFG, crop="random_resized", repeats=2)
    every = _train(index, cfg, True, steps=5)
    hosts = [_train(index, cfg, True, steps=5, host=host, num_hosts=2) for host in (0, 1)]
    for step, rest in enumerate(_train(index, cfg, True, start=3, steps=2), start=3):
        jax.tree.map(np.testing.assert_array_equal, rest, every[step])
    for whole, *parts in zip(every, *hosts, strict=True):
        jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b)), whole, *parts)


@pytest.mark.slow
def test_repeats_show_one_window_with_other_augmentations(index: VideoIndex) -> None:
    """And the first row of each clip is what it is without repeats."""
    plain = dataclasses.replace(CFG, flip=False, color_jitter=0.0, hue_jitter=0.0, random_gray=0.0)
    (once,) = _train(index, dataclasses.replace(plain, repeats=1), False, steps=1)
    (same,) = _train(index, dataclasses.replace(plain, repeats=4), False, steps=1)
    assert same["video"].shape == once["video"].shape  # global_batch_size counts rows
    for clip in range(4):
        for row in range(4):
            np.testing.assert_array_equal(same["video"][4 * clip + row], once["video"][clip])
            assert same["video_id"][4 * clip + row] == once["video_id"][clip]
    (once,) = _train(index, CFG, False, steps=1)
    (several,) = _train(index, dataclasses.replace(CFG, repeats=4), False, steps=1)
    np.testing.assert_array_equal(several["video"][::4], once["video"][:4])
    for clip in np.split(several["video"], 4):
        assert len({row.tobytes() for row in clip}) == 4
    ids = np.concatenate(
        [batch["video_id"][::4] for batch in _train(index, dataclasses.replace(CFG, repeats=4), False)]
    )
    assert sorted(ids[:8]) == list(range(8))  # an epoch still visits every video once


def test_eight_devices_make_what_one_makes(index: VideoIndex) -> None:
    cfg = dataclasses.replace(CFG, repeats=2)
    (batch,) = _train(index, cfg, True, steps=1)
    finished = []
    for count in (1, 8):
        mesh = parallel.make_mesh(devices=jax.devices()[:count])
        rows = parallel.global_batch(batch, mesh)
        finish = jax.jit(lambda rows: on_device.finish_clips(rows, preprocessing(cfg)))
        finished.append(jax.tree.map(np.asarray, finish(rows)))
    jax.tree.map(np.testing.assert_array_equal, *finished)


def test_both_halves_know_the_same_augmentations() -> None:
    assert list(on_device.AUGMENTATIONS) == list(on_host.AUGMENTATIONS)
    batch = {"video": np.zeros((1, 1, 2, 2, 3), np.uint8), "label": np.zeros(1)}
    assert on_device.finish_clips(batch, preprocessing(CFG)) is batch


@pytest.mark.slow
def test_an_unreadable_video_is_replaced_by_the_same_one(index: VideoIndex, tmp_path: Path) -> None:
    import shutil

    frames: Any = index.frames
    copied = shutil.copytree(Path(str(frames.folder[0])).parent, tmp_path / "frames")
    for path in (copied / str(index.names[0])).glob("*.jpg"):
        path.write_bytes(b"")
    folders = np.array([str(copied / name) for name in index.names.tolist()])
    broken_index = dataclasses.replace(index, frames=dataclasses.replace(frames, folder=folders))
    cfg = dataclasses.replace(CFG, max_broken_fraction=1.0)

    def read(on_device: bool) -> list[Batch]:
        log = BrokenLog(cfg, log=lambda line: None)
        batches = pipeline.train_batches(
            broken_index,
            cfg,
            seed=0,
            global_batch_size=8,
            start_step=0,
            num_steps=2,
            broken=log,
            on_device=on_device,
        )
        found = list(batches)
        assert log.count == 2 and list(log.faults) == [str(index.names[0])]
        return found

    _compare(read(False), read(True), cfg)
