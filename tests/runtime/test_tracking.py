"""Metrics reach W&B and MLflow offline, a resumed run is the same run there, and a failing service stops nothing."""

import contextlib
import json
import re
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from r23d_jax import config
from r23d_jax.config import Config, UserError
from r23d_jax.runtime import tracking
from r23d_jax.runtime.journal import Journal
from r23d_jax.runtime.tracking import IDS, Trackers


def run_twice(workdir: Path, name: str) -> list[str]:
    """Two steps, then another process that resumes after the first; returns what was logged."""
    cfg, lines = Config(), []
    cfg.logging.to = (name,)
    for first in (1, 2):
        journal = Journal(workdir, resume_step=first - 1, cfg=cfg, log=lines.append)
        for step in range(first, 4):
            journal.write(step, 0.1 * step, {"train/loss": 10.0 * first + step, "train/grad_norm": float("nan")})
        journal.close()
    return lines


@pytest.mark.filterwarnings("ignore")  # of the package
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install -r requirements-logging.txt")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert run_twice(tmp_path, "wandb") == []
    (known,) = json.loads((tmp_path / IDS).read_text()).values()
    files = tmp_path.glob(f"wandb/offline-run-*/run-{known}.wandb")
    content = b"".join(sorted(file.read_bytes() for file in files))
    # Names and JSON values of protobuf records; wandb has no reader of its own for them
    losses, steps = (re.findall(name + rb"\x82\x01.([0-9.]+)", content) for name in (rb"train/loss", rb"\x04step"))
    rows = {(int(step), float(loss)) for step, loss in zip(steps, losses, strict=True)}
    assert rows == {(1, 11.0), (2, 12.0), (2, 22.0), (3, 13.0), (3, 23.0)}
    assert b"optimizer.learning_rate" in content


@pytest.mark.filterwarnings("ignore")  # of the package
def test_mlflow_in_the_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install -r requirements-logging.txt")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    assert run_twice(tmp_path, "mlflow") == []
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        assert base.execute("select name, status from runs").fetchall() == [(tmp_path.name, "FINISHED")]
        rows = base.execute("select step, value from metrics where key = 'train/loss' order by step, value").fetchall()
        params = dict(base.execute("select key, value from params").fetchall())
    assert rows == [(1, 11.0), (2, 12.0), (2, 22.0), (3, 13.0), (3, 23.0)]
    assert params["optimizer.learning_rate"] == str(Config().optimizer.learning_rate)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg = Config()
    cfg.logging.to = ("wandb",)
    with pytest.raises(UserError, match=r"config\.logging\.to: wandb needs the package wandb .*: pip install wandb"):
        tracking.import_packages(cfg.logging)


def test_a_service_that_fails_is_reported_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    class Failing:
        package, id = "json", "7"

        def __init__(self, *arguments: Any):
            assert isinstance(arguments[0], ModuleType)

        def write(self, step: int, metrics: dict[str, float]) -> None:
            written.append(step)
            raise ConnectionError("no route")

        def close(self) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setitem(tracking.TRACKERS, "wandb", Failing)
    cfg, lines = Config(), []
    cfg.logging.to = ("wandb",)
    trackers = Trackers(tmp_path, cfg.logging, {}, lines.append)
    for step in (1, 2):
        trackers.write(step, {"train/loss": 1.0})
    trackers.close()
    assert written == [1]
    assert lines == ["config.logging.to: wandb failed, and gets no more metrics of this run (no route)"]


def test_the_names_are_those_of_the_config() -> None:
    assert set(tracking.TRACKERS) == set(config.TRACKERS)


def test_tensorboard_gets_the_fields(tmp_path: Path) -> None:
    Journal(tmp_path, resume_step=0, cfg=Config()).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"optimizer.learning_rate" in file.read_bytes() and b"_hparams_/session_start_info" in file.read_bytes()
    assert not (tmp_path / IDS).exists()
