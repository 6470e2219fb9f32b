"""Turns SIGTERM and SIGINT into a request to stop at the next safe place, the same one on all processes of a job."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """While active, a first SIGTERM or SIGINT only requests a stop; a second SIGINT interrupts at once.

    Use it as a context manager in the main thread; the previous handlers are restored at the end. Python allows no
    handlers in other threads, such as those of a notebook, so no request arrives there.

    With several processes, a signal to any of them stops all: jax's preemption service, which already waits for
    SIGTERM, lets them agree on a call of `asked` that none has reached yet.

    Attributes:
      requested: whether to stop. With several processes it changes in `asked` only, and therefore equally on all.
    """

    def __init__(self, log: Callable[[str], None] = print):
        self.requested = False
        self._log = log
        self._several = jax.process_count() > 1
        self._calls = 0
        self._interrupted = False
        self._previous: dict[int, object] = {}
        self._previous_fd = -1

    def asked(self) -> bool:
        """Whether to stop now. All processes must ask together, and get the same answer."""
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

    def _answer(self, signals: socket.socket) -> None:
        """Logs the first signal at once: the handler itself waits until a compilation or a step ends."""
        answered = False
        with signals:
            while numbers := signals.recv(64):  # empty after `__exit__`
                known = [number for number in numbers if number in (signal.SIGINT, signal.SIGTERM)]
                if known and not answered:
                    answered = True
                    name = signal.Signals(known[0]).name
                    self._log(f"{name}: finishing this step, then saving (Ctrl-C again stops without saving)")

    def __enter__(self) -> Self:
        reader, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        self._thread = threading.Thread(target=self._answer, args=(reader,), daemon=True)
        self._thread.start()
        with contextlib.suppress(ValueError):  # not the main thread
            self._previous_fd = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        for number in [signal.SIGINT] if self._several else [signal.SIGTERM, signal.SIGINT]:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(self._previous_fd)
        self._signals.close()
        self._thread.join()
