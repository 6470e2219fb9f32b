"""Progress of long work: a bar with a rate and the time left on a terminal, plain lines elsewhere.

And what may go to a terminal at all: names of videos and classes are data, and may hold commands to it.
"""

import contextlib
import sys
import time
import unicodedata
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

PLAIN_LINE_SECONDS = 10.0


class Progress:
    """Counts `total` units of work; use as a context manager.

    On a terminal this is a tqdm bar. Elsewhere (a log file, CI) it prints one line every ten seconds and one at the
    end, so that a log stays readable. `message` prints a line without tearing the bar. The first update often waits for
    a compilation, so it does not count towards the rate once others have followed.

    Args:
      total: units of work in all.
      unit: plural name of a unit, e.g. "clips".
      description: what is being done, e.g. "train".
      initial: units already done, e.g. when a run resumes; they do not count towards the rate.
      stream: where to write; standard error by default.
      shown: False counts, and writes nothing.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        description: str,
        initial: int = 0,
        stream: TextIO | None = None,
        shown: bool = True,
    ):
        self.total, self.unit, self.description = total, unit, description
        self.done = self._initial = self._printed = initial
        self._stream = getattr(stream or sys.stderr, "stream", stream or sys.stderr)  # a bar moves the cursor itself
        self._started = self._last_line = time.monotonic()
        self._first_update: tuple[float, int] | None = None  # when, and what was done by then
        self._note = ""
        self._bar = None
        self._shown = shown
        if shown and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=initial,
                unit=f" {unit}",
                desc=description,
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0.1,
            )

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units; `note` is a short text shown beside them, e.g. the loss."""
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
        """Prints a line of its own, as `printable`."""
        text = printable(text, lines=True)
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._shown:
            print(text, file=self._stream, flush=True)

    def _print_line(self) -> None:
        if not self._shown:
            return
        now = time.monotonic()
        since, done_then = self._first_update or (self._started, self._initial)
        several = self.done > done_then
        if not several:
            since, done_then = self._started, self._initial
        rate = (self.done - done_then) / max(now - since, 1e-9)
        left = (self.total - self.done) / rate if several and rate > 0 else float("inf")
        if self.done >= self.total:
            left = 0.0
        note = f"  {self._note}" if self._note else ""
        print(
            f"{self.description}: {self.done}/{self.total} {self.unit}  {rate:.1f} {self.unit}/s  "
            f"{format_seconds(left)} left{note}",
            file=self._stream,
            flush=True,
        )
        self._last_line, self._printed = now, self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._printed:
            self._print_line()


def format_seconds(seconds: float) -> str:
    """`3:07`, `1:02:33`, or `?` when unknown."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: object, lines: bool = False) -> str:
    """Text as it may stand in a log or on a terminal.

    Control characters, which clear screens and forge lines, characters that turn the direction of writing, and bytes
    of a file name that are no text are written as escapes, e.g. `\\x1b`.

    Args:
      text: anything.
      lines: keep line ends and tabs.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if _is_harmless(char) or (lines and char in "\n\t") else _escaped(char) for char in text)


def _is_harmless(char: str) -> bool:
    return unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


class PrintableStream:
    """A text stream that writes what `printable` makes of everything."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text with its lines; returns its length."""
        self.stream.write(printable(text, lines=True))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Everything that is printed inside passes `printable`, errors included."""
    out: Any = PrintableStream(sys.stdout)
    error: Any = PrintableStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        yield
