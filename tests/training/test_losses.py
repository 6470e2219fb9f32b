"""Losses and counts against torch, and what masks leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
