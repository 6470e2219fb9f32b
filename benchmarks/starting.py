"""How long a user waits for help and facts, for the first step of a run, and for weights."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure


def run(rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Times whole commands, each in a process of its own.

    Args:
      rounds: how often each is timed.
      tiny: leaves out the trainings.

    Returns:
      "name", "seconds" and "spread" (smallest and largest) of each command.
    """
    root = Path(__file__).parents[1]

    def command(*words: str) -> Callable[[], None]:
        def call() -> None:
            subprocess.run([sys.executable, *words], cwd=root, check=True, capture_output=True)

        return call

    candidates = {
        "launch.py --help": command("launch.py", "--help"),
        "python -m r23d_jax --help": command("-m", "r23d_jax", "--help"),
        "python -m r23d_jax info": command("-m", "r23d_jax", "info"),
    }
    with tempfile.TemporaryDirectory() as folder:
        times = measure.alternate(candidates, rounds)
        rows = [
            {"name": one.name, "seconds": one.median, "spread": [min(one.seconds), max(one.seconds)]} for one in times
        ]
        for name in () if tiny else ("first step of the quickstart, cold", "the same, compilations kept"):
            seconds = []
            for number in range(3):
                workdir = Path(folder) / str(number)
                seconds.append(_first_step(root, Path(folder) / "data", workdir, fresh="cold" in name))
            rows.append({"name": name, "seconds": sorted(seconds)[1], "spread": [min(seconds), max(seconds)]})
    return rows


def _first_step(root: Path, data: Path, workdir: Path, fresh: bool) -> float:
    """Seconds from the start of the process to the first row of metrics; its dataset lies there from the second on."""
    for name in ("checkpoints", *(["compilation_cache"] if fresh else [])):
        shutil.rmtree(workdir / name, ignore_errors=True)
    (workdir / "metrics.jsonl").unlink(missing_ok=True)
    if not data.is_dir():
        from r23d_jax.data.make.synthetic import write_synthetic

        write_synthetic(data)
    command = [sys.executable, "launch.py", "--config=configs/quickstart.py", f"--workdir={workdir}"]
    command += [f"--config.data.root={data}", "--config.train.log_every=1"]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            rows = workdir / "metrics.jsonl"
            if rows.is_file() and rows.stat().st_size:
                seconds = time.perf_counter() - started
                process.kill()
                return seconds
            time.sleep(0.02)
    raise RuntimeError(f"{' '.join(command)}: ended with status {process.returncode} before its first step")


def convert(rounds: int, tiny: bool, peer: bool) -> list[dict[str, Any]]:
    """Times loading a torch file of R(2+1)D-34 (tiny: 18) into a network, in r23d_jax and in torch.

    Args:
      rounds: how often each is timed.
      tiny: a smaller network.
      peer: time torch too. It reads the same file into the same network of its own only where that is r2plus1d_18.

    Returns:
      "name", "seconds" and "spread" (smallest and largest) of each.
    """
    from flax import nnx

    import r23d_jax
    from r23d_jax.weights import files
    from r23d_jax.weights.state_dicts import to_arrays

    name = "r2plus1d_tv_18" if tiny or peer else "r2plus1d_34"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        model = r23d_jax.create_model(name, num_classes=101, rngs=nnx.Rngs(0))
        model.eval()
        files.write(path, to_arrays(model), {})
        candidates: dict[str, Callable[[], object]] = {}
        if peer:
            from safetensors.torch import load_file

            from benchmarks.torch_networks import make_network

            candidates[f"torch, load_state_dict, {name}"] = lambda: make_network(
                "r2plus1d_18", 16, 112
            ).load_state_dict(load_file(path))
        candidates[f"r23d_jax.from_torch, {name}"] = lambda: r23d_jax.from_torch(path)
        times = measure.alternate(candidates, rounds)
    return [{"name": one.name, "seconds": one.median, "spread": [min(one.seconds), max(one.seconds)]} for one in times]
