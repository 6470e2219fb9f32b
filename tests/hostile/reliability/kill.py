"""Kills trainings and `prepare` at random moments until they are through, and compares with what was left alone.

    python -m tests.hostile.reliability.kill --times 30 --seed 0 --folder /tmp/kill

Signals and moments are drawn by the seed: SIGKILL, SIGTERM (as a cluster sends it, in some cases followed by SIGKILL
too soon) and Ctrl-C; on start-up, between steps, while a checkpoint is written, in an evaluation, at the end. A killed
training starts again with the same command until it is through; then its parameters, optimizer, metrics and evaluation
must be those of the uninterrupted one, bit for bit, and a new one begins, until enough kills have struck. Prints a
table, and writes `kill.json`; the exit status is 1 if anything differs.
"""

import argparse
import collections
import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.runtime.journal import read_metrics
from tests.hostile.reliability import harness

MOMENTS = ("start", "step", "save", "evaluation", "end")
MOST_KILLS = 8  # of one training: after these it is left to end
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="kills of trainings, and as many of prepare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="emptied first")
    parser.add_argument("--only", choices=("train", "prepare"), help="one part of the two")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    report, failed = {}, False
    for name, part in (("train", kill_trainings), ("prepare", kill_prepare)):
        if args.only in (None, name):
            report[name] = part(args.folder / name, args.times, args.seed)
            failed |= bool(report[name]["wrong"])
            print(table(name, report[name]), flush=True)
            (args.folder / "kill.json").write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


def table(name: str, part: dict) -> str:
    """The kills by moment and signal."""
    counts = collections.Counter((kill["phase"], kill["signal"]) for kill in part["kills"])
    lines = [f"{name}: {len(part['kills'])} kills, {part['runs']} runs through, {part['seconds']:.0f} s"]
    lines += [f"  {phase:<12} {number:<9} {count}" for (phase, number), count in sorted(counts.items())]
    return "\n".join(lines + ([f"  WRONG: {text}" for text in part["wrong"]] or ["  all equal"]))


def kill_trainings(folder: Path, times: int, seed: int) -> dict:
    """Kills trainings of `tiny_run` so many times.

    Returns:
      "kills": moment wanted, phase hit, signal, exit status and last step of each; "runs" that came through; "wrong":
      what differs from the uninterrupted run.
    """
    began, rng = time.monotonic(), random.Random(seed)
    data, reference = folder / "data", folder / "reference"
    write_synthetic(data, num_groups=3, clips_per_group=2, height=48, width=56, test_groups=1)
    started = time.monotonic()
    process = harness.start(harness.train_command(harness.TINY_RUN, reference, data), folder / "reference.log")
    harness.wait_for(process, lambda: bool(read_metrics(reference)))
    start_seconds = time.monotonic() - started
    if process.wait(harness.PATIENCE):
        raise harness.Lost(f"the uninterrupted run failed: see {folder}/reference.log")
    want = harness.trained(reference)

    kills: list[dict] = []
    wrong: list[str] = []
    runs = 0
    while len(kills) < times and not wrong:
        workdir, log = folder / f"run{runs}", folder / f"run{runs}.log"
        limit = min(times, len(kills) + MOST_KILLS)
        while True:
            process = harness.start(harness.train_command(harness.TINY_RUN, workdir, data), log)
            if len(kills) < limit:
                kill = kill_training(process, workdir, rng, start_seconds)
                if kill is not None:
                    kills.append(kill | {"run": runs})
                    print(f"{len(kills)}: {kill}", flush=True)
                    if kill["status"] not in harness.STATUSES[signal.Signals[kill["signal"]]]:
                        wrong.append(f"kill {len(kills)}: exit status {kill['status']} after {kill['signal']}; {log}")
                    harness.check_whole(workdir)
                    continue
            status = process.wait(harness.PATIENCE)
            if status:
                wrong.append(f"run {runs} ended with status {status}; see {log}")
            break
        if not wrong:
            wrong += [f"run {runs}: {name} differs" for name in harness.differences(harness.trained(workdir), want)]
            wrong += [f"run {runs}: left behind: {name}" for name in harness.debris(workdir)]
        wrong += [f"run {runs}: {line}" for line in log.read_text(errors="replace").splitlines() if "Traceback" in line]
        runs += 1
        print(f"run {runs} is through: {'; '.join(wrong) or 'equal'}", flush=True)
    return {"kills": kills, "runs": runs, "wrong": wrong, "seconds": time.monotonic() - began}


def kill_training(process, workdir: Path, rng: random.Random, start_seconds: float) -> dict | None:
    """Waits for a moment, lets a little time pass and kills; None if the process ended before."""
    moment, number = rng.choice(MOMENTS), rng.choice(SIGNALS)
    delay = rng.random()
    first = len(read_metrics(workdir))
    # Not the first such moment of the process, so that there is progress.
    after = {"start": 0, "end": 0}.get(moment, rng.randrange(1, 12))

    def steps() -> int:
        return sum("train/loss" in row for row in read_metrics(workdir))

    if moment == "start":
        began = time.monotonic()
        reached = harness.wait_for(process, lambda: time.monotonic() - began > delay * 1.2 * start_seconds)
    elif moment == "end":  # of the run: the last evaluation, the last checkpoint, the report
        reached = harness.wait_for(process, lambda: steps() == 40)
        harness.wait_for(process, wait_at_most(delay * 4.0))
    else:
        # The journal is cut back on start-up to the checkpoint: its growth says that steps are taken.
        reached = harness.wait_for(process, lambda: began_steps(workdir, process.pid))
        goal = steps() + after
        reached = reached and harness.wait_for(process, lambda: steps() >= goal and harness.phase(workdir) == moment)
        harness.wait_for(process, wait_at_most(delay * {"step": 0.5, "save": 0.3, "evaluation": 1.0}[moment]))
    if not reached or process.poll() is not None:
        return None
    phase = harness.phase(workdir) if began_steps(workdir, process.pid) else "start"
    step = max((row["step"] for row in read_metrics(workdir)), default=0)
    status = harness.end(process, number, rng)
    return {"wanted": moment, "phase": phase, "step": step, "signal": number.name, "status": status, "rows": first}


def began_steps(workdir: Path, pid: int) -> bool:
    """Whether this process, and not one before it, has opened the journal."""
    try:
        return any("metrics.jsonl" in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def wait_at_most(seconds: float):
    """A condition that comes true after so many seconds."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def kill_prepare(folder: Path, times: int, seed: int) -> dict:
    """Kills `prepare` of frames and shards so many times; what is there in the end must be the same byte for byte."""
    began, rng = time.monotonic(), random.Random(seed)
    videos, reference = folder / "videos", folder / "reference"
    harness.write_videos(videos, 16, num_frames=60)
    started = time.monotonic()
    process = harness.start(harness.prepare_command(videos, reference), folder / "reference.log")
    if process.wait(harness.PATIENCE):
        raise harness.Lost(f"the uninterrupted prepare failed: see {folder}/reference.log")
    seconds = time.monotonic() - started
    want = harness.contents(reference)

    kills: list[dict] = []
    wrong: list[str] = []
    runs = 0
    while len(kills) < times and not wrong:
        out, log = folder / f"out{runs}", folder / f"run{runs}.log"
        limit = min(times, len(kills) + MOST_KILLS)
        while True:
            process = harness.start(harness.prepare_command(videos, out), log)
            number = rng.choice(SIGNALS)
            if len(kills) < limit and harness.wait_for(process, wait_at_most(rng.uniform(0.1, 1.0) * seconds)):
                phase = prepare_phase(out)
                status = harness.end(process, number, rng)
                if status == 0 and number == signal.SIGKILL or phase == "done":
                    break
                kills.append({"phase": phase, "signal": number.name, "status": status, "run": runs})
                print(f"{len(kills)}: {kills[-1]}", flush=True)
                if status not in (*harness.STATUSES[number], 130):
                    wrong.append(f"kill {len(kills)}: exit status {status} after {number.name}; see {log}")
                continue
            if process.wait(harness.PATIENCE):
                wrong.append(f"run {runs} ended with status {process.returncode}; see {log}")
            break
        wrong += [f"run {runs}: {name} differs" for name in harness.differences(harness.contents(out), want)]
        wrong += [f"run {runs}: left behind: {name}" for name in harness.debris(out)]
        wrong += [f"run {runs}: {line}" for line in log.read_text(errors="replace").splitlines() if "Traceback" in line]
        runs += 1
        print(f"run {runs} is through: {'; '.join(wrong) or 'equal'}", flush=True)
        shutil.rmtree(out)
    return {"kills": kills, "runs": runs, "wrong": wrong, "seconds": time.monotonic() - began}


def prepare_phase(out: Path) -> str:
    """What a `prepare` is doing, as its files tell."""
    if not (out / "prepare.json").exists():
        return "start"
    if any(out.glob(".packed*")):
        return "pack"
    return "done" if (out / "packed").is_dir() else "decode"


if __name__ == "__main__":
    sys.exit(main())
