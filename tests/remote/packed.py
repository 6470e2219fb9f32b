"""A small packed dataset with lists, as `prepare` writes it."""

from pathlib import Path

import cv2
import numpy as np

from r23d_jax.data.make.packed_builder import PackSource, write_packed
from r23d_jax.data.make.record import RECORD

CLASSES = ("Diving", "PullUps")
NAMES = [f"v_{CLASSES[c]}_g{group:02d}_c01" for c in range(2) for group in range(1, 9)]
FRAMES = 30


def jpegs(number: int) -> list[bytes]:
    random = np.random.default_rng(number)
    return [cv2.imencode(".jpg", random.integers(0, 256, (48, 64, 3), np.uint8))[1].tobytes() for _ in range(FRAMES)]


def write_dataset(root: Path) -> None:
    """Writes `packed` and `lists`: 12 videos for training, 4 for testing."""
    sources = [PackSource(name, name.split("_")[1], lambda i=i: jpegs(i), 25.0) for i, name in enumerate(NAMES)]
    write_packed(root / "packed", sources, CLASSES, num_shards=3)
    (root / "lists").mkdir()
    (root / "lists" / "classInd.txt").write_text("1 Diving\n2 PullUps\n")
    for side, groups in (("train", range(1, 7)), ("test", range(7, 9))):
        lines = []
        for name in NAMES:
            class_name, group = name.split("_")[1], int(name[-6:-4])
            if group in groups:
                number = f" {1 + CLASSES.index(class_name)}" if side == "train" else ""
                lines.append(f"{class_name}/{name}.avi{number}")
        (root / "lists" / f"{side}list01.txt").write_text("\n".join(lines) + "\n")
    (root / RECORD).write_text("{}")
