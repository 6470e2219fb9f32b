"""Files that are whole or not there, and folders in which one process works at a time."""

import contextlib
import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from r23d_jax.config import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes its place when the block ends without an error.

    A reader, or whoever comes after a kill or a loss of power, meets the old content or the new, never a part of it.
    Nobody can guess the temporary name: in a shared folder, such as /tmp, somebody else could put a link there.

    Args:
      path: a file, or a folder. The temporary name keeps its ending.

    Raises:
      OSError: as writing raises it; `path` is untouched then.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.partial{path.suffix}")
    try:
        yield partial
        _sync(partial)
        if partial.is_dir() and path.exists():  # a folder that is not empty cannot be renamed over
            shutil.rmtree(path)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def write_atomically(path: Path, content: bytes | str) -> None:
    r"""Writes a file as a whole; text as UTF-8, where names of files that are no text become `\udce9` and the like.

    Raises:
      OSError: if it cannot be written; what was there before is untouched.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def hold(folder: Path, name: str = ".lock", log: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a folder while the block runs.

    The lock is the operating system's, on a file in the folder: it ends with the process, however that ends. The file
    stays, and says who holds it.

    Args:
      folder: must exist.
      name: of the file.
      log: told where locks are not to be had (some network file systems); then nobody is kept out.

    Raises:
      UserError: if another process holds it; names that process.
    """
    path = folder / name
    with open(path, "a+", encoding="utf-8") as file:  # not "w", which would empty it before it is ours
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "locks are not supported")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise UserError(
                    f"{folder}: {holder} is at work there; wait until it ends, or stop it, or choose another folder"
                ) from None
            if log is not None:
                log(f"{path}: no locks here ({error.strerror}); see to it that nothing else writes there")
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def _sync(path: Path) -> None:
    """Waits until the disk has a file, or a folder's own entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do that for folders
            raise
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
