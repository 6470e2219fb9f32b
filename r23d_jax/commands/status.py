"""`status`: where a run is, how fast, and whether it is alive, read from its folder."""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r23d_jax import config
from r23d_jax.commands.json_output import add_json, print_json
from r23d_jax.config import UserError
from r23d_jax.config.fields import build
from r23d_jax.runtime import heartbeat, mirror, remote
from r23d_jax.runtime.journal import read_metrics
from r23d_jax.runtime.progress import format_seconds

NOT_ALIVE = 3  # exit status if a run neither is alive nor has finished
SCORE = "val/top1_video"
METRICS = "metrics.jsonl"
MARKS = ("config.json", METRICS, heartbeat.FILE, "cell.json")  # one of them is in the folder of every run
MOST_PROCESSES = 8  # to list on the screen
CLOCKS_APART = 60.0  # seconds that the clocks of hosts may differ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    about = "folder of a run, or of a study or several runs, which gives a line for each"
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help=f"{about}; or its URL, such as s3://BUCKET/RUN")
    add_json(parser, each="run")
    again = "print again every so many seconds, until no run is alive"
    parser.add_argument("--watch", type=float, default=0.0, metavar="SECONDS", help=again)
    parser.epilog = (
        f"The exit status is 0 if every run is alive or has finished, {NOT_ALIVE} if one has not, 2 for errors."
    )


def run(args: argparse.Namespace) -> int:
    """Prints the status of each run; returns 0 if every run is alive or has finished, else `NOT_ALIVE`."""
    if args.watch and not 1 <= args.watch <= 86400:
        raise UserError(f"--watch {args.watch:g}: must be 1 to 86400 seconds")
    while True:
        found = [status for workdir in args.workdirs for status in _read_all(workdir)]
        if args.json:
            for status in found:
                print_json(dataclasses.asdict(status) | {"alive": status.alive})
        else:
            print(screen(found[0]) if len(found) == 1 else lines(found), flush=True)
        if not args.watch or not any(status.alive for status in found):
            return 0 if all(status.alive or status.verdict == "finished" for status in found) else NOT_ALIVE
        time.sleep(args.watch)
        if not args.json:
            print(time.strftime("\n%Y-%m-%d %H:%M:%S"))


def _read_all(workdir: str) -> "list[Status]":
    """The runs at a path or a URL."""
    if not remote.is_remote(workdir):
        return [read_status(folder) for folder in find_runs(Path(workdir))]
    copy = mirror.glance(workdir)
    if not copy.is_dir():
        raise UserError(f"{workdir}: holds no run; give the --workdir of a training, or a folder of several")
    named = [(folder, remote.join(workdir, folder.relative_to(copy).as_posix())) for folder in find_runs(copy)]
    return [dataclasses.replace(read_status(folder), folder=url) for folder, url in named]


def find_runs(workdir: Path) -> list[Path]:
    """`workdir` if it is the folder of a run; else its subfolders that are. Raises UserError if there is none."""
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; give the --workdir of a training, or of a study")
    folders = [workdir] if _is_run(workdir) else sorted(folder for folder in workdir.iterdir() if _is_run(folder))
    if not folders:
        raise UserError(f"{workdir}: neither the folder of a run nor of a study: it has none of {', '.join(MARKS)}")
    return folders


def _is_run(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in MARKS)  # not in a folder that may not be read


@dataclasses.dataclass(frozen=True)
class Process:
    """What one process measured for the last row of metrics; the wait for input is a share of time."""

    host: str
    input_wait: float
    clips_per_second: float
    broken_videos: int


@dataclasses.dataclass(frozen=True)
class Status:
    """What the files of a run tell; None where they do not."""

    folder: str  # of the run
    verdict: str  # a key of `VERDICTS`
    reason: str  # why it ended
    # network, data, devices: what runs, on what
    network: str
    data: str
    devices: str
    # step, num_steps, epoch, epochs: how far it is
    step: int
    num_steps: int | None
    epoch: float | None
    epochs: float | None
    # clips_per_second, input_wait, loss: of the last row of metrics; the wait is a share of time
    clips_per_second: float | None
    input_wait: float | None
    loss: float | None
    slowest: str  # the process that waits longest for input, if there are several
    processes: list[Process]  # what each of them measured
    seconds_left: float | None  # of training, without evaluations
    # last, best: [step, video top-1 of 0 to 1]
    last: tuple[int, float] | None
    best: tuple[int, float] | None
    # beat, age: time of the last sign of life, and the seconds since then
    beat: float | None
    age: float | None
    # host, process: who gave it
    host: str
    process: int | None
    checkpoints: list[int]  # their steps, newest first
    notes: list[str]  # what is wrong with the files

    @property
    def alive(self) -> bool:
        """Whether a process works on the run."""
        return self.verdict in heartbeat.PATIENCE

    @property
    def remedy(self) -> str:
        """How to go on with a run that ended early."""
        start = f"resumes from step {self.checkpoints[0]:,}" if self.checkpoints else "starts again: no checkpoint yet"
        return f"the same command {start}"


VERDICTS: dict[str, Callable[[Status], str]] = {
    **{phase: lambda status: status.verdict for phase in heartbeat.PATIENCE},
    "finished": lambda status: "finished",
    "stopped": lambda status: f"stopped at step {status.step:,} ({status.reason}); {status.remedy}",
    "failed": lambda status: f"failed at step {status.step:,}; {status.remedy}\n  {status.reason}",
    "silent": lambda status: (
        f"no sign of life since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.beat))} "
        f"({format_seconds(status.age or 0)} ago); {status.remedy}"
    ),
    "unknown": lambda status: f"no readable {heartbeat.FILE}, so nobody knows whether it is alive; {status.remedy}",
}


def read_status(folder: Path, now: float | None = None) -> Status:
    """Reads the files of a run, whatever state they are in, at a time in seconds since 1970; without one, now."""
    now = time.time() if now is None else now
    notes: list[str] = []
    cfg = beat = None
    processes: list[Process] = []
    try:
        if (folder / "config.json").is_file():
            cfg = config.from_json((folder / "config.json").read_text(encoding="utf-8", errors="replace"))
    except (UserError, OSError) as error:
        notes.append(f"config.json cannot be read: {error}")
    try:
        beat = heartbeat.read_heartbeat(folder)
    except (UserError, OSError) as error:
        notes.append(str(error))
    checkpoints: list[int] = []
    try:
        checkpoints = sorted(mirror.steps_of(folder), reverse=True)
    except OSError as error:
        notes.append(f"checkpoints cannot be listed: {error}")
    rows = []
    try:
        rows = read_metrics(folder)
        if not rows and os.path.isfile(folder / METRICS) and os.path.getsize(folder / METRICS):
            notes.append(f"{METRICS}: no row can be read")
    except OSError as error:
        notes.append(f"{METRICS} cannot be read: {error}")
    trained = next((row for row in reversed(rows) if "train/loss" in row), {})
    scores = [(row["step"], score) for row in rows if (score := _number(row, SCORE)) is not None]
    try:
        processes = [build(values, Process, "processes") for values in trained.get("processes", [])]
    except (UserError, TypeError) as error:
        notes.append(f"metrics.jsonl, step {trained['step']}: {error}")
    speed = _number(trained, "train/clips_per_second")
    step = beat.step if beat else rows[-1]["step"] if rows else 0
    num_steps = beat.num_steps if beat and beat.num_steps else None
    step_seconds = cfg.train.global_batch_size / speed if cfg and speed else 0.0
    verdict, reason = (beat.phase, beat.reason) if beat else ("unknown", "")
    if beat and beat.time - now > CLOCKS_APART:
        ahead = format_seconds(beat.time - now)
        notes.append(f"the clock of {beat.host} is {ahead} ahead of this machine's, so its signs of life tell little")
    if beat and heartbeat.is_dead(beat, now, step_seconds):
        verdict = "silent"
    if verdict not in heartbeat.PATIENCE:
        verdict, reason = _outcome(folder, verdict, reason)
    return Status(
        folder=str(folder),
        verdict=verdict,
        reason=reason,
        network=beat.network if beat else f"{cfg.model.family}, {cfg.model.head.kind} head" if cfg else "",
        data=_data(cfg, beat),
        devices=beat.devices if beat else "",
        step=step,
        num_steps=num_steps,
        epoch=step / beat.steps_per_epoch if beat and beat.steps_per_epoch > 0 else _number(trained, "epoch"),
        epochs=cfg.train.epochs if cfg else None,
        clips_per_second=speed,
        input_wait=_number(trained, "train/input_wait"),
        loss=_number(trained, "train/loss"),
        slowest=str(trained.get("slowest", "")),
        processes=processes,
        seconds_left=(num_steps - step) * step_seconds if num_steps and step_seconds else None,
        last=scores[-1] if scores else None,
        best=max(scores, key=lambda score: score[1]) if scores else None,
        beat=beat.time if beat else None,
        age=max(now - beat.time, 0.0) if beat else None,  # the clocks of two hosts may differ
        host=beat.host if beat else "",
        process=beat.process if beat else None,
        checkpoints=checkpoints,
        notes=notes,
    )


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _outcome(folder: Path, verdict: str, reason: str) -> tuple[str, str]:
    """Verdict and reason of a cell of a study that has ended; else those given."""
    if not (folder / "outcome.json").is_file():
        return verdict, reason
    from r23d_jax.study.run import read_outcome  # imports jax

    outcome = read_outcome(folder)
    ends = {"done": "finished", "failed": "failed"}
    if outcome is None or outcome.status not in ends:
        return verdict, reason
    return ends[outcome.status], outcome.reason.strip() or reason


def _data(cfg: config.Config | None, beat: heartbeat.Beat | None) -> str:
    place = f"{cfg.data.source} {cfg.data.root}".strip() if cfg else ""
    if beat is None or not beat.classes:
        return place
    train, test = beat.videos
    return f"{place}: {train:,} training videos, {test:,} test videos, {beat.classes:,} classes".removeprefix(": ")


# -- text --------------------------------------------------------------------------------------------------------------


def screen(status: Status) -> str:
    """Everything about one run, with a line for what is known."""
    of = f" of {status.num_steps:,}" if status.num_steps else ""
    epochs = "" if status.epochs is None else f" of {status.epochs:g}"
    epoch = "" if status.epoch is None else f" (epoch {status.epoch:.1f}{epochs})"
    rows = [
        ("network", f"{status.network}, on {status.devices}" if status.devices else status.network),
        ("data", status.data),
        ("step", f"{status.step:,}{of}{epoch}"),
        ("speed", _speed(status)),
        ("loss", "" if status.loss is None else f"{status.loss:.4f}"),
        ("evaluation", _scores(status)),
        ("input wait", _waits(status)),
        ("broken", _broken(status)),
        ("heartbeat", _beat(status)),
        ("checkpoints", ", ".join(map(str, status.checkpoints)) or "none yet"),
        *(("note", note) for note in status.notes),
    ]
    head = f"{status.folder}: {VERDICTS[status.verdict](status)}"
    return "\n".join([head, *(f"  {name:12}{text}" for name, text in rows if text)])


def lines(found: list[Status]) -> str:
    """A line for each run."""
    width = max(len(status.folder) for status in found)
    return "\n".join(f"{status.folder:{width}}  {_line(status)}".rstrip() for status in found)


def _line(status: Status) -> str:
    of = f"/{status.num_steps:,}" if status.num_steps else ""
    parts = [f"{status.verdict:10}", f"step {status.step:,}{of}"]
    if status.alive:
        parts.append(_speed(status))
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.last is not None and status.best is not None:
        parts.append(f"top-1 {100 * status.last[1]:.2f} % (best {100 * status.best[1]:.2f} %)")
    if not status.alive and status.age is not None:
        parts.append(f"{format_seconds(status.age)} ago")
    parts += [status.reason.partition("\n")[0][:80], *(note[:80] for note in status.notes)]
    return "  ".join(part for part in parts if part)


def _speed(status: Status) -> str:
    if status.clips_per_second is None:
        return ""
    left = f", {format_seconds(status.seconds_left)} of training left" if status.alive and status.seconds_left else ""
    return f"{status.clips_per_second:,.1f} clips/s{left}"


def _scores(status: Status) -> str:
    if status.last is None or status.best is None:
        return ""
    last, best = (f"{100 * score:.2f} % at step {step:,}" for step, score in (status.last, status.best))
    return f"video top-1 {last}; best {best}"


def _waits(status: Status) -> str:
    if status.input_wait is None:
        return ""
    text = f"{status.input_wait:.1%} of the time" + (f", longest on {status.slowest}" if status.slowest else "")
    if len(status.processes) < 2:
        return text
    ranked = sorted(enumerate(status.processes), key=lambda item: -item[1].input_wait)
    each = [f"\n{'':14}process {number} on {own.host}: {own.input_wait:.1%}" for number, own in ranked]
    rest = f"\n{'':14}and {len(each) - MOST_PROCESSES} more" if len(each) > MOST_PROCESSES else ""
    return text + "".join(each[:MOST_PROCESSES]) + rest


def _broken(status: Status) -> str:
    counts = [process.broken_videos for process in status.processes]
    if not sum(counts):
        return ""
    noun = "video" if sum(counts) == 1 else "videos"
    return f"{'at most ' if len(counts) > 1 else ''}{sum(counts):,} {noun} cannot be read; the log names them"


def _beat(status: Status) -> str:
    if status.age is None:
        return ""
    return f"{format_seconds(status.age)} ago, from process {status.process} on {status.host}"
