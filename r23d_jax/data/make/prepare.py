"""Turns a folder of videos into frame folders, packed shards, or both; a later run does only the remaining work."""

import contextlib
import dataclasses
import functools
import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from r23d_jax.config import UserError
from r23d_jax.data.find.class_folders import LISTS, write_lists
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.make.jobs import Job, PrepareError, Result, read_frames, remove_partial, run_jobs
from r23d_jax.data.make.record import FRAMES, PACKED, STAGING, Record, open_record, write_broken
from r23d_jax.data.make.search import VideoFile, clips_of, find_videos, folder_of_videos
from r23d_jax.runtime import remote
from r23d_jax.runtime.disk import hold, writing
from r23d_jax.runtime.progress import Progress, format_seconds, printable

LOCK = ".prepare.lock"
NOTES = ".beam"  # in the staging folder
_FRAME_SETTINGS = ("quality", "short_side", "flow", "flow_bound", "fps")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to prepare, and how; the options of the `prepare` command, which documents them."""

    videos: str
    out: str
    format: str  # "frames", "packed" or "both"
    quality: int
    short_side: int  # pixels; 0 keeps the size
    flow: str  # a key of `flow.METHODS`; "" for frames
    flow_bound: float  # pixels
    fps: float  # most frames per second to keep; 0: all
    lists: str  # "": prepare all videos
    workers: int  # 0: one per core
    shards: int  # 0: as many as keep each below about 1 GiB
    beam_runner: str  # "": this machine decodes
    beam_options: str  # "option=value,..."
    overwrite: bool
    url: str = ""  # to which `out` is copied at the end

    @property
    def packs(self) -> bool:
        return self.format != "frames"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did."""

    num_ready: int  # videos that are ready, including those of earlier runs
    num_broken: int  # files that cannot be used
    num_new: int  # videos decoded by this run
    num_frames: int  # frames of these videos
    lists: str  # the folder of the lists that divide the videos; "" if they cannot be divided


def prepare(settings: Settings, log: Callable[[str], None] = print) -> Summary:
    """Prepares videos; `log` receives lines of information.

    Raises:
      UserError: the settings are wrong, or do not match the results of earlier runs.
      PrepareError: the run cannot continue, e.g. because the disk is full. Finished work is kept.
    """
    _check(settings)
    out = Path(settings.out)
    found = find_videos(folder_of_videos(settings.videos), out, settings.lists, log, option="--videos ")
    videos, broken = found.videos, found.broken
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with hold(out, LOCK, log=functools.partial(print, file=sys.stderr)):
        wanted = Record(**{name: getattr(settings, name) for name in (*_FRAME_SETTINGS, "shards")})
        record = open_record(out, wanted, packs=settings.packs, overwrite=settings.overwrite)
        remove_partial(out)
        if settings.url and settings.overwrite:
            remote.remove_folder(remote.join(settings.url, STAGING))
        packed = frozenset(record.packed if settings.packs and (out / PACKED).is_dir() else ())
        if lost := packed - {video.target for video in videos}:  # shards are rewritten as a whole
            raise UserError(
                f"--out {out}: its shards hold {len(lost)} videos that are not in --videos {settings.videos}"
                f"{f' by --lists {settings.lists}' if settings.lists else ''}, e.g. {min(lost)}; give "
                f"{'lists that name' if settings.lists else 'a folder that holds'} all videos, another --out, or "
                "--overwrite"
            )
        num_frames: dict[str, int] = {}
        known = _known_as_broken(record, videos) if settings.beam_runner else {}
        broken |= {str(video.path): known[video.target] for video in videos if video.target in known}
        to_do = [video for video in videos if video.target not in known]
        needed = [video for video in to_do if settings.format != "packed" or video.target not in packed]
        decodes_all_again = settings.format == "packed" and packed and needed  # for new shards
        if not decodes_all_again:
            _log_replaced(settings, to_do, packed, record, log)
        broken |= _decode(settings, needed, num_frames, record, log)
        if len(needed) < len(to_do) and num_frames:  # the shards are rewritten, with the old videos and the new ones
            old = [video for video in to_do if video.target in packed]
            broken |= _decode(settings, old, num_frames, record, log)
        good = [video for video in to_do if video.target in num_frames]  # none if the shards need no change
        if settings.beam_runner:
            record.left_out = [
                (video.target, _stamp(video.path), broken[str(video.path)])
                for video in videos
                if str(video.path) in broken and video.target not in packed
            ]
        _log_slow(settings, good, record.rates, log)
        ready = good or [video for video in videos if video.target in packed]
        write_broken(out, broken, record.broken)
        record.videos, record.broken = len(ready), len(broken)
        record.rates, record.sizes = dict(sorted(record.rates.items())), dict(sorted(record.sizes.items()))
        record.save(out)
        targets = {video.target for video in good}
        if settings.packs and good and targets != packed:
            _refuse_undecodable(packed - targets, videos, broken)
            _pack(settings, good, found.class_names, record.rates)
            record.packed, record.shards = sorted(targets), settings.shards
            record.save(out)
        shutil.rmtree(out / STAGING, ignore_errors=True)
        if settings.url:
            remote.remove_folder(remote.join(settings.url, STAGING))
        lists = settings.lists or _write_lists(settings, ready, log)
    new = sum(n > 0 for n in num_frames.values())
    return Summary(len(ready), len(broken), new, sum(num_frames.values()), lists)


def _write_lists(settings: Settings, ready: list[VideoFile], log: Callable[[str], None]) -> str:
    """Divides the videos into lists for training and testing, unless that was done before; returns their folder."""
    folder = Path(settings.out, LISTS)
    clips = clips_of(ready, folder_of_videos(settings.videos))
    try:
        for note in write_lists(folder, clips) if clips else ():
            log(note)
    except DataError as error:
        log(f"no split for training and testing: {error}")
        return ""
    return str(folder)


def _check(settings: Settings) -> None:
    if not remote.is_remote(settings.videos) and not os.path.isdir(settings.videos):
        raise UserError(f"--videos {settings.videos}: no such folder")
    if os.path.exists(settings.out) and not os.path.isdir(settings.out):
        raise UserError(f"--out {settings.out}: is a file; give a folder")
    if not 1 <= settings.quality <= 100:
        raise UserError(f"--quality {settings.quality}: must be between 1 and 100")
    if not settings.flow_bound > 0:
        raise UserError(f"--flow-bound {settings.flow_bound:g}: must be above 0")
    if not settings.fps >= 0:
        raise UserError(f"--fps {settings.fps:g}: must be above 0, or 0 to keep all frames")
    if settings.beam_runner and settings.format != "packed":
        raise UserError(f"--beam-runner {settings.beam_runner}: makes packed shards only; add --format packed")
    if settings.beam_options and not settings.beam_runner:
        raise UserError("--beam-options: are for --beam-runner, which is not given")
    for option in ("short_side", "workers", "shards"):
        if getattr(settings, option) < 0:
            raise UserError(f"--{option.replace('_', '-')} {getattr(settings, option)}: must be at least 0")


def _log_slow(settings: Settings, videos: list[VideoFile], rates: dict[str, float], log: Callable[[str], None]) -> None:
    """Logs videos that have fewer frames per second than wanted."""
    slow = [video for video in videos if rates.get(video.target, 0.0) < settings.fps * 0.999]
    if slow:
        first = slow[0]
        rate = f"{rates[first.target]:.4g}" if rates.get(first.target) else "an unknown number"
        log(
            f"{len(slow)} videos do not have {settings.fps:g} frames a second and keep all of theirs, e.g. "
            f"{first.path} has {rate}"
        )


def _refuse_undecodable(lost: frozenset[str], videos: list[VideoFile], broken: dict[str, str]) -> None:
    """Keeps a video in the shards even if its file can no longer be read."""
    for video in videos:
        if video.target in lost:
            raise PrepareError(
                f"{broken.get(str(video.path), video.path)}, but it is in the existing shards, which were not changed; "
                "restore the file, or make the shards without it by --overwrite"
            )


def _known_as_broken(record: Record, videos: list[VideoFile]) -> dict[str, str]:
    """The reasons, by target, of videos that Beam's workers could not decode and that have not changed since."""
    left_out = {target: (stamp, reason) for target, stamp, reason in record.left_out}
    found = [video for video in videos if video.target in left_out]
    return {v.target: left_out[v.target][1] for v in found if left_out[v.target][0] == _stamp(v.path)}


def _stamp(path: Path) -> list[int | str]:
    """Size and time of a file, or what a store says instead, which differ after a change."""
    if remote.is_remote(path):
        return list(remote.files(str(path)).get("", ()))
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _size(path: Path) -> int:
    """Bytes of a file; -1 if a store does not say."""
    size, *_ = _stamp(path) or [-1]
    return size if isinstance(size, int) else -1


def _log_replaced(
    settings: Settings, videos: list[VideoFile], packed: frozenset[str], record: Record, log: Callable[[str], None]
) -> None:
    """Logs files that have another size than when they were decoded: their frames are those of before."""
    known = [video for video in videos if video.target in record.sizes]
    have = [video for video in known if video.target in packed or _folder(settings, video).exists()]
    if replaced := [video for video in have if record.sizes[video.target] != _size(video.path)]:
        first = replaced[0]
        remedy = "use --overwrite to decode all again"
        if not settings.packs:
            remedy = f"delete {_folder(settings, first)} and the like, or {remedy}"
        log(
            f"WARNING: {len(replaced)} video(s) have changed since they were decoded, and keep the frames of before, "
            f"e.g. {first.path}: {remedy}"
        )


def _folder(settings: Settings, video: VideoFile) -> Path:
    """The folder of a video's frames; a staging folder if they are wanted in shards only."""
    folder = Path(settings.out, FRAMES, video.target)
    return folder if settings.format != "packed" or folder.is_dir() else Path(settings.out, STAGING, video.target)


def _job(settings: Settings, video: VideoFile) -> Job:
    frames = {name: getattr(settings, name) for name in _FRAME_SETTINGS}
    one_file = settings.format == "packed"
    return Job(video=str(video.path), folder=str(_folder(settings, video)), one_file=one_file, **frames)


def _decode(
    settings: Settings,
    videos: list[VideoFile],
    num_frames: dict[str, int],
    record: Record,
    log: Callable[[str], None],
) -> dict[str, str]:
    """Decodes videos without frames; adds frame counts, rates and sizes; returns the reasons for broken videos.

    A folder of frames whose rate is not recorded, because a run was killed, is left as it is and its rate is added.
    """
    rates = record.rates
    target = {_job(settings, video): video.target for video in videos}
    path = {video.target: video.path for video in videos}
    there = {job for job in target if os.path.exists(job.folder)}
    to_do = [job for job in target if job not in there or target[job] not in rates]
    num_frames.update({target[job]: 0 for job in there})
    broken: dict[str, str] = {}
    seconds: list[float] = []  # that each of the first videos took
    if not to_do:
        return broken
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(settings.workers or cores, len(to_do))
    with (
        Progress(len(target), "videos", "prepare", initial=len(target) - len(to_do)) as progress,
        contextlib.closing(_results(settings, to_do, workers, log)) as results,
    ):
        for job, result in results:
            if result.error:
                broken[job.video] = result.error
                progress.message(f"skipped: {printable(result.error)}")
            else:
                rates[target[job]] = result.rate
                num_frames[target[job]] = 0 if job in there else result.num_frames
                if job not in there:
                    record.sizes[target[job]] = _size(path[target[job]])
                if settings.flow and result.seconds and len(seconds) < workers:
                    seconds.append(result.seconds)
                    if len(seconds) == workers < len(to_do):
                        progress.message(_estimate(settings.flow, seconds, len(to_do) - workers))
            progress.update()
    return broken


def _results(
    settings: Settings, jobs: list[Job], workers: int, log: Callable[[str], None]
) -> Generator[tuple[Job, Result], None, None]:
    if not settings.beam_runner:
        return run_jobs(jobs, workers)
    try:
        from r23d_jax.data.make.beam_jobs import run_jobs_with_beam
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError(
            f"--beam-runner {settings.beam_runner}: Apache Beam is not installed: pip install -r requirements-beam.txt"
        ) from error
    log(f"{len(jobs)} videos go to Apache Beam's {settings.beam_runner}, which shows its own progress")
    options = [option for option in settings.beam_options.split(",") if option]
    shared = remote.join(settings.url or settings.out, f"{STAGING}/{NOTES}")
    return run_jobs_with_beam(jobs, runner=settings.beam_runner, options=options, shared=shared)


def _estimate(flow: str, seconds: list[float], num_videos: int) -> str:
    """The expected time of the remaining videos, from the seconds that one video of every process took."""
    workers = len(seconds)
    left = format_seconds(sum(seconds) / workers * num_videos / workers)
    faster = "" if flow == "dis" else "; --flow dis is the fastest method"
    return f"flow by {flow}: the other {num_videos:,} videos take about {left} in {workers} processes{faster}"


def _pack(settings: Settings, videos: list[VideoFile], class_names: list[str], rates: dict[str, float]) -> None:
    from r23d_jax.data.make.packed_builder import PackSource, write_packed  # imports TensorFlow

    readers = [functools.partial(read_frames, _folder(settings, video)) for video in videos]
    sources = [
        PackSource(video.name, video.class_name, read, rates.get(video.target, 0.0))
        for video, read in zip(videos, readers, strict=True)
    ]
    with Progress(len(sources), "videos", "pack") as progress:
        write_packed(Path(settings.out, PACKED), sources, class_names, settings.shards, progress)
