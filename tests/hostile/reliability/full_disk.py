"""Commands on a disk that is really full, and again after room was made: run inside a mount namespace of its own.

    unshare -rm python -m tests.hostile.reliability.full_disk FOLDER prepare|train|report

FOLDER becomes a file system in memory of a size that is too small, which nobody outside sees. Prints, as JSON, the exit
status and the message of each run.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.hostile.reliability import harness

# Where `train` runs full: in its first checkpoint, in a later one
SIZES = {"prepare": ("700k", "3400k"), "train": ("900k", "1900k"), "report": ("700k",)}


def main() -> int:
    """Runs one scenario for every size; the work of `report` is `save_evaluation` and `write_report` in `_report`."""
    folder, scenario = Path(sys.argv[1]), sys.argv[2]
    videos, data = folder.parent / "videos", folder.parent / "data"
    results = []
    for size in SIZES[scenario]:
        mount(folder, size)
        command = {
            "prepare": harness.prepare_command(videos, folder / "out"),
            "train": harness.train_command(harness.TINY_RUN, folder / "run", data),
            "report": [sys.executable, "-c", _REPORT, str(folder)],
        }[scenario]
        full = run(command)
        left = harness.debris(folder)
        mount(folder, "200m", remount=True)
        (folder / "ballast").unlink(missing_ok=True)
        again = run(command)
        results.append({"full": full, "debris": left, "again": again})
        if scenario == "prepare":
            results[-1]["contents"] = harness.contents(folder / "out")
        if scenario == "train":
            results[-1]["trained"] = harness.trained(folder / "run")
        subprocess.run(["umount", str(folder)], check=True)
    print(json.dumps(results))
    return 0


# An evaluation of before, the disk filled up, and a new one that finds no room: exit status as launch.py's.
_REPORT = """
import sys; from pathlib import Path
from r23d_jax import config
from r23d_jax.runtime import disk
folder = Path(sys.argv[1])
path, ballast = folder / "evaluation.npz", folder / "ballast"
try:
    if not path.exists():
        disk.write_atomically(path, b"old" * 1000)
        with ballast.open("wb") as file:
            while True:
                file.write(bytes(1000)); file.flush()
except OSError:
    pass
try:
    disk.write_atomically(path, b"new" * 100000)
except config.UserError as error:
    assert path.read_bytes() == b"old" * 1000
    sys.exit(f"error: {error}")
assert path.read_bytes() == b"new" * 100000
"""


def mount(folder: Path, size: str, remount: bool = False) -> None:
    """A file system of that size at the folder."""
    folder.mkdir(exist_ok=True)
    options = f"remount,size={size}" if remount else f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def run(command: list[str]) -> dict:
    """Exit status and output of a command that has to end by itself."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=harness.ROOT, env=harness.environment(), timeout=harness.PATIENCE
    )
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


if __name__ == "__main__":
    sys.exit(main())
