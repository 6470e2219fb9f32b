"""Trainings whose clips are augmented in the compiled step, with several rows of each decoded window."""

import os
import signal
from pathlib import Path

import pytest

from r23d_jax.config import Config
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.runtime.journal import read_metrics
from r23d_jax.training import loop
from tests.training.tiny import tiny_config


def _run(root: Path, workdir: Path, **data: object) -> tuple[EvalResult | None, list[float]]:
    """An evaluation, and the losses; 24 videos of which a step reads 4: 6 steps are an epoch."""
    cfg: Config = tiny_config()
    cfg.data.root, cfg.data.lists = str(root / "frames"), str(root / "lists")
    cfg.data.short_side, cfg.data.crop, cfg.data.color_jitter = 32, "multi_scale", 0.2
    cfg.data.repeats, cfg.train.global_batch_size = 2, 16
    cfg.train.epochs, cfg.train.eval_every, cfg.train.log_every = 1.0, 1.0, 1
    cfg.eval.views, cfg.eval.num_clips, cfg.eval.crops = "uniform", 2, 3
    for name, value in data.items():
        setattr(cfg.data, name, value)
    result = loop.train(cfg, workdir, log=lambda line: None)
    return result, [row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row]


@pytest.mark.slow
def test_a_run_is_the_same_on_host_and_device_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.report, "write_report", lambda *args, **options: tmp_path)  # which nothing here reads
    root = tmp_path / "data"
    write_synthetic(root, num_groups=3, clips_per_group=2, height=32, width=32, test_groups=1)
    whole, losses = _run(root, tmp_path / "whole", augment_on="device")
    assert whole is not None and len(losses) == 3  # 24 videos * 2 rows / 16
    host, host_losses = _run(root, tmp_path / "host", augment_on="host")
    # Pixels differ by a level here and there
    assert host is not None and host_losses == pytest.approx(losses, rel=0.02) and host_losses != losses
    assert (host.num_views == whole.num_views).all() and host.logits == pytest.approx(whole.logits, abs=0.2)

    add = loop.Meter.add

    def add_and_stop(meter: object, step: int, *rest: object) -> None:
        add(meter, step, *rest)  # type: ignore[arg-type]
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Meter, "add", add_and_stop)
        assert _run(root, tmp_path / "stopped", augment_on="device")[0] is None
    resumed, resumed_losses = _run(root, tmp_path / "stopped", augment_on="device")
    assert resumed is not None and resumed.metrics == whole.metrics and resumed_losses == losses
