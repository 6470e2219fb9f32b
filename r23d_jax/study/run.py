"""Runs the cells of a study one after another, each in a process of its own, and keeps their outcomes."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r23d_jax import config
from r23d_jax.config import Config
from r23d_jax.evaluation.result import NPZ
from r23d_jax.runtime import disk, mirror
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import format_seconds
from r23d_jax.study.costs import Cost, cost_of, parameters_of
from r23d_jax.study.grid import Cell
from r23d_jax.training.resume import WITHOUT_EFFECT

CELL, OUTCOME, LOG, LOCK = "cell.json", "outcome.json", "log.txt", ".cell.lock"
LAST_LINES = 5  # of a failed cell's log, to show


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a cell, which is kept in its folder."""

    status: str  # "done", "failed" or "stopped"
    seconds: float  # running time of all its processes
    metrics: dict[str, float]  # metrics of its last evaluation
    per_class: dict[str, float | None]  # accuracy by class name; None for a class without videos
    # parameters, gmacs: the cost of the network and of one clip
    parameters: int
    gmacs: float
    device: str = ""  # the device it ran on
    reason: str = ""  # the end of a failed cell's log
    # how its videos and views were chosen; see `evaluation.result.Protocol`
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    # what a sum was made of, as `evaluations`; () for a training, and in outcomes of earlier versions
    streams: Sequence[Sequence[str]] = ()
    videos: int | None = None  # number of videos that it was scored on; None in outcomes of earlier versions
    missing: int = 0  # number of listed videos that were not there
    not_evaluated: int = 0  # number of videos that could not be read


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome that a folder holds; None if its cell has not ended, or the record is damaged."""
    try:
        return Outcome(**json.loads((folder / OUTCOME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def outcome_of(cell: Cell, workdir: Path) -> Outcome | None:
    """The outcome of a cell; None if it has not ended, or is a sum of other streams than those of now."""
    outcome = read_outcome(workdir / cell.name)
    made_of = outcome.streams if outcome is not None and outcome.status == "done" else ()
    return None if made_of and made_of != evaluations(cell, workdir) else outcome


def evaluations(cell: Cell, workdir: Path) -> list[list[str]]:
    """What a sum is made of: the name of each stream, and a digest of its evaluation, "" while there is none."""
    return [[stream.name, _digest(workdir / stream.name / NPZ)] for stream in cell.streams]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def is_done(cell: Cell, workdir: Path) -> bool:
    """Whether a cell has ended well."""
    outcome = outcome_of(cell, workdir)
    return outcome is not None and outcome.status == "done"


def ended(metrics: Mapping[str, float | None], seconds: float) -> str:
    """The end of a cell in words: its accuracy and its time."""
    accuracy = metrics["val/top1_video"]
    what = "no test video could be read," if accuracy is None else f"video top-1 {100 * accuracy:.2f} %"
    return f"{what} in {format_seconds(seconds)}"


def run_cells(cells: list[Cell], workdir: Path, log: Callable[[str], None] = print) -> tuple[int, int]:
    """Runs the cells that are not done, in order. A failed cell does not stop the rest, and is tried again next time.

    A stopped cell resumes from its checkpoint, unless it was begun with other settings: then it is left out. So is a
    cell whose files are missing, and a sum of two streams that are not done. A cell that another process is working on
    is skipped. A sum is made again if its streams are others or were trained again. Ctrl-C stops the study and the
    running cell, which saves its state.

    Args:
      cells: each gets the folder `workdir/<name>`.

    Returns:
      The numbers of finished and of failed cells.
    """
    done = failed = 0
    for number, cell in enumerate(cells, start=1):
        folder = workdir / cell.name
        before = outcome_of(cell, workdir)
        if before is not None:
            recount(cell, folder, before)
        finished = before is not None and before.status == "done"
        done += finished
        if (finished or mirror.steps_of(folder)) and (changed := _changed(cell, folder)):
            how = "done" if finished else "begun"
            log(f"{cell.name}: {how} with other settings ({changed}); delete {folder} to run it again")
            continue
        if finished:
            continue
        log(f"[{number}/{len(cells)}] {cell.name}")
        waits = [*cell.needs.values()] or [stream.name for stream in cell.streams if not is_done(stream, workdir)]
        if waits:
            log(f"    left out: needs {'; '.join(waits)}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with disk.hold(folder, LOCK, log=log) as lock:
                outcome = _run_cell(cell, folder, before.seconds if before else 0.0, lock.fileno())
        except disk.InUse as error:
            log(f"    skipped: {error}")
            continue
        if outcome.status == "done":
            done += 1
            log(f"    {ended(outcome.metrics, outcome.seconds)}")
        else:
            failed += 1
            log(f"    failed; the next one follows. The end of {folder / LOG}:\n{outcome.reason}")
    return done, failed


def _changed(cell: Cell, folder: Path) -> str:
    """The fields that a cell was run with and that the study has otherwise now; "" if none."""
    cfg = _run_with(folder)
    if cfg is None:
        return ""
    before, now = (config.flat(dataclasses.asdict(each)) for each in (cfg, cell.config))
    for name, stream in zip(("fusion.first", "fusion.second"), cell.streams, strict=False):
        if Path(before[name]).name == stream.name:  # the folder of the stream that the study has by its label
            now[name] = before[name]
    names = [name for name, value in now.items() if before[name] != value and not name.startswith(WITHOUT_EFFECT)]
    return ", ".join(f"config.{name}={before[name]!r}, is {now[name]!r} now" for name in names)


def _run_with(folder: Path) -> Config | None:
    """The config that the cell in a folder was run with; None if it is damaged, or of another version."""
    try:
        return config.from_json((folder / CELL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _run_cell(cell: Cell, folder: Path, seconds_before: float, lock: int) -> Outcome:
    cost = cost_of(cell)
    cfg = cell.config
    if cell.streams:
        first, second = (str(folder.parent / stream.name) for stream in cell.streams)
        cfg = dataclasses.replace(cfg, fusion=dataclasses.replace(cfg.fusion, first=first, second=second))
    write_atomically(folder / CELL, config.to_json(cfg) + "\n")
    made_of = evaluations(cell, folder.parent)  # before they are read: one that is replaced meanwhile is told later
    started = time.monotonic()
    command = [sys.executable, "-m", "r23d_jax", "study", "--cell", str(folder)]
    with (folder / LOG).open("a", encoding="utf-8") as file:
        # The process inherits the lock, because it continues to train if the study is killed.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock])
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the cell receives it too, and saves its state
            process.wait()
            seconds = seconds_before + time.monotonic() - started
            _write(folder, Outcome("stopped", seconds, {}, {}, cost.parameters, cost.gmacs))
            raise
    seconds = seconds_before + time.monotonic() - started
    return recount(cell, folder, keep_outcome(folder, status, seconds, cost, made_of))


def recount(cell: Cell, folder: Path, outcome: Outcome) -> Outcome:
    """Corrects the number of parameters once the classes are known; earlier versions took those of UCF101.

    It is that of the network that was trained, whatever the study says by now.
    """
    if outcome.status != "done":
        return outcome
    counted = outcome
    if cell.streams:
        found = [read_outcome(folder.parent / stream.name) for stream in cell.streams]
        streams = [stream for stream in found if stream is not None and stream.status == "done"]
        if len(streams) == len(found):
            parameters, gmacs = sum(stream.parameters for stream in streams), sum(stream.gmacs for stream in streams)
            counted = dataclasses.replace(outcome, parameters=parameters, gmacs=gmacs)
    elif (cfg := _run_with(folder)) is not None:
        counted = dataclasses.replace(outcome, parameters=parameters_of(cfg, len(outcome.per_class)))
    if counted != outcome:
        _write(folder, counted)
    return counted


def keep_outcome(
    folder: Path, status: int, seconds: float, cost: Cost, streams: Sequence[Sequence[str]] = ()
) -> Outcome:
    """Writes the outcome of a cell to its folder, whose process ended with exit status `status`.

    Args:
      streams: what a sum was made of, as `evaluations`.
    """
    outcome = dataclasses.replace(_outcome(folder, status, seconds, cost), streams=streams)
    _write(folder, outcome)
    return outcome


def _write(folder: Path, outcome: Outcome) -> None:
    write_atomically(folder / OUTCOME, json.dumps(dataclasses.asdict(outcome), indent=1) + "\n")


def _outcome(folder: Path, status: int, seconds: float, cost: Cost) -> Outcome:
    evaluation: dict[str, Any] = {}
    if status == 0:
        try:
            evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            status = -1
    if status:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        reason = "\n".join(f"    {line}" for line in [f"exit status {status}", *lines])
        return Outcome("failed", seconds, {}, {}, cost.parameters, cost.gmacs, reason=reason)
    return Outcome(
        status="done",
        seconds=seconds,
        metrics=evaluation["metrics"],
        per_class=dict(zip(evaluation["class_names"], evaluation["per_class"], strict=True)),
        parameters=cost.parameters,
        gmacs=cost.gmacs,
        device=evaluation["environment"]["devices"],
        protocol=evaluation.get("protocol", {}),
        videos=evaluation["videos"] - len(evaluation["not_evaluated"]),
        missing=len(evaluation["missing"]),
        not_evaluated=len(evaluation["not_evaluated"]),
    )


def train_cell(folder: Path) -> int:
    """Trains the cell in this process, or adds its streams, and evaluates the checkpoint that its config names.

    Returns:
      The exit status, which is 1 if it was stopped before its end.
    """
    cfg: Config = config.from_json((folder / CELL).read_text(encoding="utf-8"))
    from r23d_jax.evaluation import run, two_stream
    from r23d_jax.evaluation.result import save_evaluation
    from r23d_jax.training import loop

    if cfg.fusion.first:
        two_stream.evaluate_two_streams(cfg, folder)
    elif loop.train(cfg, folder) is None:
        return 1
    elif cfg.eval.checkpoint != "latest":  # which is what the training evaluated at its end
        save_evaluation(run.evaluate_checkpoint(cfg, folder), folder)
    return 0
