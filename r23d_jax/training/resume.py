"""What may change between a run and its continuation, and what would give one training's result to another."""

import dataclasses
from pathlib import Path
from typing import Any

from r23d_jax import config
from r23d_jax.config import Config

# Fields, and beginnings of their names, that change neither the network that a training ends with nor its figures:
# where things lie, how they are read and spread over devices, what is kept and shown. Studies read this, too.
WITHOUT_EFFECT = (
    "checkpoint.", "compilation_cache", "data.augment_on", "data.lists", "data.max_broken_fraction", "data.num_workers",
    "data.on_broken", "data.remote_cache", "data.root", "eval.batch_size", "eval.checkpoint", "eval.nearest", "fusion.",
    "init_from", "logging.", "parallel.fsdp", "parallel.remat", "profile", "train.eval_every", "train.log_every",
)  # fmt: skip


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
        # Frames may be packed now, and shards unpacked, which are never shuffled; nothing is read in their order again
        if name.startswith(WITHOUT_EFFECT) or name in ("data.source", "data.shuffle_shards"):
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


def _all_fields(old: dict[str, Any]) -> dict[str, Any]:
    """The fields of a checkpoint's config; one that is newer than the checkpoint had its default's effect then."""
    return config.flat(dataclasses.asdict(Config())) | config.flat(old)
