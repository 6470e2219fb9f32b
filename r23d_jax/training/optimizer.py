"""From an `OptimizerConfig` to an optax transformation: schedule, update rule, decay, groups, frozen parts."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from r23d_jax.config import OptimizerConfig


def make_schedule(cfg: OptimizerConfig, steps_per_epoch: float, num_steps: int) -> optax.Schedule:
    """Learning rate against the step (0 is the first).

    A linear warm-up over `warmup_epochs` reaches the full rate with its last step; then, k of K steps after it:
    "cosine" 0.5 * (1 + cos(pi k / K)); "cosine_7_16" cos(7 pi k / (16 K)), which ends at 0.195 of the full rate (Sohn
    et al. 2020, FixMatch); "multistep" times `decay_factor` at each of `milestones` (epochs from the start of the
    run); "constant".
    """
    warmup_steps = round(cfg.warmup_epochs * steps_per_epoch)
    rest = max(1, num_steps - warmup_steps)
    milestones = jnp.asarray([round(epoch * steps_per_epoch) for epoch in cfg.milestones], jnp.int32)

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        done = jnp.clip((step - warmup_steps) / rest, 0.0, 1.0)
        if cfg.schedule == "cosine":
            factor = 0.5 * (1 + jnp.cos(math.pi * done))
        elif cfg.schedule == "cosine_7_16":
            factor = jnp.cos(7 * math.pi * done / 16)
        elif cfg.schedule == "multistep":
            factor = cfg.decay_factor ** jnp.sum(step >= milestones)
        else:
            factor = jnp.ones(())
        warmup = jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))
        return cfg.learning_rate * warmup * factor

    return schedule


def make_optimizer(
    cfg: OptimizerConfig, params: Any, steps_per_epoch: float, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The update rule for a parameter tree.

    Weight decay acts on leaves named `kernel` only: not on BN, biases, positions or the CLS token. SGD and LARS couple
    it (added to the gradient before the momentum, as PyTorch does), AdamW decouples it.

    Args:
      cfg: the optimizer's config.
      params: nested dict with `stem`, `stages` and `head`; shapes are enough.
      steps_per_epoch: for everything that is given in epochs.
      num_steps: of the whole run.

    Returns:
      The transformation, and the schedule of the learning rate before any group's multiplier.
    """
    schedule = make_schedule(cfg, steps_per_epoch, num_steps)
    groups = jax.tree.map_with_path(lambda path, _: _group(_names(path), cfg.freeze), params)
    rules: dict[Hashable, optax.GradientTransformation] = {
        "backbone": _rule(cfg, schedule, cfg.backbone_multiplier),
        "head": _rule(cfg, schedule, cfg.head_multiplier),
        "frozen": optax.set_to_zero(),
    }
    frozen = jax.tree.map(lambda group: group == "frozen", groups)
    return (
        optax.chain(
            optax.masked(optax.set_to_zero(), frozen),  # before the norm is taken
            optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
            optax.multi_transform(rules, groups),
        ),
        schedule,
    )


def _rule(cfg: OptimizerConfig, schedule: optax.Schedule, multiplier: float) -> optax.GradientTransformation:
    def rate(step: ArrayLike) -> jax.Array:
        return multiplier * jnp.asarray(schedule(step))

    if cfg.name == "lars":
        return optax.lars(
            rate,
            weight_decay=cfg.weight_decay,
            weight_decay_mask=_kernels,
            trust_ratio_mask=_kernels,
            momentum=cfg.momentum,
            nesterov=cfg.nesterov,
        )
    decay = optax.add_decayed_weights(cfg.weight_decay, mask=_kernels)
    if cfg.name == "adamw":
        parts = [optax.scale_by_adam(b1=cfg.momentum, b2=cfg.b2), decay]
    else:
        parts = [decay, optax.trace(cfg.momentum, cfg.nesterov)]
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def _kernels(params: Any) -> Any:
    # by name: attention biases have two axes, so their rank does not tell them from kernels
    return jax.tree.map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)


def _group(names: tuple[str, ...], freeze: tuple[str, ...]) -> str:
    part = names[0] if names[0] != "stages" else f"stage{int(names[1]) + 1}"
    if part in freeze:
        return "frozen"
    return "head" if part == "head" else "backbone"


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", entry)) for entry in path)
