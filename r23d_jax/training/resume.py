"""What may change between a run and its continuation, and what would give one training's result to another."""

import dataclasses
from pathlib import Path
from typing import Any

from r23d_jax import config
from r23d_jax.config import Config

# Fields that change neither the network that a complete training ended with nor, but for those of `eval`, its figures
_WITHOUT_EFFECT = {
    "compilation_cache", "profile", "data.augment_on", "data.byte_range", "data.lists", "data.max_broken_fraction",
    "data.num_workers", "data.remote_cache", "data.root", "data.source", "parallel.fsdp", "parallel.remat",
    "train.eval_every", "train.log_every",
}  # fmt: skip
_GROUPS_WITHOUT_EFFECT = ("checkpoint.", "eval.", "fusion.", "logging.")


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


def refuse_other_settings(changed: dict[str, tuple[Any, Any]], epochs: float, workdir: Path) -> None:
    """Refuses to give the result of a complete training as that of other settings.

    Args:
      epochs: of the training, as the config says now.

    Raises:
      UserError: naming the first such field and what to do.
    """
    for name, (before, now) in changed.items():
        if name not in _WITHOUT_EFFECT and not name.startswith(_GROUPS_WITHOUT_EFFECT):
            trained = changed.get("train.epochs", (epochs, epochs))[0]
            raise config.UserError(
                f"config.{name}={now!r}: {workdir} is complete, and was trained with {before!r}: give another "
                f"--workdir, or a config.train.epochs above {trained:g} to train on"
            )


def _all_fields(old: dict[str, Any]) -> dict[str, Any]:
    """The fields of a checkpoint's config; one that is newer than the checkpoint had its default's effect then."""
    return config.flat(dataclasses.asdict(Config())) | config.flat(old)
