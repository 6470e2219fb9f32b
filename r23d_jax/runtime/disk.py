"""Files that are whole or not there, and folders in which one process works at a time."""

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

_PARTIAL, _REPLACED = ".partial", ".replaced"


class WriteError(UserError, OSError):
    """Something could not be written; the message names it and the remedy."""


class InUse(UserError):
    """Another process holds a folder; the message names both, and the remedy."""


# What a user can put right about a disk, and how; EFBIG comes from a limit on the size of files (ulimit -f).
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "allow larger files",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "write elsewhere, or have the permissions changed",
    errno.EPERM: "write elsewhere, or have the permissions changed",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes of a full disk, a missing permission and the like, met in the block, one message about `path`.

    Raises:
      WriteError: naming `path`, the reason and the remedy; what else may be raised passes through.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES or isinstance(error, WriteError):
            raise
        raise WriteError(
            f"{path}: cannot be written ({error.strerror}): {REMEDIES[error.errno]} and run the same command again; "
            "what was there is untouched"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes its place when the block ends without an error.

    A reader, or whoever comes after a kill or a loss of power, meets the old content or the new, never a part of it. (A
    folder has first to go before another can take its name: for a moment there may be none. After a kill in that moment
    `hold` brings the old one back.) Nobody can guess the temporary name: in a shared folder, such as /tmp, somebody
    else could put a link there.

    Args:
      path: a file, or a folder. The temporary name keeps its ending.

    Raises:
      WriteError: as `writing` does; `path` is untouched then.
      OSError: any other that writing raises; likewise.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{_PARTIAL}{path.suffix}")
    try:
        with writing(path):
            yield partial
            sync(partial)
            if partial.is_dir() and path.exists():  # a folder that is not empty cannot be renamed over
                old = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_REPLACED}")
                os.rename(path, old)
                os.rename(partial, path)
                _remove(old)
            else:
                os.replace(partial, path)
            sync(path.parent, inside=False)
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def write_atomically(path: Path, content: bytes | str) -> None:
    r"""Writes a file as a whole; text as UTF-8, where names of files that are no text become `\udce9` and the like.

    Raises:
      WriteError, OSError: as `replacing`; what was there before is untouched.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def hold(folder: Path, name: str = ".lock", log: Callable[[str], None] | None = None) -> Iterator[IO[str]]:
    """Keeps other processes that ask for the same out of a folder while the block runs.

    The lock is the operating system's, on a file in the folder: it ends with the process, however that ends. The file
    stays, and says who holds it. What a killed holder's `replacing` has left in the folder is settled.

    Args:
      folder: must exist.
      name: of the file.
      log: told where locks are not to be had (some network file systems); then nobody is kept out.

    Yields:
      The locked file: a child process that is given its descriptor holds the lock as well.

    Raises:
      InUse: if another process holds it; names that process.
      WriteError: if this user may not write there.
    """
    path = folder / name
    with writing(folder):
        file = open(path, "a+", encoding="utf-8")  # not "w", which would empty it before it is ours
    with file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "locks are not supported")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise InUse(
                    f"{folder}: {holder} is at work there; wait until it ends, or stop it, or choose another folder"
                ) from None
            if log is not None:
                log(f"{path}: no locks here ({error.strerror}); see to it that nothing else writes there")
        else:
            _tidy(folder)
            with contextlib.suppress(OSError):  # a full disk: the lock itself needs no room
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
        yield file


def sync(path: Path, inside: bool = True) -> None:
    """Waits until the disk has a file, or a folder with all that is in it (or its own entries only).

    For a folder that is one call for everything, since one for each of thousands of small files would take minutes.
    """
    if inside and path.is_dir() and hasattr(os, "sync"):
        os.sync()
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do that for folders
            raise
    finally:
        os.close(handle)


def _tidy(folder: Path) -> None:
    """Brings back a folder that was about to be replaced, and removes what was not finished."""
    with contextlib.suppress(OSError):  # of another user: nothing here needs it to be gone
        for old in folder.glob(f".*{_REPLACED}"):
            path = old.with_name(old.name.removesuffix(_REPLACED)[1:].rpartition(".")[0])
            if path.exists():
                _remove(old)
            else:
                old.rename(path)
        for partial in folder.glob(f".*{_PARTIAL}*"):
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
