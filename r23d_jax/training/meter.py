"""Measures a training: losses, speed, the wait for input, and a profile of some steps."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r23d_jax.config import TrainConfig, UserError
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.runtime import parallel
from r23d_jax.runtime.journal import Journal

# Steps that may be queued on the device before the host waits for the oldest: enough to hide the host's work, few
# enough that queued batches do not fill the device's memory.
STEPS_IN_FLIGHT = 4
STEPS_PER_REPORT = 100  # between two lines about the wait for input


class TrainingDiverged(UserError):
    """The loss became NaN or infinite; the message names the step and the last good checkpoint."""


class Meter:
    """Keeps metrics on the device between log rows, so that the host never waits for the step it has just dispatched.

    Each row holds what every process measured. They exchange it when a row is written, where all of them wait for the
    last step anyway. The slowest is the one that waits longest for its input: the others wait for its gradients.

    Args:
      journal: gets a row every `log_every` steps.
      cfg: `global_batch_size` and `log_every` are read.
      steps_per_epoch: may be fractional.
      newest: the step of the newest checkpoint, or None.
    """

    def __init__(
        self,
        journal: Journal,
        cfg: TrainConfig,
        steps_per_epoch: float,
        broken: BrokenLog,
        say: Callable[[str], None],
        newest: Callable[[], int | None],
    ):
        self._journal, self._broken, self._say, self._newest = journal, broken, say, newest
        self._hosts = parallel.from_processes(socket.gethostname())
        self._slowest = ""
        self._clips, self._log_every, self._steps_per_epoch = cfg.global_batch_size, cfg.log_every, steps_per_epoch
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._waited = 0.0  # since the last row
        self._all_waited = self._all_seconds = 0.0  # since the last line about it
        self._steps = 0
        self.note = ""
        self.restart()

    def restart(self) -> None:
        """Restarts the clock, after an evaluation or a checkpoint has taken time."""
        self._since = time.perf_counter()

    def add(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        """Takes the metrics of a dispatched step that waited `waited` seconds for its batch."""
        self._pending.append((step, metrics))
        self._waited += waited
        self._steps += 1
        if len(self._pending) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - STEPS_IN_FLIGHT][1])
        if step % self._log_every:
            return
        self.flush()
        if self._steps >= STEPS_PER_REPORT:
            share = self._all_waited / self._all_seconds
            slowest = f", longest on {self._slowest}" if self._slowest else ""
            self._say(
                f"step {step}: {share:.1%} of the time of the last {self._steps} steps was waiting for input{slowest}"
            )
            self._all_waited = self._all_seconds = 0.0
            self._steps = 0

    def _restart_from(self) -> str:
        try:
            step = parallel.from_first(self._newest())  # it alone may have the folder
        except UserError as error:
            return str(error)
        if step is None:
            return "there is no checkpoint yet, so it starts from the beginning"
        return (
            f"it goes on from step {step}. If it fails there at once, that state is ruined too: delete "
            f"checkpoints/{step} in the workdir"
        )

    def flush(self) -> None:
        """Fetches the pending metrics, checks them and writes their mean as one row.

        Raises:
          TrainingDiverged: naming the first step whose loss or gradient is not finite.
        """
        if not self._pending:
            return
        last_step = self._pending[-1][0]
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            for name, what in (("train/loss", "loss"), ("train/grad_norm", "norm of the gradient")):
                if not np.isfinite(metrics[name]):
                    raise TrainingDiverged(
                        f"the {what} is {metrics[name]} at step {step}. Lower config.optimizer.learning_rate or set "
                        f"config.optimizer.clip_norm, and run again: {self._restart_from()}"
                    )
        seconds = time.perf_counter() - self._since
        row = {name: float(np.mean([metrics[name] for metrics in fetched])) for name in fetched[0]}
        row["train/learning_rate"] = float(fetched[-1]["train/learning_rate"])
        row["train/clips_per_second"] = len(fetched) * self._clips / seconds
        own = self._waited / seconds, row["train/clips_per_second"] / len(self._hosts), len(self._broken.faults)
        measured = parallel.numbers_from_processes(own)  # (processes, 3)
        row["train/input_wait"] = float(measured[:, 0].max())
        processes = [
            {
                "host": host,
                "input_wait": round(wait, 4),
                "clips_per_second": round(clips, 3),
                "broken_videos": int(count),
            }
            for host, (wait, clips, count) in zip(self._hosts, measured.tolist(), strict=True)
        ]
        notes: dict[str, Any] = {"processes": processes}
        if len(self._hosts) > 1:
            slowest = int(measured[:, 0].argmax())
            notes["slowest"] = self._slowest = f"process {slowest} on {self._hosts[slowest]}"
        self._journal.write(last_step, last_step / self._steps_per_epoch, row, notes)
        self.note = f"loss {row['train/loss']:.3f}  {row['train/clips_per_second']:.0f} clips/s"
        self._all_waited += row["train/input_wait"] * seconds
        self._all_seconds += seconds
        self._pending, self._waited = [], 0.0
        self.restart()


class Profile:
    """Writes a trace of the steps "START:STOP" (none if ""), for TensorBoard and Perfetto, to `workdir/profile`."""

    def __init__(self, steps: str, workdir: Path, say: Callable[[str], None]):
        self._start, self._stop = map(int, steps.split(":")) if steps else (-1, -1)
        self._folder, self._say = workdir / "profile", say
        self._running = False

    def before(self, step: int) -> None:
        """Must be called before the step after `step` steps is dispatched."""
        if step == self._start:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Must be called once `step` steps are dispatched, with the metrics of the last."""
        if self._running and step == self._stop:
            jax.block_until_ready(metrics)
            self.close()
            self._say(
                f"profile of steps {self._start} to {self._stop}: tensorboard --logdir {self._folder}, or open the "
                "perfetto_trace.json.gz in it at ui.perfetto.dev"
            )

    def close(self) -> None:
        """Ends a running trace."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
