"""Clips of pseudo-motion that the compiled step makes are those that the host makes."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from r23d_jax.config import DataConfig, preprocessing
from r23d_jax.config.motion import MotionConfig
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import pipeline
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.sources import open_index
from r23d_jax.models.motion import move_pictures
from r23d_jax.runtime import parallel

CFG = DataConfig(
    source="pictures", num_frames=4, short_side=40, crop_size=24, crop="random", repeats=9, hold_out=0.3, flip=False,
    num_workers=2, color_jitter=0.5, motion=MotionConfig(speeds=(2, 4), gray=0.3),
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "rgb": {},
    "rgb_diff": {"input": "rgb_diff", "motion": dataclasses.replace(CFG.motion, colors="clip")},
    "two rounds": {"repeats": 18},
    "colors as they are": {"color_jitter": 0.0, "motion": MotionConfig(speeds=(1, 2))},
}


@pytest.fixture(scope="module")
def index() -> VideoIndex:
    return open_index(CFG, "train")


def batch_of(index: VideoIndex, cfg: DataConfig, on_device: bool) -> dict[str, np.ndarray]:
    broken = BrokenLog(cfg)
    given: dict[str, Any] = {"seed": 3, "global_batch_size": 72, "start_step": 1, "num_steps": 1, "broken": broken}
    (batch,) = pipeline.train_batches(index, cfg, **given, on_device=on_device)
    return batch


def moved(batch: dict[str, Any], cfg: DataConfig) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, jax.jit(lambda rows: move_pictures(rows, preprocessing(cfg)))(batch))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.slow
def test_host_and_device_make_the_same_clips(index: VideoIndex, variant: str) -> None:
    cfg = dataclasses.replace(CFG, **VARIANTS[variant])
    host, device = batch_of(index, cfg, False), batch_of(index, cfg, True)
    assert device["video"].shape[:2] == (72 // cfg.repeats, 1) and device["label"].shape == (
        72 // cfg.repeats,
        cfg.repeats,
    )
    finished = moved(device, cfg)
    assert finished.keys() == host.keys()
    for name in ("label", "mask", "video_id"):
        np.testing.assert_array_equal(finished[name], host[name])
    assert finished["video"].dtype == np.uint8 and finished["video"].shape == host["video"].shape
    difference = np.abs(finished["video"].astype(int) - host["video"])
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.001
    assert host["video"].std() > 20  # there is something to see


def test_eight_devices_make_what_one_makes(index: VideoIndex) -> None:
    batch = batch_of(index, CFG, True)
    results = []
    for count in (1, 8):
        mesh = parallel.make_mesh(devices=jax.devices()[:count])
        results.append(moved(parallel.global_batch(batch, mesh), CFG))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_other_batches_are_left_alone() -> None:
    batch = {"video": np.zeros((1, 1, 2, 2, 3), np.uint8), "label": np.zeros(1)}
    assert move_pictures(batch, preprocessing(CFG)) is batch
