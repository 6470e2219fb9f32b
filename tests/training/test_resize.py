"""A run that is stopped and resumed on other numbers of devices."""

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r23d_jax.config import Config
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.make.packed_builder import PackSource, write_packed
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.data.sources import open_index
from r23d_jax.runtime import parallel
from r23d_jax.runtime.journal import read_metrics
from r23d_jax.training import loop
from tests.training.test_loop import config_for, run


def run_on(
    devices: int, cfg: Config, workdir: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int = 0
) -> list[list[int]]:
    """Trains until a signal after `stop_after` steps, or to the end; returns the videos of each batch it has read."""
    read: list[list[int]] = []
    add, train_batches = loop.Meter.add, loop.train_batches

    def add_and_stop(meter: loop.Meter, step: int, *rest: Any) -> None:
        add(meter, step, *rest)
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    def recorded(*args: Any, **options: Any) -> Any:
        for batch in train_batches(*args, **options):
            read.append(batch["video_id"].tolist())
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(
            loop.parallel, "make_mesh", functools.partial(parallel.make_mesh, devices=jax.devices()[:devices])
        )
        patch.setattr(loop.Meter, "add", add_and_stop)
        patch.setattr(loop, "train_batches", recorded)
        patch.setattr(loop.report, "write_report", lambda *args, **options: workdir)  # which nothing here reads
        result, _ = run(cfg, workdir)
    assert (result is None) == bool(stop_after)
    return read


def pack(cfg: Config, folder: Path) -> None:
    """Puts the frames of a config into shards, and takes one after the other."""

    def sources(index: VideoIndex) -> Iterator[PackSource]:
        for video, (name, count) in enumerate(zip(index.names.tolist(), index.num_frames.tolist(), strict=True)):
            frames = [index.frames.read(video, frame) for frame in range(count)]
            yield PackSource(name, index.class_names[index.labels[video]], lambda frames=frames: frames)

    train, test = open_index(cfg.data, "train"), open_index(cfg.data, "test")
    write_packed(folder, [*sources(train), *sources(test)], train.class_names, num_shards=3)
    cfg.data.source, cfg.data.root, cfg.data.shuffle_shards = "packed", str(folder), 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fsdp", "packed"), [(2, True), *(pytest.param(1, packed, marks=pytest.mark.long) for packed in (True, False))]
)
def test_a_run_that_changes_its_size_trains_as_one_that_does_not(
    fsdp: int, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight devices, then four, then one: the same batches and learning rates, and losses that differ by rounding.

    SGD, because Adam turns the rounding of tiny gradients into steps. Sums over devices are taken in another order:
    no loss was seen to move by more than 7e-6.
    """
    root = tmp_path / "set"
    write_synthetic(root, num_groups=3, clips_per_group=2, height=32, width=32, test_groups=1)
    cfg = config_for(root)
    if packed:
        pack(cfg, tmp_path / "packed")
    cfg.optimizer.name, cfg.optimizer.learning_rate = "sgd", 1e-2
    whole = run_on(1, cfg, tmp_path / "whole", monkeypatch)
    cfg.parallel.fsdp = fsdp
    parts = [run_on(8, cfg, tmp_path / "run", monkeypatch, 2), run_on(4, cfg, tmp_path / "run", monkeypatch, 4)]
    cfg.parallel.fsdp = 1
    parts.append(run_on(1, cfg, tmp_path / "run", monkeypatch))
    assert [*parts[0][:2], *parts[1][:2], *parts[2]] == whole and len(whole) == 6
    ours, theirs = ([row for row in read_metrics(tmp_path / name) if "train/loss" in row] for name in ("run", "whole"))
    for name in ("step", "epoch", "train/learning_rate"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    losses, expected = ([row["train/loss"] for row in rows] for rows in (ours, theirs))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
    assert len(set(expected)) == 6
