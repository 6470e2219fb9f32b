"""Pretraining by pseudo-motion and then training on real classes, from the first command to the last."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.config import Config
from r23d_jax.config.motion import MOTIONS, MotionConfig
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.evaluation.run import evaluate_checkpoint
from r23d_jax.models.functional import split_model
from r23d_jax.training import loop
from tests.training.tiny import tiny_config


def moving(root: Path) -> Config:
    """Three steps in two epochs of a clip of each class from each of twelve videos; twelve more are held out."""
    cfg = tiny_config()
    cfg.data.root, cfg.data.lists = str(root / "frames"), str(root / "lists")
    cfg.data.short_side, cfg.data.crop_size, cfg.data.color_jitter = 32, 16, 0.3
    cfg.data.motion = MotionConfig(speeds=(2, 4), gray=0.2)
    cfg.data.repeats, cfg.data.hold_out, cfg.data.flip = 9, 0.5, False
    cfg.train.global_batch_size, cfg.train.epochs, cfg.train.log_every = 72, 2.0, 1  # eight devices
    cfg.eval.views, cfg.eval.num_clips = "uniform", 1
    return cfg


def run(cfg: Config, workdir: Path) -> tuple[loop.EvalResult | None, list[str]]:
    lines: list[str] = []
    return loop.train(cfg, workdir, log=lines.append), lines


@pytest.mark.slow
def test_pretrain_then_train(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "set", num_groups=3, clips_per_group=2, height=32, width=32, test_groups=1)
    cfg = moving(tmp_path / "set")
    result, lines = run(cfg, tmp_path / "pretrain")
    assert result is not None and result.class_names == MOTIONS
    assert np.bincount(result.labels).tolist() == [12] * 9 and result.broken_views == 0  # twelve videos held out
    assert any(line.startswith("test: 108 videos of 9 classes") for line in lines)
    assert "test: each with every class; made of held-out groups of the training list, not of test videos" in lines
    report = (tmp_path / "pretrain" / "report.html").read_text()
    assert all(name in report for name in MOTIONS)
    again = evaluate_checkpoint(cfg, tmp_path / "pretrain", log=lines.append)
    assert again.metrics == result.metrics
    best = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, checkpoint="best"))
    chosen = evaluate_checkpoint(best, tmp_path / "pretrain", log=lines.append).protocol.chosen
    assert chosen == "best on the held-out groups"

    pretrained = split_model(load_checkpoint(tmp_path / "pretrain").model)[1]
    training = dataclasses.replace(moving(tmp_path / "set"), init_from=str(tmp_path / "pretrain"))
    training.data = dataclasses.replace(training.data, motion=MotionConfig(), repeats=1, short_side=16)
    training.train.global_batch_size, training.train.epochs = 8, 1 / 3
    training.optimizer.learning_rate = 1e-9  # so that what was taken is still there
    for skip, said in (
        ((), "init: the classifier starts random: the weights have 9 classes, this run 6"),
        (("head",), "init: head stays random, as config.init_skip says"),
    ):
        training.init_skip = skip
        workdir = tmp_path / f"training{len(skip)}"
        result, lines = run(training, workdir)
        assert result is not None and len(result.class_names) == 6
        assert said in lines and any(" values from " in line for line in lines)
        params = split_model(load_checkpoint(workdir).model)[1]
        assert len(params) == len(pretrained) > 2
        for part in params.keys() - {"head"}:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params[part], pretrained[part])
