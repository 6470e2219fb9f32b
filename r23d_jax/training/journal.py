"""What a run writes down: `metrics.jsonl` and TensorBoard, consistent with the checkpoint that it resumes from."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from r23d_jax.disk import write_atomically
from r23d_jax.evaluation.result import read_metrics


class Journal:
    """Appends rows of metrics to `workdir/metrics.jsonl` and mirrors them in `workdir/tensorboard`.

    Rows written after the checkpoint that a run resumes from describe steps that will be run again; they are taken out
    at the start, so that every step stands in the file once. A torn last line, from a killed process, is dropped too.

    Args:
      workdir: the run's folder.
      resume_step: the step of the checkpoint that the run starts from, 0 for a fresh run.
      active: False on all but the first process of a multi-host run, where nothing is written.
    """

    def __init__(self, workdir: Path, resume_step: int, active: bool = True):
        self.path = workdir / "metrics.jsonl"
        self._active = active
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        if not active:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=30)

    def write(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Writes one row; values that are not finite become null in the file, because JSON has no NaN."""
        row = {"step": step, "epoch": round(epoch, 4)}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.rows.append(row)
        if not self._active:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def has(self, step: int, name: str) -> bool:
        """Whether a metric was already written for a step."""
        return any(row["step"] == step and name in row for row in self.rows)

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._active:
            self._file.close()
            self._board.close()
