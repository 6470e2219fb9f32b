"""Measures the input of a training on this machine: how long a core works for a clip, and what a batch looks like."""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from r23d_jax.config import Config, UserError
from r23d_jax.data.find.frames import VideoIndex, index_frames
from r23d_jax.data.find.generated import draw_picture
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.pipeline import train_batches
from r23d_jax.data.sources import open_index

_SECONDS = 3.0  # of processor time to measure
_CLIPS = 8  # of a batch
_VIDEOS, _FRAMES = 8, 40  # of the stand-in
_UCF101 = 9537  # training videos of split 1
_QUALITY = 82  # of a JPEG; about 5 KB for 171 x 128


@dataclasses.dataclass(frozen=True)
class Input:
    """The input of a training."""

    seconds_per_clip: float  # processor time that reads one clip, on this machine
    # of each array of a batch, its shape for one clip read, (clips, ...) with clips = 1, and its dtype
    rows: dict[str, tuple[tuple[int, ...], np.dtype]]
    # num_videos, num_classes: of the training list; those of UCF101 where there is none
    num_videos: int
    num_classes: int
    source: str  # the videos that were read, in words


def measure_input(cfg: Config, on_device: bool) -> Input:
    """Reads clips as a training does, of its own videos or, where they are not here, of drawn ones of the same size."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            index, source = open_index(cfg.data, "train"), f"the videos of {cfg.data.root}"
            count, classes = len(index), len(index.class_names)
        except UserError:
            if cfg.data.motion.speeds:
                raise
            cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, shuffle_shards=0))
            index, source = _stand_in(cfg, Path(folder)), "drawn JPEGs, because config.data.root has no videos here"
            count, classes = _UCF101, 101
        repeats = cfg.data.repeats
        batches = train_batches(
            index,
            cfg.data,
            seed=0,
            global_batch_size=_CLIPS * repeats,
            start_step=0,
            num_steps=10_000,
            broken=BrokenLog(cfg.data),
            on_device=on_device,
        )
        try:
            batch = next(batches)  # with it the threads have started
            seconds = _seconds_per_batch(batches)
        finally:
            batches.close()
    rows = {name: ((len(rows) // _CLIPS, *rows.shape[1:]), rows.dtype) for name, rows in batch.items()}
    rows.pop("video_id")
    return Input(seconds / _CLIPS, rows, count, classes, source)


def _seconds_per_batch(batches: Iterator[dict[str, np.ndarray]]) -> float:
    """Of processor time. Work on batches ahead is in both ends, so a few batches make it a small part."""
    started, count = time.process_time(), 0
    while count < 4 or time.process_time() - started < _SECONDS:
        next(batches)
        count += 1
    return (time.process_time() - started) / count


def _stand_in(cfg: Config, root: Path) -> VideoIndex:
    """A few drawn videos of the short side that the config expects, as `prepare` would store them."""
    short, flow = cfg.data.short_side, cfg.data.input == "flow"
    names = [f"v_Drawn_g{video:02d}_c01" for video in range(_VIDEOS)]
    frames = max(_FRAMES, cfg.data.num_frames * cfg.data.frame_stride)
    for video, name in enumerate(names):
        (root / name).mkdir()
        pixels = draw_picture((video,), short, short * 4 // 3)
        for number in range(frames):
            picture = np.roll(pixels, 2 * number, axis=1)
            picture = np.concatenate([picture[..., 0]] * 2) if flow else picture  # x above y
            cv2.imwrite(str(root / name / f"{number:05d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    entries = tuple(Entry(name, 0, "Drawn", name) for name in names)
    index = index_frames(root, VideoList(("Drawn",), entries), cache=False)
    return dataclasses.replace(index, rates=np.full(_VIDEOS, 25.0))
