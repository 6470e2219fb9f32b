"""`python -m r23d_jax prepare`: video files to JPEG frame folders, packed shards, or both."""

import _thread
import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from r23d_jax import __version__
from r23d_jax.config import FLOW_METHODS, UserError
from r23d_jax.data.find.splits import VIDEO_SUFFIXES, Entry, available_splits, group_of, read_list, without_suffix
from r23d_jax.data.make.prepare import Job, PrepareError, read_folder, read_staged, remove_partial, run_jobs
from r23d_jax.runtime.disk import hold, write_atomically, writing
from r23d_jax.runtime.program import command
from r23d_jax.runtime.progress import Progress, printable

RECORD, BROKEN, LOCK = "prepare.json", "broken.txt", ".prepare.lock"
FRAMES, PACKED, STAGING = "frames", "packed", ".staging"
EXIT_OK, EXIT_FAILED, EXIT_SKIPPED, EXIT_STOPPED = 0, 2, 3, 130


class UsageError(UserError):
    """The command was called with arguments that make no sense, or do not fit what is on disk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--videos", required=True, help="folder searched for .avi, .mp4, .mkv, .mov and .webm files")
    parser.add_argument(
        "--out", required=True, help=f"folder to write: {FRAMES}/<Class>/<video>/image_00001.jpg, {PACKED}/"
    )
    parser.add_argument("--format", choices=("frames", "packed", "both"), default="frames")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs, 1 to 100 (default: 95)")
    parser.add_argument(
        "--short-side", type=int, default=0, help="reduce the shorter side to this many pixels; 0: do not"
    )
    parser.add_argument(
        "--flow", choices=FLOW_METHODS, default="", help="write the optical flow between frames instead of the frames"
    )
    parser.add_argument(
        "--flow-bound", type=float, default=20.0, help="pixels that become the largest stored value (default: 20)"
    )
    parser.add_argument("--lists", default="", help="folder of split lists: prepare only the videos they name")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--shards", type=int, default=0, help="files of the packed format; 0: of about 1 GiB at most")
    parser.add_argument(
        "--beam-runner",
        default="",
        metavar="NAME",
        help="with --format packed: decode on this Apache Beam runner, e.g. DirectRunner, DataflowRunner, FlinkRunner, "
        "SparkRunner, whose workers must see --videos and --out under the same paths",
    )
    parser.add_argument(
        "--beam-options", default="", metavar="OPTION=VALUE,...", help="of Apache Beam or its runner, without dashes"
    )
    parser.add_argument("--overwrite", action="store_true", help="throw away what an earlier run made in --out")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
      0: all videos are done; 3: some could not be decoded (they are in broken.txt); 2: wrong use, or it cannot go on,
      e.g. because the disk is full; 130: stopped by Ctrl-C or SIGTERM. In all cases the same command goes on later.
    """
    try:
        with _terminate_as_interrupt():
            return _run(args)
    except PrepareError as error:
        print(f"prepare: {error}. What is done is kept; run the same command again to go on.", file=sys.stderr)
        return EXIT_FAILED
    except UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("prepare: stopped. What is done is kept; run the same command again to go on.", file=sys.stderr)
        return EXIT_STOPPED


@dataclasses.dataclass(frozen=True)
class _Video:
    """A video file, and what is made of it."""

    path: Path
    target: str  # frame folder, relative
    name: str  # in the lists and in packed records
    class_name: str


def _run(args: argparse.Namespace) -> int:
    _check(args)
    out = Path(args.out)
    videos, class_names, broken = _find(Path(args.videos), out, args.lists)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with hold(out, LOCK, log=lambda line: print(line, file=sys.stderr)):
        record = _open_record(out, args)
        remove_partial(out)
        packed = frozenset(record["packed"] if (out / PACKED).is_dir() and args.format != "frames" else ())
        _refuse_loss(args, packed - {video.target for video in videos})
        if args.beam_runner:
            good, num_frames = _pack_with_beam(out, videos, class_names, record, broken, args), {}
        else:
            good, num_frames = _decode_all(out, videos, packed, broken, args)
        done = good or [video for video in videos if video.target in packed]
        _write_broken(out / BROKEN, broken)
        record |= {"videos": len(done), "broken": len(broken)}
        _save_record(out, record)
        if args.format != "frames" and good and {video.target for video in good} != packed:
            if not args.beam_runner:
                _refuse_undecodable(packed - {video.target for video in good}, videos, broken)
                _pack(out, good, class_names, args.shards)
            record |= {"packed": sorted(video.target for video in good), "shards": args.shards}
            _save_record(out, record)
        shutil.rmtree(out / STAGING, ignore_errors=True)

    new = sum(n > 0 for n in num_frames.values())
    news = "" if args.beam_runner else f" ({new} of them new, with {sum(num_frames.values())} frames)"
    print(f"{len(done)} videos are ready in {out}{news}")
    if broken:
        print(f"skipped {len(broken)} videos that could not be used; they are listed in {out / BROKEN}")
    if done:
        print(f"next: {_next_command(args, out)}")
    return EXIT_SKIPPED if broken else EXIT_OK


def _check(args: argparse.Namespace) -> None:
    if not os.path.isdir(args.videos):
        raise UsageError(f"--videos {args.videos}: no such folder")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UsageError(f"--out {args.out}: is a file; give a folder")
    if not 1 <= args.quality <= 100:
        raise UsageError(f"--quality {args.quality}: must be between 1 and 100")
    if not args.flow_bound > 0:
        raise UsageError(f"--flow-bound {args.flow_bound:g}: must be above 0")
    if args.beam_runner and args.format != "packed":
        raise UsageError(f"--beam-runner {args.beam_runner}: makes packed shards only; add --format packed")
    if args.beam_options and not args.beam_runner:
        raise UsageError("--beam-options: are for --beam-runner, which is not given")
    for option in ("short_side", "workers", "shards"):
        if getattr(args, option) < 0:
            raise UsageError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be at least 0")


# -- finding the videos ------------------------------------------------------------------------------------------------


def _find(root: Path, out: Path, lists: str) -> tuple[list[_Video], list[str], dict[str, str]]:
    """The videos below a folder, all class names, and the files that cannot be used with the reason."""
    broken: dict[str, str] = {}
    paths = list(_walk(root, out, broken))
    if not paths:
        raise UsageError(f"--videos {root}: holds no {', '.join(VIDEO_SUFFIXES[:-1])} or {VIDEO_SUFFIXES[-1]} file")
    listed = _listed(Path(lists)) if lists else None
    videos: dict[str, _Video] = {}
    left_out = 0
    for path in paths:
        video = _identify(root, path, listed[0] if listed else None)
        if video is None:
            left_out += 1
            continue
        try:
            video.target.encode()
        except UnicodeEncodeError:
            broken[str(path)] = "its name is not valid UTF-8; rename it"
            continue
        if ".." in video.target.split("/") or video.target.startswith("/"):
            broken[str(path)] = f"would be written to {video.target}, outside of --out; rename it or its class"
            continue
        other = videos.setdefault(video.target.casefold(), video)
        if other is not video:
            broken[str(path)] = f"has the same class and name as {other.path}; rename one of them"
    if listed:
        print(f"{len(videos)} of the {sum(map(len, listed[0].values()))} listed videos found; {left_out} not listed")
        if not videos:
            raise UsageError(f"--videos {root}: none of its {len(paths)} videos is named by the lists in {lists}")
    class_names = list(listed[1]) if listed else sorted({video.class_name for video in videos.values()})
    return list(videos.values()), class_names, broken


def _walk(root: Path, out: Path, broken: dict[str, str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        broken[str(error.filename)] = f"cannot be read ({error.strerror})"

    seen = {os.path.realpath(out)}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen:  # a loop of links, or the output
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                yield Path(folder) / name


def _listed(lists: Path) -> tuple[dict[str, list[Entry]], tuple[str, ...]]:
    """Entries of all splits by the video's own name in lower case, and the class names."""
    entries: dict[tuple[str, str], Entry] = {}
    class_names: tuple[str, ...] = ()
    for split in available_splits(lists) or (1,):
        sides = [read_list(lists, subset, split) for subset in ("train", "test")]
        class_names = sides[0].class_names
        entries |= {(entry.class_name, entry.name.casefold()): entry for side in sides for entry in side.entries}
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries.values():
        by_name[entry.name.rsplit("/", 1)[-1].casefold()].append(entry)
    return by_name, class_names


def _identify(root: Path, path: Path, listed: dict[str, list[Entry]] | None) -> _Video | None:
    *above, file = path.relative_to(root).parts
    stem = without_suffix(file)
    if listed is None:
        class_name = above[-1] if above else _class_in_name(stem) or root.resolve().name
        return _Video(path, f"{class_name}/{stem}", stem, class_name)
    here = "/".join(["", root.resolve().name, *above, stem]).casefold()
    candidates = listed.get(stem.casefold(), [])
    for entry in candidates:
        if here.endswith((f"/{entry.class_name}/{entry.name}".casefold(), f"/{entry.name}".casefold())) and (
            "/" in entry.name or f"/{entry.class_name}/".casefold() in here or len(candidates) == 1
        ):
            target = entry.name if "/" in entry.name else f"{entry.class_name}/{entry.name}"
            return _Video(path, target, entry.name, entry.class_name)
    return None


def _class_in_name(name: str) -> str | None:
    """`Diving` of `v_Diving_g01_c01`."""
    return name.split("_", 1)[1].rsplit("_", 2)[0] if group_of(name) and name.lower().startswith("v_") else None


# -- doing the work ----------------------------------------------------------------------------------------------------


def _job(out: Path, video: _Video, args: argparse.Namespace) -> Job:
    folder = out / FRAMES / video.target
    staged = ""
    if args.format == "packed" and not folder.is_dir():
        staged = str(out / STAGING / f"{video.target}.jpegs")
    return Job(
        video=str(video.path),
        folder="" if staged else str(folder),
        staged=staged,
        quality=args.quality,
        short_side=args.short_side,
        flow=args.flow,
        flow_bound=args.flow_bound,
    )


def _decode_all(
    out: Path, videos: list[_Video], packed: frozenset[str], broken: dict[str, str], args: argparse.Namespace
) -> tuple[list[_Video], dict[str, int]]:
    """Decodes what the run needs; adds to `broken`.

    Returns:
      The videos of which frames are at hand (none if the shards that are there need no change), and how many frames
      of each were decoded now, by target.
    """
    num_frames: dict[str, int] = {}
    needed = [video for video in videos if args.format != "packed" or video.target not in packed]
    broken |= _decode([(video, _job(out, video, args)) for video in needed], args, num_frames)
    if len(needed) < len(videos) and num_frames:  # the shards are made anew, with the old videos and the new
        rest = [video for video in videos if video.target in packed]
        broken |= _decode([(video, _job(out, video, args)) for video in rest], args, num_frames)
    return [video for video in videos if video.target in num_frames], num_frames


def _decode(work: list[tuple[_Video, Job]], args: argparse.Namespace, num_frames: dict[str, int]) -> dict[str, str]:
    """Decodes what is not done yet; adds frame counts; returns what is broken."""
    target = {job: video.target for video, job in work}
    to_do = [job for job in target if not os.path.exists(job.staged or job.folder)]
    num_frames.update({target[job]: 0 for job in target if os.path.exists(job.staged or job.folder)})
    broken: dict[str, str] = {}
    if not to_do:
        return broken
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(args.workers or cores, len(to_do))
    with (
        Progress(len(work), "videos", "prepare", initial=len(work) - len(to_do)) as progress,
        contextlib.closing(run_jobs(to_do, workers)) as results,
    ):
        for job, result in results:
            if result.error:
                broken[job.video] = result.error
                progress.message(f"skipped: {printable(result.error)}")
            else:
                num_frames[target[job]] = result.num_frames
            progress.update()
    return broken


def _pack(out: Path, videos: list[_Video], class_names: list[str], num_shards: int) -> None:
    from r23d_jax.data.make.packed_builder import PackSource, write_packed  # imports TensorFlow

    def reader(video: _Video) -> Callable[[], list[bytes]]:
        folder, staged = out / FRAMES / video.target, out / STAGING / f"{video.target}.jpegs"
        return lambda: read_folder(folder) if folder.is_dir() else read_staged(staged)

    sources = [PackSource(video.name, video.class_name, reader(video)) for video in videos]
    with Progress(len(sources), "videos", "pack") as progress:
        write_packed(out / PACKED, sources, class_names, num_shards, progress)


def _pack_with_beam(
    out: Path,
    videos: list[_Video],
    class_names: list[str],
    record: dict,
    broken: dict[str, str],
    args: argparse.Namespace,
) -> list[_Video]:
    """Decodes and packs on workers of Apache Beam, all videos if one is new; adds to `broken` and to the record.

    Videos that could not be decoded before are tried again when their files have changed.

    Returns:
      The videos packed now: none if nothing was to be done, or nothing can be decoded.
    """
    packed = frozenset(record["packed"] if (out / PACKED).is_dir() else ())
    left_out = {target: (stamp, reason) for target, stamp, reason in record["left_out"]}
    skipped = [video for video in videos if left_out.get(video.target, ("", ""))[0] == _stamp(video.path)]
    broken |= {str(video.path): left_out[video.target][1] for video in skipped}
    videos = [video for video in videos if video not in skipped]
    if {video.target for video in videos} <= packed:
        return []
    try:
        from r23d_jax.data.make.packed_beam import BeamSource, write_packed_with_beam
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UsageError(
            f"--beam-runner {args.beam_runner}: Apache Beam is not installed: pip install apache-beam"
        ) from error
    sources = [
        BeamSource(
            video.name,
            video.class_name,
            dataclasses.replace(_job(out, video, args), folder="", staged=""),
            needed=video.target in packed,
        )
        for video in videos
    ]
    print(f"{len(sources)} videos go to Apache Beam's {args.beam_runner}, which shows its own progress")
    staging = out / STAGING / "beam"
    shutil.rmtree(staging, ignore_errors=True)
    found = write_packed_with_beam(
        out / PACKED,
        sources,
        class_names,
        args.shards,
        runner=args.beam_runner,
        options=[option for option in args.beam_options.split(",") if option],
        staging=staging,
    )
    broken |= found
    record["left_out"] = [
        [video.target, _stamp(video.path), broken[str(video.path)]]
        for video in [*skipped, *videos]
        if str(video.path) in broken
    ]
    _save_record(out, record)
    return [video for video in videos if str(video.path) not in found]


def _stamp(path: Path) -> list[int]:
    """Changes when the file does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


# -- the record of what was done ---------------------------------------------------------------------------------------


def _open_record(out: Path, args: argparse.Namespace) -> dict:
    settings = {
        "quality": args.quality,
        "short_side": args.short_side,
        "flow": args.flow,
        "flow_bound": args.flow_bound,
    }
    path = out / RECORD
    made = [out / name for name in (FRAMES, PACKED, STAGING) if (out / name).exists()]
    record = None
    if path.exists():
        try:
            record = json.loads(path.read_text())
            for key, value in (("flow", ""), ("flow_bound", args.flow_bound), ("left_out", [])):  # not yet known then
                record.setdefault(key, value)
            old = {key: record[key] for key in settings}
            record["packed"] = list(record["packed"])
            record["left_out"] = [[str(target), list(stamp), str(why)] for target, stamp, why in record["left_out"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if not args.overwrite:
                raise UsageError(f"{path}: damaged ({error}); delete it and run again with --overwrite") from error
            record, old = {}, {}
        if not args.overwrite and old != settings:
            differ = ", ".join(f"{key.replace('_', ' ')} {old[key]}" for key in settings if old[key] != settings[key])
            raise UsageError(
                f"--out {out}: was prepared with {differ}; use the same, another --out, or --overwrite to start anew"
            )
        if not args.overwrite and record["packed"] and args.format != "frames" and args.shards != record["shards"]:
            raise UsageError(f"--out {out}: was packed with --shards {record['shards']}; use the same, or --overwrite")
    elif made:
        raise UsageError(f"{made[0]}: exists, but not made by this command (there is no {path}); use another --out")
    if record is None or args.overwrite:
        for folder in made:
            shutil.rmtree(folder)
        record = {"version": __version__, **settings, "shards": args.shards, "videos": 0, "broken": 0, "packed": []}
        record["left_out"] = []
        _save_record(out, record)
    return record


def _refuse_loss(args: argparse.Namespace, lost: frozenset[str]) -> None:
    """Shards are made anew as a whole, so videos that are no longer given would vanish from them."""
    if lost:
        raise UsageError(
            f"--out {args.out}: its shards hold {len(lost)} videos that are not in --videos {args.videos}, e.g. "
            f"{min(lost)}; "
            "give a folder that holds all videos, another --out, or --overwrite"
        )


def _refuse_undecodable(lost: frozenset[str], videos: list[_Video], broken: dict[str, str]) -> None:
    """A video that is in the shards must not vanish because its file, or the disk, is broken today."""
    for video in videos:
        if video.target in lost:
            raise PrepareError(
                f"{broken.get(str(video.path), video.path)}, but it is in the shards that are there, which are left as "
                "they are; bring it back, or make the shards without it by --overwrite"
            )


def _save_record(out: Path, record: dict) -> None:
    write_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")


def _write_broken(path: Path, broken: dict[str, str]) -> None:
    if broken:
        write_atomically(path, "".join(f"{printable(video)}\t{printable(broken[video])}\n" for video in sorted(broken)))
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, and neither is lost.

    Where one strikes in a function that the garbage collector calls, Python drops the exception; it is raised again.
    """

    hook = sys.unraisablehook

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    def raise_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main, [signal.SIGTERM]).start()
        else:
            hook(dropped)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _next_command(args: argparse.Namespace, out: Path) -> str:
    source = "--config.data.source=packed " if args.format == "packed" else ""
    root = out / (PACKED if args.format == "packed" else FRAMES)
    lists = shlex.quote(args.lists) if args.lists else "data/ucfTrainTestlist"
    variant = ":flow" if args.flow else ""
    return (
        f"{command('train')} --config=configs/r23d.py{variant} {source}--config.data.root={shlex.quote(str(root))} "
        f"--config.data.lists={lists}"
    )
