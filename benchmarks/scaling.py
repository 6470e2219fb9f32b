"""How the cost of a training step of r23d_jax grows with the batch, the clip and the number of devices."""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import measure, steps
from r23d_jax.runtime import backend

_NETWORK = "r2plus3d_18+vit"
_BASE = steps.Clips(4, 16, 64)
_DEVICES = (1, 2, 4, 8)


def run(rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Times steps that differ from one of 4 x 16 x 64 x 64 in one way, and the same step on virtual devices.

    Args:
      rounds: how often each is timed.
      tiny: fewer of them, to see that it works.

    Returns:
      Of each "what", "clips", "seconds" and "ratio": how many times as long as the first it takes.
    """
    varied = {
        "base": _BASE,
        **{f"batch {batch}": steps.Clips(batch, 16, 64) for batch in (1, 2, 8, 16)},
        **{f"{frames} frames": steps.Clips(4, frames, 64) for frames in (8, 32)},
        **{f"{size} pixels": steps.Clips(4, 16, size) for size in (96, 128)},
    }
    if tiny:
        varied = {"base": steps.Clips(1, 8, 32), "batch 2": steps.Clips(2, 8, 32)}
    times = measure.alternate({name: steps.ours(_NETWORK, clips).step for name, clips in varied.items()}, rounds)
    rows = [
        {"what": one.name, "clips": str(varied[one.name]), "seconds": one.median, "ratio": 1 / one.ratio}
        for one in times
    ]
    clips = steps.Clips(8, 8, 32) if tiny else steps.Clips(8, 16, 64)
    seconds = {count: _on_devices(count, clips, rounds) for count in (_DEVICES[:2] if tiny else _DEVICES)}
    for count, taken in seconds.items():
        ratio = taken / seconds[1]
        rows.append({"what": f"{count} virtual devices", "clips": str(clips), "seconds": taken, "ratio": ratio})
    return rows


def _on_devices(count: int, clips: steps.Clips, rounds: int) -> float:
    """Median seconds of a step in a process that sees the CPU as so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    code = f"from benchmarks import scaling, steps; scaling.time_steps(steps.{clips!r}, {rounds})"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{count} virtual devices: {done.stderr.strip().splitlines()[-1]}")
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def time_steps(clips: steps.Clips, rounds: int) -> None:
    """Prints the seconds of steps on all devices of this process."""
    backend.prepare_process()
    step = steps.ours(_NETWORK, clips).step
    step()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))
