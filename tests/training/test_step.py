"""One step: the same on one device and on eight, whole or split, and nothing waits for the host."""

import jax
import numpy as np
import pytest

from r23d_jax.config import Config, ConfigError
from r23d_jax.training.state import TrainState
from tests.training.tiny import batch, start, tiny_config

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")


def run(cfg: Config, num_devices: int, steps: int = 3) -> tuple[TrainState, list[float]]:
    state, _, step, mesh = start(cfg, num_devices)
    losses = []
    for k in range(steps):
        state, metrics = step(state, batch(cfg, mesh, seed=k))
        losses.append(metrics["train/loss"])
    return jax.device_get(state), jax.device_get(losses)


def assert_close(ours: TrainState, theirs: TrainState, atol: float) -> None:
    for name in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=atol), getattr(ours, name), getattr(theirs, name)
        )


def test_eight_devices_compute_what_one_does() -> None:
    """BN included: its mean is over the global batch. SGD, because Adam turns rounding of tiny gradients into steps."""
    cfg = tiny_config("r2plus3d", "vit")
    cfg.optimizer.name = "sgd"
    one, losses_one = run(cfg, 1)
    cfg.parallel.fsdp = 2
    eight, losses_eight = run(cfg, 8)
    # float32 sums in another order; rate 1e-2 and three steps
    np.testing.assert_allclose(losses_one, losses_eight, rtol=2e-4)
    assert_close(one, eight, atol=2e-4)
    assert losses_one[0] != losses_one[1]


def test_fsdp_divides_the_memory_of_large_leaves() -> None:
    def bytes_per_device(fsdp: int) -> tuple[int, int]:
        cfg = tiny_config()
        cfg.model.widths = (8, 16, 64, 128)
        cfg.parallel.fsdp = fsdp
        state, _, _, _ = start(cfg, 8)
        leaves = jax.tree.leaves((state.params, state.opt_state))
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves), sum(leaf.nbytes for leaf in leaves)

    whole, total = bytes_per_device(1)
    divided, total_again = bytes_per_device(8)
    assert whole == total == total_again
    assert divided < 0.25 * total  # small leaves stay whole


def test_accumulation_equals_one_large_batch_where_no_statistic_is_of_the_batch() -> None:
    cfg = tiny_config()
    cfg.optimizer.freeze = STAGES
    whole, losses_whole = run(cfg, 2)
    cfg.train.accumulate = 4
    split, losses_split = run(cfg, 2)
    np.testing.assert_allclose(losses_whole, losses_split, rtol=1e-5)
    assert_close(whole, split, atol=1e-5)


def test_frozen_parts_keep_parameters_and_statistics() -> None:
    cfg = tiny_config()
    cfg.optimizer.freeze = ("stem", "stage1")
    cfg.optimizer.weight_decay = 0.1
    state, _, step, mesh = start(cfg)
    before = jax.device_get(state)
    state, _ = step(state, batch(cfg, mesh))
    after = jax.device_get(state)
    for tree in ("params", "batch_stats"):
        old, new = getattr(before, tree), getattr(after, tree)
        for part in (lambda t: t["stem"], lambda t: t["stages"]["0"]):
            jax.tree.map(np.testing.assert_array_equal, part(old), part(new))
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), old["stages"]["1"], new["stages"]["1"])
        assert any(jax.tree.leaves(moved))


def test_moving_average_and_randomness_of_the_step_alone() -> None:
    cfg = tiny_config()
    cfg.train.ema_decay, cfg.model.head.dropout, cfg.train.mixup = 0.75, 0.5, 0.4
    state, shardings, step, mesh = start(cfg)
    before = jax.device_get(state)
    state, first = step(state, batch(cfg, mesh))
    after = jax.device_get(state)
    jax.tree.map(
        lambda old, new, ema: np.testing.assert_allclose(ema, 0.75 * old + 0.25 * new, atol=1e-6),
        before.ema,
        after.params,
        after.ema,
    )
    assert after.step == 1 and after.eval_params is after.ema
    _, again = step(jax.device_put(before, shardings), batch(cfg, mesh))
    assert again["train/loss"] == first["train/loss"]  # the same step draws the same dropout and mixup


def test_a_batch_can_be_learnt_by_heart_without_the_host() -> None:
    cfg = tiny_config("r2plus3d", "vit")
    state, _, step, mesh = start(cfg)
    clips = batch(cfg, mesh)
    state, metrics = step(state, clips)
    first = float(metrics["train/loss"])
    old = state
    with jax.transfer_guard("disallow"):
        for _ in range(40):
            state, metrics = step(state, clips)
    assert float(metrics["train/loss"]) < 0.1 * first and float(metrics["train/top1"]) == 1.0
    assert jax.tree.leaves(old.params)[0].is_deleted()  # its memory went to the next state


def test_batches_that_do_not_divide_are_refused() -> None:
    cfg = tiny_config()
    cfg.train.global_batch_size, cfg.train.accumulate = 8, 2
    with pytest.raises(
        ConfigError, match=r"global_batch_size=8 / accumulate=2 = 4: must be a multiple of the 8 devices"
    ):
        start(cfg, 8)
