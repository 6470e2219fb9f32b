"""One compiled training step over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r23d_jax import config
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.config import Config, ConfigError
from r23d_jax.models.augment import finish_clips
from r23d_jax.models.convolution import compiled_for
from r23d_jax.models.functional import Network
from r23d_jax.models.motion import move_pictures
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import parallel
from r23d_jax.training import losses
from r23d_jax.training.optimizer import hold_still

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    network: Network,
    tx: optax.GradientTransformation,
    cfg: Config,
    num_classes: int,
    mesh: Mesh,
    shardings: TrainState,
    schedule: optax.Schedule,
) -> TrainStep:
    """Compiles `make_update` into one program, which reuses the state's memory. All randomness is from (seed, step).

    Returns:
      A function of (state, batch) that returns the next state and the metrics.
    """
    update = make_update(network, tx, cfg, num_classes, mesh, shardings, schedule)

    @compiled_for(parallel.platform(mesh))
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return update(state, batch, jax.random.fold_in(jax.random.key(cfg.seed), state.step))

    return jax.jit(
        step,
        in_shardings=(shardings, parallel.batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=parallel.compiler_options(mesh),
    )


def make_update(
    network: Network,
    tx: optax.GradientTransformation,
    cfg: Config,
    num_classes: int,
    mesh: Mesh,
    shardings: TrainState,
    schedule: optax.Schedule,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Forward, backward and update, to be compiled by the caller.

    BatchNorm sees the whole global batch: under `jit` a mean over a sharded axis is a mean over all devices. With
    `cfg.train.accumulate` > 1 it sees one micro-batch at a time, in order.

    Args:
      network, tx, schedule: the network, its update rule and its learning rate.
      cfg: its data and train groups and `optimizer.freeze` are read.
      num_classes: number of logits.
      mesh: the devices.
      shardings: sharding of every leaf of the state.

    Returns:
      A function of (state, {"video" uint8, "label", "mask"}, key) that returns the next state and float32 scalars
      `train/loss`, `train/top1`, `train/grad_norm` and `train/learning_rate`. The batch may be one for `finish_clips`
      or `move_pictures`. All randomness is from the key.

    Raises:
      ConfigError: if the devices do not divide a micro-batch.
    """
    pre = config.preprocessing(cfg.data)
    train = cfg.train
    whole = NamedSharding(mesh, PartitionSpec())
    micro_size = train.global_batch_size // train.accumulate
    if micro_size % (cfg.data.repeats * mesh.size):
        repeated = f" times data.repeats={cfg.data.repeats}" if cfg.data.repeats > 1 else ""
        raise ConfigError(
            f"config.train.global_batch_size={train.global_batch_size} / accumulate={train.accumulate} = {micro_size}: "
            f"must be a multiple of the {mesh.size} devices{repeated}"
        )

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple]:
        dropout_key, mix_key, still_key = jax.random.split(key, 3)
        batch = move_pictures(finish_clips(batch, pre), pre)
        video = prepare_video(batch["video"], pre)
        if train.still_mix:
            video = losses.add_stills(still_key, video, train.still_mix, pre.input)
        targets = losses.one_hot(batch["label"], num_classes, train.label_smoothing)
        video, targets = losses.mix(mix_key, video, targets, train)
        params = hold_still(params, cfg.optimizer.freeze)
        logits, batch_stats = network.apply_train(params, batch_stats, video, dropout_key)
        loss = losses.cross_entropy(logits, targets, batch["mask"])
        return loss, (batch_stats, losses.accuracy(logits, batch["label"], batch["mask"]))

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulated(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Any, Any]:
        """Mean loss, mean accuracy, mean gradients, and the BN statistics after the last micro-batch."""
        # Classes of pseudo-motion are in turn, so a micro-batch of single rows would lack some of them.
        run = cfg.data.repeats if cfg.data.motion.speeds and "motion" not in batch else 1
        split = {name: _micro_batches(rows, train.accumulate, mesh, run) for name, rows in batch.items()}
        keys = jax.random.split(key, train.accumulate)

        def body(carry: tuple, xs: tuple) -> tuple[tuple, None]:
            total, batch_stats = carry
            micro, micro_key = xs
            (loss, (batch_stats, top1)), grads = grad_fn(params, batch_stats, micro, micro_key)
            return (jax.tree.map(jnp.add, total, (loss, top1, grads)), batch_stats), None

        zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (total, batch_stats), _ = jax.lax.scan(body, (zeros, batch_stats), (split, keys))
        loss, top1, grads = jax.tree.map(lambda x: x / train.accumulate, total)
        return loss, top1, grads, batch_stats

    def update(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        # Parameters that are split over `fsdp` are gathered here, once per step. Otherwise XLA splits some convolutions
        # over their channels and moves activations.
        gathered = jax.lax.with_sharding_constraint(state.params, whole)
        if train.accumulate > 1:
            loss, top1, grads, batch_stats = accumulated(gathered, state.batch_stats, batch, key)
        else:
            (loss, (batch_stats, top1)), grads = grad_fn(gathered, state.batch_stats, batch, key)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A smaller decay at first, as TensorFlow's has, or a short run would keep much of the random start: after 1,000
        # steps of 0.999, 37 %.
        decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay) if state.ema else {}
        metrics = {
            "train/loss": loss,
            "train/top1": top1,
            "train/grad_norm": optax.tree.norm(grads),
            "train/learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics  # type: ignore[arg-type]

    return update


def _micro_batches(rows: jax.Array, count: int, mesh: Mesh, run: int) -> jax.Array:
    """(B, ...) -> (count, B / count, ...) without moving rows between devices; takes turns after `run` rows."""
    rows = rows.reshape(-1, count, run, *rows.shape[1:]).swapaxes(0, 1)
    rows = rows.reshape(count, -1, *rows.shape[3:])
    return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(None, parallel.AXES)))
