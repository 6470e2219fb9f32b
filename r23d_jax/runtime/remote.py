"""Files of object stores, such as s3:// and gs://: listed, read by ranges, copied here and back, with retries.

The work is fsspec's and its packages' for each kind of store (requirements-remote.txt). Every operation is tried again
for `PATIENCE` seconds, unless the answer is final: no such file, or no permission. `RETRIES` counts.
"""

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from r23d_jax.config import UserError
from r23d_jax.runtime import disk, signed

T = TypeVar("T")

PATIENCE = 600.0  # seconds of failures after which an operation is given up
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds before another try
_WRONG_ANSWERS = 5  # with other bytes than expected, after which the object itself must be wrong
_AT_ONCE = 64  # requests
_LARGE = 1 << 26  # bytes; larger files are sent in parts
PIECE = 1 << 23  # bytes of a whole file that one request asks for at most
# Errors of the stores' packages, by the names of their classes, that mean wrong or missing credentials
_REFUSED = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")
# What fsspec's packages are told. Retries are ours, so that they are counted. A name is given, because botocore would
# put one together for each request, which takes a tenth of its time. Newer buckets accept no older signature, which
# botocore would give to addresses. gcsfs compares what has arrived only if it is told to.
_S3 = {"retries": {"max_attempts": 0}, "max_pool_connections": _AT_ONCE}
_S3 |= {"user_agent": "r23d_jax", "signature_version": "s3v4"}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": _S3}, "gs": {"consistency": "md5"}}


class RemoteError(UserError, OSError):
    """Something in an object store cannot be read or written; the message names it and the remedy."""


class Refused(RemoteError):
    """The credentials are wrong or missing, or do not allow it."""


class WrongBytes(Exception):
    """An answer about `url` has another length or checksum than it must have."""

    def __init__(self, url: str, why: str):
        super().__init__(why)
        self.url = url


class Info(NamedTuple):
    """What a listing says about a file."""

    size: int
    stamp: str  # differs after a change


class Retries:
    """Counts the operations that were tried again, and prints every doubling of their number."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self, url: str, error: Exception) -> None:
        """Counts one, because of an error about a URL."""
        with self._lock:
            self.count += 1
            count = self.count
        if count & (count - 1) == 0:
            print(f"{url}: {_reason(error)}; tried again ({count} retries so far)", file=sys.stderr, flush=True)


RETRIES = Retries()


def is_remote(path: object) -> bool:
    """Whether a path is a URL, such as s3://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


def refuse(option: str, value: str) -> None:
    """Raises UserError for a URL where only a path can be used, which would become a folder named `s3:`."""
    if is_remote(value):
        raise UserError(f"{option} {value}: must be a path of this machine; docs/remote.md says what may be a URL")


def join(url: str, name: str) -> str:
    """The URL of a file or folder inside a folder."""
    return f"{url.rstrip('/')}/{name}" if name not in ("", ".") else url


def parent(url: str) -> str:
    """The URL of the folder above; a bucket is its own."""
    scheme, _, rest = url.rstrip("/").partition("://")
    return f"{scheme}://{rest.rpartition('/')[0] or rest}"


def files(url: str) -> dict[str, Info]:
    """All files below a folder, by their path in it; {"": ...} for a file, {} if there is nothing.

    Raises:
      RemoteError: the store does not answer, or refuses.
    """
    system, path = _open(url)
    try:
        found = _trying(url, lambda: system.find(path, detail=True))
    except FileNotFoundError:
        return {}
    above = f"{path.rstrip('/')}/"
    names = {name: "" if name.rstrip("/") == path.rstrip("/") else name.removeprefix(above) for name in found}
    wrong = next((name for name in names.values() if ".." in name.split("/") or name.startswith("/")), "")
    if wrong:
        raise RemoteError(f"{url}: holds {wrong!r}, whose name leaves the folder; rename it")
    return {
        names[name]: Info(int(info["size"] or 0), _stamp(info))
        for name, info in sorted(found.items())
        if not name.endswith("/")  # a folder that a console has made
    }


def endings(url: str) -> list[str]:
    """The files beside a URL whose names are it, a dot and more."""
    system, path = _open(url)
    return [system.unstrip_protocol(name) for name in _trying(url, lambda: system.glob(f"{path}.*"))]


def read_ranges(
    ranges: Sequence[tuple[str, int, int]], problem: Callable[[int, bytes], str] | None = None
) -> list[bytes]:
    """Reads parts (URL, first byte, end) of files of one store, many at once.

    Args:
      ranges: none of them empty.
      problem: (number of the range, bytes) -> what is wrong with them; "" if they are right.

    Raises:
      RemoteError: one cannot be had, or stays wrong.
    """
    if not ranges:
        return []
    found: dict[int, bytes] = {}

    def attempt() -> None:
        left = [number for number in range(len(ranges)) if number not in found]
        starts, ends = [ranges[number][1] for number in left], [ranges[number][2] for number in left]
        answers = _answers([ranges[number][0] for number in left], starts, ends)
        failed: Exception | None = None
        for number, start, end, answer in zip(left, starts, ends, answers, strict=True):
            url = ranges[number][0]
            if isinstance(answer, FileNotFoundError):
                raise RemoteError(f"{url}: there is no such file") from answer
            if isinstance(answer, Exception):
                failed = answer
            elif len(answer) != end - start:
                failed = WrongBytes(url, f"{len(answer)} bytes came instead of {end - start}")
            elif problem and (why := problem(number, answer)):
                failed = WrongBytes(url, why)
            else:
                found[number] = answer
        if failed is not None:
            raise failed

    _trying(ranges[0][0], attempt)
    return [found[number] for number in range(len(ranges))]


def _answers(urls: list[str], starts: list[int], ends: list[int]) -> list[bytes | Exception]:
    system, paths = _open(urls[0])[0], [_open(url)[1] for url in urls]
    answers: list[Any] = [None] * len(urls)
    if urls[0].startswith(signed.STORES):
        answers = signed.cat_ranges(system, paths, starts, ends, _AT_ONCE)
    left = [number for number, answer in enumerate(answers) if not isinstance(answer, bytes)]
    for number in left:
        if isinstance(answers[number], signed.Failed):
            RETRIES.add(urls[number], answers[number])
    if left:
        columns = [[column[number] for number in left] for column in (paths, starts, ends)]
        options = {"batch_size": _AT_ONCE} if system.async_impl else {}
        for number, answer in zip(left, system.cat_ranges(*columns, on_error="return", **options), strict=True):
            answers[number] = answer
    return answers


def read(url: str) -> bytes | None:
    """The content of a small file; None if there is none."""
    system, path = _open(url)
    try:
        return _trying(url, lambda: system.cat_file(path))
    except FileNotFoundError:
        return None


def write(content: bytes, url: str) -> None:
    """Writes a file; readers see the old content or the new."""
    system, path = _open(url)
    _send(url, lambda: system.pipe_file(path, content))


def upload(path: Path, url: str) -> None:
    """Copies a file of this machine to a URL.

    Raises:
      FileNotFoundError: it is not there.
    """
    if path.stat().st_size <= _LARGE:
        write(path.read_bytes(), url)  # may grow meanwhile, as metrics do
    else:
        system, target = _open(url)
        try:
            _send(url, lambda: system.put_file(os.fspath(path), target))
        except RemoteError:
            path.stat()  # perhaps it was removed meanwhile
            raise


def _send(url: str, action: Callable[[], object]) -> None:
    try:
        _trying(url, action)
    except FileNotFoundError as error:
        raise RemoteError(f"{url}: there is no such bucket; make it, or correct its name") from error


def remove(url: str) -> None:
    """Removes a file, if it is there."""
    system, path = _open(url)
    try:
        _trying(url, lambda: system.rm_file(path))
    except FileNotFoundError:
        pass


def remove_folder(url: str) -> None:
    """Removes a folder with all files in it, if it is there."""
    system, path = _open(url)
    with contextlib.suppress(FileNotFoundError):
        _trying(url, lambda: system.rm(path, recursive=True))


def cached(kind: str, url: str = "") -> Path:
    """A folder of the cache for things from object stores; or what it has of a URL, a path that ends as the URL does.

    Raises:
      RemoteError: for a URL that would lead out of the folder.
    """
    scheme, *names = re.split("/+", url.rstrip("/"))
    if ".." in names:
        raise RemoteError(f"{url}: holds '..', which object stores take for a name; write the address without it")
    return disk.cache_folder("remote").joinpath(kind, scheme.removesuffix(":"), *names)


def folder_of(kind: str, url: str) -> Path:
    """A folder of the cache for one URL. Unlike that of `cached`, it is not inside the one of a URL above."""
    name = url.rstrip("/").rpartition("/")[2]
    return cached(kind) / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def copied(url: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A copy, in the cache of this machine, of a file or of the files of a folder.

    Only what has changed since the copy before is fetched. The path ends as the URL does.

    Args:
      url: of the file or folder; nothing there gives a path where nothing is.
      wanted: which files of a folder to take, by their path in it.
    """
    return fetched(url, cached("copies", url), wanted)


def fetched(url: str, to: Path, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """Makes `to` a copy of a file, or of the wanted files of a folder, as `copied` does; returns `to`."""
    there = {name: info for name, info in files(url).items() if wanted(name)}
    table = cached("stamps") / f"{hashlib.sha256(f'{url} {to}'.encode()).hexdigest()[:32]}.json"
    with disk.writing(to):
        table.parent.mkdir(parents=True, exist_ok=True)
    try:
        before: dict[str, Any] = json.loads(table.read_text())
    except (OSError, ValueError):
        before = {}
    for name in before.keys() - there.keys():
        (to / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # folders that are empty now
            for above in list((to / name).parents)[: name.count("/")]:
                above.rmdir()
    now = {name: [info.size, info.stamp] for name, info in there.items()}
    for name, info in there.items():
        target = to / name if name else to
        if before.get(name) != now[name] or not target.is_file() or target.stat().st_size != info.size:
            _download(join(url, name), info.size, target)
    disk.write_atomically(table, json.dumps(now), durable=False)
    return to


def _download(url: str, size: int, to: Path) -> None:
    with disk.writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(to, durable=False) as partial, open(partial, "wb") as file:
        write_ranges(url, size, file)


def write_ranges(url: str, size: int, file: Any) -> None:
    """Writes a whole file into an open one, a few pieces at once."""
    ranges = [(url, start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
    for first in range(0, len(ranges), 4):
        for content in read_ranges(ranges[first : first + 4]):
            file.write(content)


# -- one store ---------------------------------------------------------------------------------------------------------


@functools.cache
def _system(scheme: str) -> Any:
    import fsspec

    # gcsfs would ask for the kind of a bucket, and ask again and warn at each file where it may not know it
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    system = fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    if hasattr(system, "retries"):  # s3fs's own, beside botocore's
        system.retries = 1
    return system


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    try:
        system = _system(url.partition("://")[0])
    except ImportError as error:
        raise UserError(
            f"{url}: needs a package that is not installed ({error}): pip install -r requirements-remote.txt, or "
            '"r23d_jax[remote]"'
        ) from None
    except ValueError as error:
        raise UserError(
            f"{url}: no such kind of store ({error}); give a path, or a URL such as s3://BUCKET/..."
        ) from None
    except Exception as error:  # a package looks for credentials at once
        _refuse(url, error)
    return system, system._strip_protocol(url)


def _refuse(url: str, error: Exception) -> NoReturn:
    raise Refused(
        f"{url}: access is refused ({_reason(error)}); set credentials that may read and write there, for s3:// "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, for gs:// GOOGLE_APPLICATION_CREDENTIALS"
    ) from error


def _trying(url: str, action: Callable[[], T]) -> T:
    """Does something, again and again if it fails for a reason that may pass.

    Raises:
      FileNotFoundError: there is no such file.
      RemoteError: access is refused, or `PATIENCE` is over.
    """
    began, pause, wrong = time.monotonic(), _FIRST_PAUSE, 0
    while True:
        try:
            return action()
        except (FileNotFoundError, UserError):  # a missing package is one
            raise
        except Exception as error:
            code = getattr(error, "code", None)
            forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")  # gcsfs's 403
            if forbidden or code in (401, 403) or type(error).__name__ in _REFUSED:
                _refuse(url, error)
            if type(error).__name__ == "ParamValidationError":  # botocore's, before it asks
                why = " ".join(str(error).split())[:200]
                raise RemoteError(f"{url}: cannot be an address in this store ({why}); correct it") from error
            if isinstance(error, WrongBytes):
                wrong, url = wrong + 1, error.url
            if wrong >= _WRONG_ANSWERS:
                raise RemoteError(
                    f"{url}: {error}, {wrong} times in turn; was it changed, or is it damaged?"
                ) from error
            if time.monotonic() - began > PATIENCE:
                raise RemoteError(
                    f"{url}: no answer for {PATIENCE:.0f} seconds ({_reason(error)}); when the store can be reached, "
                    "run the same command again"
                ) from error
            RETRIES.add(url, error)
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _stamp(info: Mapping[str, Any]) -> str:
    known = (info.get(name) for name in ("ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created"))
    return str(next((value for value in known if value), ""))
