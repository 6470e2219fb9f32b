"""Large files of an object store, read in blocks that a bounded cache on this machine's disk keeps.

A block is used only if its checksum is the one that the index of the files has, wherever it comes from. An answer that
was cut, a damaged file of the cache and an object that has changed can therefore never become part of a batch.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import google_crc32c
import numpy as np

from r23d_jax.config import UserError
from r23d_jax.runtime import remote

BLOCK = 1 << 18  # bytes; the last block of a file is shorter
_TOGETHER = remote.PIECE // BLOCK  # blocks that one request asks for at most
_PER_FILE = 4  # blocks that a file of the cache holds, or has holes for
_ROOM = 1 / 8  # of the cache that is free after it was cut back
_RECOUNT = 1 / 16  # of the cache: after so many new bytes, its files are counted again, also those of other processes

Spans = Sequence[tuple[int, int]]  # first byte, length
_Block = tuple[int, int]  # number of the file, number of the block in it


def checksums(data: np.ndarray) -> list[int]:
    """The CRC-32C of every block of a file, (size,) uint8."""
    return [google_crc32c.value(data[start : start + BLOCK].tobytes()) for start in range(0, len(data), BLOCK)]


def num_blocks(sizes: np.ndarray) -> np.ndarray:
    """How many blocks files of these sizes have."""
    return -(-sizes // BLOCK)


class Blocks:
    """Reads parts of files; threads may share it.

    Args:
      urls: of F files.
      sizes: (F,) int64, in bytes.
      checks: uint32, the CRC-32C of every block of every file in turn.
      most_bytes: that the cache may hold, together with what it holds of other files.

    Attributes:
      failed: the error of the first read that was given up. Every later read raises it at once.
    """

    def __init__(self, urls: Sequence[str], sizes: np.ndarray, checks: np.ndarray, most_bytes: float):
        self._urls, self._sizes, self._checks = urls, sizes, checks
        self._first = np.concatenate([[0], np.cumsum(num_blocks(sizes))])
        self._most = most_bytes
        self._folder = remote.cached("blocks")
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._names = [hashlib.sha256(url.encode()).hexdigest()[:32] for url in urls]
        self._lock = threading.Lock()
        self._coming: dict[_Block, Future[bytes]] = {}
        self._stored = float("inf")  # bytes since the cache was counted
        self.failed: UserError | None = None

    def size(self, file: int) -> int:
        """Bytes of a file."""
        return int(self._sizes[file])

    def read_all(self, requests: Sequence[tuple[int, Spans]]) -> list[bytes]:
        """For each (number of a file, spans), the bytes of its spans, joined; b"" if one is not inside the file.

        Raises:
          RemoteError: a block cannot be had.
        """
        if self.failed is not None:
            raise self.failed
        inside = [all(start + count <= self.size(file) for start, count in spans) for file, spans in requests]
        requests = [(file, spans if fits else ()) for (file, spans), fits in zip(requests, inside, strict=True)]
        wanted = {
            (file, number): None
            for file, spans in requests
            for start, count in spans
            for number in range(start // BLOCK, -(-(start + count) // BLOCK))
        }
        try:
            held = self._obtain(wanted)
        except UserError as error:
            self.failed = error
            raise
        return [b"".join([part for span in spans for part in _parts(held, file, *span)]) for file, spans in requests]

    def _obtain(self, wanted: Iterable[_Block]) -> dict[_Block, bytes]:
        held: dict[_Block, bytes] = {}
        own: dict[_Block, Future[bytes]] = {}
        others: dict[_Block, Future[bytes]] = {}
        for block in wanted:
            content = self._load(block)
            if content is not None:
                held[block] = content
                continue
            with self._lock:
                if block in self._coming:
                    others[block] = self._coming[block]
                else:
                    own[block] = self._coming[block] = Future()
        try:
            held |= self._fetch(list(own))
        except BaseException as error:
            for future in own.values():
                future.set_exception(error)
            raise
        else:
            for block, future in own.items():
                future.set_result(held[block])
        finally:
            with self._lock:
                for block in own:
                    del self._coming[block]
        return held | {block: future.result() for block, future in others.items()}

    def _fetch(self, blocks: list[_Block]) -> dict[_Block, bytes]:
        runs: list[list[_Block]] = []
        for file, number in sorted(blocks):
            if runs and runs[-1][-1] == (file, number - 1) and len(runs[-1]) < _TOGETHER:
                runs[-1].append((file, number))
            else:
                runs.append([(file, number)])
        ranges = []
        for run in runs:
            file, first = run[0]
            ranges.append((self._urls[file], first * BLOCK, min((run[-1][1] + 1) * BLOCK, self.size(file))))

        def problem(which: int, content: bytes) -> str:
            for place, block in enumerate(runs[which]):
                if google_crc32c.value(content[place * BLOCK : (place + 1) * BLOCK]) != self._check(block):
                    return f"block {block[1]} has another checksum than the index of the shards has (docs/remote.md)"
            return ""

        held: dict[_Block, bytes] = {}
        for run, content in zip(runs, remote.read_ranges(ranges, problem), strict=True):
            held |= {block: content[place * BLOCK : (place + 1) * BLOCK] for place, block in enumerate(run)}
        for block, content in held.items():
            self._store(block, content)
        return held

    def _check(self, block: _Block) -> int:
        return int(self._checks[self._first[block[0]] + block[1]])

    # -- the cache -----------------------------------------------------------------------------------------------------

    def _place(self, block: _Block) -> tuple[str, int]:
        """The file of the cache that has a block, or will have it, and the block's first byte there."""
        which, number = divmod(block[1], _PER_FILE)
        return f"{self._folder}/{self._names[block[0]]}-{which}", number * BLOCK

    def _load(self, block: _Block) -> bytes | None:
        path, start = self._place(block)
        try:
            with _opened(path, os.O_RDONLY) as file:
                if not any(os.pread(file, 64, start)):  # a hole, most likely; or the file ends before
                    return None
                content = os.pread(file, min(BLOCK, self.size(block[0]) - block[1] * BLOCK), start)
        except OSError:
            return None
        return content if google_crc32c.value(content) == self._check(block) else None

    def _store(self, block: _Block, content: bytes) -> None:
        with self._lock:
            self._stored += len(content)
            if self._stored > _RECOUNT * self._most:
                self._stored = 0.0
                _cut_back(self._folder, (1 - _ROOM) * self._most - len(content))
        path, start = self._place(block)
        try:
            with _opened(path, os.O_WRONLY | os.O_CREAT) as file:
                os.pwrite(file, content, start)
        except OSError as error:  # the disk is full: training continues, more slowly
            _complain(f"{self._folder}: cannot be written ({error.strerror}), so blocks are fetched again each time")


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _parts(held: dict[_Block, bytes], file: int, start: int, count: int) -> list[bytes]:
    end = start + count
    numbers = range(start // BLOCK, -(-end // BLOCK))
    return [held[file, number][max(0, start - number * BLOCK) : end - number * BLOCK] for number in numbers]


def _cut_back(folder: Path, most: float) -> None:
    """Removes the oldest files of the cache until it holds at most so many bytes."""
    found: list[tuple[float, int, str]] = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):  # another process removes files too
                if entry.is_dir():  # of an earlier version, which had a file for each block
                    shutil.rmtree(entry.path, ignore_errors=True)
                    continue
                status = entry.stat()
                found.append((status.st_mtime, 512 * status.st_blocks, entry.path))  # without the holes
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size


_said: set[str] = set()


def _complain(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)
