"""Where the videos of a config come from: frame folders, shards, a synthetic set that is written first, or drawings."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from r23d_jax.config import ConfigError, DataConfig, Preprocessing, look_up, preprocessing
from r23d_jax.config.motion import MOTIONS
from r23d_jax.data.find.class_folders import LISTS, find_clips, write_lists
from r23d_jax.data.find.directions import mirrored_pairs
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import FrameFiles, VideoIndex, index_frames
from r23d_jax.data.find.generated import GeneratedFrames
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.packed_scan import is_description
from r23d_jax.data.find.splits import VideoList, fold, hold_out, read_list
from r23d_jax.data.find.video_names import group_of
from r23d_jax.data.make.record import RECORD, Made, how_made
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.runtime import remote
from r23d_jax.runtime.program import command

Subset = Literal["train", "test", "held_out"]

# Of the source "pictures": as videos, so that an epoch visits so many
_GENERATED_VIDEOS, _PICTURES_OF_EACH = 2000, 10_000


def open_index(cfg: DataConfig, subset: Subset) -> VideoIndex:
    """Finds the videos of one side of the split, in one of `SOURCES`.

    With `fold`, "test" is a third of the training groups, which "train" lacks; the test list is not used. With
    `hold_out`, "train" lacks some more groups, and "held_out" is these. Without `lists` they are in the folder `lists`
    beside `root`, which is made of the class folders if it is missing.

    With `motion`, the classes are those of pseudo-motion, and "test" is "held_out" too: test videos are not looked at.
    To be evaluated, a video has a row for each class; in training, `repeats` gives a clip of each.

    Raises:
      UserError: there is no data, or no such source; the message names the remedy.
    """
    open_source = look_up(SOURCES, cfg.source, "config.data.source")
    root, lists = _root_of(cfg), lists_of(cfg)
    if cfg.motion.speeds:
        subset = "train" if subset == "train" else "held_out"
        return _moving(open_source(cfg, root, lists, subset), subset)
    index = _with_rates(cfg, open_source(cfg, root, lists, subset))
    return _noted(index, _mirror_note(cfg, index) if subset == "train" else ())


def _root_of(cfg: DataConfig) -> Path:
    """The folder of the data; of packed shards in an object store, a copy of all files but the shards."""
    if not remote.is_remote(cfg.root):
        return Path(cfg.root).expanduser()
    if cfg.source != "packed":
        raise ConfigError(
            f"config.data.root={cfg.root}: only packed shards are read from an object store, because a request for "
            f"each frame would take too long; make them with {command('prepare')} --format packed, copy them there, "
            "and set --config.data.source=packed"
        )
    for number in range(3):  # the record of `prepare` is beside `packed`, or above a folder in it
        above = cfg.root
        for _ in range(number + 1):
            above = remote.parent(above)
        with contextlib.suppress(remote.Refused):  # credentials may be for the folder of the data alone
            remote.copied(remote.join(above, RECORD))
    return remote.copied(cfg.root, is_description)


def names_of(cfg: DataConfig) -> str:
    """The names of the folders of a dataset and of its lists, which stay where both are moved: `ucf101 lists`."""
    parts = [part for part in PurePosixPath(cfg.root).parts if part not in ("frames", "packed")]
    return f"{parts[-1] if parts else '.'} {PurePosixPath(cfg.lists).name or LISTS}"


def lists_of(cfg: DataConfig) -> Path:
    """The folder of the split lists: `cfg.lists`, or beside the data; of lists in an object store, a copy."""
    lists = cfg.lists or (remote.join(remote.parent(cfg.root), LISTS) if remote.is_remote(cfg.root) else "")
    if remote.is_remote(lists):
        # Videos and shards beside them stay there
        return remote.copied(lists, lambda name: name.lower().endswith((".txt", ".csv", ".json")))
    return Path(cfg.lists).expanduser() if cfg.lists else Path(cfg.root).expanduser().absolute().parent / LISTS


def groups_of(cfg: DataConfig, subset: Subset, index: VideoIndex) -> list[str]:
    """The group of each video of `open_index`: by the lists, or by its name where there are none."""
    lists = Path(cfg.root).expanduser() / LISTS if cfg.source == "synthetic" else lists_of(cfg)
    entries = listed_videos(cfg, lists, subset).entries if lists.exists() else ()
    known = {entry.name: entry.group for entry in entries}
    classes = (index.class_names[label] for label in index.labels.tolist())
    return [
        known.get(name) or (f"{class_name}_{number}" if (number := group_of(name)) else name)
        for name, class_name in zip(index.names.tolist(), classes, strict=True)
    ]


def _frames(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    made = _check_kind(cfg, root)
    notes = () if cfg.lists or lists.exists() else write_lists(lists, find_clips(root))
    index = _noted(index_frames(root, listed_videos(cfg, lists, subset), num_workers=cfg.num_workers), notes)
    if made.rates and isinstance(index.frames, FrameFiles):
        targets = [os.path.join(made.target, os.path.relpath(folder, root)) for folder in index.frames.folder.tolist()]
        index = dataclasses.replace(index, rates=np.array([made.rates.get(target, 0.0) for target in targets]))
    return dataclasses.replace(index, flow=made.flow, reduced_to=made.reduced_to)


def _packed(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    made = _check_kind(cfg, root)
    # A packed dataset may bring its own split and labels.
    bare = not lists.exists() and not cfg.classes and not cfg.hold_out and not cfg.fold
    listed = None if bare else listed_videos(cfg, lists, subset)
    place: dict[str, Any] = {}
    if remote.is_remote(cfg.root):
        place = {"url": cfg.root, "cache_bytes": 1e9 * cfg.remote_cache}
    index = index_packed(root, listed, _side(cfg, subset), **place)
    return dataclasses.replace(index, flow=made.flow, reduced_to=made.reduced_to)


def _synthetic(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    del lists
    write_synthetic(root)
    return index_frames(root / "frames", listed_videos(cfg, root / "lists", subset), num_workers=cfg.num_workers)


def _pictures(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    """Generated videos, whose frames have nothing in common. The last ones are held out."""
    del root, lists
    first_held = _GENERATED_VIDEOS - max(1, round(cfg.hold_out * _GENERATED_VIDEOS))
    number = np.arange(_GENERATED_VIDEOS)[slice(first_held) if subset == "train" else slice(first_held, None)]
    return VideoIndex(
        class_names=("picture",),
        names=np.array([f"pictures_{n:05d}" for n in number.tolist()]),
        labels=np.zeros(len(number), np.int32),
        num_frames=np.full(len(number), _PICTURES_OF_EACH, np.int32),
        frames=GeneratedFrames(number, cfg.short_side, cfg.short_side * 4 // 3),
        layout="generated pictures",
    )


def _moving(index: VideoIndex, subset: Subset) -> VideoIndex:
    """The same videos with the classes of pseudo-motion. Their rates do not matter: a clip is made of one frame."""
    if subset == "train":
        return dataclasses.replace(index, class_names=MOTIONS, labels=np.zeros_like(index.labels), rates=None)
    rows, labels = (grid.ravel() for grid in np.indices((len(index), len(MOTIONS)), np.int32))
    names = [f"{index.names[row]} {MOTIONS[label]}" for row, label in zip(rows, labels, strict=True)]
    return dataclasses.replace(
        index.take(rows),
        class_names=MOTIONS,
        names=np.array(names),
        labels=labels,
        rates=None,
        notes=(*index.notes, "each with every class; made of held-out groups of the training list, not of test videos"),
    )


# config.data.source -> (config, root, lists, subset) -> index
SOURCES: dict[str, Callable[[DataConfig, Path, Path, Subset], VideoIndex]] = {
    "frames": _frames,  # frame folders
    "packed": _packed,  # TFRecord shards
    "synthetic": _synthetic,  # the synthetic motion dataset, written to `root` first, unless it is there
    "pictures": _pictures,  # generated pictures, which are never written
}


def trained_preprocessing(cfg: DataConfig, index: VideoIndex) -> Preprocessing:
    """The preprocessing of a network that is trained on these videos, with what the videos tell about themselves."""
    known = np.zeros(0) if index.rates is None else index.rates[index.rates > 0]
    rate = round(float(np.median(known)), 4) if len(known) else 0.0
    return dataclasses.replace(preprocessing(cfg), frame_rate=rate, flow=index.flow, reduced_to=index.reduced_to)


def _with_rates(cfg: DataConfig, index: VideoIndex) -> VideoIndex:
    """Fills in `cfg.frame_rate` where no rate is recorded, and notes how fast the videos are.

    Raises:
      DataError: `cfg.frame_seconds` needs rates that are not known.
    """
    notes = [str(index.flow)] if index.flow.method else []
    rates = np.zeros(len(index)) if index.rates is None else index.rates
    unknown = rates <= 0
    if unknown.any() and cfg.frame_seconds and not cfg.frame_rate:
        raise DataError(
            f"config.data.frame_seconds={cfg.frame_seconds:g}: the rate of {unknown.sum():,} of {len(index):,} videos "
            f"in {cfg.root} is not recorded, e.g. {index.names[unknown][0]}; make the frames with "
            f"{command('prepare')}, which records it, or set config.data.frame_rate to the frames per second of them"
        )
    if unknown.any() and cfg.frame_rate:
        rates = np.where(unknown, cfg.frame_rate, rates)
        notes.append(
            f"{unknown.sum():,} videos have no recorded rate: taken as {cfg.frame_rate:g} frames a second "
            "(config.data.frame_rate)"
        )
    if rates.any():
        low, high = rates[rates > 0].min(), rates.max()
        if cfg.frame_seconds:
            strides = " to ".join(dict.fromkeys(f"{rate * cfg.frame_seconds:.4g}" for rate in (low, high)))
            notes.append(f"a frame every {cfg.frame_seconds:g} s, which is every {strides} frames")
        elif high > 1.05 * low:
            notes.append(
                f"the videos have {low:.4g} to {high:.4g} frames a second, and a clip takes every {cfg.frame_stride} "
                "of them; config.data.frame_seconds takes them at one pace"
            )
    return dataclasses.replace(index, rates=rates, notes=(*index.notes, *notes))


def _noted(index: VideoIndex, notes: tuple[str, ...]) -> VideoIndex:
    return dataclasses.replace(index, notes=(*index.notes, *notes)) if notes else index


def _mirror_note(cfg: DataConfig, index: VideoIndex) -> tuple[str, ...]:
    pairs = mirrored_pairs(index.class_names)
    if cfg.flip != "auto" or not pairs:
        return ()
    return (
        f"clips are not mirrored, because {len(pairs)} pair(s) of classes are mirror images, e.g. {pairs[0][0]!r} and "
        f"{pairs[0][1]!r}; --config.data.flip=True mirrors them all the same",
    )


def _side(cfg: DataConfig, subset: str) -> Literal["train", "test"]:
    """The list that a subset is taken from."""
    return "test" if subset == "test" and not cfg.fold else "train"


def listed_videos(cfg: DataConfig, lists: Path, subset: Subset) -> VideoList:
    """The videos of a subset by the lists alone, whether or not they are there; see `open_index`."""
    if subset == "held_out" and not cfg.hold_out:
        raise ConfigError("config.data.hold_out=0: nothing was held out of this training")
    with _collector_paused():
        videos = read_list(lists, _side(cfg, subset), cfg.split, cfg.classes)
    if cfg.fold:
        videos, held = fold(videos, cfg.fold)
        if subset == "test":
            return held
    if subset == "test" or not cfg.hold_out:
        return videos
    kept, held = hold_out(videos, cfg.hold_out)
    return held if subset == "held_out" else kept


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the garbage collector, which takes 40 % of the time of a list of 240,000 videos, and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_kind(cfg: DataConfig, root: Path) -> Made:
    """How the pictures were made, by the record that `prepare` leaves; refuses flow in place of frames."""
    made = how_made(root)
    if bool(made.flow.method) == (cfg.input == "flow") or not root.is_dir():
        return made
    if made.flow.method:
        raise ConfigError(
            f"config.data.root={cfg.root}: holds optical flow ({made.flow.method}), and config.data.input is "
            f"{cfg.input!r}; set config.data.input='flow', or give the folder of the frames"
        )
    raise ConfigError(
        f"config.data.root={cfg.root}: holds no optical flow (no prepare.json beside it says so); make it "
        f"with {command('prepare')} --flow dis --videos VIDEOS --out FLOW, and set config.data.root=FLOW/frames"
    )
