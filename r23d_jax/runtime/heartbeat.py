"""A file that shows from afar whether a run is alive, what it is doing, and how it ended."""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from r23d_jax.config import ConfigError, UserError, look_up
from r23d_jax.config.fields import build
from r23d_jax.runtime.disk import write_atomically

FILE = "heartbeat.json"
SECONDS = 10.0  # between two beats in the same phase
# What a run does -> seconds without a beat after which it counts as dead. Nothing beats during a compilation, the first
# batch of an evaluation, and a checkpoint that a slow disk takes in.
PATIENCE = {"starting": 1800.0, "running": 120.0, "evaluating": 900.0, "saving": 900.0}
ENDS = ("finished", "stopped", "failed")
LONGEST_REASON = 2000  # characters
_LATEST = 1e11  # seconds since 1970: the year 5138


@dataclasses.dataclass(frozen=True)
class Beat:
    """One sign of life."""

    phase: str  # a key of `PATIENCE`, or one of `ENDS`
    time: float  # seconds since 1970
    step: int  # steps done
    # host, process: who gave it; with several processes, the first
    host: str
    process: int
    reason: str = ""  # of the end
    # network, devices: what runs, on what
    network: str = ""
    devices: str = ""
    videos: tuple[int, int] = (0, 0)  # numbers of training and of test videos
    classes: int = 0  # number of classes
    # num_steps, steps_per_epoch: of the whole run; 0 while unknown
    num_steps: int = 0
    steps_per_epoch: float = 0.0


class Heartbeat:
    """Writes `workdir/heartbeat.json` when the phase changes, and otherwise at most every ten seconds.

    The file replaces the one before, without waiting for the disk, so that no step is delayed. If it cannot be written,
    this is logged once, because it must not stop a training. As a context manager, it writes an error of its block as
    the reason of the end.

    Args:
      workdir: the run's folder; must exist when the first beat comes.
      active: False on all but the first process, which write nothing.
    """

    def __init__(self, workdir: Path, *, active: bool = True, log: Callable[[str], None] = print):
        self._path, self._active, self._log = workdir / FILE, active, log
        before = None
        with contextlib.suppress(UserError, OSError):  # a damaged one is replaced
            before = read_heartbeat(workdir)
        # Where the run was is still true of a resumed one that fails before its first step
        before = before or Beat("", 0.0, 0, "", 0)
        self._beat = dataclasses.replace(before, host=socket.gethostname(), process=os.getpid(), reason="")
        self._written = float("-inf")

    def describe(self, **facts: Any) -> None:
        """Sets fields of every later beat."""
        self._beat = dataclasses.replace(self._beat, **facts)

    def beat(self, phase: str, step: int | None = None) -> None:
        """Says that the run is in a phase of `PATIENCE`, after `step` steps (None: as before)."""
        changed = phase != self._beat.phase
        self.describe(phase=phase, step=self._beat.step if step is None else step)
        if changed or time.monotonic() - self._written >= SECONDS:
            self._write()

    def end(self, phase: str, reason: str = "") -> None:
        """Writes how the run ended, one of `ENDS`, and why."""
        self.describe(phase=phase, reason=reason[:LONGEST_REASON])
        self._write()

    def fail(self, error: BaseException) -> None:
        """Writes an error as the end."""
        self.end("failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)

    def _write(self) -> None:
        self._written = time.monotonic()
        if not self._active:
            return
        self.describe(time=time.time())
        try:
            write_atomically(self._path, json.dumps(dataclasses.asdict(self._beat)) + "\n", durable=False)
        except OSError as error:
            self._active = False
            self._log(f"{self._path}: cannot be written, so `status` will take this run for dead ({error})")


def read_heartbeat(workdir: Path) -> Beat | None:
    """The last beat; None without a file. Raises ConfigError if the file is damaged, OSError if it cannot be read."""
    if not (workdir / FILE).is_file():  # a pipe would wait for a writer
        return None
    text = (workdir / FILE).read_text(encoding="utf-8", errors="replace")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{FILE}: not JSON ({error})") from None
    beat = build(values, Beat, FILE)
    look_up(dict.fromkeys((*PATIENCE, *ENDS)), beat.phase, f"{FILE}: phase")
    if not 0 <= beat.time < _LATEST:
        raise ConfigError(f"{FILE}: time={beat.time:g}: is no time in seconds since 1970")
    return beat


def is_dead(beat: Beat, now: float, step_seconds: float = 0.0) -> bool:
    """Whether a run that has not written its end gives no sign of life `now`, in seconds since 1970.

    With a training step of ten minutes (`step_seconds`), silence is no sign of death.
    """
    if beat.phase in ENDS:
        return False
    if beat.host == socket.gethostname() and not _exists(beat.process):
        return True
    return abs(now - beat.time) > max(PATIENCE[beat.phase], 10 * step_seconds)  # before: by a clock that is ahead


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or no number of a process
        return True
    return True
