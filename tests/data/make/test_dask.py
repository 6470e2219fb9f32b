"""Decoding with Beam's DaskRunner on a cluster of separate processes, one of which is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.make.test_beam_jobs import files
from tests.data.make.test_prepare import prepare
from tests.hostile.reliability.harness import write_videos

ROOT = Path(__file__).parents[3]
PACKED = ("--format", "packed", "--shards", "3")
pytestmark = pytest.mark.beam


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """A scheduler and two workers of one thread, whose nannies start another after a death.

    Yields:
      A client, and the options of `prepare` for this cluster.
    """
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -r requirements-beam.txt")
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed: pip install -r requirements-beam.txt"
    )
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
    options = f"dask_scheduler_file={file},dask_partition_size=4"
    try:
        with distributed.Client(scheduler_file=file, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            client.run(exec, "import r23d_jax.data.make.beam_jobs")  # so that both begin together
            yield client, (*PACKED, "--beam-runner", "DaskRunner", "--beam-options", options)
        with contextlib.suppress(ValueError):  # none
            distributed.default_client().close()  # DaskRunner's, which would look for the scheduler
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


@contextlib.contextmanager
def one_killed(client: Any, finished: Callable[[], Collection[str]]) -> Iterator[list[str]]:
    """Kills one of the two workers when four videos are finished; yields the list that these will be in."""
    workers, before, over = sorted(client.run(os.getpid).values()), [], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            if len(there := finished()) >= 4 and not before:
                before.extend(there)
                os.kill(workers[0], signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield before
    finally:
        over.set()
        watcher.join()
    deadline = time.monotonic() + 60
    while len(now := client.run(os.getpid).values()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers[0] not in now and workers[1] in now


def videos_in(folder: Path) -> Path:
    write_videos(folder, 1, num_frames=300)
    (video,) = folder.rglob("*.mp4")
    for group in range(2, 25):
        os.link(video, video.with_name(f"v_Diving_g{group:02}_c00.mp4"))
    return folder


def test_a_killed_worker_costs_what_it_was_decoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, out, alone = videos_in(tmp_path / "videos"), tmp_path / "out", tmp_path / "alone"
    seen: dict[str, set[int]] = defaultdict(set)  # numbers of the files that each video has had

    def finished() -> Collection[str]:
        with contextlib.suppress(FileNotFoundError):  # removed at the end
            for path in (out / ".staging/Diving").glob("v_*"):
                seen[path.name].add(path.stat().st_ino)
        return seen

    with cluster(tmp_path) as (client, options), one_killed(client, finished) as before:
        assert prepare("--videos", videos, "--out", out, *options) == 0
    assert "24 videos are ready" in capsys.readouterr().out
    assert 4 <= len(before) < 24 and all(len(seen[name]) == 1 for name in before)
    assert prepare("--videos", videos, "--out", alone, *PACKED) == 0
    assert len(list((out / "packed").rglob("*.tfrecord-*"))) == 3
    assert files(out / "packed") == files(alone / "packed")
