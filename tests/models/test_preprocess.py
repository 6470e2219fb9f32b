"""Bytes to network input, against numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax.config import DataConfig, preprocessing
from r23d_jax.models.preprocess import prepare_video

PRE = dataclasses.replace(
    preprocessing(DataConfig()), num_frames=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), byte_range=False, input="rgb"
)
CLIP = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 6, 3), np.uint8)


def test_pixels_are_scaled_and_normalized() -> None:
    got = prepare_video(jnp.asarray(CLIP[:, :3]), PRE)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, (CLIP[:, :3] / 255 - np.array(PRE.mean)) / np.array(PRE.std), atol=1e-5)


def test_the_published_code_normalizes_bytes_by_one_half() -> None:
    pre = dataclasses.replace(PRE, byte_range=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    got = prepare_video(jnp.asarray(CLIP[:, :3]), pre)
    np.testing.assert_allclose(got, CLIP[:, :3] * 2.0 - 1, atol=1e-4)
    assert got.max() > 400


def test_differences_of_neighbouring_frames() -> None:
    pre = dataclasses.replace(PRE, input="rgb_diff")
    assert pre.read_frames == 4
    got = prepare_video(jnp.asarray(CLIP), pre)
    np.testing.assert_allclose(got, np.diff(CLIP / 255, axis=1) / np.array(PRE.std), atol=1e-5)


def test_frames_and_the_differences_from_the_ones_before_are_six_channels() -> None:
    pre = dataclasses.replace(PRE, input="rgb_and_diff")
    assert pre.read_frames == 4
    got = prepare_video(jnp.asarray(CLIP), pre)
    assert got.shape == (2, 3, 5, 6, 6)
    np.testing.assert_array_equal(got[..., :3], prepare_video(jnp.asarray(CLIP[:, 1:]), PRE))
    np.testing.assert_array_equal(
        got[..., 3:], prepare_video(jnp.asarray(CLIP), dataclasses.replace(PRE, input="rgb_diff"))
    )


@pytest.mark.parametrize(
    "video",
    [CLIP, CLIP[:, :3].astype(np.float32), CLIP[0, :3], CLIP[:, :3, ..., :1]],
    ids=["too many frames", "float", "no batch", "gray"],
)
def test_other_clips_are_refused(video: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(B, 3, H, W, 3\) for 3 frames of rgb"):
        prepare_video(jnp.asarray(video), PRE)
