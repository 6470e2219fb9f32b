"""Memory and time to the first batch of a very large index, whose videos need not exist.

One short video is made. All rows of the index name it: rows of a packed index point at its bytes, and the folders of
an index of frames are links to its own. The index is as large as a real one, and a batch can be read from it.

TensorFlow is imported in the measured process only.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_CLASSES = 400
_SHARDS = 1000
_HEIGHT, _WIDTH = 128, 171
MOST_MIB, MOST_SECONDS = 0.7 * 1024, 5.0  # above the imports, up to the first batch


def run(videos: int, frames: int, batch: int) -> list[dict[str, Any]]:
    """Measures an index of packed shards and one of frame folders, each in a fresh process.

    Args:
      videos: how many the index lists.
      frames: frames of each.
      batch: clips of the first batch.

    Returns:
      "name" of each kind, "videos", "frames" (of a video), "mib" (the largest memory of the process up to the first
      batch, above its memory after the imports), "seconds" and "processor" (time and processor time from the imports to
      the first batch; on a busy machine the latter says more).
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [
            (f"class_{v % _CLASSES:03d}/{v:011d}_000095_000105", f"class_{v % _CLASSES:03d}") for v in range(videos)
        ]
        (root / "lists").mkdir()
        (root / "lists" / "train.csv").write_text("".join(f"{name},{label}\n" for name, label in names))
        pictures = _pictures(frames)
        for source, make in (("packed", _make_packed), ("frames", _make_frames)):
            make(root, [name for name, _ in names], pictures)
            command = [sys.executable, "-m", "benchmarks.indexing", source, str(root), str(batch)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"name": source, "videos": videos, "frames": frames} | found)
    return rows


def exceeds(rows: list[dict[str, Any]]) -> bool:
    """Whether an index takes more memory or time than it may."""
    return any(row["mib"] > MOST_MIB or row["seconds"] > MOST_SECONDS for row in rows)


def summary(rows: list[dict[str, Any]]) -> str:
    """One line."""
    found = "; ".join(f"{row['name']} {row['mib']:.0f} MiB, {row['seconds']:.1f} s" for row in rows)
    return (
        f"index of {rows[0]['videos']} x {rows[0]['frames']} frames: {found} (at most {MOST_MIB:.0f}, {MOST_SECONDS:g})"
    )


def _pictures(frames: int) -> list[bytes]:
    import cv2

    generator = np.random.default_rng(0)
    scene = cv2.resize(generator.integers(0, 256, (16, 24, 3), np.uint8), (_WIDTH + frames, _HEIGHT))
    return [cv2.imencode(".jpg", scene[:, left : left + _WIDTH])[1].tobytes() for left in range(frames)]


def _make_packed(root: Path, names: list[str], pictures: list[bytes]) -> None:
    """A dataset of one video, and an index that says that there are many."""
    from r23d_jax.data.find import index_cache, packed, packed_scan
    from r23d_jax.data.make.packed_builder import PackSource, write_packed

    classes = sorted({name.partition("/")[0] for name in names})
    source = PackSource(names[0], classes[0], lambda: pictures)
    folder = write_packed(root / "packed", [source], classes, num_shards=1)
    one = packed_scan.read_table(folder)
    shards = [str(one.shards[0])]
    for number in range(1, min(_SHARDS, len(names))):
        shards.append(f"{shards[0]}.{number}")
        (folder / shards[-1]).hardlink_to(folder / shards[0])
    number = np.arange(len(names))
    table = dataclasses.replace(
        one,
        names=np.array(names),
        labels=(number % len(classes)).astype(one.labels.dtype),
        shards=np.array(shards),
        shard=(number % len(shards)).astype(one.shard.dtype),
        **{name: np.repeat(getattr(one, name), len(shards)) for name in ("sizes", "times")},
        **{
            name: np.repeat(getattr(one, name), len(names))
            for name in ("split", "record", "num_frames", "begin", "rates")
        },
        length=np.tile(one.length, len(names)),
        checks=np.tile(one.checks, len(shards)),
    )
    index_cache.prepare_folder(folder)
    index_cache.save(folder, packed.CACHE, vars(table))


def _make_frames(root: Path, names: list[str], pictures: list[bytes]) -> None:
    """Links to one folder of frames, and their index: reading all links would read the folder that many times."""
    from r23d_jax.data.find import frames, index_cache
    from r23d_jax.data.find.frame_folder import Numbering
    from r23d_jax.data.find.frame_scan import Found, Scan
    from r23d_jax.data.find.splits import read_list

    (root / "video").mkdir()
    for number, picture in enumerate(pictures, start=1):
        (root / "video" / f"image_{number:05d}.jpg").write_bytes(picture)
    for name in names:
        link = root / "frames" / name
        if not link.parent.is_dir():
            link.parent.mkdir(parents=True)
        link.symlink_to(root / "video")
    videos = read_list(root / "lists", "train")
    numbering = Numbering("image_", ".jpg", 1, 1, len(pictures), 5)
    scan = Scan(
        found=tuple(Found(entry, entry.name, numbering) for entry in videos.entries),
        layout="<Class>/<video>/image_00001.jpg",
        notes=(),
        folders=("", *sorted({name.partition("/")[0] for name in names}), *names),
    )
    index_cache.prepare_folder(root / "frames")
    frames.save_scan(root / "frames", videos, frames.to_arrays(videos, scan))


def _measure(source: str, root: Path, batch: int) -> dict[str, float]:
    """In a fresh process: MiB and seconds from the imports to the first batch."""
    import time

    from r23d_jax.config import Config
    from r23d_jax.config.files import call_file
    from r23d_jax.data import sources
    from r23d_jax.data.read import pipeline
    from r23d_jax.data.read.broken import BrokenLog

    cfg = call_file("configs/r23d.py", "get_config", Config, "").data
    cfg.source, cfg.root, cfg.lists = source, str(root / source), str(root / "lists")
    before, started, used = _memory("VmRSS"), time.perf_counter(), time.process_time()
    index = sources.open_index(cfg, "train")
    batches = pipeline.train_batches(
        index, cfg, seed=0, global_batch_size=batch, start_step=0, num_steps=1000, broken=BrokenLog(cfg)
    )
    next(batches)
    found = {"seconds": time.perf_counter() - started, "processor": time.process_time() - used}
    peak = _memory("VmHWM")
    batches.close()
    return found | {"mib": (peak - before) / 1024}


def _memory(field: str) -> int:
    """KiB, as Linux gives it for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
