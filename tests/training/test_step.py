"""One step: the same on one device and on eight, whole or split, and nothing waits for the host."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.config import Config, ConfigError, preprocessing
from r23d_jax.config.motion import MOTIONS
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.pipeline import train_batches
from r23d_jax.data.sources import open_index
from r23d_jax.models.functional import split_model
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import parallel
from r23d_jax.training import losses, plan
from tests.training import tiny
from tests.training.tiny import NUM_CLASSES, batch, start, tiny_config

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


def on_meshes_config() -> Config:
    """SGD, because Adam turns the rounding of tiny gradients into steps."""
    cfg = tiny_config("r2plus3d", "vit")
    cfg.optimizer.name, cfg.train.ema_decay = "sgd", 0.5
    cfg.train.mixup = cfg.train.cutmix = 0.4
    cfg.model.stochastic_depth = cfg.model.head.embedding_dropout = cfg.model.head.attention_dropout = 0.2
    return cfg


def furthest(ours: TrainState, theirs: TrainState, tree: str) -> float:
    """The largest difference of any value, relative to the largest value of its leaf."""
    pairs = zip(jax.tree.leaves(getattr(ours, tree)), jax.tree.leaves(getattr(theirs, tree)), strict=True)
    return max(float(np.abs(a - b).max() / (np.abs(a).max() + 1e-3)) for a, b in pairs)


@pytest.fixture(scope="module")
def on_one_device() -> tuple[TrainState, list[float]]:
    return run(on_meshes_config(), 1)


# One axis, both, and the other one: each compiles a program of its own
@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4), pytest.param(1, 8, marks=pytest.mark.long)])
def test_any_mesh_computes_what_one_device_does(
    on_one_device: tuple[TrainState, list[float]], data: int, fsdp: int
) -> None:
    """BN included: its statistics are those of the global batch.

    The sums are the same in another order: three steps were seen to move the losses by 3e-7 and no value by more than
    4e-6 of the largest of its leaf. Other clips to a step, statistics of a part of the batch or a mean taken for a sum
    move them by 1e-2 and more.
    """
    one, losses = on_one_device
    cfg = on_meshes_config()
    cfg.parallel.fsdp = fsdp
    state, found = run(cfg, data * fsdp)
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-5)
    for name in ("params", "batch_stats", "ema"):
        assert furthest(one, state, name) < 1e-4, name
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_fsdp_divides_the_memory_of_large_leaves() -> None:
    """On every device alike, by as much as `plan` says without a device."""
    found = {}
    for fsdp in (1, 2, 8):
        cfg = tiny_config()
        cfg.model.widths = (8, 16, 64, 128)
        cfg.parallel.fsdp = fsdp
        state, _, _, mesh = start(cfg, 8)
        leaves = jax.tree.leaves(state)
        held = {sum(leaf.addressable_shards[i].data.nbytes for leaf in leaves) for i in range(8)}
        assert held == {plan.held(state)}
        found[fsdp], total = held.pop(), sum(leaf.nbytes for leaf in leaves)
        large = [leaf.nbytes for leaf in leaves if leaf.size >= parallel.MIN_SHARDED_SIZE]
        assert found[fsdp] == total - sum(large) + sum(large) // fsdp
    assert found[8] < 0.25 * found[1]  # the rest are leaves too small to be split


@pytest.mark.parametrize("fsdp", [1, 8, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.slow
def test_a_compiled_step_gathers_parameters_and_sums_gradients_once(fsdp: int) -> None:
    """Each split parameter is gathered once, gradients are added up, statistics of BN and a few scalars besides.

    Counted in the program that XLA makes: bytes that its collectives yield, of which a ring moves (n - 1) / n for a
    gather and twice that for a sum. A sum over two axes in turn counts twice here.
    """
    cfg = tiny_config("r2plus1d")
    cfg.model.widths, cfg.parallel.fsdp = (16, 16, 64, 64), fsdp
    state, _, step, mesh = start(cfg, 8)
    program = step.lower(state, batch(cfg, mesh)).compile().as_text()  # type: ignore[attr-defined]
    collectives = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    yielded = dict.fromkeys(collectives.split("|"), 0)
    for shapes, name in re.findall(rf" = (.+?) ({collectives})(?:-start)?\(", program):
        sizes = re.findall(r"[a-z]+32\[([\d,]*)\]", shapes)
        yielded[name] += sum(4 * math.prod(map(int, filter(None, size.split(",")))) for size in sizes)
    params = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert params - plan.held(state.params) == yielded["all-gather"] * (fsdp - 1) // fsdp
    assert params <= yielded["all-reduce"] + yielded["reduce-scatter"] < (1.6 if fsdp == 2 else 1.1) * params
    assert not yielded["all-to-all"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_frozen_parts_cost_no_backward_pass() -> None:
    """The first parts need a forward pass alone, which is a third of the work of a step."""

    def operations(freeze: tuple[str, ...]) -> float:
        cfg = tiny_config()
        cfg.optimizer.freeze = freeze
        state, _, step, mesh = start(cfg)
        return step.lower(state, batch(cfg, mesh)).compile().cost_analysis()["flops"]  # type: ignore[attr-defined]

    assert operations(STAGES) < 0.5 * operations(())


def test_moving_average_and_randomness_of_the_step_alone() -> None:
    cfg = tiny_config()
    cfg.train.ema_decay, cfg.model.head.dropout, cfg.train.mixup = 0.75, 0.5, 0.4
    fresh, shardings, step, mesh = start(cfg)
    fresh = jax.device_get(fresh)
    for done, decay in ((0, 0.1), (8, 0.5), (26, 0.75), (900, 0.75)):
        before = dataclasses.replace(fresh, step=np.int32(done))
        state, first = step(jax.device_put(before, shardings), batch(cfg, mesh))
        after = jax.device_get(state)
        jax.tree.map(
            lambda old, new, ema, decay=decay: np.testing.assert_allclose(
                ema, decay * old + (1 - decay) * new, atol=1e-6
            ),
            before.ema,
            after.params,
            after.ema,
        )
        assert after.step == done + 1 and after.eval_params is after.ema
        _, again = step(jax.device_put(before, shardings), batch(cfg, mesh))
        assert again["train/loss"] == first["train/loss"]  # the same step draws the same dropout and mixup


@pytest.mark.long
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
        ConfigError,
        match=r"^config\.train\.global_batch_size=8 / accumulate=2 = 4: must be a multiple of the 8 devices$",
    ):
        start(cfg, 8)
    cfg.train.accumulate, cfg.data.repeats = 1, 2
    with pytest.raises(ConfigError, match=r"= 8: must be a multiple of the 8 devices times data\.repeats=2"):
        start(cfg, 8)


@pytest.mark.parametrize(
    ("accumulate", "cutmix"),
    [pytest.param(1, 0.0, marks=pytest.mark.slow), pytest.param(2, 0.0, marks=pytest.mark.long), (2, 1.0)],
)
def test_a_step_is_its_definition(accumulate: int, cutmix: float) -> None:
    """Loss, accuracy, gradients, statistics and update, with smoothing, mixup, dropout and masked rows.

    All randomness comes from (seed, step): each micro-batch has a key of its own, and every second row.
    """
    cfg = tiny_config()
    cfg.seed, cfg.train.accumulate, cfg.train.label_smoothing, cfg.train.mixup = 5, accumulate, 0.1, 0.4
    cfg.train.cutmix, cfg.train.still_mix = cutmix, cutmix / 2
    cfg.model.head.dropout, cfg.model.block_dropout, cfg.optimizer.name = 0.5, 0.25, "sgd"
    cfg.optimizer.momentum, cfg.optimizer.nesterov, cfg.optimizer.clip_norm = 0.0, False, 0.0
    cfg.optimizer.learning_rate, cfg.optimizer.schedule, cfg.optimizer.warmup_epochs = 0.5, "cosine", 1.0
    state, shardings, step, mesh = start(cfg)
    state = jax.device_put(dataclasses.replace(jax.device_get(state), step=np.int32(6)), shardings)
    before = jax.device_get(state)
    clips = batch(cfg, mesh) | {"mask": jnp.asarray([1.0, 1, 1, 0, 1, 0, 1, 1])}
    after, metrics = jax.device_get(step(state, clips))

    network, _, _ = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, NUM_CLASSES)))
    pre = preprocessing(cfg.data)

    def loss_of(params: Any, stats: Any, rows: dict[str, Any], key: jax.Array) -> tuple[jax.Array, tuple]:
        dropout_key, mix_key, still_key = jax.random.split(key, 3)
        video, targets = prepare_video(rows["video"], pre), losses.one_hot(rows["label"], NUM_CLASSES, 0.1)
        video = losses.add_stills(still_key, video, cfg.train.still_mix, "rgb")
        video, targets = losses.mix(mix_key, video, targets, cfg.train)
        logits, stats = network.apply_train(params, stats, video, dropout_key)
        top1 = losses.accuracy(logits, rows["label"], rows["mask"])
        return losses.cross_entropy(logits, targets, rows["mask"]), (stats, top1)

    grad_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    key = jax.random.fold_in(jax.random.key(5), 6)
    keys = [key] if accumulate == 1 else list(jax.random.split(key, accumulate))
    stats, parts = before.batch_stats, []
    for k in range(accumulate):
        rows = {name: jnp.asarray(np.asarray(value)[k::accumulate]) for name, value in clips.items()}
        (loss, (stats, top1)), grads = grad_of(before.params, stats, rows, keys[k])
        parts.append((loss, top1, grads))
    loss, top1, grads = jax.tree.map(lambda *values: sum(values) / accumulate, *parts)

    rate = 0.5 * 7 / 10  # the seventh step of ten of warm-up
    norm = math.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(grads)))
    wanted = {"train/loss": loss, "train/top1": top1, "train/grad_norm": norm, "train/learning_rate": rate}
    assert metrics.keys() == wanted.keys() and {value.dtype for value in metrics.values()} == {np.dtype("float32")}
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    # the optimizer counts its own steps, and this is its first
    moved = jax.tree.map(lambda old, grad: old - 0.5 / 10 * grad, before.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.batch_stats, stats)
    assert after.step == 7 and after.ema == {}


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.long
def test_micro_batches_of_pseudo_motion_are_whole_pictures(num_devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of each class, wherever the clips are made. Rows in turns would give each micro-batch three classes."""
    monkeypatch.setattr(tiny, "NUM_CLASSES", len(MOTIONS))
    cfg = tiny_config()
    cfg.data.source, cfg.data.hold_out, cfg.data.short_side, cfg.data.flip = "pictures", 0.5, 24, False
    cfg.data.repeats, cfg.data.motion.speeds = len(MOTIONS), (1, 2)
    cfg.train.global_batch_size, cfg.train.accumulate, cfg.optimizer.name = 54, 3, "sgd"
    given: dict[str, Any] = {"seed": 0, "global_batch_size": 54, "start_step": 0, "num_steps": 1}
    index, ends = open_index(cfg.data, "train"), []
    for on_device in (False, True):
        state, _, step, mesh = start(cfg, num_devices)
        (clips,) = train_batches(index, cfg.data, **given, broken=BrokenLog(cfg.data), on_device=on_device)
        assert ("motion" in clips) is on_device
        state, metrics = jax.device_get(step(state, parallel.global_batch(clips, mesh)))
        ends.append((state, [float(metrics["train/loss"])]))
    np.testing.assert_allclose(*(losses for _, losses in ends), rtol=1e-6)
    assert_close(ends[0][0], ends[1][0], atol=1e-6)
