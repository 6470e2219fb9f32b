"""Files that are whole or not there; folders that one process at a time works in."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r23d_jax import disk
from r23d_jax.config import UserError


def test_what_is_written_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    disk.write_atomically(path, "old é")
    assert path.read_text(encoding="utf-8") == "old é"
    with pytest.raises(OSError, match="No space"), disk.replacing(path) as partial:
        partial.write_text("half of the ne")
        assert partial.suffix == ".json" and path.read_text(encoding="utf-8") == "old é"
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text(encoding="utf-8") == "old é" and os.listdir(tmp_path) == ["table.json"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with disk.replacing(tmp_path / "shards") as partial:
            partial.mkdir()
            (partial / content).touch()
    assert os.listdir(tmp_path) == ["shards"] and os.listdir(tmp_path / "shards") == ["new"]


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    hold = "import sys; from r23d_jax import disk; from pathlib import Path\nwith disk.hold(Path(sys.argv[1])):"
    command = [sys.executable, "-c", f"{hold}\n  print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        message = rf"{tmp_path.name}: process {first.pid} on .* is at work there; wait until it ends, or stop it, or"
        with pytest.raises(UserError, match=message), disk.hold(tmp_path):
            pass
        first.kill()  # no chance to clean up
    with disk.hold(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_where_there_are_no_locks_it_is_said_and_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(disk.fcntl, "flock", refuse)
    said: list[str] = []
    with disk.hold(tmp_path, log=said.append):
        pass
    assert said == [
        f"{tmp_path / '.lock'}: no locks here (No locks available); see to it that nothing else writes there"
    ]


def test_text_may_hold_names_that_are_none(tmp_path: Path) -> None:
    disk.write_atomically(tmp_path / "page", "latin-\udce9 é")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "latin-\\udce9 é"
