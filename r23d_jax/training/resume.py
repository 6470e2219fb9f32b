"""What may change between a run and its continuation, and what would give one training's result to another."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax import config
from r23d_jax.config import Config
from r23d_jax.data.find import trained_videos
from r23d_jax.data.find.frames import VideoIndex

# Fields, and beginnings of their names, that change neither the network that a training ends with nor its figures:
# where things lie, how they are read and spread over devices, what is kept and shown. Studies read this, too.
WITHOUT_EFFECT = (
    "checkpoint.", "compilation_cache", "data.augment_on", "data.lists", "data.max_broken_fraction", "data.num_workers",
    "data.on_broken", "data.remote_cache", "data.root", "eval.batch_size", "eval.nearest", "logging.",
    "parallel.fsdp", "parallel.remat", "profile", "train.eval_every", "train.log_every",
)  # fmt: skip
_NOT_READ = ("eval.checkpoint", "fusion.")  # by a training


def changed_fields(old: dict[str, Any], cfg: Config) -> dict[str, tuple[Any, Any]]:
    """The fields of a checkpoint's config that have other values now: (before, now) by name."""
    before, now = _all_fields(old), config.flat(dataclasses.asdict(cfg))
    return {name: (before[name], now[name]) for name in sorted(now) if before[name] != now[name]}


def refuse_another_run(changed: dict[str, tuple[Any, Any]], workdir: Path) -> None:
    """Refuses to resume on other training videos, some of which may be held out now, or on another kind of input.

    Raises:
      UserError: naming the field and what to do.
    """
    for name in ("model.stem", "data.input"):  # 3x7x7 and motion, or frames and differences, have kernels of one shape
        if name in changed:
            before, now = changed[name]
            raise config.UserError(
                f"config.{name}={now!r}: {workdir} was trained with {before!r}: give another --workdir, or "
                f"--config.{name}={before}"
            )
    for name in ("train.global_batch_size", "data.repeats"):
        if name in changed:
            before, now = changed[name]
            raise config.UserError(
                f"config.{name}={now}: {workdir} was trained with {before}, and its steps would be counted as those of "
                "other epochs: give another --workdir, or keep it and set config.train.accumulate to need less memory"
            )
    for name in ("data.split", "data.fold", "data.hold_out"):
        if name in changed:
            before, now = changed[name]
            raise config.UserError(
                f"config.{name}={now}: {workdir} was trained with {before}, so on other videos. Some may be held out "
                "now: give another --workdir"
            )
    before, now = changed.get("data.source", ("", ""))
    if not {before, now} <= {"", "frames", "packed"}:  # which hold the same pictures
        raise config.UserError(
            f"config.data.source={now!r}: {workdir} was trained with {before!r}, so on other videos: give another "
            "--workdir"
        )


def refuse_other_settings(changed: dict[str, tuple[Any, Any]], epochs: float, workdir: Path) -> None:
    """Refuses to give the result of a complete training as that of other settings.

    Args:
      epochs: of the training, as the config says now.

    Raises:
      UserError: naming the first such field and what to do.
    """
    for name, (before, now) in changed.items():
        if name == "init_from":
            if before and now:  # the weights may have moved, but not come or gone
                continue
            start = f"from {before}" if before else "from random weights"
            raise config.UserError(
                f"config.init_from={now!r}: {workdir} is complete, and was started {start}: give another --workdir"
            )
        # Frames may be packed now, and shards unpacked, which are never shuffled; nothing is read in their order again
        if name.startswith((*WITHOUT_EFFECT, *_NOT_READ)) or name in ("data.source", "data.shuffle_shards"):
            continue
        if name.startswith("eval."):
            raise config.UserError(
                f"config.{name}={now!r}: {workdir} is complete, and was evaluated with {before!r}: add --mode=eval to "
                "evaluate it again"
            )
        trained = changed.get("train.epochs", (epochs, epochs))[0]
        raise config.UserError(
            f"config.{name}={now!r}: {workdir} is complete, and was trained with {before!r}: give another --workdir, "
            f"or a config.train.epochs above {trained:g} to train on"
        )


def videos_to_keep(
    kept: str, train: VideoIndex, test: VideoIndex, workdir: Path, complete: bool, log: Callable[[str], None]
) -> str:
    """The videos to keep with the next checkpoint: those of now, and those that only the last one had.

    Args:
      kept: of the checkpoint that is resumed, as `trained_videos.digests`; "" if it kept none.
      train: the videos to train on.
      test: those that the training is evaluated on.
      complete: whether no step is left.
      log: takes a line if the training videos have changed.

    Raises:
      UserError: if the checkpoint was trained on videos that are evaluated now, or is complete with other videos.
    """
    now, before = trained_videos.digests(train), trained_videos.split(kept)
    if not now:  # nothing tells which videos these are
        return kept
    here = set(trained_videos.split(now)[0])
    gone = [mark for part in before for mark in part if mark not in here]
    seen = trained_videos.were_among("".join(gone), test)
    if seen.any():
        raise config.UserError(
            f"{workdir} was trained on {seen.sum():,} of the {len(test):,} videos that are evaluated now, e.g. "
            f"{test.names[seen][0]}: the lists are others than in training; give another --workdir, or the lists of "
            "before"
        )
    if not kept or kept.partition(trained_videos.EARLIER)[0] == now:
        return kept or now
    new, lost = len(here - set(before[0])), len(set(before[0]) - here)
    change = f"{new:,} new, {lost:,} gone" if new or lost else "in another order"
    if complete:
        raise config.UserError(
            f"{workdir} is complete, and was trained on other videos than are there now ({change}): give another "
            "--workdir; or add --mode=eval to evaluate it as it is"
        )
    log(f"the training videos have changed since the checkpoint ({change}): this is another training from here on")
    return f"{now}{trained_videos.EARLIER}{''.join(gone)}" if gone else now


def refuse_other_test_videos(evaluated: np.ndarray, test: VideoIndex, workdir: Path) -> None:
    """Refuses to give the evaluation of a complete training as that of other videos.

    Args:
      evaluated: (N,) str, names of the videos that were evaluated.
      test: those to evaluate.

    Raises:
      UserError: if they differ.
    """
    if test.named and not np.array_equal(evaluated, test.names):
        raise config.UserError(
            f"{workdir} is complete, and was evaluated on {len(evaluated):,} videos; {len(test):,} are there now, or "
            "others: add --mode=eval to evaluate these"
        )


def _all_fields(old: dict[str, Any]) -> dict[str, Any]:
    """The fields of a checkpoint's config; one that is newer than the checkpoint had its default's effect then."""
    return config.flat(dataclasses.asdict(Config())) | config.flat(old)
