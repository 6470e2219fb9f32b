"""Disks that are really full: a message, nothing damaged, and the same command goes on once there is room."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r23d_jax.data.make.synthetic import write_synthetic
from tests.hostile.reliability import harness


@pytest.fixture(scope="module", autouse=True)
def needs_namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mount")
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here, not even in a namespace of one's own")


def fill(folder: Path, scenario: str) -> list[dict]:
    """Runs a scenario of `full_disk`; see there."""
    command = [*("unshare", "-rm", sys.executable, "-m", "tests.hostile.reliability.full_disk"), str(folder), scenario]
    done = subprocess.run(command, capture_output=True, text=True, cwd=harness.ROOT, env=harness.environment())
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for result in results:
        assert "Traceback" not in result["full"]["stderr"], result["full"]["stderr"]
        assert result["again"]["status"] == 0, result["again"]["stderr"]
        assert result["debris"] == []
    return results


def test_a_file_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    (result,) = fill(tmp_path / "small", "report")
    assert result["full"]["status"] == 1  # of the script
    assert "evaluation.npz: cannot be written (No space left on device): make room and run" in result["full"]["stderr"]


@pytest.mark.long
def test_prepare_goes_on_once_there_is_room(tmp_path: Path) -> None:
    harness.write_videos(tmp_path / "videos", 4)
    decoding, packing = fill(tmp_path / "small", "prepare")
    assert decoding["full"]["status"] == packing["full"]["status"] == 2
    assert (
        "prepare: cannot write " in decoding["full"]["stderr"]
        and "; make room. Finished work is kept" in (decoding["full"]["stderr"])
    )
    assert "packed: cannot be written (No space left on device): make room and run" in packing["full"]["stderr"]
    subprocess.run(
        harness.prepare_command(tmp_path / "videos", tmp_path / "alone"), check=True, env=harness.environment()
    )
    assert decoding["contents"] == packing["contents"] == harness.contents(tmp_path / "alone")


@pytest.mark.long
def test_a_training_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """The disk fills up in the first checkpoint, and in a later one: that goes on from the one before."""
    write_synthetic(tmp_path / "data", num_groups=3, clips_per_group=2, height=48, width=56, test_groups=1)
    first, later = fill(tmp_path / "small", "train")
    for result in (first, later):
        assert result["full"]["status"] == 2
        lines = [line for line in result["full"]["stderr"].splitlines() if "views" not in line and "steps" not in line]
        (message,) = (line for line in lines if line.startswith("error: "))
        assert "checkpoints: the disk is full. Earlier checkpoints are intact; make room and run the same" in message
        assert lines[-1] == message, "nothing is said after the message"
    assert "resumed from" not in first["again"]["stdout"]
    assert "resumed from step 2 of 40" in later["again"]["stdout"]
    assert first["trained"] == later["trained"] | {"rows": first["trained"]["rows"]}
