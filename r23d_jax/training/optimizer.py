"""Turns an `OptimizerConfig` into an optax transformation: schedule, update rule, decay, groups, frozen parts."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from r23d_jax.config import OptimizerConfig, look_up

ROUNDING = 1e-6  # of numbers of epochs and steps: 0.3 / 0.1 is less than 3


def count_steps(epochs: float, steps_per_epoch: float) -> int:
    """Steps of a training: at least one, and the last one may go beyond the last epoch."""
    return max(1, math.ceil(epochs * steps_per_epoch - ROUNDING))


def notes(cfg: OptimizerConfig, epochs: float) -> list[str]:
    """Sentences about a schedule that a training of so many epochs does not get through."""
    told = []
    if cfg.warmup_epochs >= epochs:
        share = min(1.0, epochs / cfg.warmup_epochs)
        told.append(
            f"config.optimizer.warmup_epochs={cfg.warmup_epochs:g} is not shorter than the training of {epochs:g} "
            f"epochs: it ends with the learning rate at {share:.0%} of config.optimizer.learning_rate, without a decay"
        )
    late = [epoch for epoch in cfg.milestones if epoch >= epochs] if cfg.schedule == "multistep" else []
    if late:
        told.append(
            f"config.optimizer.milestones={cfg.milestones}: {len(late)} of them are not before the end, after "
            f"{epochs:g} epochs"
        )
    return told


def _multistep(cfg: OptimizerConfig, steps_per_epoch: float, step: jax.Array, done: jax.Array) -> jax.Array:
    del done
    milestones = jnp.asarray([round(epoch * steps_per_epoch) for epoch in cfg.milestones], jnp.int32)
    return cfg.decay_factor ** jnp.sum(step >= milestones)


# config.optimizer.schedule -> (config, steps per epoch, step, completed share of the steps after warm-up) -> factor of
# the learning rate
SCHEDULES: dict[str, Callable[[OptimizerConfig, float, jax.Array, jax.Array], jax.Array]] = {
    "cosine": lambda cfg, steps_per_epoch, step, done: 0.5 * (1 + jnp.cos(math.pi * done)),
    # ends at 0.195 of the full rate (Sohn et al. 2020, FixMatch)
    "cosine_7_16": lambda cfg, steps_per_epoch, step, done: jnp.cos(7 * math.pi * done / 16),
    "multistep": _multistep,  # times `decay_factor` at each of `milestones`, in epochs from the start of the run
    "constant": lambda cfg, steps_per_epoch, step, done: jnp.ones(()),
}


def make_schedule(cfg: OptimizerConfig, steps_per_epoch: float, num_steps: int) -> optax.Schedule:
    """Learning rate against the step (0 is the first).

    A linear warm-up over `warmup_epochs` reaches the full rate with its last step. One of `SCHEDULES` follows.

    Raises:
      ConfigError: if there is no such schedule.
    """
    factor = look_up(SCHEDULES, cfg.schedule, "config.optimizer.schedule")
    warmup_steps = round(cfg.warmup_epochs * steps_per_epoch)
    rest = max(1, num_steps - warmup_steps)

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        done = jnp.clip((step - warmup_steps) / rest, 0.0, 1.0)
        warmup = jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))
        return cfg.learning_rate * warmup * factor(cfg, steps_per_epoch, step, done)

    return schedule


def _sgd(cfg: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(_decay(cfg), optax.trace(cfg.momentum, cfg.nesterov), optax.scale_by_learning_rate(rate))


def _adamw(cfg: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    moments = optax.scale_by_adam(b1=cfg.momentum, b2=cfg.b2)
    return optax.chain(moments, _decay(cfg), optax.scale_by_learning_rate(rate))


def _lars(cfg: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lars(
        rate, cfg.weight_decay, _kernels, trust_ratio_mask=_kernels, momentum=cfg.momentum, nesterov=cfg.nesterov
    )


# config.optimizer.name -> (config, learning rate of the group) -> update rule
OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lars": _lars,
}


def check_names(cfg: OptimizerConfig) -> None:
    """Raises ConfigError if there is no such optimizer or schedule; needs no parameters, and thus no data."""
    make_optimizer(cfg, {}, steps_per_epoch=1, num_steps=1)


def make_optimizer(
    cfg: OptimizerConfig, params: Any, steps_per_epoch: float, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The update rule for a parameter tree.

    Weight decay acts on leaves named `kernel` only, not on BN, biases, positions or the CLS token. SGD and LARS add it
    to the gradient before the momentum, as PyTorch does; AdamW decouples it.

    Args:
      params: nested dict with `stem`, `stages` and `head`; shapes are enough.
      steps_per_epoch: converts fields that are given in epochs.
      num_steps: length of the whole run.

    Returns:
      The transformation, and the schedule of the learning rate before the multiplier of a group.

    Raises:
      ConfigError: if there is no such optimizer or schedule.
    """
    rule = look_up(OPTIMIZERS, cfg.name, "config.optimizer.name")
    schedule = make_schedule(cfg, steps_per_epoch, num_steps)

    def scaled(multiplier: float) -> optax.GradientTransformation:
        return rule(cfg, lambda step: multiplier * jnp.asarray(schedule(step)))

    groups = jax.tree.map_with_path(lambda path, _: _group(_names(path), cfg.freeze), params)
    rules: dict[Hashable, optax.GradientTransformation] = {
        "backbone": scaled(cfg.backbone_multiplier),
        "head": scaled(cfg.head_multiplier),
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


def hold_still(params: Any, freeze: tuple[str, ...]) -> Any:
    """The same parameters, of which those of frozen parts get no gradient, so that nobody computes it."""

    def held(path: tuple, value: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(value) if _group(_names(path), freeze) == "frozen" else value

    return jax.tree.map_with_path(held, params)


def _decay(cfg: OptimizerConfig) -> optax.GradientTransformation:
    return optax.add_decayed_weights(cfg.weight_decay, mask=_kernels)


def _kernels(params: Any) -> Any:
    # By name, because attention biases have two axes, like linear kernels.
    return jax.tree.map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)


def _group(names: tuple[str, ...], freeze: tuple[str, ...]) -> str:
    part = names[0] if names[0] != "stages" else f"stage{int(names[1]) + 1}"
    if part in freeze:
        return "frozen"
    return "head" if part == "head" else "backbone"


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", entry)) for entry in path)
