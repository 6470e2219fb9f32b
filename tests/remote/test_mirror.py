"""A run's folder in an object store: complete checkpoints alone, and no metrics behind them."""

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.config import UserError
from r23d_jax.runtime import disk, distributed, heartbeat, mirror, remote
from r23d_jax.runtime.heartbeat import Heartbeat
from tests.remote.server import BUCKET, Faults, Server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "SECONDS", 0.1)


INSIDE = ("meta", "params/data")  # files of a checkpoint


def checkpoint(here: Path, step: int, content: str = "") -> None:
    """As Orbax writes it: the folder gets its name when it is complete."""
    folder = here / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "data").write_text(content or f"step {step}")
    (folder / "meta").write_text("{}")
    folder.rename(folder.with_suffix(""))


def wait_for(server: Server, prefix: str, name: str, there: bool = True) -> None:
    end = time.monotonic() + 60
    while (name in server.names(prefix)) != there:
        assert time.monotonic() < end, f"{name}: {server.names(prefix)}"
        time.sleep(0.05)


def test_what_a_run_writes_is_there_and_back_on_another_machine(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, said = f"s3://{BUCKET}/runs/a", []
    with mirror.working(url, said.append) as here:
        assert list(here.iterdir()) == [here / ".mirror.lock"]
        (here / "metrics.jsonl").write_text('{"step": 1}\n')
        (here / "tensorboard").mkdir()
        (here / "tensorboard" / "events").write_text("one")
        (here / "compilation_cache").mkdir()
        (here / "compilation_cache" / "program").write_text("one")
        (here / ".heartbeat.123.partial.json").write_text("half")
        checkpoint(here, 1)
        (here / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
        (here / "checkpoints" / "2.orbax-checkpoint-tmp" / "data").write_text("half")
        wait_for(server, "runs/a", "checkpoints/1/.whole")
        checkpoint(here, 3)
        checkpoint(here, 4)
        (here / "metrics.jsonl").write_text('{"step": 1}\n{"step": 4}\n')
        wait_for(server, "runs/a", "checkpoints/4/.whole")
        os.rename(here / "checkpoints" / "1", here / "checkpoints" / "1.damaged")
        wait_for(server, "runs/a", "checkpoints/1/.whole", there=False)
        (here / "tensorboard" / "events").unlink()
    assert sorted(server.names("runs/a")) == [
        *(f"checkpoints/{step}/{name}" for step in (3, 4) for name in (".whole", "meta", "params/data")),
        "metrics.jsonl",
    ]
    assert "without a checkpoint so far" in said[0] and str(here) in said[0]
    monkeypatch.setenv("R23D_CACHE", str(tmp_path / "elsewhere"))
    with mirror.working(url, said.append) as there:
        assert there != here
        found = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())
        assert found == [
            ".mirror.lock",
            *(f"checkpoints/{step}/{name}" for step in (3, 4) for name in ("meta", "params/data")),
            "metrics.jsonl",
        ]
        assert (there / "checkpoints/4/params/data").read_text() == "step 4"
    assert "with checkpoints 3, 4" in said[1]


def test_the_url_counts_and_not_what_a_killed_run_left_here(server: Server) -> None:
    url = f"s3://{BUCKET}/runs/b"
    with mirror.working(url) as here:
        checkpoint(here, 1)
        (here / "metrics.jsonl").write_text("one")
    (here / "metrics.jsonl").write_text("two")  # of the same size, and never sent
    checkpoint(here, 2)
    client = server.client()
    client.put_object(Bucket=BUCKET, Key="runs/b/checkpoints/3/params/data", Body=b"no marker")
    client.put_object(Bucket=BUCKET, Key="runs/b/checkpoints/4/meta", Body=b"{}")
    marker = json.dumps({"meta": 2, "params/data": 6}).encode()  # of a checkpoint whose removal was interrupted
    client.put_object(Bucket=BUCKET, Key="runs/b/checkpoints/4/.whole", Body=marker)
    with mirror.working(url) as again:
        assert again == here
        assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["1"]
        assert (here / "metrics.jsonl").read_text() == "one"


def test_one_is_always_there_while_checkpoints_come_faster_than_they_can_be_sent(server: Server) -> None:
    def whole() -> set[int]:
        names = server.names("runs/g")
        markers = [name.split("/")[1] for name in names if name.endswith("/.whole")]
        return {int(step) for step in markers if {f"checkpoints/{step}/{inner}" for inner in INSIDE} <= set(names)}

    server.faults = Faults(delay=0.1)
    seen: list[set[int]] = []
    with mirror.working(f"s3://{BUCKET}/runs/g") as here:
        for step in range(1, 100):
            checkpoint(here, step)
            if step > 2:
                shutil.rmtree(here / "checkpoints" / str(step - 2))
            time.sleep(0.02)
            seen.append(whole())
    first = next(number for number, steps in enumerate(seen) if steps)
    assert all(seen[first:]) and len(set.union(*seen)) > 2
    assert whole() == {98, 99}


def test_a_file_system_without_links(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(path: Path, to: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with mirror.working(f"s3://{BUCKET}/runs/copied") as here:
        checkpoint(here, 1)
    assert {f"checkpoints/1/{inner}" for inner in INSIDE} < set(server.names("runs/copied"))


def test_a_checkpoint_that_replaces_one_of_its_step(server: Server) -> None:
    url = f"s3://{BUCKET}/runs/c"
    with mirror.working(url) as here:
        checkpoint(here, 1)
        wait_for(server, "runs/c", "checkpoints/1/.whole")
        os.rename(here / "checkpoints" / "1", here / "checkpoints" / "1.replaced")
        checkpoint(here, 1, "with its evaluation")
    with mirror.working(url) as here:
        assert (here / "checkpoints/1/params/data").read_text() == "with its evaluation"


def test_metrics_are_there_before_their_checkpoint(server: Server) -> None:
    url, order = f"s3://{BUCKET}/runs/d", []
    with mirror.working(url) as here:
        (here / "metrics.jsonl").write_text('{"step": 1}\n')
        checkpoint(here, 1)
        wait_for(server, "runs/d", "checkpoints/1/.whole")
    order = [path.rpartition("/runs/d/")[2].partition("?")[0] for method, path, _ in server.asked if method == "PUT"]
    assert order.index("metrics.jsonl") < order.index("checkpoints/1/meta") < order.index("checkpoints/1/.whole")


def test_the_heartbeat_is_not_late_while_a_checkpoint_is_sent(server: Server) -> None:
    with mirror.working(f"s3://{BUCKET}/runs/beat") as here:
        server.faults = Faults("checkpoints/", delay=1.0)
        checkpoint(here, 1)
        wait_for(server, "runs/beat", "checkpoints/1/meta")
        (here / "heartbeat.json").write_text("{}")
        wait_for(server, "runs/beat", "heartbeat.json")
        assert "checkpoints/1/.whole" not in server.names("runs/beat")


def test_a_store_that_is_away_does_not_stop_the_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    url = f"s3://{BUCKET}/runs/e"
    with mirror.working(url) as here:
        server.faults = Faults(down_until=time.monotonic() + 3)
        checkpoint(here, 1)
        time.sleep(2)
        wait_for(server, "runs/e", "checkpoints/1/.whole")
    assert capsys.readouterr().err.count("s3://videos/runs/e: not up to date: ") == 1
    with pytest.raises(remote.RemoteError, match=r"The newest files of the run are in /.*copy them to s3://videos"):
        with mirror.working(url) as here:
            server.faults = Faults(down_until=time.monotonic() + 60)
            checkpoint(here, 2)
    with pytest.raises(remote.RemoteError, match="no answer"):
        with mirror.working(url):
            pytest.fail("nothing of the run can be read")
    assert (here / "checkpoints" / "2").is_dir()


@contextlib.contextmanager
def refusing(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store refuses files of a place."""
    upload = remote.upload

    def refuse(path: Path, to: str) -> None:
        if place in to:
            raise remote.Refused(f"{to}: access is refused")
        upload(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "upload", refuse)
        yield


def test_a_checkpoint_that_could_not_be_sent_counts_once_it_is_copied_by_hand(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message says; until then the run does not begin, which would remove the only copy."""
    url = f"s3://{BUCKET}/runs/late"
    with mirror.working(url) as here:
        checkpoint(here, 1)
        wait_for(server, "runs/late", "checkpoints/1/.whole")
    with refusing("checkpoints/2", monkeypatch):
        with pytest.raises(
            remote.RemoteError, match=r"access is refused\. The newest files of the run are in .* alone"
        ):
            with mirror.working(url) as here:
                checkpoint(here, 2)
    with pytest.raises(
        UserError, match=r"has checkpoint 2, which could not be copied to s3://.*: copy its folder checkp"
    ):
        with mirror.working(url):
            pass
    for path in (here / "checkpoints").rglob("*"):
        if path.is_file():
            remote.upload(path, remote.join(url, path.relative_to(here).as_posix()))
    said: list[str] = []
    with mirror.working(url, said.append) as again:
        assert "with checkpoints 1, 2" in said[0] and (again / "checkpoints" / "2" / "params" / "data").is_file()


def test_a_checkpoint_stays_until_the_one_that_replaces_it_is_there(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/runs/again"
    with mirror.working(url) as here:
        checkpoint(here, 5)
    with refusing("checkpoints/5", monkeypatch):
        with pytest.raises(remote.RemoteError), mirror.working(url) as here:
            shutil.rmtree(here / "checkpoints" / "5")
            checkpoint(here, 5, "evaluated")
    shutil.rmtree(here / "checkpoints")  # this machine is lost
    with mirror.working(url) as again:
        assert (again / "checkpoints" / "5" / "params" / "data").read_text() == "step 5"


def test_a_run_that_cannot_be_kept_does_not_begin(server: Server) -> None:
    with pytest.raises(remote.RemoteError, match=r"^s3://other/run/\.trial: there is no such bucket; make it"):
        with mirror.working("s3://other/run"):
            pytest.fail("it would be lost")


def test_a_run_in_the_folder_of_another(server: Server) -> None:
    url = f"s3://{BUCKET}/runs/nested"
    with mirror.working(f"{url}/fine_tuned") as inner:
        (inner / "metrics.jsonl").write_text("inner")
        with mirror.working(url) as outer:
            (outer / "metrics.jsonl").write_text("outer")
        assert (inner / "metrics.jsonl").read_text() == "inner"
    assert set(server.names("runs/nested")) == {"metrics.jsonl", "fine_tuned/metrics.jsonl"}


def test_two_processes_of_one_machine(server: Server) -> None:
    url = f"s3://{BUCKET}/runs/f"
    with mirror.working(url):
        with pytest.raises(disk.InUse, match="is at work there"):
            with mirror.working(url):
                pass
    assert not any(thread.name == "mirror" for thread in threading.enumerate())


def test_another_process_of_the_job_has_an_empty_folder(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url, said = f"s3://{BUCKET}/runs/job", []
    with mirror.working(url) as first:
        checkpoint(first, 1)
    monkeypatch.setattr(distributed, "process_index", lambda: 1)
    server.asked.clear()
    with mirror.working(url, said.append) as here, mirror.working(url) as third:
        assert len({first, here, third}) == 3 and not any(here.iterdir())
        checkpoint(here, 2)
    assert not here.exists() and not server.asked and not said


def test_status(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"s3://{BUCKET}/study"
    for name, phase in (("one", "finished"), ("two", "stopped")):
        with mirror.working(f"{url}/{name}") as here:
            beats = Heartbeat(here)
            beats.beat("running", 40)
            (here / "metrics.jsonl").write_text('{"step": 40, "epoch": 1, "train/loss": 0.5}\n')
            checkpoint(here, 30)
            beats.end(phase, "")
    capsys.readouterr()
    assert main(["status", f"{url}/one"]) == 0
    screen = capsys.readouterr().out
    assert (
        screen.startswith(f"{url}/one: finished")
        and "0.5000" in screen
        and "checkpoints 30" in " ".join(screen.split())
    )
    assert main(["status", url]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[f"{url}/one", "finished"], [f"{url}/two", "stopped"]]
    fetched = {path for _, path, wide in server.asked if wide and heartbeat.FILE in path}
    assert len(fetched) == 2
    assert main(["status", f"{url}/none"]) == 2
    assert f"{url}/none: holds no run" in capsys.readouterr().err


def test_weights_are_a_file_a_run_or_files_of_one_name(server: Server, tmp_path: Path) -> None:
    client = server.client()
    for name in (
        "net.pth",
        "tf/model.ckpt.index",
        "tf/model.ckpt.data-00000-of-00001",
        "tf/model.other",
        "net.pth.txt",
    ):
        client.put_object(Bucket=BUCKET, Key=f"weights/{name}", Body=name.encode())
    url = f"s3://{BUCKET}/weights"
    assert mirror.weights_at(f"{url}/net.pth").read_text() == "net.pth"
    path = mirror.weights_at(f"{url}/tf/model.ckpt")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
    ]
    assert not mirror.weights_at(f"{url}/nothing").exists() and mirror.weights_at("here/net.pth") == Path(
        "here/net.pth"
    )
    with mirror.working(f"{url}/run") as here:
        checkpoint(here, 1)
        (here / "tensorboard").mkdir()
        (here / "tensorboard" / "events").write_text("one")
    copy = mirror.weights_at(f"{url}/run")
    found = sorted(file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file())
    assert found == ["checkpoints/1/meta", "checkpoints/1/params/data"]
