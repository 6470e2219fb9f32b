"""Files that are whole or not there; folders that one process at a time works in."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r23d_jax.config import UserError
from r23d_jax.runtime import disk


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


def test_a_folder_replaces_a_link_and_leaves_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").touch()
    (tmp_path / "shards").symlink_to("elsewhere")
    with disk.replacing(tmp_path / "shards") as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "shards"]
    assert os.listdir(tmp_path / "shards") == ["new"] and os.listdir(tmp_path / "elsewhere") == ["mine"]


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_folder_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Killed before the old one goes, before the new one comes, or before the old one is removed."""

    class Killed(BaseException):
        pass

    calls = 0

    def unless_killed(function, *args):
        nonlocal calls
        calls += 1
        if calls >= moment:
            raise Killed  # and nothing is cleared away
        function(*args)

    rename, remove = os.rename, disk.remove
    (tmp_path / "my.shards").mkdir()
    (tmp_path / "my.shards/old").touch()
    monkeypatch.setattr(disk.os, "rename", lambda *args: unless_killed(rename, *args))
    monkeypatch.setattr(disk, "remove", lambda *args: unless_killed(remove, *args))
    with pytest.raises(Killed), disk.replacing(tmp_path / "my.shards") as partial:
        partial.mkdir()
        (partial / "new").touch()
    monkeypatch.undo()
    with disk.hold(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".lock", "my.shards"]
        assert os.listdir(tmp_path / "my.shards") == ["new" if moment == 3 else "old"]


def test_a_child_that_is_given_the_lock_holds_it_on(tmp_path: Path) -> None:
    with disk.hold(tmp_path) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    with pytest.raises(disk.InUse), disk.hold(tmp_path):
        pass
    child.kill()
    child.wait()
    with disk.hold(tmp_path):
        pass


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no /sys, in which not even root may write")
def test_a_folder_that_may_not_be_written_to() -> None:
    with pytest.raises(disk.WriteError, match=r"^/sys/kernel: cannot be written \(.*\): write elsewhere"):
        with disk.hold(Path("/sys/kernel")):
            pass


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    hold = "import sys; from r23d_jax.runtime import disk; from pathlib import Path\nwith disk.hold(Path(sys.argv[1])):"
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
        f"{tmp_path / '.lock'}: no locks here (No locks available); make sure that nothing else writes there"
    ]


def test_text_may_hold_names_that_are_none(tmp_path: Path) -> None:
    disk.write_atomically(tmp_path / "page", "latin-\udce9 é")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "latin-\\udce9 é"
