"""A page with a clip of every class as a training will see it: cut, resized and augmented by the real pipeline."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from r23d_jax.config import Config
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.pipeline import train_batches
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation.figures import escape, image
from r23d_jax.evaluation.report import page_of, section, table
from r23d_jax.runtime.disk import write_atomically

VARIANTS = 3  # augmentations of the clip of a class
_SHOWN = ("input", "num_frames", "frame_stride", "frame_seconds", "short_side", "crop_size", "crop", "crop_scales")
_SHOWN += ("flip", "color_jitter")
_DIFFERENCES = ("rgb_diff", "rgb_and_diff")  # inputs that hold differences
_QUALITY = 80  # of WebP
_GAP = 4  # pixels between variants
_MILLISECONDS = 80  # per picture if the rate of the videos is not known


def write_preview(path: Path, cfg: Config, about: Sequence[str], log: Callable[[str], None]) -> None:
    """Writes one self-contained page; it needs no network and no scripts.

    Args:
      about: lines about the videos, shown below the clips.
      log: takes the names of videos that cannot be read.

    Raises:
      UserError: the videos cannot be read.
    """
    train, test = open_index(cfg.data, "train"), open_index(cfg.data, "test")
    counts = [np.bincount(index.labels, minlength=len(train.class_names)) for index in (train, test)]
    _, rows = np.unique(train.labels, return_index=True)
    clips = _clips(train.take(rows), cfg, log)
    pace = 1000 * cfg.data.frame_seconds or _pace(train, cfg)
    data = cfg.data
    figures = []
    for label, name in enumerate(train.class_names):
        if label not in clips:
            continue
        alt = f"{len(clips[label])} augmented clips of {name}"
        picture = image(_animation(clips[label], cfg, pace), "image/webp", alt)
        wide = picture.replace("<img ", '<img style="width:100%" ', 1)
        figures.append(
            f'<figure style="margin:0"><figcaption><b>{escape(name)}</b> <span class="muted small">'
            f"{counts[0][label]} to train, {counts[1][label]} to test</span></figcaption>"
            f"{wide}</figure>"
        )
    grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(360px,1fr));gap:18px"
    words = (
        f"{VARIANTS} cuts of a training video of each class, augmented as in a training: {data.num_frames} frames of "
        f"{data.crop_size} x {data.crop_size} pixels. The network cannot learn what you cannot see here."
    )
    if data.input in _DIFFERENCES:
        words += " Below them are the differences of neighboring frames, which the network reads; gray is no change."
    lines = f"<pre>{escape(chr(10).join(about))}</pre>"
    settings = [(f"config.data.{name}", repr(getattr(data, name))) for name in _SHOWN]
    sections = [
        section("Clips", f'<p class="muted">{escape(words)}</p><div style="{grid}">{"".join(figures)}</div>'),
        section("Videos", lines),
        section("Settings", table(("field", "value"), settings)),
    ]
    totals = f"{len(train):,} videos to train on, {len(test):,} to test, {len(train.class_names)} classes"
    write_atomically(path, page_of("What the network will see", totals, sections))


def _clips(index: VideoIndex, cfg: Config, log: Callable[[str], None]) -> dict[int, list[np.ndarray]]:
    """Clips (T, S, S, C) uint8 by label, `VARIANTS` of each; fewer of a class whose video cannot be read."""
    batches = train_batches(
        index,
        dataclasses.replace(cfg.data, repeats=1),
        seed=cfg.seed,
        global_batch_size=len(index),
        start_step=0,
        num_steps=VARIANTS,
        broken=BrokenLog(dataclasses.replace(cfg.data, max_broken_fraction=1.0), log=log),
    )
    clips: dict[int, list[np.ndarray]] = {}
    for batch in batches:
        for label, clip in zip(batch["label"].tolist(), batch["video"], strict=True):
            clips.setdefault(label, []).append(clip)
    return {label: found[:VARIANTS] for label, found in clips.items()}


def _pace(index: VideoIndex, cfg: Config) -> float:
    """Milliseconds from one frame of a clip to the next."""
    known = np.zeros(0) if index.rates is None else index.rates[index.rates > 0]
    return 1000 * cfg.data.frame_stride / float(np.median(known)) if len(known) else _MILLISECONDS


def _animation(clips: list[np.ndarray], cfg: Config, pace: float) -> bytes:
    """Clips side by side as an animated WebP; with what the network reads of them below, if that is differences."""
    from PIL import Image  # comes with matplotlib

    gap = np.full((*clips[0].shape[:2], _GAP, 3), 255, np.uint8)
    film = np.concatenate([part for clip in clips for part in (clip, gap)][:-1], axis=2)
    if cfg.data.input in _DIFFERENCES:
        change = np.clip(128 + (film[1:].astype(int) - film[:-1]), 0, 255).astype(np.uint8)
        for k in range(1, len(clips)):  # the gaps stay white
            at = k * (clips[0].shape[2] + _GAP)
            change[:, :, at - _GAP : at] = 255
        film = np.concatenate([film[:-1], np.full_like(change[:, :_GAP], 255), change], axis=1)
    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in film)
    buffer = io.BytesIO()
    times = max(round(pace), 20)
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=times, loop=0, quality=_QUALITY)
    return buffer.getvalue()
