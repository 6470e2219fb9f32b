"""Processes that are killed, and what is to be found afterwards: shared by `kill`, `soak` and the tests beside them."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

from r23d_jax.data.find import tfrecord
from r23d_jax.evaluation.result import load_evaluation
from r23d_jax.runtime.journal import read_metrics

ROOT = Path(__file__).resolve().parents[3]
TINY_RUN = ROOT / "tests" / "hostile" / "reliability" / "tiny_run.py"
PATIENCE = 600.0  # seconds until something that should have happened is taken to hang
SPEED = (
    "train/clips_per_second",
    "train/input_wait",
    "processes",
    "slowest",
)  # columns of metrics.jsonl that no two runs share
POLL = 0.002  # seconds

# Exit statuses that a process may have which was sent this signal: by the signal, or by itself after it.
STATUSES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM, 0, 130, 143),
    signal.SIGINT: (-signal.SIGINT, 0, 130),
}


class Lost(AssertionError):
    """A kill has cost something that it must not cost."""


def environment() -> dict[str, str]:
    """For the processes: this machine's CPU as one device, and every compiled program kept, so that restarts are
    quick and torn entries of that cache would be met."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    return kept | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}


def start(command: Sequence[str], log: Path) -> subprocess.Popen:
    """Starts a process in a session of its own, so that a Ctrl-C to it reaches its children and not us."""
    # A shell's background jobs ignore Ctrl-C and their children inherit that; a handler of ours is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(), start_new_session=True
            )
    finally:
        signal.signal(signal.SIGINT, before)


def train_command(config: Path, workdir: Path, data: Path) -> list[str]:
    """`launch.py` on the frames and lists of a synthetic dataset."""
    overrides = {"root": f"{data}/frames", "lists": f"{data}/lists", "source": "frames"}
    return [
        *(sys.executable, "launch.py", f"--config={config}", f"--workdir={workdir}"),
        *(f"--config.data.{name}={value}" for name, value in overrides.items()),
    ]


def prepare_command(videos: Path, out: Path) -> list[str]:
    """Frames and shards; one worker more than one, so that both are under way when a kill comes."""
    paths = ("--videos", str(videos), "--out", str(out))
    return [sys.executable, "-m", "r23d_jax", "prepare", *paths, "--format", "both", "--shards", "2", "--workers", "2"]


def send(process: subprocess.Popen, number: signal.Signals) -> None:
    """Kills: a Ctrl-C goes to the whole group, as from a terminal, the others to the process alone."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)


def end(process: subprocess.Popen, number: signal.Signals, rng: random.Random) -> int:
    """Sends a signal and waits; in some cases a process that was asked to stop is not given the time for it."""
    send(process, number)
    if number != signal.SIGKILL and rng.random() < 0.3:
        try:
            return process.wait(rng.uniform(0.0, 0.5))
        except subprocess.TimeoutExpired:
            send(process, signal.SIGKILL)
            process.wait(PATIENCE)
            return STATUSES[number][0]
    return process.wait(PATIENCE)


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> bool:
    """Returns True when the condition holds, False if the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            process.kill()
            raise Lost(f"nothing happened for {PATIENCE:.0f} s: {' '.join(map(str, process.args))}")  # type: ignore
        time.sleep(POLL)
    return False


# -- a training, seen from outside -------------------------------------------------------------------------------------


def phase(workdir: Path) -> str:
    """What a training is doing, as its files tell."""
    rows = read_metrics(workdir)
    if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        return "save"
    if not rows:
        return "start"
    return "evaluation" if "train/loss" in rows[-1] and is_evaluated(rows[-1]["step"]) else "step"


def is_evaluated(step: int) -> bool:
    """Whether `tiny_run` evaluates after this step."""
    return step % 6 == 0 or step == 40


def check_whole(workdir: Path) -> None:
    """Whatever a killed training left can be read, and every step stands in its metrics at most once.

    Raises:
      Lost: naming the file.
    """
    for name in ("config.json", "evaluation.json"):
        path = workdir / name
        if path.exists():
            json.loads(path.read_text(encoding="utf-8"))
    load_evaluation(workdir)
    report = workdir / "report.html"
    if report.exists() and not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise Lost(f"{report} is not whole")
    rows = read_metrics(workdir)
    keys = [(row["step"], "train/loss" in row) for row in rows]
    if len(set(keys)) != len(keys) or [key[0] for key in keys] != sorted(key[0] for key in keys):
        raise Lost(f"{workdir}/metrics.jsonl: steps are not there once each, in order: {keys}")


def trained(workdir: Path) -> dict:
    """All that must be the same after any number of kills.

    The last checkpoint is read, which verifies the checksums of all that it holds: parameters, statistics, optimizer,
    moving average. They are compared as they stand in its meta.
    """
    from r23d_jax.checkpoint.checkpoint import load_checkpoint

    said: list[str] = []
    last, best = (load_checkpoint(workdir, which, said.append) for which in ("latest", "best"))
    evaluation = load_evaluation(workdir)
    assert evaluation is not None and not said, said
    rows = [{name: value for name, value in row.items() if name not in SPEED} for row in read_metrics(workdir)]
    meta = json.loads((last.path / "meta" / "metadata").read_text())
    scores = hashlib.sha256(evaluation.logits.tobytes() + evaluation.softmax.tobytes()).hexdigest()
    return {
        "rows": rows,
        "leaves": meta["leaves"],
        "metrics": meta["metrics"],
        "step": last.step,
        "best": [best.step, best.metrics],
        "evaluation.json": json.loads((workdir / "evaluation.json").read_text()),
        "scores": scores,
        "config.json": (workdir / "config.json").read_text(),
    }


def debris(folder: Path) -> list[str]:
    """Files and folders below `folder` that a kill has left and nobody has cleared away."""
    pattern = re.compile(r"partial|orbax-checkpoint-tmp|\.replaced$|\.damaged$|\.old$|\.staging")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if pattern.search(path.name))


def differences(ours: dict, theirs: dict) -> list[str]:
    """Names of what is not equal."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


# -- videos and what is made of them -----------------------------------------------------------------------------------


def write_videos(folder: Path, count: int, num_frames: int = 24, groups: int = 1) -> None:
    """Small videos of two classes, in groups named as UCF101's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name, group = ("Diving", "Rowing")[number % 2], 1 + number // 2 % groups
        path = folder / name / f"v_{name}_g{group:02}_c{number:02}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25, options={"qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            picture = rng.integers(0, 256, (120, 160, 3), np.uint8)
            for shift in range(num_frames):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * shift, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file, by its name below the folder; locks, which name their holder, are left out.

    The order of the fields inside a record of a shard is drawn anew by every process that writes one: of shards it is
    the fields' values that are summed up, record after record.
    """
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            content = _fields(path) if ".tfrecord-" in path.name else path.read_bytes()
            sums[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return sums


def _fields(shard: Path) -> bytes:
    """The records of a shard, the fields of each sorted by name."""
    data = np.fromfile(shard, np.uint8)
    content = []
    for record in tfrecord.records(data):
        assert not record.problem, f"{shard}: {record.problem}"
        for name, values in sorted(tfrecord.parse_example(data, record.start, record.end).items()):
            read = [data[v[0] : v[0] + v[1]].tobytes() if isinstance(v, tuple) else str(v).encode() for v in values]
            content += [name.encode(), *read]
    return b"\0".join(content)
