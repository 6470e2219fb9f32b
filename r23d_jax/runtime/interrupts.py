"""When and how signals end what runs; a training has `training/interrupt.py`."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does.

    Python drops an exception that a signal raises inside a function called by its memory manager; it is raised again.
    """
    hook = sys.unraisablehook

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    def raise_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main, [signal.SIGTERM]).start()
        else:
            hook(dropped)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def put_off_interrupts() -> Iterator[Callable[[], None]]:
    """Puts off what SIGINT and SIGTERM do until the yielded function is called, or the end.

    A second SIGINT acts at once.

    An exception that strikes inside `concurrent.futures` can leave a lock held, for which its pool then waits for ever.
    """
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    asked: list[int] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            handlers[number](number, frame)
        asked.append(number)

    def act_if_asked() -> None:
        if asked:
            handlers[asked[0]](asked[0], None)

    if threading.current_thread() is threading.main_thread():  # others get no signals
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):  # neither ignored nor the system's own
                handlers[number] = handler
                signal.signal(number, put_off)
    try:
        yield act_if_asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    act_if_asked()
