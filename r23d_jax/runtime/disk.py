"""Files that are complete or absent, and folders in which one process works at a time."""

import contextlib
import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from r23d_jax.config import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

CACHE = "R23D_CACHE"  # environment variable that names the cache's folder
_PARTIAL, _REPLACED = ".partial", ".replaced"


class WriteError(UserError, OSError):
    """A file or folder could not be written; the message names it and the remedy."""


class InUse(UserError):
    """Another process holds a folder; the message names both, and the remedy."""


# Errors of a disk that a user can correct, and how; EFBIG comes from a limit on the size of files (ulimit -f).
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "allow larger files",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "write elsewhere, or have the permissions changed",
    errno.EPERM: "write elsewhere, or have the permissions changed",
    errno.EISDIR: "name a file instead of a folder",
    errno.ENOTDIR: "name a folder instead of a file above it",
    errno.ENAMETOOLONG: "give a shorter name",
}


def cache_folder(name: str) -> Path:
    """A folder of the cache: below $R23D_CACHE, or else below the user's own cache folder."""
    import pooch

    return Path(os.environ.get(CACHE) or pooch.os_cache("r23d_jax")) / name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into a WriteError with `path`, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES or isinstance(error, WriteError):
            raise
        raise WriteError(
            f"{path}: cannot be written ({error.strerror}): {REMEDIES[error.errno]} and run the same command again; "
            "existing files are untouched"
        ) from error


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path, which replaces `path` when the block ends without an error.

    Readers see the old content or the new, never a part of it, even after a kill or a power cut. A folder must be moved
    away before another can take its name; after a kill in that moment `hold` restores it. The temporary name cannot be
    guessed, because in a shared folder such as /tmp somebody else could put a link there.

    Args:
      path: a file, or a folder. The temporary name keeps its ending.
      durable: wait until the disk has it. Without, a power cut may lose it.

    Raises:
      WriteError: as `writing`; `path` is untouched.
      OSError: any other error of writing; `path` is untouched.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{_PARTIAL}{path.suffix}")
    try:
        with writing(path):
            yield partial
            if durable:
                sync(partial)
            if partial.is_dir() and path.exists():  # a folder that is not empty cannot be renamed over
                old = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_REPLACED}")
                os.rename(path, old)
                os.rename(partial, path)
                remove(old)
            else:
                os.replace(partial, path)
            if durable:
                sync(path.parent, inside=False)
    finally:
        with contextlib.suppress(OSError):
            remove(partial)


def write_atomically(path: Path, content: bytes | str, durable: bool = True) -> None:
    r"""Writes a file by `replacing`; text as UTF-8, in which bytes of a file name that are not text become `\udce9`."""
    with replacing(path, durable) as partial:
        partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def hold(
    folder: Path, name: str = ".lock", log: Callable[[str], None] | None = None, wait: bool = False
) -> Iterator[IO[str]]:
    """Locks a folder against other processes that call this while the block runs.

    The lock is the operating system's, on a file in the folder, and ends with the process. The file stays, and names
    the holder. Leftovers of `replacing` from a killed holder are restored or removed.

    Args:
      folder: must exist.
      log: gets a line where the file system has no locks, as some network file systems; then nobody is kept out.
      wait: until another process that holds it has ended, instead of an error.

    Yields:
      The locked file: a child process that inherits its descriptor holds the lock as well.

    Raises:
      InUse: if another process holds it; the message names that process.
      WriteError: if this user may not write there.
    """
    path = folder / name
    with writing(folder):
        file = open(path, "a+", encoding="utf-8")  # not "w", which would empty another holder's file
    with file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "locks are not supported")
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise InUse(
                    f"{folder}: {holder} is at work there; wait until it ends, or stop it, or choose another folder"
                ) from None
            if log is not None:
                log(f"{path}: no locks here ({error.strerror}); make sure that nothing else writes there")
        else:
            _tidy(folder)
            with contextlib.suppress(OSError):  # a full disk: the lock itself needs no space
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
        yield file


def sync(path: Path, inside: bool = True) -> None:
    """Waits until the disk has a file, or a folder with its content (or, without `inside`, only its entries)."""
    if inside and path.is_dir() and hasattr(os, "sync"):
        os.sync()  # one call, because a call for each of thousands of small files takes minutes
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it for folders
            raise
    finally:
        os.close(handle)


def _tidy(folder: Path) -> None:
    """Restores a folder that was about to be replaced, and removes unfinished files."""
    with contextlib.suppress(OSError):  # another user's leftovers do no harm
        for old in folder.glob(f".*{_REPLACED}"):
            path = old.with_name(old.name.removesuffix(_REPLACED)[1:].rpartition(".")[0])
            if path.exists():
                remove(old)
            else:
                old.rename(path)
        for partial in folder.glob(f".*{_PARTIAL}*"):
            remove(partial)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
