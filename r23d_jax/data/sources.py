"""Where the videos of a config come from: frame folders, packed shards, or a synthetic set that is written first."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from r23d_jax.config import ConfigError, DataConfig, look_up
from r23d_jax.data.find.class_folders import LISTS, find_clips, write_lists
from r23d_jax.data.find.directions import mirrored_pairs
from r23d_jax.data.find.frames import VideoIndex, index_frames
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.splits import VideoList, hold_out, read_list
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.runtime.program import command

Subset = Literal["train", "test", "held_out"]


def open_index(cfg: DataConfig, subset: Subset) -> VideoIndex:
    """Finds the videos of one side of the split, in one of `SOURCES`.

    With `hold_out`, "train" lacks some of the training groups, and "held_out" is these. Without `lists` they are in the
    folder `lists` beside `root`, which is made of the class folders if it is missing.

    Raises:
      UserError: there is no data, or no such source; the message names the remedy.
    """
    root = Path(cfg.root).expanduser()
    lists = Path(cfg.lists).expanduser() if cfg.lists else root.absolute().parent / LISTS
    index = look_up(SOURCES, cfg.source, "config.data.source")(cfg, root, lists, subset)
    return _noted(index, _mirror_note(cfg, index) if subset == "train" else ())


def _frames(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    notes = _check_kind(cfg, root)
    if not cfg.lists and not lists.exists():
        notes += write_lists(lists, find_clips(root))
    return _noted(index_frames(root, _wanted(cfg, lists, subset), num_workers=cfg.num_workers), notes)


def _packed(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    notes = _check_kind(cfg, root)
    # A packed dataset may bring its own split and labels.
    bare = not lists.exists() and not cfg.classes and not cfg.hold_out
    return _noted(index_packed(root, None if bare else _wanted(cfg, lists, subset), _side(subset)), notes)


def _synthetic(cfg: DataConfig, root: Path, lists: Path, subset: Subset) -> VideoIndex:
    del lists
    write_synthetic(root)
    return index_frames(root / "frames", _wanted(cfg, root / "lists", subset), num_workers=cfg.num_workers)


# config.data.source -> (config, root, lists, subset) -> index
SOURCES: dict[str, Callable[[DataConfig, Path, Path, Subset], VideoIndex]] = {
    "frames": _frames,  # frame folders
    "packed": _packed,  # TFRecord shards
    "synthetic": _synthetic,  # the synthetic motion dataset, written to `root` first, unless it is there
}


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


def _side(subset: str) -> Literal["train", "test"]:
    return "test" if subset == "test" else "train"


def _wanted(cfg: DataConfig, lists: Path, subset: str) -> VideoList:
    """The listed videos of a subset."""
    if subset == "held_out" and not cfg.hold_out:
        raise ConfigError("config.data.hold_out=0: nothing was held out of this training")
    videos = read_list(lists, _side(subset), cfg.split, cfg.classes)
    if subset == "test" or not cfg.hold_out:
        return videos
    kept, held = hold_out(videos, cfg.hold_out)
    return held if subset == "held_out" else kept


def _check_kind(cfg: DataConfig, root: Path) -> tuple[str, ...]:
    """Checks with the record that `prepare` leaves whether the pictures are optical flow; returns notes for the log."""
    try:
        record = json.loads((root.absolute().parent / "prepare.json").read_text(encoding="utf-8"))
        method, bound = record.get("flow", ""), record.get("flow_bound", 0)
    except (OSError, ValueError, AttributeError):
        method, bound = "", 0
    if bool(method) == (cfg.input == "flow") or not root.is_dir():
        return (f"optical flow by {method}, bound {bound:g} pixels",) if method else ()
    if method:
        raise ConfigError(
            f"config.data.root={cfg.root}: holds optical flow ({method}), and config.data.input is {cfg.input!r}; set "
            "config.data.input='flow', or give the folder of the frames"
        )
    raise ConfigError(
        f"config.data.root={cfg.root}: holds no optical flow (no prepare.json beside it says so); make it "
        f"with {command('prepare')} --flow tvl1 --videos VIDEOS --out FLOW, and set config.data.root=FLOW/frames"
    )
