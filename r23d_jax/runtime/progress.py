"""Progress of long work, and the escaping of printed text: names of videos and classes may hold terminal commands."""

import contextlib
import os
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from r23d_jax.config import UserError

PLAIN_LINE_SECONDS = 10.0


class Progress:
    """Counts `total` units of work; a context manager.

    On a terminal this is a tqdm bar. Elsewhere (a log file, CI) it prints a line every ten seconds and one at the end.
    The first update often waits for a compilation, so it does not count towards the rate once others have followed.

    Args:
      unit: plural name of a unit, e.g. "clips".
      initial: units already done, e.g. when a run resumes; they do not count towards the rate.
      shown: False counts without writing.
      after: seconds before anything is written; shorter work is silent.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        description: str,
        initial: int = 0,
        stream: TextIO | None = None,
        shown: bool = True,
        after: float = 0.0,
    ):
        self.total, self.unit, self.description = total, unit, description
        self.done = self._initial = self._printed = initial
        output: Any = stream or sys.stderr
        self._stream: TextIO = getattr(output, "stream", output)  # a bar moves the cursor itself
        self._started = self._last_line = time.monotonic()
        self._first_update: tuple[float, int] | None = None  # its time, and the units done by then
        self._note = ""
        self._bar = None
        self._shown, self._after = shown, after
        if shown and self._stream.isatty():
            place = {"total": total, "initial": initial, "unit": f" {unit}", "desc": description}
            self._bar = tqdm(**place, file=self._stream, dynamic_ncols=True, smoothing=0.1, delay=after)

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units; `note` is a short text to show beside them, e.g. the loss."""
        self.done += count
        if self._first_update is None:
            self._first_update = (time.monotonic(), self.done)
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._print_line()

    def message(self, text: str) -> None:
        """Prints a line, escaped by `printable`, without tearing the bar."""
        text = printable(text, lines=True)
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._shown:
            print(text, file=self._stream, flush=True)

    def seconds_left(self) -> float:
        """The expected time to the end at the rate since the first update; infinite before a second one."""
        since, done_then = self._first_update or (self._started, self.done)
        if self.done <= done_then:
            return 0.0 if self.done >= self.total else float("inf")
        return (self.total - self.done) * (time.monotonic() - since) / (self.done - done_then)

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self.done
        since, done_then = self._first_update or (self._started, self._initial)
        if self.done <= done_then:
            since, done_then = self._started, self._initial
        rate = (self.done - done_then) / max(self._last_line - since, 1e-9)
        note = f"  {self._note}" if self._note else ""
        if self._shown:
            print(
                f"{self.description}: {self.done}/{self.total} {self.unit}  {rate:.1f} {self.unit}/s  "
                f"{format_seconds(self.seconds_left())} left{note}",
                file=self._stream,
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._printed and time.monotonic() - self._started >= self._after:
            self._print_line()


@contextlib.contextmanager
def announced(text: str, say: Callable[[str], None], after: float = 5.0) -> Iterator[None]:
    """Says `text` if the block takes longer than `after` seconds."""
    timer = threading.Timer(after, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def format_seconds(seconds: float) -> str:
    """Formats as `3:07` or `1:02:33`, and infinity as `?`."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: object, lines: bool = False) -> str:
    """Text that is safe in a log or on a terminal.

    Control characters, which clear screens and forge lines, characters that change the direction of writing, and bytes
    of a file name that are not text become escapes, e.g. `\\x1b`. With `lines`, line ends and tabs are kept.
    """

    def is_harmless(char: str) -> bool:
        return unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029" or (lines and char in "\n\t")

    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if is_harmless(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def markdown(text: object) -> str:
    """Printable text in which nothing is markup of Markdown."""
    return re.sub(r"([\\`*<>\[\]|&])", r"\\\1", printable(text))


class OutputError(UserError):
    """Standard output or standard error cannot be written, e.g. because it is a file on a full disk."""


class PrintableStream:
    """A text stream that escapes everything by `printable`."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text with its lines; returns its length."""
        with _written():
            self.stream.write(printable(text, lines=True))
        return len(text)

    def flush(self) -> None:
        """Writes what is still held."""
        with _written():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Raises OutputError where an output cannot be written; BrokenPipeError stays, because a reader may end."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the output cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Escapes everything that is printed inside by `printable`, errors included; a closed stream takes nothing."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out: Any = PrintableStream(sys.stdout or nowhere)
        error: Any = PrintableStream(sys.stderr or nowhere)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            yield
