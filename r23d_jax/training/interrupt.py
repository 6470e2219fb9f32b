"""Turns SIGTERM and SIGINT into a request to stop at the next safe place."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """While active, a first SIGTERM or SIGINT only sets `requested`; a second SIGINT interrupts at once.

    Use as a context manager in the main thread; the previous handlers come back at the end. Elsewhere (a thread of a
    notebook) Python allows no handlers and the request simply never comes.
    """

    def __init__(self, log: Callable[[str], None] = print):
        self.requested = False
        self._log = log
        self._previous: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        name = signal.Signals(number).name
        self._log(f"{name}: finishing this step, then saving (Ctrl-C again stops without saving)")

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
