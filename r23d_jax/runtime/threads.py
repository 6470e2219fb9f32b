"""Work of several threads as one stream of results."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
_WAKE_SECONDS = 0.1


class Ended:
    """The end of the results of one item."""


def in_threads(
    work: Callable[[T], Iterator[U]], items: Sequence[T], threads: int, depth: int
) -> Generator[tuple[int, U | Ended | Exception]]:
    """Runs `work` on items in threads, and gives what it yields.

    Args:
      threads: number of threads; they end when the iterator does, or is closed.
      depth: results that may wait; more make the threads wait.

    Yields:
      (row of the item, a result). The last one of each item is an `Ended`, or the exception that ended it.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for row in range(len(items)):
        todo.put(row)
    results: queue.Queue[tuple[int, U | Ended | Exception]] = queue.Queue(depth)
    stop = threading.Event()

    def put(row: int, result: U | Ended | Exception) -> bool:
        while not stop.is_set():
            try:
                results.put((row, result), timeout=_WAKE_SECONDS)
                return True
            except queue.Full:
                pass
        return False

    def run() -> None:
        while not stop.is_set():
            try:
                row = todo.get_nowait()
            except queue.Empty:
                return
            try:
                for result in work(items[row]):
                    if not put(row, result):
                        return
                put(row, Ended())
            except Exception as error:
                put(row, error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(items)))]
    for worker in workers:
        worker.start()
    try:
        left = len(items)
        while left:
            row, result = results.get()
            left -= isinstance(result, (Ended, Exception))
            yield row, result
    finally:
        stop.set()
        for worker in workers:
            worker.join(timeout=1.0)  # one may be busy with an item for long; it ends with the process
