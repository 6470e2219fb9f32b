"""Sends the metrics of a run to Weights & Biases or MLflow too, if `config.logging.to` names them.

Nothing goes over the network unless the environment asks for it: W&B writes offline runs unless WANDB_MODE is set, and
MLflow writes a database in the workdir unless MLFLOW_TRACKING_URI is set.
"""

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from r23d_jax.config import LoggingConfig, UserError, look_up
from r23d_jax.runtime.disk import write_atomically

# In the workdir: the run's id at each service, so that a resumed run is the same run there, and what it was sent
IDS, SENT, OPEN = "tracking.json", "sent", "open"
PARAMS_PER_CALL = 100  # MLflow's limit


class Tracker(Protocol):
    """A service that takes metrics."""

    id: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step."""

    def close(self) -> None:
        """Sends or writes what is pending."""


class WandB:
    """Weights & Biases. Neither the console, nor code, nor the state of git, nor the machine's load is recorded."""

    package = "wandb"

    def __init__(self, module: Any, workdir: Path, cfg: LoggingConfig, fields: Mapping[str, Any], known: str):
        self._run = module.init(
            project=cfg.project,
            name=workdir.name,
            dir=workdir,
            config=dict(fields),
            id=known or None,
            resume="allow" if known else None,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=module.Settings(
                silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True
            ),
        )
        self._run.define_metric("*", step_metric="step")  # its own counter cannot go back to a checkpoint
        self.id = self._run.id

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow, by its client, which leaves the process's own active run alone."""

    package = "mlflow"

    def __init__(self, module: Any, workdir: Path, cfg: LoggingConfig, fields: Mapping[str, Any], known: str):
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{workdir.absolute()}/mlflow.db")
        self._entities, self._client = module.entities, module.MlflowClient(tracking_uri=store)
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(cfg.project)
        folder = {} if "MLFLOW_TRACKING_URI" in os.environ else {"artifact_location": str(workdir / "mlflow")}
        experiment = found.experiment_id if found else self._client.create_experiment(cfg.project, **folder)
        self.id = self._client.create_run(experiment, run_name=workdir.name).info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in fields.items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self.id, params=params[start : start + PARAMS_PER_CALL])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        rows = [self._entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.id, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self.id)


TRACKERS = {"wandb": WandB, "mlflow": MLflow}


def import_packages(cfg: LoggingConfig) -> dict[str, Any]:
    """The packages that `cfg.to` needs.

    Raises:
      UserError: if one is missing.
    """
    modules = {}
    for name in cfg.to:
        package = look_up(TRACKERS, name, "config.logging.to").package
        try:
            modules[name] = importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"config.logging.to: {name} needs the package {package} ({error}): pip install {package}"
            ) from None
    return modules


class Trackers:
    """The services of a run. One that fails is reported once and left out, because it must not stop a training.

    Args:
      workdir: the run's folder.
      cfg: names the services.
      fields: the flat fields of the config, which become the run's parameters.
      log: takes one line at a time.
      rows: of a run that resumes: all rows that were written before, also those of steps that run again. These are not
        sent again, because the services keep both values. None: the run starts at its first step, and is a new run at
        the services.

    Raises:
      UserError: if a package is missing.
    """

    def __init__(
        self,
        workdir: Path,
        cfg: LoggingConfig,
        fields: Mapping[str, Any],
        log: Callable[[str], None],
        rows: Iterable[Mapping[str, Any]] | None = None,
    ):
        self._log = log
        self._open: dict[str, Tracker] = {}
        path = workdir / IDS
        known = json.loads(path.read_text(encoding="utf-8")) if rows is not None and path.exists() else {}
        ordered = sorted(rows or (), key=lambda row: row["step"])
        last = {name: row["step"] for row in ordered for name, value in row.items() if value is not None}
        before = known.pop(SENT, {})  # rows that an earlier resume removed from the file
        took = known.pop(OPEN, list(known))  # the services that got the rows of the process before
        self._sent = {name: _later(before.get(name, {}), last if name in took else {}) for name in known}
        for name, module in import_packages(cfg).items():
            try:
                self._open[name] = TRACKERS[name](module, workdir, cfg, fields, known.get(name, ""))
            except Exception as error:
                self._report(name, error)
        known |= {name: tracker.id for name, tracker in self._open.items()}
        if known:  # also if none is open now: the rows that the journal removes are known here alone
            write_atomically(path, json.dumps(known | {SENT: self._sent, OPEN: list(self._open)}) + "\n")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the finite metrics of a step to the services that do not have them yet."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name, tracker in list(self._open.items()):
            sent = self._sent.get(name, {})
            new = {metric: value for metric, value in finite.items() if step > sent.get(metric, -1)}
            if not new:
                continue
            try:
                tracker.write(step, new)
            except Exception as error:
                self._report(name, error)

    def close(self) -> None:
        """Ends the run at every service."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except Exception as error:
                self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        self._log(f"config.logging.to: {name} failed, and gets no more metrics of this run ({error})")


def _later(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """The later step of each metric."""
    return {name: max(one.get(name, -1), other.get(name, -1)) for name in {**one, **other}}
