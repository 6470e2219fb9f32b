"""Losses and counts against torch, and what masks leave out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax.config import TrainConfig
from r23d_jax.runtime import parallel
from r23d_jax.runtime.compiled import collectives, plain_text
from r23d_jax.training import losses

LOGITS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32) * 3
LABEL = np.array([0, 3, 1, 2, 2, 0])
ONES = jnp.ones(6)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    want = torch.nn.functional.cross_entropy(torch.tensor(LOGITS), torch.tensor(LABEL), label_smoothing=smoothing)
    got = losses.cross_entropy(jnp.asarray(LOGITS), losses.one_hot(jnp.asarray(LABEL), 4, smoothing), ONES)
    np.testing.assert_allclose(got, want.item(), rtol=1e-5)


def test_masked_rows_do_not_count() -> None:
    targets = losses.one_hot(jnp.asarray(LABEL), 4)
    mask = jnp.asarray([1.0, 1, 1, 1, 0, 0])
    few = losses.cross_entropy(jnp.asarray(LOGITS[:4]), targets[:4], jnp.ones(4))
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(LOGITS), targets, mask), few, rtol=1e-6)
    wrong = jnp.asarray(np.where(mask[:, None] > 0, np.eye(4)[LABEL], -np.eye(4)[LABEL]), jnp.float32)
    assert losses.accuracy(wrong, jnp.asarray(LABEL), mask) == 1.0
    assert losses.cross_entropy(jnp.asarray(LOGITS), targets, jnp.zeros(6)) == 0.0
    one = jnp.zeros(6).at[2].set(1.0)
    alone = -jax.nn.log_softmax(LOGITS[2])[LABEL[2]]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(LOGITS), targets, one), alone, rtol=1e-6)
    assert losses.accuracy(targets, jnp.asarray(LABEL), one) == 1.0
    with jax.enable_x64(True):  # counts stay float32, as everything in a step is
        assert losses.accuracy(targets, jnp.asarray(LABEL), one).dtype == jnp.float32


def test_targets_are_not_smoothed_unless_asked_for() -> None:
    np.testing.assert_array_equal(losses.one_hot(jnp.asarray(LABEL), 4), np.eye(4)[LABEL])
    smoothed = losses.one_hot(jnp.asarray(LABEL), 4, 0.2)
    np.testing.assert_allclose(smoothed, 0.8 * np.eye(4)[LABEL] + 0.05, rtol=1e-6)


def test_mixup_mixes_clips_and_targets_with_one_weight() -> None:
    video = jnp.arange(4.0).reshape(4, 1, 1, 1, 1)
    targets = jnp.eye(4)
    mixed, mixed_targets = losses.mixup(jax.random.key(0), video, targets, 0.8)
    weight = float(mixed_targets[0, 0])
    assert 0 < weight < 1
    np.testing.assert_allclose(mixed.ravel(), weight * np.arange(4) + (1 - weight) * np.arange(4)[::-1], rtol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(1), 1.0, rtol=1e-6)
    other, _ = losses.mixup(jax.random.key(1), video, targets, 0.8)
    assert not np.allclose(mixed, other)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_replaces_one_box_in_all_frames_and_targets_follow_its_area(seed: int) -> None:
    video = jnp.broadcast_to(jnp.arange(4.0).reshape(4, 1, 1, 1, 1), (4, 3, 12, 10, 2))
    mixed, targets = losses.cutmix(jax.random.key(seed), video, jnp.eye(4), 1.0)
    foreign: Any = np.not_equal(mixed, video)
    box = foreign[0, 0, :, :, 0]
    assert np.array_equal(foreign, np.broadcast_to(box[None, None, :, :, None], foreign.shape))
    rows, columns = box.any(axis=1), box.any(axis=0)
    assert np.array_equal(box, rows[:, None] & columns[None, :])
    assert all(np.sum(np.diff(np.flatnonzero(side)) > 1) == 0 for side in (rows, columns))  # one box, whole
    np.testing.assert_array_equal(mixed[:, :, box], video[::-1][:, :, box])
    want = (1 - box.mean()) * np.eye(4) + box.mean() * np.eye(4)[::-1]
    np.testing.assert_allclose(targets, want, atol=1e-6)


def test_the_share_of_the_box_is_drawn_from_the_beta_distribution() -> None:
    """Boxes that stick out are cut off, so the mean share is below that of the distribution, one half."""
    video = jnp.broadcast_to(jnp.arange(2.0).reshape(2, 1, 1, 1, 1), (2, 1, 20, 20, 1))
    shares = {}
    for alpha in (0.2, 8.0):
        share = jax.jit(jax.vmap(lambda key, alpha=alpha: losses.cutmix(key, video, jnp.eye(2), alpha)[1][0, 1]))
        shares[alpha] = np.asarray(share(jax.random.split(jax.random.key(0), 1000)))
        assert 0.25 < shares[alpha].mean() < 0.4
    assert np.mean(shares[0.2] < 0.02) > 0.2 and shares[0.2].std() > 0.2
    assert np.mean(shares[8.0] < 0.02) < 0.01 and shares[8.0].std() < 0.15


@pytest.mark.parametrize(("source", "moved"), [("rgb", [True] * 3), ("rgb_and_diff", [True] * 3 + [False] * 3)])
def test_a_still_frame_of_the_mirrored_clip_is_blended_into_all_frames(source: str, moved: list[bool]) -> None:
    video = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 2, 2, len(moved))), jnp.float32)
    frames, weights = set(), []
    for key in jax.random.split(jax.random.key(0), 8):
        mixed = np.asarray(losses.add_stills(key, video, 0.75, source), np.float64)
        change = mixed[:, 1:] - mixed[:, :-1]  # a still frame adds nothing to it
        for row in range(4):
            kept = (
                change[row].ravel() @ np.diff(video[row], axis=0).ravel() / np.square(np.diff(video[row], axis=0)).sum()
            )
            np.testing.assert_allclose(change[row], kept * np.diff(video[row], axis=0), atol=1e-5)
            still = (mixed[row] - kept * video[row]) / (1 - kept)
            found = [t for t in range(5) if np.allclose(still[0, ..., :3], video[3 - row, t, ..., :3], atol=1e-3)]
            assert len(found) == 1
            np.testing.assert_allclose(still[..., 3:], 0.0, atol=1e-4)
            frames.add(found[0])
            weights.append(1 - kept)
    assert len(frames) > 2 and 0 < min(weights) and 0.6 < max(weights) <= 0.75
    assert np.std(weights) > 0.1


def test_devices_send_each_other_still_frames_and_not_clips() -> None:
    mesh = parallel.make_mesh(fsdp=1)
    rows, whole = parallel.batch_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    video = jax.ShapeDtypeStruct((16, 10, 8, 8, 3), jnp.float32, sharding=rows)
    run = jax.jit(lambda key, video: losses.add_stills(key, video, 0.7, "rgb"), out_shardings=rows)
    program = run.lower(jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole), video).compile()
    sent = sum(size for _, size in collectives(plain_text(program), mesh.size).values())
    clips = video.size * 4 / mesh.size  # of one device
    assert clips / 20 < sent < clips / 5


def test_with_both_ways_of_mixing_each_comes_half_of_the_time() -> None:
    video, targets = jnp.broadcast_to(jnp.arange(2.0).reshape(2, 1, 1, 1, 1), (2, 1, 8, 8, 1)), jnp.eye(2)
    run = jax.jit(lambda key: losses.mix(key, video, targets, TrainConfig(mixup=8.0, cutmix=8.0)))
    ways, centers = [], []
    for key in jax.random.split(jax.random.key(0), 60):
        mixed = np.asarray(run(key)[0])
        ways.append(bool(np.isin(mixed, (0.0, 1.0)).all()))
        want = (losses.cutmix if ways[-1] else losses.mixup)(jax.random.split(key)[1], video, targets, 8.0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run(key), want)
        if ways[-1]:
            centers.append(np.flatnonzero((mixed != video)[0, 0].any((1, 2))).mean())
    assert 0.3 < np.mean(ways) < 0.7
    assert min(centers) < 3 and max(centers) > 4  # of the box's rows; 3.5 is the middle
    same = losses.mix(jax.random.key(0), video, targets, TrainConfig())
    assert same[0] is video and same[1] is targets
