"""Jobs of several real processes, which talk over the loopback interface."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.checkpoint.checksums import leaf_table
from r23d_jax.commands import status
from r23d_jax.config import ConfigError, UserError
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.runtime import distributed
from r23d_jax.runtime.journal import read_metrics
from tests.hostile.reliability import harness

PATIENCE = 600  # seconds; no test waits so long unless something hangs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(args: list[str], devices: int) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        args,
        cwd=harness.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Status and output of each; all are dead afterwards."""
    try:
        return [
            (process.returncode, output)
            for process in processes
            for output, _ in [process.communicate(timeout=PATIENCE)]
        ]
    finally:
        for process in processes:
            process.kill()


def launch(data: Path, workdir: Path, num_processes: int) -> list[subprocess.Popen]:
    """launch.py in several processes of one device each."""
    command = harness.train_command(harness.TINY_RUN, workdir, data)
    place = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={num_processes}", "--heartbeat_seconds=10"]
    return [start([*command, *place, f"--process_id={number}"], devices=1) for number in range(num_processes)]


def await_step(workdir: Path, step: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(row["step"] >= step for row in read_metrics(workdir)):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_synthetic(root, num_groups=3, clips_per_group=2, height=48, width=56, test_groups=1)
    return root


def train(data: Path, folder: Path, num_processes: int, devices: int = 4, stop_after: int = 0) -> list[dict[str, Any]]:
    """`worker.py` in several processes, with so many devices in all; nothing is returned from one that is to stop."""
    folder.mkdir(exist_ok=True)
    place = [f"127.0.0.1:{free_port()}", str(num_processes)]
    folders = [str(path) for path in (data, folder / "run", folder)]
    outcomes = finish([
        start(
            [sys.executable, "-m", "tests.runtime.worker", *place, str(number), *folders, str(stop_after)],
            devices=devices // num_processes,
        )
        for number in range(num_processes)
    ])  # fmt: skip
    assert all(status == 0 for status, _ in outcomes), "\n".join(output[-3000:] for _, output in outcomes)
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(0 if stop_after else num_processes)]


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [2, 4])
def test_a_job_computes_what_one_process_computes(data: Path, tmp_path: Path, num_processes: int) -> None:
    """Over the same four devices. Sums over devices may be taken in another order, which rounds differently."""
    (alone,) = train(data, tmp_path / "alone", 1)
    job = train(data, tmp_path / "job", num_processes)
    for process in job:
        assert process["devices"] == alone["devices"] == 4
        np.testing.assert_allclose(process["losses"], alone["losses"], rtol=1e-4)
        np.testing.assert_allclose(process["logits"], alone["logits"], rtol=1e-3, atol=1e-3)
        assert process["metrics"].keys() == alone["metrics"].keys()
        # Each holds the weights of a checkpoint whole, and the job evaluates them as when it wrote them
        assert process["evaluated_again"] == pytest.approx(process["saved"], rel=1e-3)
    # Each reads its own rows, and together they read every row once
    for step, rows in enumerate(alone["read"]):
        parts = [process["read"][step] for process in job]
        assert [len(part) for part in parts] == [len(rows) // num_processes] * num_processes
        assert [row for part in parts for row in part] == rows
    # The first speaks for all
    assert any("report: " in line for line in job[0]["lines"])
    assert not any(process["lines"] for process in job[1:])
    pages = [(tmp_path / name / "run/report.html").read_text() for name in ("alone", "job")]
    maps = [page.count("Grad-CAM of ") for page in pages]
    assert maps[1] == maps[0] > 0, "the network was in several processes, and the first explains its errors"
    # Its rows hold what each measured, and name the slowest
    rows = [row for row in read_metrics(tmp_path / "job/run") if "train/loss" in row]
    assert len(rows) == len(alone["losses"])
    for row in rows:
        waits = [own["input_wait"] for own in row["processes"]]
        assert len(waits) == num_processes and row["train/input_wait"] == pytest.approx(max(waits), abs=1e-4)
        slowest = [number for number, wait in enumerate(waits) if wait == max(waits)]  # rounded, so several may be
        assert row["slowest"] in [f"process {number} on {socket.gethostname()}" for number in slowest]
        assert all(own["clips_per_second"] > 0 for own in row["processes"])
    assert status.read_status(tmp_path / "job/run").verdict == "finished"
    # One checkpoint, written together, which one process can read
    mine, theirs = (load_checkpoint(tmp_path / name / "run", "latest") for name in ("alone", "job"))
    assert mine.step == theirs.step and len(list((tmp_path / "job/run/checkpoints").iterdir())) >= 1


@pytest.mark.long
def test_a_run_of_one_process_goes_on_in_two(data: Path, tmp_path: Path) -> None:
    """From eight devices to two of one each: the same batches and learning rates, and losses that differ by rounding.

    It stops where an evaluation is due, so the job saves a step again that is on disk already.
    """
    (alone,) = train(data, tmp_path / "alone", 1)
    train(data, tmp_path / "job", 1, devices=8, stop_after=3)
    job = train(data, tmp_path / "job", 2, devices=2)
    assert [process["devices"] for process in job] == [2, 2] and len(job[0]["read"]) == 3
    parts = zip(job[0]["read"], job[1]["read"], strict=True)
    assert [[*first, *second] for first, second in parts] == alone["read"][3:]
    np.testing.assert_allclose(job[0]["losses"], alone["losses"], rtol=1e-4)
    rates, expected = (
        [row["train/learning_rate"] for row in read_metrics(tmp_path / name / "run") if "train/loss" in row]
        for name in ("job", "alone")
    )
    assert rates == expected and len(rates) == 6


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_all_at_the_same_step_and_the_job_goes_on(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    whole = launch(data, tmp_path / "whole", 2)
    assert [status for status, _ in finish(whole)] == [0, 0]
    job = launch(data, tmp_path / "run", 2)
    await_step(tmp_path / "run", 3, job)
    job[1].send_signal(number)
    outcomes = finish(job)
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    assert "stopped at step" in outcomes[0][1] and "continue with: " in outcomes[0][1]
    assert "stopped at step" not in outcomes[1][1]
    again = finish(launch(data, tmp_path / "run", 2))
    assert [status for status, _ in again] == [0, 0] and "resumed from step" in again[0][1]
    assert not harness.differences(harness.trained(tmp_path / "whole"), harness.trained(tmp_path / "run"))


@pytest.mark.long
@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_loss_of_one_ends_the_others_and_the_job_goes_on(
    data: Path, tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    """With a message: ours, or where a lost process shows as a missed heartbeat that of jax."""
    job = launch(data, tmp_path / "run", 2)
    await_step(tmp_path / "run", 5, job)
    job[victim].send_signal(number)
    survivor = job[1 - victim]
    output, _ = survivor.communicate(timeout=PATIENCE)
    job[victim].kill()
    finish(job[victim : victim + 1])
    assert not status.read_status(tmp_path / "run").alive
    ours = "another process of the job has ended or hangs" in output and "Start all processes again" in output
    assert survivor.returncode != 0
    assert ours or "another task died" in output, output
    again = finish(launch(data, tmp_path / "run", 2))
    assert [status for status, _ in again] == [0, 0] and "resumed from step" in again[0][1]
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.long
def test_an_error_of_one_ends_the_others(data: Path, tmp_path: Path) -> None:
    """Not after minutes in which each waits for the other."""
    place = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--heartbeat_seconds=10"]
    good, bad = (
        start(
            [*harness.train_command(harness.TINY_RUN, tmp_path / "run", root), *place, f"--process_id={number}"],
            devices=1,
        )
        for number, root in ((0, data), (1, tmp_path / "nothing"))
    )
    (first, _), (second, output) = finish([good, bad])
    assert first != 0 and second == 2
    assert "error: process 1 of 2: " in output and "nothing" in output


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("", 2, 0), r"go together; --coordinator is missing"),
        (("host:1", None, None), r"go together; --num_processes and --process_id is missing"),
        (("host", 2, 0), r"--coordinator=host: must be HOST:PORT of process 0, e\.g\."),
        (("host:http", 2, 0), r"--coordinator=host:http: must be HOST:PORT"),
        (("host:1", 0, 0), r"--num_processes=0: must be at least 1"),
        (("host:1", 2, 2), r"--process_id=2: must be 0 to 1 for 2 processes"),
    ],
)
def test_wrong_places_are_named(place: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distributed.check_flags(*place)


def test_a_coordinator_that_is_not_there_and_a_port_that_is_taken() -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: not reached in 1 s .*is process 0 running there"):
        distributed.join(f"127.0.0.1:{port}", 2, 1, join_seconds=1)
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {taken} cannot be used on this host .*Choose another port"):
            distributed.join(f"127.0.0.1:{taken}", 2, 0)


def test_those_who_do_not_come_are_not_waited_for_without_end() -> None:
    code = (
        f"from r23d_jax.runtime import distributed; distributed.join('127.0.0.1:{free_port()}', 2, 0, join_seconds=1)"
    )
    ((status, output),) = finish([start([sys.executable, "-c", code], devices=1)])
    assert status == 2
    assert output.startswith("error: the 2 processes of the job have not come together in 1 s; check that all of them")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "ends"), [pytest.param(distributed.REPORT_SECONDS, True, marks=pytest.mark.long), (1, False)]
)
def test_those_who_are_done_wait_for_the_report_of_the_first(patience: int, ends: bool) -> None:
    place = f"'127.0.0.1:{free_port()}', 2"
    processes = [
        start(
            [
                sys.executable,
                "-c",
                "import time; from r23d_jax.runtime import distributed; "
                f"distributed.REPORT_SECONDS = {patience}; distributed.join({place}, {number}); time.sleep({wait})",
            ],
            1,
        )
        for number, wait in enumerate((6, 0))
    ]
    assert all(status == 0 for status, _ in finish(processes)) == ends


def test_two_processes_agree() -> None:
    """On checksums, on the values that they place together, and on when to stop; with a signal to one."""
    place = [f"127.0.0.1:{free_port()}", "2"]
    outcomes = finish([
        start([sys.executable, "-m", "tests.runtime.agreeing", *place, str(number)], devices=2)
        for number in range(2)
    ])  # fmt: skip
    assert all(status == 0 for status, _ in outcomes), outcomes
    first, second = (json.loads(output.splitlines()[-1]) for _, output in outcomes)
    assert first == second
    values = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    assert first["leaves"] == leaf_table({"own": values, "spread": values, "whole": values})
    assert first["sums"] == {"spread": 276.0, "whole": 276.0}
    assert first["calls"] > 5


def test_no_cluster_is_recognized() -> None:
    code = "from r23d_jax.runtime import distributed; distributed.join()"
    found = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, check=False)
    assert "--distributed: no cluster is recognized here; looked for SLURM" in found.stderr
