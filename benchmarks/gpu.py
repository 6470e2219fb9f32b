"""Compares the training step on a GPU with torch.compile; needs only jax, flax, optax, jaxtyping and torch.

    python -m benchmarks.gpu [--out DIR] [--minutes 4] [--tiny]

Every candidate is a process of its own, so that one that runs out of memory harms no other. Those of torch share the
memory with the ones that wait.
torch.compile takes a minute for each network, so these compile side by side; nothing else runs while one is timed.
"""

import argparse
import collections
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure, steps

ROOT = Path(__file__).parents[1]
# Dense bfloat16 FLOP/s by a part of the device's name, of NVIDIA's data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
UCF101_CLIPS = 300 * 9537  # of 300 epochs, split 1
PEER = "torch compiled"
IN_FLIGHT = 4  # steps that are queued at a time, as in the training loop
RUNS, STEPS = 5, 10  # timed, of which the median run counts
KERNELS, SHOWN_KERNELS = 60, 10  # most expensive ones, as JSON and in the report


def main() -> int:
    """Runs all candidates, most telling ones first, until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="benchmarks/results", help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=4.0, help="after which whatever still runs is ended")
    parser.add_argument("--networks", default=",".join(steps.NETWORKS))
    parser.add_argument("--forms", default="padded,folded,direct", help="of our convolutions, beside the default")
    parser.add_argument("--batch", type=int, default=64, help="clips")
    parser.add_argument("--tiny", action="store_true", help="two small clips and short jobs, to see that it works")
    parser.add_argument("--candidate", nargs=2, metavar=("NAME", "NETWORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    clips = steps.Clips(2, 8, 32) if args.tiny else steps.Clips(args.batch)
    if args.candidate:
        candidate, network = args.candidate
        _measure(candidate, network, clips)
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    networks, forms, arguments = args.networks.split(","), args.forms.split(","), sys.argv[1:]
    rows: list[dict[str, Any]] = []
    peers = [Worker(PEER, network, arguments, deadline) for network in networks]
    for peer in peers:
        peer.wait_until_ready()
    rows += [peer.result() for peer in peers]
    rows += [Worker(steps.OURS, network, arguments, deadline).result() for network in networks]
    job = main_job(deadline - time.monotonic(), args.tiny)
    print(f"main job: {job}", flush=True)
    for form in forms:
        rows += [Worker(f"{steps.OURS} {form}", network, arguments, deadline).result() for network in networks]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {"environment": measure.environment(), "rows": rows, "main_job": job}
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu.md").write_text(report(rows, job))
    print(report(rows, job))
    return 0 if any("error" not in row for row in rows) else 1


class Worker:
    """A process that prepares a candidate at once, and times it when it is asked for the result."""

    def __init__(self, candidate: str, network: str, arguments: list[str], deadline: float):
        self._row = {"candidate": candidate, "network": network}
        self._errors = tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--candidate", candidate, network]
        # torch's process counts multiply-adds with jax, which would reserve most of the device's memory
        settings = os.environ | ({"JAX_PLATFORMS": "cpu"} if candidate == PEER else {})
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=settings, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        self._alarm = threading.Timer(max(0.0, deadline - time.monotonic()), self._process.kill)
        self._alarm.start()

    def wait_until_ready(self) -> None:
        """Returns when it is compiled, or has failed."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def result(self) -> dict[str, Any]:
        """What it measured, or its "error"."""
        text, _ = self._process.communicate("go\n")
        self._alarm.cancel()
        lines = [line for line in text.splitlines() if line.startswith("{")]
        with self._errors as errors:
            errors.seek(0)
            last = next(iter(errors.read().strip().splitlines()[::-1]), "ended without a word")
        if lines:
            self._row |= json.loads(lines[-1])
        else:
            self._row["error"] = "the time is over" if self._process.returncode == -9 else last[:200]
        speed = self._row.get("error") or f"{self._row['clips_per_second']:.1f} clips/s"
        print(f"{self._row['candidate']}, {self._row['network']}: {speed}", flush=True)
        return self._row


def _measure(candidate: str, network: str, clips: steps.Clips) -> None:
    """Compiles the candidate, prints a line, waits for one, and prints the measurements as JSON."""
    started = time.perf_counter()
    ours = candidate.startswith(steps.OURS)
    if ours:
        made = steps.ours(network, clips, candidate.removeprefix(steps.OURS).strip() or "auto")
    else:
        made = steps.torch_peer(network, clips, candidate)
        _try_algorithms(False)
    made.step()
    compiled = time.perf_counter() - started
    made.forward()
    print("ready", flush=True)
    sys.stdin.readline()
    if not ours:
        _try_algorithms(True)
    made.forward()  # cuDNN tries its algorithms
    forward = measure.alternate({"forward": made.forward}, STEPS)[0].median
    for _ in range(2):
        made.step()
    seconds = sorted(seconds_per_step(made.queue, STEPS) for _ in range(RUNS))[RUNS // 2]
    device, peak = _device(ours)
    flops = 6 * steps.multiply_adds(network, clips) * clips.batch / seconds
    row = {
        "batch": clips.batch,
        "device": device,
        "seconds": seconds,
        "clips_per_second": clips.batch / seconds,
        "forward_seconds": forward,
        "mfu": flops / peak if peak else None,
        "gib": made.memory() / 2**30,
        "compile_seconds": compiled,
        "ucf101_minutes": UCF101_CLIPS * seconds / clips.batch / 60,
    }
    print(json.dumps(row), flush=True)  # which counts if profiling fails
    if ours:
        print(json.dumps(row | {"kernels": kernels(made.step)}), flush=True)


def seconds_per_step(queue: Callable[[], Callable[[], object]], count: int) -> float:
    """Of `count` steps, `IN_FLIGHT` of which are queued at a time."""
    pending: collections.deque[Callable[[], object]] = collections.deque()
    started = time.perf_counter()
    for _ in range(count):
        pending.append(queue())
        if len(pending) > IN_FLIGHT:
            pending.popleft()()
    while pending:
        pending.popleft()()
    return (time.perf_counter() - started) / count


def _try_algorithms(tries: bool) -> None:
    """Whether cuDNN times its algorithms, which it should do while the device is free, or takes the expected one.

    torch keeps the algorithm of a convolution for the rest of the process, but a deterministic one is kept apart from
    others. So it is deterministic as long as nothing is tried, and chooses again later.
    """
    import torch

    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = tries, not tries


def kernels(step: Callable[[], object], count: int = 3) -> list[tuple[str, float]]:
    """The most expensive kernels of a step, with their milliseconds a step."""
    import jax

    totals: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                step()
        trace = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
        # A GPU's kernels are in the lines of its streams, a CPU's in those of XLA's threads
        for plane in trace.planes:
            for line in plane.lines:
                if (line.name or "").startswith("Stream" if plane.name.startswith("/device:GPU") else "tf_XLA"):
                    for event in line.events:
                        totals[event.name] += event.duration_ns
    return [(name, ns / count / 1e6) for name, ns in totals.most_common(KERNELS)]


def _device(ours: bool) -> tuple[str, float | None]:
    if ours:
        import jax

        name = jax.devices()[0].device_kind
    else:
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return name, next((peak for part, peak in PEAKS.items() if part in name), None)


def main_job(seconds: float, tiny: bool) -> dict[str, Any]:
    """Trains with `configs/r23d.py` from JPEG frames on disk.

    Returns:
      "clips_per_second" and "input_wait", the share of time that it waits for input, in its last steps; or "error".
    """
    missing = [name for name in ("tensorflow", "cv2", "ml_collections", "orbax") if not importlib.util.find_spec(name)]
    if missing:
        return {"error": f"left out: {', '.join(missing)} not installed"}
    count, num_frames, clips, num_steps = (8, 20, 8, 4) if tiny else (50, 40, 64, 200)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write = f"loading.write_videos(Path({folder!r}), {count}, {num_frames})"
        fields = {
            "data.root": root / "small",
            "data.lists": root / "lists",
            "train.epochs": num_steps * clips / (count - 2),
            "train.log_every": num_steps // 4,
            "train.eval_every": 1000.0,
            "train.global_batch_size": clips,
            "eval.views": "uniform",
            "eval.num_clips": 1,
        }
        if tiny:
            fields |= {
                "data.num_frames": 8,
                "data.crop_size": 32,
                "data.short_side": 32,
                "model.widths": "(8, 8, 16, 64)",
            }
        train = [sys.executable, "launch.py", "--config=configs/r23d.py", f"--workdir={root / 'run'}"]
        train += [f"--config.{name}={value}" for name, value in fields.items()]
        deadline = time.monotonic() + max(1.0, seconds)
        # In a process without a GPU, because TensorFlow would reserve its memory
        code = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        code += f"from pathlib import Path; from benchmarks import loading; {write}"
        for command in ([sys.executable, "-c", code], train):
            try:
                done = subprocess.run(
                    command, cwd=ROOT, capture_output=True, text=True, timeout=deadline - time.monotonic(), check=False
                )
            except subprocess.TimeoutExpired:
                return {"error": "the time is over"}
            if done.returncode:
                return {"error": next(iter((done.stderr or done.stdout).strip().splitlines()[::-1]), "no message")}
            if command is not train:
                videos = (root / "lists" / "train.csv").read_text().splitlines(keepends=True)
                (root / "lists" / "train.csv").write_text("".join(videos[2:]))
                (root / "lists" / "test.csv").write_text("".join(videos[:2]))
        rows = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "train/input_wait" in row][-1]
    return {"clips_per_second": last["train/clips_per_second"], "input_wait": last["train/input_wait"]}


def report(rows: list[dict[str, Any]], job: dict[str, Any]) -> str:
    """The rows in Markdown; each is compared with torch.compile of the same network."""
    compiled = {
        row["network"]: row["clips_per_second"] for row in rows if row["candidate"] == PEER and "error" not in row
    }
    forward = {
        row["network"]: row["forward_seconds"] for row in rows if row["candidate"] == PEER and "error" not in row
    }
    devices = sorted({row["device"] for row in rows if "device" in row})
    lines = [f"Device: {', '.join(devices)}", ""]
    lines.append(
        f"| network | candidate | batch | step, ms | clips/s | {PEER} = 1 | MFU | forward, ms | {PEER} = 1 | GiB | "
        "compile, s | 300 epochs, UCF101 |"
    )
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: list(steps.NETWORKS).index(row["network"])):
        if "error" in row:
            lines.append(
                f"| {row['network']} | {row['candidate']} | | {row['error'].replace('|', '/')} | | | | | | | | |"
            )
            continue
        base = compiled.get(row["network"])
        cells = (
            row["network"],
            row["candidate"],
            str(row["batch"]),
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['clips_per_second']:.1f}",
            f"{row['clips_per_second'] / base:.2f}" if base else "",
            f"{row['mfu']:.1%}" if row["mfu"] is not None else "",
            f"{row['forward_seconds'] * 1e3:.1f}",
            f"{forward[row['network']] / row['forward_seconds']:.2f}" if base else "",
            f"{row['gib']:.1f}",
            f"{row['compile_seconds']:.0f}",
            f"{row['ucf101_minutes']:.0f} min",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if "error" in job:
        lines += ["", f"The main job, configs/r23d.py from disk: {job['error']}"]
    else:
        speed, share = job["clips_per_second"], job["input_wait"]
        lines += ["", f"The main job, configs/r23d.py from disk: {speed:.0f} clips/s, {share:.0%} of the time waiting"]
    for row in rows:
        if row.get("kernels") and row["candidate"] == steps.OURS:
            lines += [
                "",
                f"Most expensive kernels of {row['network']}, ms a step:",
                "",
                "| kernel | ms |",
                "|---|---:|",
            ]
            lines += [f"| `{name[:80].replace('|', '/')}` | {ms:.3f} |" for name, ms in row["kernels"][:SHOWN_KERNELS]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
