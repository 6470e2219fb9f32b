"""A whole training with bad files in its data, as a user starts it: it names what it skips and why it stops."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.bad_files.corpus import PICTURES, picture

ROOT = Path(__file__).resolve().parents[3]
LATIN = os.fsdecode(b"latin-\xe9")  # not valid UTF-8
BAD = ("text", "zero_byte", "png_bomb", "truncated")
LARGE = picture(image=np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def write_data(root: Path, intact: int) -> None:
    """Writes videos of two classes, some with a bad second frame, and their lists."""
    rows: dict[str, list[str]] = {"train.csv": [], "val.csv": []}
    videos = [(f"{side}{k}", picture(), side) for side in ("train", "val") for k in range(intact)]
    videos += [(f"{name} {LATIN}", PICTURES[name].make(), "train") for name in BAD]
    videos += [(f"val {LATIN}", LARGE[: len(LARGE) // 2], "val")]
    for number, (name, second, side) in enumerate(videos):
        class_name = ("A", f"class {LATIN}")[number % 2]
        folder = root / "frames" / class_name / name
        folder.mkdir(parents=True)
        for frame in (1, 2, 3):
            (folder / f"{frame}.jpg").write_bytes(second if frame == 2 else picture())
        rows[f"{side}.csv"].append(f"{class_name}/{name}.avi,{class_name}\n")
    (root / "lists").mkdir()
    for name, lines in rows.items():
        (root / "lists" / name).write_bytes(os.fsencode("".join(lines)))


def launch(root: Path, *overrides: str) -> tuple[int, str, str, int]:
    """Returns the exit status, both outputs and the peak memory in MiB."""
    settings = ["data.source=frames", f"data.root={root}/frames", f"data.lists={root}/lists", "data.num_frames=2"]
    settings += ["data.crop_size=16", "data.short_side=20", "train.global_batch_size=8", "train.epochs=2"]
    settings += ["model.depth=10", "model.widths=(8,8,8,8)", *overrides]
    args = [sys.executable, "launch.py", "--config=configs/quickstart.py:f_r2d,avgpool", f"--workdir={root}/run"]
    args += [f"--config.{setting}" for setting in settings]
    # A process begins with the peak of the one that starts it, here of all tests before. So a small one starts it.
    small = (
        "import pathlib, resource, subprocess, sys\n"
        "status = subprocess.call(sys.argv[2:])\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "pathlib.Path(sys.argv[1]).write_text(str(peak))\n"
        "sys.exit(status)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", small, root / "peak", *args],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=ROOT,
        # UTF-8 as in most languages
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr, int((root / "peak").read_text()) // 1024


@pytest.mark.slow
def test_a_run_with_bad_files_finishes_and_names_them(tmp_path: Path) -> None:
    write_data(tmp_path, intact=8)
    status, out, err, peak = launch(tmp_path, "data.max_broken_fraction=0.5")
    assert status == 0, err
    assert "Traceback" not in out + err and "jpeg_mem" not in err  # TensorFlow's own line for a damaged JPEG
    for name in BAD:
        line = next(line for line in out.splitlines() if line.startswith("broken: ") and f"/{name} latin-" in line)
        assert "its clips are replaced by those of other videos" in line
    assert "val latin-\\udce9; its views are left out" in out
    assert "left out: 2 views that could not be read" in out and "report: " in out
    assert "val latin-" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert peak < 2000  # the PNG alone has 1,200 MB, and a clip of it twice as much


@pytest.mark.slow
def test_too_many_bad_files_give_one_message(tmp_path: Path) -> None:
    write_data(tmp_path, intact=1)
    status, out, err, _ = launch(tmp_path)
    assert status == 2 and "Traceback" not in out + err
    message = err[err.index("error: ") :]
    assert "videos tried so far cannot be read, more than" in message or "videos in turn could not be read" in message
    assert "2.jpg: " in message


def test_any_name_can_be_printed() -> None:
    code = "from r23d_jax.runtime import backend; backend.prepare_process(); print('latin-\\udce9')"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    args = [sys.executable, "-c", code]
    done = subprocess.run(args, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "latin-\\udce9\n"), done.stderr
