"""Records metrics in `metrics.jsonl`, TensorBoard and trackers, consistent with the checkpoint of a resumed run."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r23d_jax.config import Config, flat
from r23d_jax.runtime.disk import write_atomically, writing
from r23d_jax.runtime.tracking import Trackers

_MOST_STEPS = 2**53  # a larger number is no step


class Journal:
    """Appends rows of metrics to `workdir/metrics.jsonl` and mirrors them in `workdir/tensorboard`.

    Rows after the checkpoint that a run resumes from describe steps that will run again; they are removed at the start,
    so that every step is in the file once. A torn last line from a killed process is removed too.

    Args:
      resume_step: the step of the checkpoint that the run starts from, 0 for a fresh run.
      evaluated: whether that checkpoint holds an evaluation. If not, the step is evaluated again and its row removed.
      active: False on all but the first process of a multi-host run, which write nothing.
      cfg: the run's config: its fields go to TensorBoard's table of runs, and `logging` names the trackers.

    Raises:
      WriteError: here and from `write` and `sync`, e.g. because the disk is full.
    """

    def __init__(
        self,
        workdir: Path,
        resume_step: int,
        *,
        evaluated: bool = True,
        active: bool = True,
        cfg: Config | None = None,
        log: Callable[[str], None] = print,
    ):
        self.path = workdir / "metrics.jsonl"
        self._active = active
        before = read_metrics(workdir)
        self.rows = [
            row
            for row in before
            if row["step"] < resume_step
            or (row["step"] == resume_step and (evaluated or not any(name.startswith("val/") for name in row)))
        ]
        if not active:
            return
        # First, in case it is missing; and here, because it imports torch where that is installed: two seconds
        from r23d_jax.runtime.board import Board

        workdir.mkdir(parents=True, exist_ok=True)
        self._trackers, fields = None, {}
        if cfg is not None:  # before any row is removed, because the rows say what the services have
            fields = {name: str(v) if isinstance(v, list) else v for name, v in flat(dataclasses.asdict(cfg)).items()}
            self._trackers = Trackers(workdir, cfg.logging, fields, log, before if resume_step else None)
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._board = Board(workdir / "tensorboard", resume_step, fields)
        self._file = self.path.open("a", encoding="utf-8")

    def write(
        self, step: int, epoch: float, metrics: Mapping[str, float], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Writes one row; a value that is not finite becomes null in the file, because JSON has no NaN.

        `notes` are JSON values for the file alone.
        """
        row = {"step": step, "epoch": round(epoch, 4), **(notes or {})}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.rows.append(row)
        if not self._active:
            return
        with writing(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._board.write(step, metrics)
        if self._trackers is not None:
            self._trackers.write(step, metrics)

    def has(self, step: int, name: str) -> bool:
        """Whether a metric was already written for a step."""
        return any(row["step"] == step and name in row for row in self.rows)

    def sync(self) -> None:
        """Returns when the disk has all rows; needed before a checkpoint, whose steps will not run again."""
        if self._active:
            with writing(self.path):
                os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Closes the files and the trackers."""
        if self._active:
            if self._trackers is not None:
                self._trackers.close()
            for file in (self._file, self._board):
                with contextlib.suppress(OSError):  # `write` has raised it already
                    file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, oldest first; lines that are not JSON objects with a step are left out.

    Raises:
      OSError: the file cannot be read. One that is no file, such as a pipe, is not opened.
    """
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also for a number of thousands of digits
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and 0 <= row["step"] < _MOST_STEPS:
            rows.append(row)
    return rows
