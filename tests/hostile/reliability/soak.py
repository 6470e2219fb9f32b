"""Trains for hours, is killed now and then, is given damaged pictures, and is watched: memory, descriptors, threads.

    nice -n 10 taskset -c 3 python -m tests.hostile.reliability.soak --minutes 120 --folder /tmp/soak
    python -m tests.hostile.reliability.soak --show /tmp/soak/soak.json

The training is the quickstart's network on its dataset, for longer, with an evaluation every two epochs and a
checkpoint every 20 steps. Each process of it lives for some minutes until a signal strikes, and before it starts one
more frame of the dataset is damaged (at most eight at a time, the oldest is mended). Every few seconds its resident
memory, open descriptors and threads are read. `soak.json` and a table say how the last quarter of each process' life
compares with the second: what is steady does not grow. It also checks that what a killed process left is whole and
that the next one goes on from the newest checkpoint.
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.runtime import disk
from r23d_jax.runtime.journal import read_metrics
from tests.hostile.reliability import harness

SECONDS = 5.0  # between samples
MOST_DAMAGED = 8  # frames at a time, of 360 videos to train on: fewer than the 5 % that a run bears
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SETTINGS = ("train.epochs=60.0", "train.eval_every=2.0", "checkpoint.every_steps=20")
WATCHED = ("rss_mib", "descriptors", "threads")


def main() -> int:
    """Soaks, or shows what an earlier soak has measured; 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--life", type=float, default=15.0, help="most minutes that a process lives before it is killed"
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/soak"), help="emptied first")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print the table of a soak.json")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text())))
        return 0
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    report = soak(args.folder, args.minutes, args.life, args.seed)
    print(table(report))
    return 1 if report["wrong"] else 0


def soak(folder: Path, minutes: float, life: float, seed: int) -> dict[str, Any]:
    """Trains and kills until the time is over; `soak.json` in the folder is kept up to date.

    Returns:
      "minutes" so far, "wrong", "trainings" that came through, and "processes": of each how it ended and its samples.
    """
    began, rng = time.monotonic(), random.Random(seed)
    data = folder / "data"
    write_synthetic(data)
    damaged: list[tuple[Path, bytes]] = []
    report: dict[str, Any] = {"minutes": 0.0, "seed": seed, "trainings": 0, "wrong": [], "processes": []}
    while time.monotonic() - began < 60 * minutes and not report["wrong"]:
        workdir, log = folder / f"run{report['trainings']}", folder / f"run{report['trainings']}.log"
        damage_one(data, damaged, rng)
        expected = newest_checkpoint(workdir)
        lines = len(log.read_text(errors="replace").splitlines()) if log.exists() else 0
        command = harness.train_command(harness.ROOT / "configs" / "quickstart.py", workdir, data)
        process = harness.start([*command, *(f"--config.{setting}" for setting in SETTINGS)], log)
        entry: dict[str, Any] = {"run": report["trainings"], "resumed": expected, "samples": []}
        report["processes"].append(entry)
        until = min(time.monotonic() + 60 * rng.uniform(0.5, life), began + 60 * minutes)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(SECONDS)
            sample = watch(process.pid)
            if sample is not None:
                entry["samples"].append(
                    sample | {"seconds": round(time.monotonic() - began), "step": last_step(workdir)}
                )
            report["minutes"] = (time.monotonic() - began) / 60
            disk.write_atomically(folder / "soak.json", json.dumps(report, indent=1) + "\n")
        number = rng.choice(SIGNALS)
        killed = process.poll() is None
        entry["signal"] = number.name if killed else ""
        entry["status"] = harness.end(process, number, rng) if killed else process.wait()
        if entry["status"] not in (harness.STATUSES[number] if killed else (0,)):
            report["wrong"].append(f"exit status {entry['status']} after {entry['signal'] or 'no signal'}; see {log}")
        said = log.read_text(errors="replace").splitlines()[lines:]
        report["wrong"] += [f"{log}: {line}" for line in said if "Traceback" in line or "is damaged (" in line]
        resumed = [int(found[1]) for line in said if (found := re.match(r"resumed from step (\d+) of", line))]
        if resumed and resumed != [expected]:
            report["wrong"].append(f"resumed from {resumed}, though checkpoint {expected} was there; see {log}")
        if not resumed and expected and any(line.startswith("train: 1/") for line in said):
            report["wrong"].append(f"began anew, though checkpoint {expected} was there; see {log}")
        if workdir.is_dir():
            try:
                harness.check_whole(workdir)
            except Exception as error:  # whatever it is, it is what is looked for
                report["wrong"].append(f"{workdir}: {error}")
        if any(line.startswith("report: ") for line in said):
            steps = [row["step"] for row in read_metrics(workdir) if "train/loss" in row]
            entry["finished"] = steps[-1]
            report["trainings"] += 1
            shutil.rmtree(workdir)
        report["minutes"] = (time.monotonic() - began) / 60
        disk.write_atomically(folder / "soak.json", json.dumps(report, indent=1) + "\n")
    return report


def damage_one(data: Path, damaged: list[tuple[Path, bytes]], rng: random.Random) -> None:
    """Truncates, empties or scrambles one frame; mends the oldest where there are too many."""
    if len(damaged) == MOST_DAMAGED:
        path, content = damaged.pop(0)
        path.write_bytes(content)
    videos = sorted((data / "frames").glob("*/*"))
    path = rng.choice(sorted(rng.choice(videos).glob("*.jpg")))
    content = path.read_bytes()
    middle = len(content) // 2
    scrambled = content[:middle] + rng.randbytes(64) + content[middle + 64 :]
    path.write_bytes(rng.choice([b"", content[:middle], scrambled, rng.randbytes(500)]))
    damaged.append((path, content))


def watch(pid: int) -> dict[str, float] | None:
    """Resident memory in MiB, open descriptors and threads of a process; None if it is gone."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return {
            "rss_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
            "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            "threads": int(status["Threads"]),
        }
    return None


def last_step(workdir: Path) -> int:
    """The last step in the journal; 0 before the first."""
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def newest_checkpoint(workdir: Path) -> int:
    """Its step; 0 if there is none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def growth(samples: list[dict[str, float]]) -> dict[str, tuple[float, float]] | None:
    """Medians of the second and of the last quarter of a process' life, from its first step on; None if too short."""
    at_work = [sample for sample in samples if sample["step"] > samples[0]["step"]]
    if len(at_work) < 16:
        return None
    quarter = len(at_work) // 4
    return {
        name: (
            statistics.median(sample[name] for sample in at_work[quarter : 2 * quarter]),
            statistics.median(sample[name] for sample in at_work[-quarter:]),
        )
        for name in WATCHED
    }


def table(report: dict[str, Any]) -> str:
    """One row per process that lived long enough, and a summary."""
    header = f"{'process':>7} {'minutes':>8} {'steps':>11} {'MiB':>14} {'descriptors':>12} {'threads':>10}  ended by"
    lines, grown = [header], []
    for number, entry in enumerate(report["processes"]):
        samples = entry["samples"]
        found = growth(samples) if samples else None
        if found is None:
            continue
        alive = (samples[-1]["seconds"] - samples[0]["seconds"]) / 60
        pairs = [f"{found[name][0]:.0f} -> {found[name][1]:.0f}" for name in WATCHED]
        steps = f"{entry['resumed']}-{samples[-1]['step']}"
        ended = entry.get("signal", "still running") or "itself"
        lines.append(f"{number:>7} {alive:>8.1f} {steps:>11} {pairs[0]:>14} {pairs[1]:>12} {pairs[2]:>10}  {ended}")
        grown.append((alive, {name: found[name][1] - found[name][0] for name in WATCHED}))
    kills = [entry["signal"] for entry in report["processes"] if entry.get("signal")]
    by_signal = ", ".join(f"{kills.count(name)} {name}" for name in sorted(set(kills)))
    lines.append(
        f"{report['minutes']:.0f} minutes, {len(report['processes'])} processes, {len(kills)} killed ({by_signal}), "
        f"{report['trainings']} trainings came through"
    )
    if grown:
        most = ", ".join(f"{name} {max(rise[name] for _, rise in grown):+.0f}" for name in WATCHED)
        lines.append(f"the most that grew in one process, from the second quarter of its life to the last: {most}")
    return "\n".join(lines + ([f"WRONG: {text}" for text in report["wrong"]] or ["nothing lost"]))


if __name__ == "__main__":
    sys.exit(main())
