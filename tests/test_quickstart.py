"""The quickstart's classes cannot be told apart by appearance."""

from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.config import preprocessing
from r23d_jax.data.make import synthetic
from r23d_jax.models.functional import split_model
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.training import loop
from tests.test_launch import get_config


def clips(root: Path) -> np.ndarray:
    """(6 classes, 2 groups, 16, 48, 48, 3) uint8: the first 16 frames of videos that share an appearance."""

    def read(class_name: str, group: int) -> list[np.ndarray]:
        folder = root / "frames" / class_name / f"v_{class_name}_g{group:02d}_c01"
        frames = [cv2.imread(str(folder / f"image_{k:05d}.jpg")) for k in range(1, 17)]
        return [frame[:, :48, ::-1] for frame in frames if frame is not None]

    return np.array([[read(name, group) for group in (1, 2)] for name in synthetic.CLASSES])


@pytest.mark.parametrize(("variant", "blind"), [("f_r2d,avgpool", True), ("r2plus3d,avgpool", False)])
def test_a_network_blind_to_order_gives_all_classes_the_same_scores(variant: str, blind: bool, tmp_path: Path) -> None:
    """So its accuracy is exactly one in six, whatever it has learned: shown for weights far from the initial ones."""
    synthetic.write_synthetic(tmp_path / "set", num_groups=2, clips_per_group=1, test_groups=1)
    videos = clips(tmp_path / "set")
    cfg = get_config(f"quickstart:{variant}")
    network, params, batch_stats = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, 6)))
    rng = np.random.default_rng(0)
    deviation = lambda leaf: 1.5 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3  # noqa: E731
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, deviation(leaf), leaf.shape), jnp.float32), params)
    batch_stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), batch_stats)
    pre = preprocessing(cfg.data)
    score = jax.jit(lambda video: network.apply_eval(params, batch_stats, prepare_video(video, pre)))
    logits = np.asarray(score(videos.reshape(12, 16, 48, 48, 3))).reshape(6, 2, 6)
    scale = np.abs(logits).max()
    among_classes, among_groups = np.ptp(logits, axis=0).max() / scale, np.ptp(logits, axis=1).max() / scale
    assert among_groups > 1e-2
    assert (among_classes < 1e-5) if blind else (among_classes > 3e-4)


@pytest.mark.long
def test_training_a_blind_network_stays_near_chance(tmp_path: Path) -> None:
    cfg = get_config("quickstart:f_r2d,avgpool")
    cfg.data.root = str(tmp_path / "set")
    cfg.train.epochs, cfg.train.eval_every = 3.0, 3.0
    result = loop.train(cfg, tmp_path / "run", log=lambda line: None)
    assert result is not None and result.metrics["val/top1_video"] < 0.3  # chance is 0.17
