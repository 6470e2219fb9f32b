"""A job of several processes whose folder is in an object store, and which have no other folder in common."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.runtime import disk, remote
from tests.hostile.reliability import harness
from tests.remote.server import Server
from tests.remote.test_training_from_store import TRAIN
from tests.runtime.test_jobs import free_port


def start(workdir: object, data: object, logs: Path) -> list[subprocess.Popen]:
    """Two processes, each with a cache of its own, as on two machines; each holds half of every large array."""
    logs.mkdir()
    settings = {"data.source": "packed", "data.root": f"{data}/packed", "data.lists": f"{data}/lists"}
    settings |= {"train.eval_every": "10.0", "parallel.fsdp": "2", "model.widths": "(8, 16, 48, 48)"}
    words = [f"--config={harness.TINY_RUN}", f"--workdir={workdir}", "--heartbeat_seconds=10"]
    words += [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    processes = []
    for number in range(2):
        env = harness.environment() | {disk.CACHE: str(logs.parent / f"machine_{number}")}
        env |= {"JAX_COMPILATION_CACHE_DIR": str(logs.parent / "programs")}
        command = [sys.executable, "-c", TRAIN, *words, f"--process_id={number}"]
        with (logs / f"{number}.log").open("wb") as file:
            processes.append(
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=harness.ROOT, env=env)
            )
    return processes


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen]) -> Iterator[None]:
    """They are dead afterwards."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finish(processes: list[subprocess.Popen], logs: Path) -> str:
    """What the first printed; the others print nothing."""
    with ended(processes):
        statuses = [process.wait(harness.PATIENCE) for process in processes]
    texts = [path.read_text() for path in sorted(logs.iterdir())]
    assert statuses == [0, 0], "\n".join(texts)
    assert "error" not in texts[1] and "resumed" not in texts[1] and "report" not in texts[1], texts[1]
    return texts[0]


@pytest.mark.long
def test_killed_and_resumed_on_other_machines_bit_for_bit(made: Path, server: Server, tmp_path: Path) -> None:
    """Wanted is what the job gives in a folder that both processes see and write to together."""
    finish(start(tmp_path / "run", made, tmp_path / "common"), tmp_path / "common")
    wanted = harness.trained(tmp_path / "run")

    data, url = server.upload(made, "job"), server.url_of("runs/job")
    processes = start(url, data, tmp_path / "first")
    is_saved = lambda: any(name.endswith("/.whole") for name in server.names("runs/job"))  # noqa: E731
    with ended(processes):
        assert harness.wait_for(processes[0], is_saved), (tmp_path / "first/0.log").read_text()
        processes[1].kill()
        assert processes[0].wait(harness.PATIENCE) != 0, "it ends when the other one is lost"
    for number in range(2):
        shutil.rmtree(tmp_path / f"machine_{number}")

    shown = finish(start(url, data, tmp_path / "second"), tmp_path / "second")
    assert "resumed from step" in shown
    copy = remote.copied(url, lambda name: not name.endswith("/.whole"))
    assert set(harness.differences(harness.trained(copy), wanted)) == {"config.json"}  # the data's place
    assert not harness.debris(copy)
    assert load_checkpoint(url, "latest").step == wanted["step"]

    metrics = (copy / "metrics.jsonl").read_bytes()
    shown = finish(start(url, data, tmp_path / "third"), tmp_path / "third")
    assert "train:" in shown and "video top-1" in shown, "it was complete already"
    assert (remote.copied(url, lambda name: name == "metrics.jsonl") / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
def test_an_evaluation_in_several_processes_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config=quickstart", "--workdir=s3://bucket/run", "--coordinator=127.0.0.1:1", "--num_processes=2"]
    assert main(["evaluate", *words, "--process_id=0"]) == 2
    shown = capsys.readouterr().err
    assert "--workdir=s3://bucket/run: an evaluation in several processes needs a folder" in shown
    assert "evaluate it in one process" in shown
