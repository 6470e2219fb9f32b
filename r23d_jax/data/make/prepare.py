"""Decoding many video files in parallel: into folders of JPEG frames, or into one file of JPEG frames per video.

Each video is written under a temporary name and renamed when complete, so what has its final name is whole, and a
second run goes on where the first stopped.
"""

import dataclasses
import multiprocessing
import os
import shutil
import struct
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path

import cv2

from r23d_jax.config import UserError
from r23d_jax.data.make.flow import DEFAULT_BOUND, flow_pictures
from r23d_jax.data.make.video import VideoError, iter_frames
from r23d_jax.runtime import disk

PARTIAL = ".partial-"  # start of the names of unfinished work; indexes pass over names that start with a dot
FRAME_NAME = "image_{:05d}.jpg"

_MOST_DEATHS = 8


class PrepareError(UserError):
    """Preparing cannot go on, e.g. because the disk is full."""


class Stopped(Exception):
    """The run was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One video to decode.

    Attributes:
      video: the file.
      folder: frame folder to write; "" for none.
      staged: file of all frames to write (read it with `read_staged`); "" for none.
      quality: of the JPEGs, 1 to 100.
      short_side: pixels, 0 for the video's own size.
      flow: method of the optical flow to write instead of frames; "" for frames.
      flow_bound: pixels that become the largest value.
    """

    video: str
    folder: str
    staged: str
    quality: int
    short_side: int
    flow: str = ""
    flow_bound: float = DEFAULT_BOUND


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a job: the number of frames written, or why there are none."""

    num_frames: int = 0
    error: str = ""


def run_jobs(jobs: Iterable[Job], num_workers: int) -> Generator[tuple[Job, Result], None, None]:
    """Decodes videos in processes.

    A process that dies (out of memory, a crash in the decoder) does not end the run: the videos it may have been
    working on are tried again one at a time, and the one with which a process dies again is reported as broken.

    Args:
      jobs: what to do.
      num_workers: processes.

    Yields:
      (job, result) in order of completion.

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
    """Takes jobs from `waiting` until it is empty or a process dies; returns the jobs that were then under way."""
    context = multiprocessing.get_context("spawn")  # fork would copy the threads of TensorFlow and OpenCV
    stop = context.Event()
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(stop,))
    running: dict[Future[Result], Job] = {}
    finished = False
    try:
        while waiting or running:
            while waiting and len(running) < 2 * num_workers:  # so that little is suspect when a process dies
                running[pool.submit(run_job, waiting[0])] = waiting[0]  # which raises if a process has just died
                waiting.popleft()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()  # BrokenProcessPool leaves the job in `running`
                yield running.pop(future), result
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
    import signal

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
    """Decodes one video; what is already there is not written again."""
    folder = Path(job.folder) if job.folder and not os.path.exists(job.folder) else None
    staged = Path(job.staged) if job.staged and not os.path.exists(job.staged) else None
    if folder is None and staged is None:
        return Result(_count_done(job))
    partial = [path.with_name(f"{PARTIAL}{os.getpid()}{path.suffix}") if path else None for path in (folder, staged)]
    partial_folder, partial_staged = partial
    try:
        if partial_folder is not None:
            _remove(partial_folder)
            partial_folder.mkdir(parents=True)
        if partial_staged is not None:
            partial_staged.parent.mkdir(parents=True, exist_ok=True)
        with open(partial_staged or os.devnull, "wb") as file:
            number = 0
            for number, jpeg in enumerate(encoded_frames(job), start=1):
                if partial_folder is not None:
                    (partial_folder / FRAME_NAME.format(number)).write_bytes(jpeg)
                if partial_staged is not None:
                    file.write(struct.pack("<Q", len(jpeg)) + jpeg)
                if _stop is not None and _stop.is_set():
                    raise Stopped
        for path, target in zip(partial, (folder, staged), strict=True):
            if path is not None and target is not None:
                os.rename(path, target)
        return Result(number)
    except VideoError as error:
        return Result(error=str(error))
    except Stopped:
        return Result(error="stopped")
    except OSError as error:
        if error.errno in disk.REMEDIES:
            where, remedy = job.folder or job.staged, disk.REMEDIES[error.errno]
            raise PrepareError(f"cannot write {where}: {error.strerror}; {remedy}") from error
        return Result(error=f"{job.video}: {error}")
    finally:
        for path in partial:
            if path is not None:
                _remove(path)


def read_staged(path: Path) -> list[bytes]:
    """The JPEG frames of a staged file.

    Raises:
      PrepareError: the file is damaged.
    """
    data = Path(path).read_bytes()
    frames, position = [], 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        frames.append(data[position + 8 : position + 8 + length])
        position += 8 + length
    if position != len(data) or not frames:
        raise PrepareError(f"{path}: damaged; delete it and run the same command again")
    return frames


def read_folder(path: Path) -> list[bytes]:
    """The JPEG frames of a folder that `run_job` wrote."""
    names = sorted((name for name in os.listdir(path) if not name.startswith(".")), key=lambda name: (len(name), name))
    return [(Path(path) / name).read_bytes() for name in names]


def remove_partial(root: Path) -> int:
    """Removes unfinished work below a folder, left by a run that was killed; returns how many pieces there were."""
    partial = []
    for folder, folders, files in os.walk(root):
        partial += [Path(folder) / name for name in [*folders, *files] if name.startswith(PARTIAL)]
        folders[:] = [name for name in folders if not name.startswith(PARTIAL)]
    for path in partial:
        _remove(path)
    return len(partial)


def encoded_frames(job: Job) -> Iterator[bytes]:
    """The JPEG frames of a job's video, whatever was done before.

    Raises:
      VideoError: it cannot be decoded.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, job.quality]
    images = iter_frames(Path(job.video), job.short_side, channels="bgr")
    if job.flow:
        images = flow_pictures(images, job.flow, job.flow_bound)
    some = False
    for image in images:
        some = True
        ok, jpeg = cv2.imencode(".jpg", image, quality)
        if not ok:
            raise VideoError(f"{job.video}: a frame of {image.shape[1]}x{image.shape[0]} cannot be written as JPEG")
        yield jpeg.tobytes()
    if not some:
        raise VideoError(f"{job.video}: one frame only, which has no optical flow")


def _count_done(job: Job) -> int:
    if job.folder:
        return sum(not name.startswith(".") for name in os.listdir(job.folder))
    return len(read_staged(Path(job.staged)))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
