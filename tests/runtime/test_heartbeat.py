"""When a heartbeat is written, and that it never stops a run."""

import os
from pathlib import Path

import pytest

from r23d_jax.config import UserError
from r23d_jax.runtime import heartbeat
from r23d_jax.runtime.heartbeat import Heartbeat, read_heartbeat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    return now


def step_on_disk(folder: Path) -> int:
    beat = read_heartbeat(folder)
    assert beat is not None
    return beat.step


def test_it_is_written_at_a_change_and_at_a_bounded_rate(tmp_path: Path, clock: list[float]) -> None:
    heart = Heartbeat(tmp_path)
    heart.describe(num_steps=50, videos=(3, 2))
    heart.beat("starting", 7)
    heart.beat("running", 8)
    assert step_on_disk(tmp_path) == 8
    clock[0] += 9
    heart.beat("running", 9)
    assert step_on_disk(tmp_path) == 8
    clock[0] += 1
    heart.beat("running", 10)
    assert step_on_disk(tmp_path) == 10
    heart.beat("running", 11)
    heart.beat("saving")
    beat = read_heartbeat(tmp_path)
    assert beat is not None and (beat.phase, beat.step, beat.num_steps, beat.videos) == ("saving", 11, 50, (3, 2))
    assert beat.process == os.getpid()
    heart.end("stopped", "x" * 5000)
    beat = read_heartbeat(tmp_path)
    assert beat is not None and beat.phase == "stopped" and len(beat.reason) == heartbeat.LONGEST_REASON
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UserError("lower the rate"), "lower the rate"), (KeyError("a"), "KeyError: 'a'"), (KeyboardInterrupt(), "Key")],
)
def test_an_error_is_the_reason_of_the_end(error: BaseException, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), Heartbeat(tmp_path) as heart:
        heart.beat("running", 3)
        raise error
    beat = read_heartbeat(tmp_path)
    assert beat is not None and beat.phase == "failed" and beat.reason.startswith(reason)


def test_a_resumed_run_that_fails_at_once_is_where_it_was(tmp_path: Path) -> None:
    first = Heartbeat(tmp_path)
    first.describe(num_steps=50)
    first.beat("running", 30)
    first.end("stopped", "a signal")
    with pytest.raises(UserError), Heartbeat(tmp_path):
        raise UserError("other classes")
    beat = read_heartbeat(tmp_path)
    assert beat is not None
    assert (beat.phase, beat.reason, beat.step, beat.num_steps) == ("failed", "other classes", 30, 50)
    (tmp_path / "heartbeat.json").write_text('{"phase": "run')
    Heartbeat(tmp_path).beat("starting", 4)
    assert step_on_disk(tmp_path) == 4


def test_no_step_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise AssertionError("waits")

    monkeypatch.setattr(os, "fsync", fsync)
    Heartbeat(tmp_path).beat("running", 1)
    assert step_on_disk(tmp_path) == 1


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, active=False) as heart:
        heart.beat("running", 1)
        heart.end("finished")
    assert read_heartbeat(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_logged_once(tmp_path: Path, clock: list[float]) -> None:
    lines: list[str] = []
    heart = Heartbeat(tmp_path / "gone", log=lines.append)
    for step in range(3):
        heart.beat("running", step)
        clock[0] += 20
    assert len(lines) == 1 and "gone/heartbeat.json: cannot be written, so `status` will take this run" in lines[0]
