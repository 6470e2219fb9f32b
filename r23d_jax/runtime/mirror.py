"""Runs whose folder is in an object store: they work in a folder of this machine, which a thread copies there.

Object stores cannot rename or append, and a run does both. So the URL gets copies: every `SECONDS` seconds the files
that have changed, and each checkpoint once it is complete here, with a marker after its last file. A run begins with
what is at the URL, whatever this machine has kept, and takes only checkpoints with a marker.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from r23d_jax.config import UserError
from r23d_jax.runtime import disk, distributed, remote

SECONDS = 10.0  # between two copies
MARKER = ".whole"  # in the copy of a checkpoint: its files and their sizes, as JSON
# What stays on this machine: compiled programs
_KEPT_HERE = ("compilation_cache",)
_LOCK, _SENDING = ".mirror.lock", ".sending"
_STEP = re.compile(r"checkpoints/(\d+)/(.+)")
# Parts of a run's folder without weights
_NO_WEIGHTS = ("tensorboard/", "profile/", "evaluations/", "compilation_cache/", "wandb/")
# What `status` reads of a run, and of the runs one folder below
_SMALL = re.compile(r"([^/]+/)?((config|heartbeat|cell|outcome)\.json|metrics\.jsonl|checkpoints/\d+/\.whole)")
_TRIAL = ".trial"  # a file that is written at the URL, and removed


@contextlib.contextmanager
def working(workdir: str, log: Callable[[str], None] = print) -> Iterator[Path]:
    """The folder of this machine for a run at `workdir`, a path or a URL.

    For a URL, processes of a job other than process 0 have an empty folder each, which is removed at the end: process 0
    alone reads and writes what is at the URL.

    Raises:
      RemoteError: the store does not answer, or refuses; at the end, the URL lacks something that is in the folder.
      InUse: another process of this machine works on the same run.
    """
    if not remote.is_remote(workdir):
        yield Path(workdir)
        return
    if distributed.process_index() > 0:
        with tempfile.TemporaryDirectory(prefix="r23d_jax_") as folder:
            yield Path(folder)
        return
    here = remote.folder_of("runs", workdir)
    with disk.writing(here):
        here.mkdir(parents=True, exist_ok=True)
    with disk.hold(here, _LOCK, log=log):
        steps = _restore(workdir, here)
        remote.write(b"", remote.join(workdir, _TRIAL))  # a run that cannot be kept must not begin
        remote.remove(remote.join(workdir, _TRIAL))
        found = f"with checkpoints {', '.join(map(str, steps))}" if steps else "without a checkpoint so far"
        log(f"{workdir}: {found}; this run works in {here}, which is copied there every {SECONDS:.0f} seconds")
        mirror = Mirror(here, workdir, steps)
        try:
            yield here
        finally:
            mirror.close()


class Mirror:
    """Copies what changes in a folder to a URL, until `close`.

    One thread copies small files alone, so that the heartbeat is not late while another sends a large checkpoint.

    Args:
      here: the folder, which is as the URL is.
      steps: the checkpoints that both have.
    """

    def __init__(self, here: Path, url: str, steps: list[int]):
        self._here, self._url = here, url
        self._sent = {name: _stamp(path) for name, path in _files(here)}
        self._steps = {step: _step_stamp(here, step) for step in steps}
        self._ended, self._lock = threading.Event(), threading.Lock()
        copies = (self._copy_files, self._copy)
        self._threads = [threading.Thread(target=self._run, args=(c,), name="mirror", daemon=True) for c in copies]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Copies the last changes; raises RemoteError if the store does not take them."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        try:
            self._copy()
        except UserError as error:
            self._mark_unsent()
            raise remote.RemoteError(
                f"{error}. The newest files of the run are in {self._here} alone; copy them to {self._url} before the "
                "run is resumed, which begins with what is there"
            ) from error

    def _mark_unsent(self) -> None:
        """Gives checkpoints that are here alone their markers, so that they count once somebody has copied them."""
        shutil.rmtree(self._here / _SENDING, ignore_errors=True)
        for step in steps_of(self._here):
            if self._steps.get(step) != _step_stamp(self._here, step):
                folder = self._here / "checkpoints" / str(step)
                sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _below(folder)}
                (folder / MARKER).write_text(json.dumps(sizes))

    def _run(self, copy: Callable[[], None]) -> None:
        complained = False
        while not self._ended.wait(SECONDS):
            try:
                copy()
                complained = False
            except Exception as error:  # the next try may succeed, and the last one raises
                if not complained:
                    print(f"{self._url}: not up to date: {error}", file=sys.stderr, flush=True)
                complained = True

    def _copy(self) -> None:
        # First, so that the metrics of a checkpoint are there before it is
        steps = {step: _step_stamp(self._here, step) for step in steps_of(self._here)}
        self._copy_files()
        for step, stamp in sorted(steps.items(), reverse=True):
            if self._steps.get(step) != stamp:
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    self._send_step(step)
                    self._steps[step] = stamp
        # The newest stays, until one that is newer is there as a whole
        for step in self._steps.keys() - set(steps_of(self._here)) - {max(self._steps, default=0)}:
            self._remove_step(step)

    def _copy_files(self) -> None:
        with self._lock:
            files = dict(_files(self._here))
            for name, path in files.items():
                with contextlib.suppress(FileNotFoundError):  # it was replaced or removed meanwhile
                    stamp = _stamp(path)
                    if self._sent.get(name) != stamp:
                        remote.upload(path, remote.join(self._url, name))
                        self._sent[name] = stamp
            for name in self._sent.keys() - files.keys():
                remote.remove(remote.join(self._url, name))
                del self._sent[name]

    def _send_step(self, step: int) -> None:
        """Sends links to the files, because the run may remove the checkpoint meanwhile."""
        folder, links = self._here / "checkpoints" / str(step), self._here / _SENDING
        shutil.rmtree(links, ignore_errors=True)
        found = _below(folder)
        for path in found:
            link = links / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, link)
            except OSError:  # a file system without links
                shutil.copyfile(path, link)
        if not found or _below(folder) != found:
            raise FileNotFoundError(folder)
        names = {link.relative_to(links).as_posix(): link.stat().st_size for link in _below(links)}
        url = remote.join(self._url, f"checkpoints/{step}")
        there = remote.files(url)  # of one that this one replaces, which stays whole as long as possible
        for name in sorted(names, key=lambda name: name in there):
            remote.upload(links / name, remote.join(url, name))
        remote.write(json.dumps(names).encode(), remote.join(url, MARKER))
        for name in there.keys() - names.keys() - {MARKER}:
            remote.remove(remote.join(url, name))
        shutil.rmtree(links)

    def _remove_step(self, step: int) -> None:
        """Removes the copy of a checkpoint, the marker first."""
        url = remote.join(self._url, f"checkpoints/{step}")
        for name in sorted(remote.files(url), key=lambda name: name != MARKER):
            remote.remove(remote.join(url, name))
        self._steps.pop(step, None)


def glance(url: str) -> Path:
    """A copy of the small files of a run, or of the runs in a folder, for `status`.

    Each checkpoint with a marker is a folder that holds the marker.
    """
    return remote.fetched(url, remote.cached("glances", url), lambda name: _SMALL.fullmatch(name) is not None)


def weights_at(path: str) -> Path:
    """A path as it is; for a URL, a copy on this machine of the weights there: a file, a saved folder, or a run."""
    if not remote.is_remote(path):
        return Path(path)
    copy = remote.copied(path, lambda name: not name.startswith(_NO_WEIGHTS) and not name.endswith(MARKER))
    if not copy.exists():  # perhaps a checkpoint of TensorFlow, whose files have this name and an ending
        for url in remote.endings(path):
            remote.copied(url)
    return copy


def _restore(url: str, here: Path) -> list[int]:
    """Makes the folder what is at the URL; returns the steps of its checkpoints."""
    there = remote.files(url)  # before anything is removed: the store may be away
    whole = _whole(url, there)
    unsent = [step for step in steps_of(here) if (here / "checkpoints" / str(step) / MARKER).is_file()]
    if max(unsent, default=-1) > max(whole, default=-1):
        raise UserError(
            f"{here} has checkpoint {max(unsent)}, which could not be copied to {url}: copy its folder checkpoints "
            f"there, or delete {here} to go on without it"
        )
    for path in here.iterdir():
        if path.is_dir() and path.name not in _KEPT_HERE:
            shutil.rmtree(path)
        elif path.is_file() and path.name != _LOCK:
            path.unlink()

    def wanted(name: str) -> bool:
        if name.startswith("checkpoints/"):
            found = _STEP.fullmatch(name)
            return found is not None and int(found[1]) in whole and found[2] != MARKER
        return name.partition("/")[0] not in (*_KEPT_HERE, _TRIAL)

    remote.fetched(url, here, wanted)
    return sorted(whole)


def _whole(url: str, there: Mapping[str, remote.Info]) -> list[int]:
    """The steps of the checkpoints at a URL that are complete, by their markers."""
    whole = []
    for name in there:
        found = _STEP.fullmatch(name)
        if found and found[2] == MARKER:
            content = json.loads(remote.read(remote.join(url, name)) or b"{}")
            sizes = {inner: there.get(f"checkpoints/{found[1]}/{inner}") for inner in content}
            if content and all(info is not None and info.size == content[inner] for inner, info in sizes.items()):
                whole.append(int(found[1]))
    return whole


def steps_of(here: Path) -> list[int]:
    """Complete checkpoints: Orbax renames a folder to its step when it is complete."""
    folder = here / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return [int(path.name) for path in found if path.name.isdecimal() and any(path.iterdir())]


def _step_stamp(here: Path, step: int) -> tuple[int, ...]:
    """Differs for another checkpoint of the same step."""
    try:
        status = (here / "checkpoints" / str(step)).stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_mtime_ns


def _files(here: Path) -> Iterator[tuple[str, Path]]:
    """What is copied as it is."""
    for path in here.iterdir():
        if path.is_file() and not path.name.startswith("."):
            yield path.name, path
        elif path.is_dir() and path.name not in (*_KEPT_HERE, _SENDING, "checkpoints"):
            for inner in _below(path):
                if not inner.name.startswith("."):
                    yield inner.relative_to(here).as_posix(), inner


def _below(folder: Path) -> list[Path]:
    return sorted(Path(above, name) for above, _, names in os.walk(folder) for name in names)


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
