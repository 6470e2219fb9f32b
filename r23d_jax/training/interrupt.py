"""Turns SIGTERM and SIGINT into a request to stop at the next safe place, the same one on all processes of a job."""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """While active, a first SIGTERM or SIGINT only asks for a stop; a second SIGINT interrupts at once.

    Use as a context manager in the main thread; the previous handlers come back at the end. Elsewhere (a thread of a
    notebook) Python allows no handlers and the request simply never comes.

    On several processes a signal to any of them stops all: jax's preemption service, which already waits for SIGTERM,
    lets them agree on a call of `asked` that none has come to yet.

    Attributes:
      requested: whether to stop. On several processes it changes in `asked` only, and so alike on all.
    """

    def __init__(self, log: Callable[[str], None] = print):
        self.requested = False
        self._log = log
        self._several = jax.process_count() > 1
        self._calls = 0
        self._interrupted = False
        self._previous: dict[int, object] = {}

    def asked(self) -> bool:
        """Whether to stop now. On several processes all must ask together, and get the same answer."""
        if self._several and not self.requested:
            self._calls += 1
            self.requested = multihost_utils.reached_preemption_sync_point(self._calls)
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._interrupted = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # jax's handler tells the others
        else:
            self.requested = True
        with contextlib.suppress(RuntimeError):  # the signal may have struck in the middle of a print
            self._log(
                f"{signal.Signals(number).name}: finishing this step, then saving (Ctrl-C again stops without saving)"
            )

    def __enter__(self) -> Self:
        for number in [signal.SIGINT] if self._several else [signal.SIGTERM, signal.SIGINT]:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
