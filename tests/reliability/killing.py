"""Kills a training again and again, starts it again, and compares what it ends with to a run that nobody disturbed.

    python -m tests.reliability.killing --times 30 --seed 0
    python -m tests.reliability.killing --soak 120 --out soak.json     # minutes

The training is `launch.py` in a process of its own, tiny but with everything that is random in a run: dropout, mixup,
color jitter, an average of the parameters. Moments are drawn by a seed: any time at all, the first seconds, and while a
checkpoint is being written. SIGKILL gives the process no chance; SIGTERM and SIGINT ask it to save and stop.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.data.synthetic import write_synthetic
from r23d_jax.evaluation.result import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("any time", "any time", "start", "save")
_LONGEST = 600  # seconds that a life may take; longer is a hang
# Different from run to run by nature
_TIMING = ("train/clips_per_second", "train/input_wait")


def write_data(root: Path) -> None:
    """24 videos to train on, 12 to test on."""
    write_synthetic(root, num_groups=3, clips_per_group=2, height=32, width=32, test_groups=1)


def command(data: Path, workdir: Path, epochs: float = 12.0) -> list[str]:
    """The command line of the tiny training: 3 steps an epoch."""
    fields = {
        "model.family": "r2plus1d",
        "model.widths": "(4, 4, 8, 8)",
        "model.head.dropout": 0.3,
        "model.head.kind": "avgpool",
        "data.source": "frames",
        "data.root": data / "frames",
        "data.lists": data / "lists",
        "data.num_frames": 4,
        "data.short_side": 20,
        "data.crop_size": 16,
        "data.color_jitter": 0.2,
        "data.max_broken_fraction": 0.5,
        "data.num_workers": 2,
        "train.mixup": 0.2,
        "train.ema_decay": 0.9,
        "train.global_batch_size": 8,
        "train.epochs": epochs,
        "train.eval_every": 2.0,
        "train.log_every": 1,
        "checkpoint.every_steps": 4,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "launch.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *overrides]


@dataclasses.dataclass(frozen=True)
class Life:
    """One process, from its start to its end."""

    status: int  # as `subprocess` has it: -9 for SIGKILL
    kind: str  # of moment; "" if it was left alone
    signal: str
    saving: bool  # whether a checkpoint was half written when the signal was sent
    output: str


@contextlib.contextmanager
def started(args: list[str]) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """The process, and the lines it has printed so far."""
    lines: list[str] = []
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        args, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            yield process, lines
        finally:
            process.kill()
            process.wait()
            reader.join()


def live(args: list[str], workdir: Path, draw: random.Random | None = None, longest: float = 0.0) -> Life:
    """Runs a process to its end, or to a moment that is drawn.

    Args:
      args: its command line.
      workdir: where it trains.
      draw: draws the moment; None: it is left alone.
      longest: seconds within which "any time" lies.

    Raises:
      TimeoutError: if it neither ends nor comes to that moment.
    """
    kind = draw.choice(MOMENTS) if draw else ""
    number = draw.choice(SIGNALS) if draw else signal.SIGKILL
    delay = {"any time": longest, "start": longest / 3, "save": 0.02, "": 0.0}[kind] * (draw.random() if draw else 0)
    deadline = time.monotonic() + _LONGEST
    sent, saving = "", False
    with started(args) as (process, lines):
        due = time.monotonic() + delay if kind != "save" else None
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"neither ended nor died in {_LONGEST} s:\n{''.join(lines[-20:])}")
            if due is None and _is_saving(workdir):
                due = time.monotonic() + delay
            if kind and not sent and due is not None and time.monotonic() >= due:
                saving = _is_saving(workdir)
                process.send_signal(number)
                sent = number.name
            time.sleep(0.001 if due is None else 0.01)
    return Life(process.returncode, kind if sent else "", sent, saving, "".join(lines))


def _is_saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def is_complete(life: Life) -> bool:
    """Whether the run came to its end, and not only the process."""
    return life.status == 0 and "report: " in life.output


def outcome(workdir: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on how often it was killed."""
    from r23d_jax.training.store import Store

    store = Store((workdir / "checkpoints").absolute())
    try:
        steps = store.steps()
        leaves = store.read_meta(steps[0])["leaves"]  # a checksum of every leaf of the whole state
    finally:
        store.close()
    with np.load(workdir / "evaluation.npz", allow_pickle=False) as file:
        scores = {name: file[name].tolist() for name in file.files if name != "meta"}
    rows: dict[int, dict] = {}
    for row in read_metrics(workdir):
        kept = {name: value for name, value in row.items() if name not in _TIMING}
        clash = rows.setdefault(row["step"], {}).keys() & kept.keys() - {"step", "epoch"}
        assert not clash, f"step {row['step']} stands twice in metrics.jsonl: {clash}"
        rows[row["step"]] |= kept
    return {"step": steps[0], "leaves": leaves, "metrics": rows, "scores": scores}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what is not equal, to the bit."""
    wrong = [name for name in expected if name != "metrics" and expected[name] != found[name]]
    steps = expected["metrics"].keys() | found["metrics"].keys()
    return wrong + [
        f"metrics of step {s}" for s in sorted(steps) if expected["metrics"].get(s) != found["metrics"].get(s)
    ]


def kill_often(folder: Path, times: int, seed: int, epochs: float = 12.0) -> tuple[Counter[str], list[str]]:
    """Kills `times` times, over as many runs as that takes; each is brought to its end and compared.

    Returns:
      How often each kind of death occurred, and what was wrong.
    """
    draw = random.Random(seed)
    data = folder / "data"
    write_data(data)
    begun = time.monotonic()
    undisturbed = live(command(data, folder / "undisturbed", epochs), folder / "undisturbed")
    longest = (time.monotonic() - begun) / 2
    assert is_complete(undisturbed), undisturbed.output
    expected = outcome(folder / "undisturbed")
    deaths: Counter[str] = Counter()
    wrong: list[str] = []
    run = 0
    while deaths.total() < times:
        run += 1
        workdir = folder / f"run{run}"
        while True:
            life = live(command(data, workdir, epochs), workdir, draw if deaths.total() < times else None, longest)
            if is_complete(life):
                break
            allowed = {"SIGKILL": (-9,), "SIGTERM": (0, -15), "SIGINT": (0, 130, -2)}.get(life.signal, ())
            if life.status not in allowed:
                wrong.append(
                    f"run {run}: exit status {life.status} after {life.signal or 'nothing'}:\n{life.output[-3000:]}"
                )
                break
            deaths[f"{life.signal}, {'while saving' if life.saving else life.kind}"] += 1
            print(f"run {run}, death {deaths.total()}: {life.signal}, {life.kind}, saving: {life.saving}", flush=True)
            if "Traceback" in life.output:
                wrong.append(f"run {run}: a traceback after {life.signal}:\n{life.output[-3000:]}")
        else:
            continue
        if is_complete(life):
            wrong += [f"run {run}: {name}" for name in differences(expected, outcome(workdir))]
        print(f"run {run} complete; different: {wrong or 'nothing'}", flush=True)
    return deaths, wrong


# -- soak --------------------------------------------------------------------------------------------------------------


def soak(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Trains for a long time, killed every few minutes, with a frame destroyed now and then.

    Returns:
      "deaths", "damaged" (frames), "steps", and for each life its "samples": seconds, MiB, descriptors, threads.
    """
    draw = random.Random(seed)
    data, workdir = folder / "data", folder / "run"
    write_data(data)
    frames = sorted((data / "frames").rglob("*.jpg"))
    end = time.monotonic() + 60 * minutes
    lives: list[dict[str, Any]] = []
    damaged: list[str] = []
    deaths: Counter[str] = Counter()
    wrong: list[str] = []
    while time.monotonic() < end:
        length = draw.uniform(60, 600)
        number = draw.choice(SIGNALS)
        begun = time.monotonic()
        samples = []
        with started(command(data, workdir, epochs=1e6)) as (process, lines):
            while process.poll() is None and time.monotonic() < min(begun + length, end):
                time.sleep(1)
                with contextlib.suppress(OSError):
                    samples.append((round(time.monotonic() - begun, 1), *_held(process.pid)))
            if process.poll() is not None:
                wrong.append(f"ended by itself with {process.returncode}:\n{''.join(lines[-20:])}")
                break
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LONGEST)
        deaths[number.name] += 1
        wrong += ["a traceback:\n" + "".join(lines[-20:])] if any("Traceback" in line for line in lines) else []
        rows = [row["step"] for row in read_metrics(workdir) if "train/loss" in row]
        if rows != list(range(1, len(rows) + 1)):
            wrong.append(f"metrics.jsonl has a gap or a step twice after {deaths.total()} deaths")
        lives.append({"signal": number.name, "steps": len(rows), "samples": samples})
        print(
            f"{(time.monotonic() - end) / 60 + minutes:.0f} min: {number.name} at step {len(rows)}, {samples[-1:]}",
            flush=True,
        )
        if len(damaged) < 3:
            victim = draw.choice(frames)
            victim.write_bytes(victim.read_bytes()[: draw.randrange(100)])
            damaged.append(victim.parent.name)
    return {"minutes": minutes, "deaths": deaths, "damaged": damaged, "wrong": wrong, "lives": lives}


def _held(pid: int) -> tuple[float, int, int]:
    """MiB of memory, open descriptors, threads."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return round(int(status["VmRSS"].split()[0]) / 1024, 1), descriptors, int(status["Threads"])


def main() -> int:
    """Command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--soak", type=float, default=0, help="minutes of training with kills and damaged frames, instead"
    )
    parser.add_argument("--out", type=Path, help="of the soak: a JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.soak:
            result = soak(Path(folder), args.soak, args.seed)
            if args.out:
                args.out.write_text(json.dumps(result))
            print(json.dumps({k: v for k, v in result.items() if k != "lives"}, indent=1))
            return bool(result["wrong"])
        deaths, wrong = kill_often(Path(folder), args.times, args.seed)
        for name, count in sorted(deaths.items()):
            print(f"{count:4}  {name}")
        print("\n".join(wrong) or f"all equal to the undisturbed run, to the bit, after {deaths.total()} deaths")
        return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
