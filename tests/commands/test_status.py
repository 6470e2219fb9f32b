"""`status`: its verdicts, its lines, and files in any state."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r23d_jax.__main__ import main
from r23d_jax.commands import status
from r23d_jax.config import Config, to_json
from r23d_jax.runtime.heartbeat import Beat

NOW = 1_800_000_000.0
ALIVE = Beat(
    "running", NOW - 4, 1240, "node1", 4711, "", "r3d_18, vit head", "8 x H100", (9537, 3783), 101, 14906, 149.02
)
PROCESSES = [
    {"host": "node1", "input_wait": 0.012, "clips_per_second": 40.0, "broken_videos": 1},
    {"host": "node2", "input_wait": 0.345, "clips_per_second": 40.0, "broken_videos": 2},
]
TRAINED = {
    "step": 1240,
    "epoch": 8.3,
    "train/loss": 1.25,
    "train/clips_per_second": 80.0,
    "train/input_wait": 0.345,
    "processes": PROCESSES,
    "slowest": "process 1 on node2",
}
SCORES = [{"step": step, "epoch": 1.0, "val/top1_video": score} for step, score in ((600, 0.75), (1200, 0.5))]


def write_run(
    folder: Path, beat: Beat | None = ALIVE, rows: Any = (*SCORES, TRAINED), steps: Any = (600, 1200)
) -> Path:
    folder.mkdir(parents=True)
    cfg = Config()
    cfg.train.global_batch_size, cfg.data.root = 64, "frames/of/ucf101"
    (folder / "config.json").write_text(to_json(cfg))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if beat is not None:
        (folder / "heartbeat.json").write_text(json.dumps(dataclasses.asdict(beat)))
    for step in steps:
        (folder / "checkpoints" / str(step) / "state").mkdir(parents=True)
    (folder / "checkpoints" / "1240.orbax-checkpoint-tmp").mkdir(parents=True)
    (folder / "checkpoints" / "1240").mkdir()  # empty, as a killed process may leave it
    return folder


def test_a_screen_tells_all(tmp_path: Path) -> None:
    text = status.screen(status.read_status(write_run(tmp_path / "run"), NOW))
    assert text.splitlines() == [
        f"{tmp_path}/run: running",
        "  network     r3d_18, vit head, on 8 x H100",
        "  data        frames frames/of/ucf101: 9,537 training videos, 3,783 test videos, 101 classes",
        "  step        1,240 of 14,906 (epoch 8.3 of 300)",
        # 13,666 steps of 64 clips at 80 clips/s
        "  speed       80.0 clips/s, 3:02:13 of training left",
        "  loss        1.2500",
        "  evaluation  video top-1 50.00 % at step 1,200; best 75.00 % at step 600",
        "  input wait  34.5% of the time, longest on process 1 on node2",
        "              process 1 on node2: 34.5%",
        "              process 0 on node1: 1.2%",
        "  broken      at most 3 videos cannot be read; the log names them",
        "  heartbeat   0:04 ago, from process 4711 on node1",
        "  checkpoints 1200, 600",
    ]


def test_many_processes_are_cut_short(tmp_path: Path) -> None:
    row = TRAINED | {"processes": PROCESSES * 8}
    text = status.screen(status.read_status(write_run(tmp_path / "run", rows=[row]), NOW))
    assert text.count(" on node2: 34.5%") == 8
    assert "on node1: " not in text and "and 8 more" in text


def free_process() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({}, "running", ": running"),
        ({"phase": "evaluating", "time": NOW - 800}, "evaluating", ": evaluating"),
        ({"phase": "saving", "time": NOW + 50}, "saving", ": saving"),  # the clock of its host is ahead
        ({"phase": "starting", "time": NOW - 1000}, "starting", ": starting"),
        ({"time": NOW - 100}, "running", ": running"),
        ({"time": NOW + 86400}, "silent", "the clock of node1 is 24:00:00 ahead of this machine's, so its signs of"),
        ({"time": NOW - 3700}, "silent", "(1:01:40 ago); the same command resumes from step 1,200"),
        ({"phase": "evaluating", "time": NOW - 901}, "silent", "(15:01 ago); the same command resumes"),
        ({"host": socket.gethostname(), "process": os.getpid()}, "running", ": running"),
        ({"host": socket.gethostname(), "process": free_process()}, "silent", "no sign of life since 20"),
        ({"phase": "finished", "time": 0.0}, "finished", ": finished"),
        (
            {"phase": "stopped", "time": 0.0, "reason": "a signal"},
            "stopped",
            "stopped at step 1,240 (a signal); the same command resumes from step 1,200",
        ),
        (
            {"phase": "failed", "time": 0.0, "reason": "the loss is nan"},
            "failed",
            "failed at step 1,240; the same command resumes from step 1,200\n  the loss is nan",
        ),
    ],
)
def test_a_verdict(changes: dict[str, Any], verdict: str, says: str, tmp_path: Path) -> None:
    found = status.read_status(write_run(tmp_path / "run", dataclasses.replace(ALIVE, **changes)), NOW)
    assert found.verdict == verdict and found.alive == (verdict in ("running", "evaluating", "saving", "starting"))
    assert says in status.screen(found)


def test_long_steps_are_waited_for(tmp_path: Path) -> None:
    """A step takes 640 s here."""
    slow = TRAINED | {"train/clips_per_second": 0.1}
    for age, verdict in ((6000, "running"), (6500, "silent")):
        beat = dataclasses.replace(ALIVE, time=NOW - age)
        assert status.read_status(write_run(tmp_path / verdict, beat, [slow]), NOW).verdict == verdict


def test_no_checkpoint_and_no_heartbeat(tmp_path: Path) -> None:
    text = status.screen(status.read_status(write_run(tmp_path / "run", None, [], []), NOW))
    assert "no readable heartbeat.json, so nobody knows whether it is alive; the same command starts again" in text
    assert "checkpoints none yet" in text and "loss" not in text and "step        0\n" in text


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("heartbeat.json", '{"phase": "runn', "heartbeat.json: not JSON (Unterminated string"),
        ("heartbeat.json", '{"phase": "running"}', "heartbeat.json.time: missing"),
        ("heartbeat.json", "[" * 100_000, "heartbeat.json: not JSON"),
        ("heartbeat.json", "", "heartbeat.json: not JSON"),
        (
            "heartbeat.json",
            '{"phase": "runing", "time": 1, "step": 1, "host": "a", "process": 1}',
            "heartbeat.json: phase='runing': unknown; did you mean running",
        ),
        (
            "heartbeat.json",
            '{"phase": "running", "time": 1, "step": "x", "host": "a", "process": 1}',
            "heartbeat.json.step='x': must be a whole number",
        ),
        ("config.json", '{"data": {"roo', "config.json cannot be read: config: not JSON (Unterminated string"),
        ("config.json", '{"data": {"roof": 1}}', "config.json cannot be read: config.data.roof: unknown"),
        (
            "metrics.jsonl",
            '{"step": 3, "train/loss": 1.0, "processes": [{"host": 1}]}',
            "step 3: processes.host=1: must",
        ),
        ("metrics.jsonl", '{"step": 3, "train/loss": 1.0, "processes": 7}', "metrics.jsonl, step 3: 'int' object"),
        ("metrics.jsonl", '{"step": 3, "train/loss": null}\n{"step": 4, "tra', ""),
        ("metrics.jsonl", '{"step": 3, "tra', "metrics.jsonl: no row can be read"),
        ("metrics.jsonl", "[" * 200_000, "metrics.jsonl: no row can be read"),
        ("metrics.jsonl", f'{{"step": {"9" * 5000}}}', "metrics.jsonl: no row can be read"),
        ("metrics.jsonl", f'{{"step": {"9" * 400}}}', "metrics.jsonl: no row can be read"),
        ("metrics.jsonl", f'{{"step": 3, "train/loss": {"9" * 400}}}', ""),
        (
            "heartbeat.json",
            '{"phase": "running", "time": -1e30, "step": 1, "host": "a", "process": 1}',
            "heartbeat.json: time=-1e+30: is no time in seconds since 1970",
        ),
    ],
)
def test_files_cut_short_are_named(name: str, content: str, note: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(content)
    found = status.read_status(run, NOW)
    assert note in "\n".join(found.notes) and bool(found.notes) == bool(note)
    assert note.partition("\n")[0] in status.screen(found)
    assert "nan" not in status.screen(found)
    assert found.verdict == ("unknown" if name == "heartbeat.json" else "running")
    assert status.lines([found])


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", beat=None)
    (run / "metrics.jsonl").unlink()
    for name in ("metrics.jsonl", "heartbeat.json"):
        os.mkfifo(run / name)
    found = status.read_status(run, NOW)
    assert found.verdict == "unknown" and found.loss is None
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert status.read_status(run, NOW).loss is None


def test_metrics_that_may_not_be_read_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(folder: Path) -> list[dict]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(status, "read_metrics", forbidden)
    found = status.read_status(write_run(tmp_path / "run"), NOW)
    assert "metrics.jsonl cannot be read: [Errno 13] Permission denied" in found.notes[0] and status.screen(found)


def test_a_damaged_outcome_is_as_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", dataclasses.replace(ALIVE, phase="stopped"))
    (run / "outcome.json").write_text("[" * 200_000)
    assert status.read_status(run, NOW).verdict == "stopped"


def test_checkpoints_that_cannot_be_listed_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(folder: Path) -> list[int]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(status.mirror, "steps_of", forbidden)
    found = status.read_status(write_run(tmp_path / "run"), NOW)
    assert found.checkpoints == [] and "checkpoints cannot be listed: " in found.notes[0]
    assert found.verdict == "running" and status.screen(found)


def test_several_runs_get_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    write_run(tmp_path / "a", dataclasses.replace(ALIVE, time=now))
    write_run(tmp_path / "b", dataclasses.replace(ALIVE, phase="finished", time=now))
    (tmp_path / "tables").mkdir()
    assert main(["status", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    scores = "loss 1.250  top-1 50.00 % (best 75.00 %)"
    speed = "80.0 clips/s, 3:02:13 of training left"
    assert first == f"{tmp_path}/a  running     step 1,240/14,906  {speed}  {scores}"
    assert second.startswith(f"{tmp_path}/b  finished    step 1,240/14,906  {scores}  0:0")
    write_run(tmp_path / "c", dataclasses.replace(ALIVE, time=now - 1000))
    assert main(["status", str(tmp_path / "a"), str(tmp_path / "c")]) == status.NOT_ALIVE
    assert "c  silent " in capsys.readouterr().out


def test_cells_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that never got to train has no heartbeat, and its outcome counts."""
    outcome = {"status": "failed", "seconds": 1.0, "metrics": {}, "per_class": {}, "parameters": 1, "gmacs": 1.0}
    write_run(tmp_path / "done", dataclasses.replace(ALIVE, phase="finished"))
    for name, text in (("cell.json", "{}"), ("outcome.json", json.dumps(outcome | {"reason": "    exit status 2\n"}))):
        (tmp_path / "early").mkdir(exist_ok=True)
        (tmp_path / "early" / name).write_text(text)
    assert main(["status", str(tmp_path)]) == status.NOT_ALIVE
    assert f"{tmp_path}/early  failed      step 0  exit status 2\n" in capsys.readouterr().out
    (tmp_path / "early" / "outcome.json").write_text("{")
    assert status.read_status(tmp_path / "early").verdict == "unknown"


def test_json_is_one_object_per_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", dataclasses.replace(ALIVE, time=time.time()))
    write_run(tmp_path / "b", None)
    assert main(["status", str(tmp_path), "--json"]) == status.NOT_ALIVE
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["verdict"] == "running" and first["alive"] and first["processes"] == PROCESSES
    assert first["last"] == [1200, 0.5] and first["best"] == [600, 0.75] and first["checkpoints"] == [1200, 600]
    assert second["verdict"] == "unknown" and not second["alive"] and second["age"] is None


def test_watch_prints_again_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", dataclasses.replace(ALIVE, time=time.time()))

    def sleep(seconds: float) -> None:
        assert seconds == 5.0
        beat = dataclasses.replace(ALIVE, phase="finished", time=time.time())
        (run / "heartbeat.json").write_text(json.dumps(dataclasses.asdict(beat)))

    monkeypatch.setattr(status.time, "sleep", sleep)
    assert main(["status", str(run), "--watch", "5"]) == 0
    out = capsys.readouterr().out
    assert out.index("run: running") < out.index("run: finished")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "error: nothing: no such folder; give the --workdir of a training, or of a study"),
        (
            ["s4://bucket/run"],
            "error: s4://bucket/run: no such kind of store (Protocol not known: s4); give a path, or a URL",
        ),
        (["."], "error: .: neither the folder of a run nor of a study: it has none of config.json, metrics.jsonl"),
        ([".", "--watch", "0.1"], "error: --watch 0.1: must be 1 to 86400 seconds"),
        ([".", "--watch", "nan"], "error: --watch nan: must be 1 to 86400 seconds"),
    ],
)
def test_wrong_arguments(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", *words]) == 2
    assert message in capsys.readouterr().err
