"""Packed shards that `prepare` makes for an object store: built on this machine, indexed, and copied there."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from r23d_jax.config import UserError
from r23d_jax.data.find.class_folders import LISTS
from r23d_jax.data.find.index_cache import prepare_folder, save
from r23d_jax.data.find.packed import CACHE
from r23d_jax.data.find.packed_scan import find_dataset, is_description, read_table
from r23d_jax.data.make.record import BROKEN, PACKED, RECORD
from r23d_jax.runtime import disk, remote
from r23d_jax.runtime.progress import Progress

_AT_ONCE = 4  # files to send


@contextlib.contextmanager
def built_for(out: str, form: str, log: Callable[[str], None] = print) -> Iterator[Path]:
    """The folder of this machine for the results of `prepare --out`, a path or a URL.

    For a URL it is in the cache. It begins with what is at the URL but the shards, is copied there at the end, and then
    removed; after an error it stays, so that the same command continues.

    Raises:
      UserError: another form is to be written to a URL, or the store refuses.
    """
    if not remote.is_remote(out):
        yield Path(out)
        return
    if form != "packed":
        raise UserError(
            f"--out {out}: takes packed shards alone, because a training cannot read frame folders from an object "
            "store; add --format packed"
        )
    here = remote.folder_of("prepared", out)
    if not here.is_dir():
        remote.fetched(out, here, _is_small)
    yield here
    with disk.hold(here):
        _send(here, out, log)
        shutil.rmtree(here)


def _is_small(name: str) -> bool:
    above = name.partition("/")[0]
    return name in (RECORD, BROKEN) or above == LISTS or (above == PACKED and is_description(name))


def _send(here: Path, out: str, log: Callable[[str], None]) -> None:
    shards = sorted((here / PACKED).rglob("*.tfrecord-*"))
    if shards:  # else the ones at the URL need no change
        folder = find_dataset(here / PACKED)
        prepare_folder(folder)
        save(folder, CACHE, vars(read_table(folder)))
    small = [
        Path(above, name)
        for above, _, names in os.walk(here)
        for name in names
        if _is_small(Path(above, name).relative_to(here).as_posix())
    ]

    def send(path: Path) -> None:
        remote.upload(path, remote.join(out, path.relative_to(here).as_posix()))
        show.update()

    with Progress(len(shards) + len(small), "files", "upload", shown=len(shards) >= 8) as show:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(send, shards))
        for path in sorted(small, key=lambda path: path.name == RECORD):  # the record says that the rest is there
            send(path)
    if shards:
        sent = {path.relative_to(here).as_posix() for path in (*shards, *small)}
        url = remote.join(out, PACKED)
        for name in [name for name in remote.files(url) if f"{PACKED}/{name}" not in sent]:
            remote.remove(remote.join(url, name))
        log(f"{len(shards)} shard(s) and their index are in {url}")
