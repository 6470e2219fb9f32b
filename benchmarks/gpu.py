"""Times the training step on a GPU in r23d_jax and in torch; needs only jax, flax, optax and torch.

    python -m benchmarks.gpu [--out DIR] [--minutes 8] [--tiny]

Every candidate is a process of its own, so that each has the whole memory and one that runs out of it harms no other.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import steps
from benchmarks.measure import environment

# Dense bfloat16 FLOP/s by a part of the device's name, of NVIDIA's data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
UCF101_CLIPS = 300 * 9537  # of 300 epochs, split 1
OURS = ("r23d_jax", "r23d_jax folded", "r23d_jax padded", "r23d_jax remat")
STEPS = 12  # timed, of which the median counts


def main() -> int:
    """Runs all candidates, most telling ones first, until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="benchmarks/results", help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is started")
    parser.add_argument("--tiny", action="store_true", help="small clips, to see that it works")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--batches", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.candidate:
        _measure(args.candidate, args.network, [int(size) for size in args.batches.split(",")], args.tiny)
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []
    for candidate, network, batches in _plan(args.tiny):
        left = deadline - time.monotonic()
        if left < 10:
            print(f"left out for lack of time: {candidate}, {network}")
            continue
        rows += _in_process(candidate, network, batches, args.tiny, left)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    (out / "gpu.md").write_text(table(rows))
    print(table(rows))
    return 0 if any("error" not in row for row in rows) else 1


def _plan(tiny: bool) -> list[tuple[str, str, str]]:
    if tiny:
        return [("r23d_jax", "r2plus3d_18+vit", "2"), ("torch eager", "r2plus3d_18+vit", "2")]
    plan = []
    for network in ("r3d_18", "r2plus3d_18+vit", "r2plus1d_18"):
        plan += [("r23d_jax", network, "64,16,256"), ("torch compiled", network, "64")]
        plan += [("torch channels_last_3d", network, "64,256"), ("torch eager", network, "64")]
    return plan + [(name, network, "64") for network in ("r2plus1d_18", "r3d_18") for name in OURS[1:]]


def _in_process(candidate: str, network: str, batches: str, tiny: bool, seconds: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--candidate", candidate, "--network", network]
    command += ["--batches", batches] + (["--tiny"] if tiny else [])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        text, wrong = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        text, wrong = error.stdout or "", "the time is over"
        text = text.decode() if isinstance(text, bytes) else text
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if len(rows) < len(batches.split(",")):
        last = next(iter(wrong.strip().splitlines()[::-1]), "ended without a word")
        rows.append({"candidate": candidate, "network": network, "error": last[:200]})
    for row in rows:
        speed = row["error"] if "error" in row else f"{row['clips_per_second']:.1f} clips/s"
        print(f"{candidate}, {network}, batch {row.get('batch', '?')}: {speed}", flush=True)
    return rows


def _measure(candidate: str, network: str, batches: list[int], tiny: bool) -> None:
    """Prints a line of JSON for each batch size."""
    for size in batches:
        clips = steps.Clips(size, 8, 32) if tiny else steps.Clips(size)
        if candidate in OURS:
            option = candidate.partition(" ")[2]
            formulation = "direct" if option in ("", "remat") else option
            made = steps.ours(network, clips, formulation, remat=option == "remat")
        else:
            made = steps.torch_peer(network, clips, candidate)
        for _ in range(2):
            made.step()
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            made.step()
            seconds.append(time.perf_counter() - started)
        median = sorted(seconds)[STEPS // 2]
        device, peak = _device(candidate)
        flops = 6 * steps.multiply_adds(network, clips) * size / median
        row = {
            "candidate": candidate,
            "network": network,
            "batch": size,
            "device": device,
            "seconds": median,
            "clips_per_second": size / median,
            "mfu": flops / peak if peak else None,
            "gib": made.memory() / 2**30,
            "ucf101_minutes": UCF101_CLIPS * median / size / 60,
        }
        print(json.dumps(row), flush=True)


def _device(candidate: str) -> tuple[str, float | None]:
    if candidate in OURS:
        import jax

        name = jax.devices()[0].device_kind
    else:
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return name, next((peak for part, peak in PEAKS.items() if part in name), None)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; each is compared with torch.compile of the same network at batch 64."""
    compiled = {
        row["network"]: row["clips_per_second"]
        for row in rows
        if row["candidate"] == "torch compiled" and "error" not in row
    }
    lines = [
        "| network | candidate | batch | clips/s | torch compiled, batch 64 = 1 | MFU | GiB | 300 epochs of UCF101 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['network']} | {row['candidate']} | | {row['error'].replace('|', '/')} | | | | |")
            continue
        base = compiled.get(row["network"])
        ratio = f"{row['clips_per_second'] / base:.2f}" if base else ""
        mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else ""
        cells = [row["network"], row["candidate"], row["batch"], f"{row['clips_per_second']:.1f}", ratio, mfu]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['gib']:.1f} | {row['ucf101_minutes']:.0f} min |")
    devices = sorted({row["device"] for row in rows if "device" in row})
    return "\n".join([f"Device: {', '.join(devices)}", "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
