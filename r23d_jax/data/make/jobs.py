"""Decodes many video files in parallel, each into a folder or one file of JPEG frames.

Each is written under a temporary name and renamed when it is complete, so a second run continues where the first one
stopped.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import secrets
import signal
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path, PurePosixPath

import cv2

from r23d_jax.config import UserError
from r23d_jax.data.make.flow import DEFAULT_BOUND, flow_pictures
from r23d_jax.data.make.video import VideoError, iter_frames, rate_at_most
from r23d_jax.runtime import disk, remote
from r23d_jax.runtime.interrupts import put_off_interrupts

PARTIAL = ".partial-"  # starts the names of unfinished work; indexes ignore names that start with a dot
FRAME_NAME = "image_{:05d}.jpg"

_MOST_DEATHS = 8
_LOOK = 0.2  # seconds between two looks whether to stop


class PrepareError(UserError):
    """The preparation cannot continue, e.g. because the disk is full."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One video file to decode into a folder, or into one file."""

    video: str  # a path or a URL
    folder: str  # or the file
    quality: int  # of JPEG, 1 to 100
    short_side: int  # length of the shorter side in pixels; 0 keeps the video's own size
    flow: str = ""  # method of the optical flow to write instead of frames
    flow_bound: float = DEFAULT_BOUND  # displacement in pixels that becomes the largest stored value
    fps: float = 0.0  # frames per second, if the video has as many; 0: all frames
    one_file: bool = False  # an uncompressed ZIP of the frames: shared disks are slow with many small files


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a job: the number of frames written, or why there are none."""

    num_frames: int = 0
    error: str = ""
    rate: float = 0.0  # frames per second of what was written; 0: not known
    seconds: float = 0.0  # of work


def run_jobs(jobs: Iterable[Job], num_workers: int) -> Generator[tuple[Job, Result], None, None]:
    """Decodes videos in `num_workers` processes, and yields (job, result) in order of completion.

    A process that dies (out of memory, a crash in the decoder) does not end the run: the videos it may have been
    working on are tried again one at a time, and a video that kills its process again is reported as broken.

    Raises:
      PrepareError: results cannot be written.
    """
    waiting = deque(jobs)
    deaths = 0
    while waiting:
        for job in (yield from _run_pool(waiting, num_workers)):
            if not (yield from _run_pool(deque([job]), 1)):
                deaths = 0
            else:
                deaths += 1
                if deaths >= _MOST_DEATHS:
                    raise PrepareError(f"{deaths} worker processes died one after the other; is there enough memory?")
                yield job, Result(error="a worker process died while reading it (out of memory, or a decoder crash)")


def _run_pool(waiting: deque[Job], num_workers: int) -> Generator[tuple[Job, Result], None, list[Job]]:
    """Takes jobs from `waiting` until it is empty or a process dies; returns the jobs that were running then."""
    context = multiprocessing.get_context("spawn")  # fork would copy the threads of TensorFlow and OpenCV
    stop = context.Event()
    running: dict[Future[Result], Job] = {}
    finished = False
    with put_off_interrupts() as interrupt_if_asked:
        pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(stop,))
        try:
            while waiting or running:
                while waiting and len(running) < 2 * num_workers:  # so that few jobs are suspect when a process dies
                    running[pool.submit(run_job, waiting[0])] = waiting[0]  # submit raises if a process has just died
                    waiting.popleft()
                done, _ = wait(running, _LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()  # BrokenProcessPool leaves the job in `running`
                    yield running.pop(future), result
                interrupt_if_asked()
            finished = True
        except BrokenProcessPool:
            return list(running.values())
        finally:
            if not finished:
                stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return []


_stop: Event | None = None


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()


def run_job(job: Job) -> Result:
    """Decodes one video, unless its folder or file exists already.

    Raises:
      PrepareError: the result cannot be written, or the video's store does not answer.
    """
    if not remote.is_remote(job.video):
        return _run_job(job)
    with tempfile.TemporaryDirectory(prefix="r23d_jax-") as folder:
        copy = Path(folder) / PurePosixPath(job.video).name
        try:
            content = remote.read(job.video)
        except remote.RemoteError as error:
            raise PrepareError(str(error)) from error
        if content is None:
            return Result(error=f"{job.video}: there is no such file")
        with disk.writing(copy):
            copy.write_bytes(content)
        result = _run_job(dataclasses.replace(job, video=str(copy)))
        return dataclasses.replace(result, error=result.error.replace(str(copy), job.video))


def _run_job(job: Job) -> Result:
    folder, started = Path(job.folder), time.monotonic()
    if os.path.exists(folder):  # False also for a name that is too long, which mkdir then reports
        with contextlib.suppress(VideoError):
            return Result(_count_frames(folder), rate=rate_at_most(Path(job.video), job.fps)[0])
        return Result(_count_frames(folder))
    partial = folder.with_name(f"{PARTIAL}{secrets.token_hex(8)}")  # other machines may write there too
    try:
        number = 0
        with _open_frames(partial, job.one_file) as write:
            for number, jpeg in enumerate(encoded_frames(job), start=1):
                write(FRAME_NAME.format(number), jpeg)
                if _stop is not None and _stop.is_set():
                    return Result(error="stopped")
        rate, _ = rate_at_most(Path(job.video), job.fps)
        if job.one_file:
            disk.sync(partial)
        os.rename(partial, folder)
        return Result(number, rate=rate, seconds=time.monotonic() - started)
    except VideoError as error:
        return Result(error=str(error))
    except OSError as error:
        if error.errno in disk.REMEDIES:
            raise PrepareError(f"cannot write {folder}: {error.strerror}; {disk.REMEDIES[error.errno]}") from error
        return Result(error=f"{job.video}: {error}")
    finally:
        with contextlib.suppress(OSError):
            disk.remove(partial)


@contextlib.contextmanager
def _open_frames(path: Path, one_file: bool) -> Iterator[Callable[[str, bytes], object]]:
    """Yields a function that writes a frame, by name."""
    if one_file:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            yield file.writestr
    else:
        path.mkdir(parents=True)
        yield lambda name, jpeg: (path / name).write_bytes(jpeg)


def _count_frames(path: Path) -> int:
    if path.is_file():
        with zipfile.ZipFile(path) as file:
            return len(file.namelist())
    return sum(not name.startswith(".") for name in os.listdir(path))


def read_frames(path: Path) -> list[bytes]:
    """The JPEG frames of a folder or file that `run_job` wrote, in order."""
    if path.is_file():
        with zipfile.ZipFile(path) as file:
            return [file.read(name) for name in file.namelist()]
    names = sorted((name for name in os.listdir(path) if not name.startswith(".")), key=lambda name: (len(name), name))
    return [(Path(path) / name).read_bytes() for name in names]


def remove_partial(root: Path) -> int:
    """Removes unfinished work that a killed run left below a folder; returns the number of pieces removed."""
    partial = []
    for folder, folders, files in os.walk(root):
        partial += [Path(folder) / name for name in [*folders, *files] if name.startswith(PARTIAL)]
        folders[:] = [name for name in folders if not name.startswith(PARTIAL)]
    for path in partial:
        with contextlib.suppress(OSError):
            disk.remove(path)
    return len(partial)


def encoded_frames(job: Job) -> Iterator[bytes]:
    """Decodes a job's video to JPEG frames; raises VideoError if that is impossible."""
    rate = rate_at_most(Path(job.video), job.fps)[1] if job.fps else 0.0
    images = iter_frames(Path(job.video), job.short_side, channels="bgr", rate=rate)
    if job.flow:
        images = flow_pictures(images, job.flow, job.flow_bound)
    image = None
    for image in images:
        ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, job.quality])
        if not ok:
            raise VideoError(f"{job.video}: a frame of {image.shape[1]}x{image.shape[0]} cannot be written as JPEG")
        yield jpeg.tobytes()
    if image is None:
        raise VideoError(f"{job.video}: one frame only, which has no optical flow")
