"""Writes the metrics of a run for TensorBoard."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import hparams

from r23d_jax.runtime.disk import writing

BOARD_SECONDS = 30.0  # after which TensorBoard sees new values
COMPARED = ("val/top1_video", "train/loss")  # columns of TensorBoard's table of runs


class Board:
    """A file of events in a folder.

    Args:
      resume_step: the step that the run starts from. TensorBoard forgets later steps of an earlier process.
      fields: of the run's config, for TensorBoard's table of runs; {}: the run is not in it.

    Raises:
      WriteError: here and from `write` and `flush`, e.g. because the disk is full.
    """

    def __init__(self, folder: Path, resume_step: int, fields: Mapping[str, Any]):
        # tensorboardX's own writer has a thread: if that dies on a full disk, the run hangs once a queue is full.
        self._folder = folder
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._file = RecordWriter(f"{folder}/events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._flushed = time.monotonic()
        if fields:
            for summary in hparams(fields, dict.fromkeys(COMPARED, 0.0))[:2]:  # the third would say that it has ended
                self._add(Event(summary=summary))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(Event(step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > BOARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Makes all that was written visible."""
        with writing(self._folder):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file.

        Raises:
          OSError: what was written last could not be kept.
        """
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self._folder):
            self._file.write(event.SerializeToString())
