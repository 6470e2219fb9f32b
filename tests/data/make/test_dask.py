"""Decoding with Beam's DaskRunner on a cluster of separate processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.make.test_beam_jobs import files
from tests.data.make.test_prepare import prepare, write_video

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.beam


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The file of a scheduler with two workers of one thread, whose nannies start another after a death."""
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -r requirements-beam.txt")
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed: pip install -r requirements-beam.txt"
    )
    folder = tmp_path_factory.mktemp("cluster")
    file = str(folder / "scheduler.json")
    shared = ["--no-dashboard", "--scheduler-file", file]
    commands = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", *shared],
        ["dask_worker", "--nworkers", "2", "--nthreads", "1", "--local-directory", str(folder), *shared],
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.{name}", *args], env=env, stderr=subprocess.DEVNULL)
        for name, *args in commands
    ]
    try:
        with distributed.Client(scheduler_file=file, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield file
        distributed.default_client().close()  # DaskRunner's, which would look for the scheduler
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def test_a_killed_worker_costs_what_it_was_decoding(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import distributed

    videos, out, alone = tmp_path / "videos", tmp_path / "out", tmp_path / "alone"
    write_video(videos / "A/00.mp4", 300)
    for number in range(1, 24):
        os.link(videos / "A/00.mp4", videos / f"A/{number:02}.mp4")
    client = distributed.Client(scheduler_file=scheduler, set_as_default=False)
    workers = sorted(client.run(os.getpid).values())
    seen: dict[str, set[int]] = defaultdict(set)  # file numbers that every finished video has had
    finished_before: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for path in (out / ".staging/A").glob("[0-9]*"):
                seen[path.name].add(path.stat().st_ino)
            if len(seen) >= 4 and not finished_before:
                finished_before.extend(seen)
                os.kill(workers[0], signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    options = f"dask_scheduler_file={scheduler},dask_partition_size=4"
    arguments = ("--format", "packed", "--shards", "3", "--beam-runner", "DaskRunner", "--beam-options", options)
    try:
        assert prepare("--videos", videos, "--out", out, *arguments) == 0
    finally:
        over.set()
        watcher.join()
    assert "24 videos are ready" in capsys.readouterr().out
    assert 4 <= len(finished_before) < 24 and all(len(seen[name]) == 1 for name in finished_before)
    deadline = time.monotonic() + 30
    while len(now := sorted(client.run(os.getpid).values())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers[0] not in now and workers[1] in now  # it did die, and only it
    client.close()
    assert prepare("--videos", videos, "--out", alone, "--format", "packed", "--shards", "3") == 0
    assert len(list((out / "packed").rglob("*.tfrecord-*"))) == 3
    assert files(out / "packed") == files(alone / "packed")
