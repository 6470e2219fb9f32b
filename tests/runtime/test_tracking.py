"""Metrics reach W&B and MLflow offline, a resumed run is the same run there, and a failing service stops nothing."""

import contextlib
import json
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from r23d_jax import config
from r23d_jax.config import Config, UserError
from r23d_jax.runtime import tracking
from r23d_jax.runtime.journal import Journal
from r23d_jax.runtime.tracking import IDS, Trackers


def run_thrice(workdir: Path, name: str) -> list[str]:
    """Four steps, then two processes that resume after the second, and evaluate; returns what was logged.

    The second one is stopped before it gets as far as the first.
    """
    cfg, lines = Config(), []
    cfg.logging.to = (name,)
    for number, steps in ((1, range(1, 5)), (2, range(3, 4)), (3, range(3, 7))):
        journal = Journal(workdir, resume_step=steps[0] - 1, cfg=cfg, log=lines.append)
        for step in steps:
            journal.write(step, 0.1 * step, {"train/loss": 10.0 * number + step, "train/grad_norm": float("nan")})
            if number > 1:
                journal.write(step, 0.1 * step, {"val/loss": 10.0 * number + step})
        journal.close()
        time.sleep(1.1)  # W&B names the folder of a process by the second
    return lines


def wandb_records(content: bytes) -> Iterator[Any]:
    """The protobuf records in a file of W&B, which is a log of LevelDB; wandb has no reader of its own for it."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")

    place, record, block = 7, b"", 32 * 1024  # after the file's header
    while place + 7 <= len(content):
        if block - place % block < 7:  # no room for the header of a part
            place += block - place % block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield messages.Record.FromString(record)
            record = b""


# By metric: each step once, with the value that was first sent
ROWS = {
    "train/loss": {(1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0), (5, 35.0), (6, 36.0)},
    "val/loss": {(3, 23.0), (4, 34.0), (5, 35.0), (6, 36.0)},
}


@pytest.mark.filterwarnings("ignore")  # of the package
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install -r requirements-logging.txt")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert run_thrice(tmp_path, "wandb") == []
    known = json.loads((tmp_path / IDS).read_text())["wandb"]
    files = tmp_path.glob(f"wandb/offline-run-*/run-{known}.wandb")
    records = [record for file in sorted(files) for record in wandb_records(file.read_bytes())]
    rows = [{item.key or item.nested_key[0]: item.value_json for item in row.history.item} for row in records]
    found = [(name, int(row["step"]), float(row[name])) for row in rows for name in ROWS if name in row]
    assert sorted(found) == sorted((name, *row) for name in ROWS for row in ROWS[name])
    assert any("optimizer.learning_rate" in str(record.run.config) for record in records)


@pytest.mark.filterwarnings("ignore")  # of the package
def test_mlflow_in_the_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install -r requirements-logging.txt")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    assert run_thrice(tmp_path, "mlflow") == []
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        assert base.execute("select name, status from runs").fetchall() == [(tmp_path.name, "FINISHED")]
        rows = base.execute("select key, step, value from metrics order by key, step, value").fetchall()
        params = dict(base.execute("select key, value from params").fetchall())
    assert rows == sorted((name, *row) for name in ROWS for row in ROWS[name])
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


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, list], Any]:
    """What each run got at a service, by its id, and a function that runs from a step to another with services."""
    got: dict[str, list[tuple[str, int]]] = {}

    class Recorder:
        package = "json"

        def __init__(self, module: Any, workdir: Path, cfg: Any, fields: Any, known: str):
            self.id = known or f"{module.__name__}{len(got)}"
            self.rows = got.setdefault(self.id, [])

        def write(self, step: int, metrics: dict[str, float]) -> None:
            self.rows += [(name, step) for name in metrics]

        def close(self) -> None:
            pass

    monkeypatch.setattr(tracking, "TRACKERS", {"wandb": Recorder, "mlflow": Recorder})

    def run(resume_step: int, last: int, *services: str) -> None:
        cfg = Config()
        cfg.logging.to = services
        journal = Journal(tmp_path, resume_step=resume_step, cfg=cfg, log=pytest.fail)
        for step in range(resume_step + 1, last + 1):
            journal.write(step, 0.1, {"loss": 1.0})
        journal.close()

    return got, run


def test_each_service_gets_a_step_once(sent: tuple[dict[str, list], Any]) -> None:
    """Also one that is named later, and that has none of the steps yet; a run from the first step is a new one."""
    got, run = sent
    run(0, 5, "wandb")
    run(2, 3, "wandb", "mlflow")
    run(2, 6, "wandb", "mlflow")
    assert got == {"json0": [("loss", k) for k in range(1, 7)], "json1": [("loss", k) for k in range(3, 7)]}
    run(0, 2, "wandb")
    assert got["json2"] == [("loss", 1), ("loss", 2)] and len(got["json0"]) == 6


def test_a_service_that_was_left_out_for_a_while_gets_no_step_twice_and_misses_none(
    sent: tuple[dict[str, list], Any],
) -> None:
    got, run = sent
    run(0, 5, "wandb")
    run(2, 3)
    run(2, 6, "wandb")
    assert got == {"json0": [("loss", k) for k in (1, 2, 3, 4, 5, 6)]}
    run(6, 10)
    run(7, 10, "wandb")
    assert got == {"json0": [("loss", k) for k in (1, 2, 3, 4, 5, 6, 8, 9, 10)]}


def test_the_names_are_those_of_the_config() -> None:
    assert set(tracking.TRACKERS) == set(config.TRACKERS)


def test_tensorboard_gets_the_fields(tmp_path: Path) -> None:
    Journal(tmp_path, resume_step=0, cfg=Config()).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"optimizer.learning_rate" in file.read_bytes() and b"_hparams_/session_start_info" in file.read_bytes()
    assert not (tmp_path / IDS).exists()
