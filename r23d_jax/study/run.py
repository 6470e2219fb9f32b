"""Runs the cells of a study one after the other, each in a process of its own, and keeps what became of them."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r23d_jax import config
from r23d_jax.config import Config
from r23d_jax.runtime import disk
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import format_seconds
from r23d_jax.study.costs import Cost, cost_of
from r23d_jax.study.grid import Cell

CELL, OUTCOME, LOG, LOCK = "cell.json", "outcome.json", "log.txt", ".cell.lock"
LAST_LINES = 5  # of a failed cell's log


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a cell; lies in its folder.

    Attributes:
      status: "done" or "failed".
      seconds: of all its processes together, without pauses between them.
      metrics: of its last evaluation.
      per_class: accuracy by class name; None for a class without videos.
      parameters, gmacs: of the network and one clip.
      device: that it ran on.
      reason: of a failure: the end of its log.
    """

    status: str
    seconds: float
    metrics: dict[str, float]
    per_class: dict[str, float | None]
    parameters: int
    gmacs: float
    device: str = ""
    reason: str = ""


def read_outcome(folder: Path) -> Outcome | None:
    """What became of the cell in a folder; None if it was never run to an end, or its record is damaged."""
    try:
        return Outcome(**json.loads((folder / OUTCOME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def run_cells(cells: list[Cell], workdir: Path, log: Callable[[str], None] = print) -> tuple[int, int]:
    """Runs what is not done yet. A cell that fails is recorded and the rest go on; a failed one is tried again.

    A cell that was stopped goes on from its checkpoint; one that another process is at work on is passed over. Ctrl-C
    stops the running cell, which saves its state, and the study.

    Args:
      cells: in the order in which they run.
      workdir: each cell gets the folder `workdir/<name>`.
      log: takes one line at a time.

    Returns:
      How many are done, and how many failed.
    """
    done = failed = 0
    for number, cell in enumerate(cells, start=1):
        folder = workdir / cell.name
        before = read_outcome(folder)
        if before is not None and before.status == "done":
            done += 1
            continue
        log(f"[{number}/{len(cells)}] {cell.name}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with disk.hold(folder, LOCK, log=log) as lock:
                outcome = _run_cell(cell, folder, before.seconds if before else 0.0, lock.fileno())
        except disk.InUse as error:
            log(f"    passed over: {error}")
            continue
        if outcome.status == "done":
            done += 1
            accuracy = 100 * outcome.metrics["val/top1_video"]
            log(f"    video top-1 {accuracy:.2f} % in {format_seconds(outcome.seconds)}")
        else:
            failed += 1
            log(f"    failed; the rest go on. The end of {folder / LOG}:\n{outcome.reason}")
    return done, failed


def _run_cell(cell: Cell, folder: Path, seconds_before: float, lock: int) -> Outcome:
    cost = cost_of(cell)
    write_atomically(folder / CELL, config.to_json(cell.config) + "\n")
    started = time.monotonic()
    command = [sys.executable, "-m", "r23d_jax", "study", "--cell", str(folder)]
    with (folder / LOG).open("a", encoding="utf-8") as file:
        # With the lock, which so outlives a study that is killed: the cell's process trains on.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock])
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the cell has got it too, and saves its state
            process.wait()
            raise
    seconds = seconds_before + time.monotonic() - started
    outcome = _outcome(folder, status, seconds, cost)
    write_atomically(folder / OUTCOME, json.dumps(dataclasses.asdict(outcome), indent=1) + "\n")
    return outcome


def _outcome(folder: Path, status: int, seconds: float, cost: Cost) -> Outcome:
    evaluation: dict[str, Any] = {}
    if status == 0:
        try:
            evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            status = -1
    if status:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        reason = "\n".join(f"    {line}" for line in [f"exit status {status}", *lines])
        return Outcome("failed", seconds, {}, {}, cost.parameters, cost.gmacs, reason=reason)
    return Outcome(
        status="done",
        seconds=seconds,
        metrics=evaluation["metrics"],
        per_class=dict(zip(evaluation["class_names"], evaluation["per_class"], strict=True)),
        parameters=cost.parameters,
        gmacs=cost.gmacs,
        device=evaluation["environment"]["devices"],
    )


def train_cell(folder: Path) -> int:
    """What the process of a cell does; returns its exit status: 1 where it was stopped before its end."""
    cfg: Config = config.from_json((folder / CELL).read_text(encoding="utf-8"))
    from r23d_jax.training import loop

    return 0 if loop.train(cfg, folder) is not None else 1
